"""What a sweep searches: fields of the configuration with their values or ranges, as a person writes them.

`temperature=0.1,0.2,0.5` is a list, `temperature=log(0.05,0.5)` a range in which random search and Optuna may take any
value. Everything is held against the configuration before anything starts: a field must exist, and every value, both
ends of a range included, must be one that the field takes.
"""

import hashlib
import json
import math
import random
import re
from typing import Any, Literal

import yaml
from pydantic import Field, model_validator

from sepscene.models.config import Config, SepsceneError
from sepscene.orchestration.config import Experiment
from sepscene.orchestration.records.results import Setting

SHORT_NAMES = {
    "combination": "views.combination",
    "pair": "views.pair",
    "specaugment": "views.specaugment",
    "temperature": "objective.temperature",
    "alpha": "objective.alpha",
    "learning_rate": "training.learning_rate",
    "dim": "encoder.embedding_dim",
}
"""What people call the fields that are swept most."""

DIGITS = 4
"""Significant digits of a value out of a range, so that a trial's name says its setting exactly."""

_LONGEST = 60  # characters of a value in a name; folders have names of 255 at most

_SHARED = ("data", "separator", "store", "resources")
_SINGLE = {
    "seed": "every setting is run with several seeds by --seeds",
    "name": "it is the experiment's own",
    "scale": "it decides too much at once: run one sweep for each scale",
    "table_row": "it is the experiment's own",
}
_RANGE = re.compile(r"(?P<kind>log|uniform|int)\((?P<low>[^,()]+),(?P<high>[^,()]+)\)")


class Range(Config):
    """Any value between two ends."""

    kind: Literal["log", "uniform", "int"] = Field(
        description="`log`: equally likely in every decade; `uniform`; `int`: whole numbers, both ends included"
    )
    low: float
    high: float

    @model_validator(mode="after")
    def _in_order(self) -> "Range":
        if not self.low < self.high:
            raise ValueError(f"the range {self} is empty: its first end must be below its second")
        if self.kind == "log" and self.low <= 0:
            raise ValueError(f"the range {self} starts at {self.low:g}, where there is no logarithm; use uniform(…)")
        if self.kind == "int" and not (self.low.is_integer() and self.high.is_integer()):
            raise ValueError(f"the range {self} must have whole ends")
        return self

    def __str__(self) -> str:
        return f"{self.kind}({self.low:g},{self.high:g})"

    @property
    def ends(self) -> tuple[float, float] | tuple[int, int]:
        """Both ends, whole numbers where the range is of those."""
        return (int(self.low), int(self.high)) if self.kind == "int" else (self.low, self.high)

    def draw(self, rng: random.Random) -> float | int:
        """One value."""
        if self.kind == "int":
            return rng.randint(int(self.low), int(self.high))
        if self.kind == "log":
            return rounded(math.exp(rng.uniform(math.log(self.low), math.log(self.high))))
        return rounded(rng.uniform(self.low, self.high))


Space = dict[str, list[Any] | Range]
"""Dotted field -> its values, or the range that they come from."""


def rounded(value: float) -> float:
    """The value with as many significant digits as names show."""
    return float(f"{value:.{DIGITS}g}")


def readable(value: Any) -> Any:
    """A value as Tune chose it: numbers with the digits that names show, choices out of their JSON."""
    if isinstance(value, str):
        return json.loads(value)
    return rounded(value) if isinstance(value, float) else value


def split_fields(texts: list[str]) -> dict[str, str]:
    """["temperature=log(0.05,0.5)", "combination=S2,S2+N"] to fields with their values as text.

    Raises:
        SepsceneError: for a text that is not FIELD=VALUES, or a field that is given twice.
    """
    fields: dict[str, str] = {}
    for text in texts:
        name, equals, values = text.partition("=")
        if not equals or not values:
            raise SepsceneError(
                f"--over {text!r} must look like FIELD=VALUE,VALUE or FIELD=log(LOW,HIGH), e.g. temperature=0.1,0.2"
            )
        if name in fields:
            raise SepsceneError(f"--over gives {name} twice: put all its values behind one {name}=")
        fields[name] = values
    return fields


def parse_values(field: str, values: Any) -> list[Any] | Range:
    """A field's values: a list as YAML brings it, or text as the command line does.

    Raises:
        SepsceneError: for a range that cannot be.
    """
    if isinstance(values, str):
        found = _RANGE.fullmatch(values.replace(" ", ""))
        if found:
            return _range(field, found)
        values = _split(values)
    listed = values if isinstance(values, list) else [values]
    return [_value(field, value) for value in listed]


def _range(field: str, found: re.Match[str]) -> Range:
    try:
        return Range(kind=found["kind"], low=float(found["low"]), high=float(found["high"]))
    except ValueError as error:
        reason = str(error.errors()[0]["msg"]) if hasattr(error, "errors") else str(error)
        raise SepsceneError(f"{field}={found[0]}: {reason.removeprefix('Value error, ')}") from None


def _split(text: str) -> list[str]:
    """At the commas outside of brackets."""
    parts, depth = [""], 0
    for character in text:
        depth += (character in "[{(") - (character in ")}]")
        if character == "," and not depth:
            parts.append("")
        else:
            parts[-1] += character
    return parts


def _value(field: str, value: Any) -> Any:
    if not isinstance(value, str):
        return value
    if field == "views.combination":
        return value.split("+")
    try:
        return yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise SepsceneError(f"{field}: {value!r} is not YAML ({error})") from None


def checked_space(base: Experiment, space: Space) -> Space:
    """The same with every value as the configuration reads it ("1e-3" is a number), or an error.

    Values are tried one at a time, each beside the others' first, so that the message names the one at fault.

    Raises:
        SepsceneError: for a field that does not exist or cannot be swept, or a value that it refuses.
    """
    for field in space:
        _refuse_unsweepable(field)
    firsts = {
        field: values.ends[0] if isinstance(values, Range) else values[0] for field, values in space.items() if values
    }
    checked: Space = {}
    for field, values in space.items():
        ends = list(values.ends) if isinstance(values, Range) else values
        if not ends:
            raise SepsceneError(f"{field} has no values to sweep over")
        typed = [_typed(base, {**firsts, field: value}, field) for value in ends]
        if isinstance(values, Range) and any(isinstance(end, int) for end in typed) and values.kind != "int":
            raise SepsceneError(f"{field} takes whole numbers: write int({values.low:g},{values.high:g})")
        if len({json.dumps(value) for value in typed}) < len(typed):
            raise SepsceneError(f"{field} has the same value twice: {typed}")
        checked[field] = values if isinstance(values, Range) else typed
    return checked


def _refuse_unsweepable(field: str) -> None:
    part = field.split(".")[0]
    if field in _SINGLE:
        raise SepsceneError(f"{field} cannot be swept: {_SINGLE[field]}")
    if part == "evaluation":
        raise SepsceneError(
            f"{field} cannot be swept: figures of trials that are judged in different ways say nothing about each "
            f"other; change it for all of them with --set {field}=…"
        )
    if part in _SHARED and field != "separator.checkpoints":
        raise SepsceneError(
            f"{field} cannot be swept: all trials share the data, the separator, the store and the resources; "
            f"change it for all of them with --set {field}=…, or run one sweep for each value"
        )


def _typed(base: Experiment, setting: dict[str, Any], field: str) -> Any:
    """The field's value in the validated configuration."""
    tree: Any = base.changed(setting).model_dump(mode="json")
    for key in field.split("."):
        tree = tree[key]
    if isinstance(setting[field], bool) and not isinstance(tree, bool):
        raise SepsceneError(f"{field} takes a number, not {setting[field]!r}")
    return tree


def grid_size(space: Space) -> float:
    """How many settings a space holds; no end where it has a range."""
    return math.prod(math.inf if isinstance(values, Range) else len(values) for values in space.values())


def drawn(space: Space, count: int, seed: int) -> list[dict[str, Any]]:
    """So many different settings at random, the same for the same seed.

    Fewer come out where the space holds fewer.
    """
    rng = random.Random(seed)
    settings: dict[str, dict[str, Any]] = {}
    for _ in range(100 * count):
        setting = {
            field: values.draw(rng) if isinstance(values, Range) else rng.choice(values)
            for field, values in space.items()
        }
        settings.setdefault(setting_name(setting), setting)
        if len(settings) == count:
            break
    return list(settings.values())


def setting_name(setting: dict[str, Any]) -> str:
    """combination=S2+N,temperature=0.1: a setting as the name of a folder says it."""
    return ",".join(f"{field.split('.')[-1]}={_short(value)}" for field, value in setting.items())


def _short(value: Any) -> str:
    if isinstance(value, list | tuple) and all(isinstance(part, str) for part in value):
        return "+".join(value)
    if isinstance(value, list | tuple) and all(isinstance(part, int | float) for part in value):
        return "-".join(f"{part:g}" for part in value)
    text = json.dumps(value, sort_keys=True) if isinstance(value, list | dict) else str(value)
    text = re.sub(r"[^\w.+-]+", "_", text).strip("_")
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def shown_setting(setting: dict[str, Any]) -> dict[str, Setting]:
    """A setting as results keep it: names as a tuple, other lists and trees as text."""
    return {field: _shown(value) for field, value in setting.items()}


def _shown(value: Any) -> Setting:
    if isinstance(value, list) and all(isinstance(part, str) for part in value):
        return tuple(value)
    return _short(value) if isinstance(value, list | dict) else value
