"""The search space of a sweep: fields of the configuration, each with a list of values or a range of Ray Tune.

`temperature=0.1,0.2,0.5` is a list. `temperature=loguniform(0.05,0.5)` is a range, from which random search and Optuna
draw values. The space is checked against the configuration before anything starts: each field must exist and accept
all of its values, or both ends of its range.
"""

import ast
import json
import re
from typing import Any

import numpy as np
import ray.tune
from ray.tune.search.sample import Domain, Float, Integer

from sepscene.models.config import SepsceneError
from sepscene.models.spelling import unknown
from sepscene.orchestration.config import Experiment
from sepscene.orchestration.records.results import Setting
from sepscene.orchestration.yaml_files import parse_yaml

SHORT_NAMES = {
    "combination": "views.combination",
    "pair": "views.pair",
    "specaugment": "views.specaugment",
    "temperature": "objective.temperature",
    "alpha": "objective.alpha",
    "learning_rate": "training.learning_rate",
    "dim": "encoder.embedding_dim",
}
"""Short names of the fields that are swept most."""

RANGES = ("uniform", "loguniform", "randint", "lograndint")
"""Tune's functions for ranges; as in Tune, the integer ranges exclude their upper end."""

_RENAMED = {"log": "loguniform(LOW,HIGH)", "int": "randint(LOW,HIGH), where HIGH itself is not drawn"}
_SHARED = (
    "all trials share the data, the separator, the store and the resources; change it for all of them with "
    "--set {field}=…, or run one sweep per value"
)
_NOT_SWEPT = {
    "seed": "use --seeds to run every setting with several seeds",
    "name": "it identifies the experiment",
    "table_row": "it identifies the experiment",
    "scale": "it changes many settings together: run one sweep per scale",
    "evaluation": "metrics of different evaluation settings cannot be compared; change it for all trials with "
    "--set {field}=…",
    "views.background": "exchanged works with `reproduce --scale mini` only",
    **dict.fromkeys(("data", "separator", "store", "resources"), _SHARED),
}
"""Field or section -> why it cannot be swept."""

Space = dict[str, list[Any] | Domain]
"""Dotted field -> the list of its values, or the range that they are drawn from."""


def split_fields(texts: list[str]) -> dict[str, str]:
    """Split arguments such as ["temperature=loguniform(0.05,0.5)", "combination=S2,S2+N"] into field -> values as text.

    Raises:
        SepsceneError: when an argument is not FIELD=VALUES, or a field is given twice.
    """
    fields: dict[str, str] = {}
    for text in texts:
        name, equals, values = text.partition("=")
        if not equals or not values:
            raise SepsceneError(
                f"--over {text!r} must look like FIELD=VALUE,VALUE or FIELD=loguniform(LOW,HIGH), "
                "e.g. temperature=0.1,0.2"
            )
        if name in fields:
            raise SepsceneError(f"--over gives {name} twice: list all its values after one {name}=")
        fields[name] = values
    return fields


def parse_values(field: str, values: Any) -> list[Any] | Domain:
    """The values of a field, given as a list (from YAML) or as text (from the command line).

    Raises:
        SepsceneError: when the text cannot be read, or the range is not valid.
    """
    if isinstance(values, str):
        call = re.fullmatch(r"\s*([a-z]+)\((.*)\)\s*", values)
        if call:
            return _range(field, call[1], call[2])
        values = parse_yaml(f"[{values}]", f"{field}: {values!r}")
    listed = values if isinstance(values, list) else [values]
    if field == "views.combination":
        return [value.split("+") if isinstance(value, str) else value for value in listed]
    return listed


def _range(field: str, kind: str, arguments: str) -> Domain:
    text = f"{field}={kind}({arguments})"
    if kind not in RANGES:
        renamed = f"; write {_RENAMED[kind]}" if kind in _RENAMED else ""
        raise SepsceneError(f"{text}: {unknown(kind, RANGES, 'range')}{renamed}")
    try:
        low, high = ast.literal_eval(f"({arguments},)")
        if not low < high:
            raise ValueError("the range is empty: its lower end must be below its upper end")
        return getattr(ray.tune, kind)(low, high)
    except (ValueError, TypeError, SyntaxError) as error:
        raise SepsceneError(f"{text}: {error}; a range has two numbers, e.g. loguniform(0.05,0.5)") from None


def checked_space(base: Experiment, space: Space) -> Space:
    """The space with every value converted to the type of its field (e.g. "1e-3" to a number).

    Each value is checked separately, together with the first values of the other fields, so that the message names the
    wrong value.

    Raises:
        SepsceneError: when a field does not exist or cannot be swept, or refuses a value.
    """
    for field, values in space.items():
        reason = _NOT_SWEPT.get(field) or _NOT_SWEPT.get(field.partition(".")[0])
        if reason and field != "separator.checkpoints":
            raise SepsceneError(f"{field} cannot be swept: {reason.format(field=field)}")
        if not _ends(values):
            raise SepsceneError(f"{field} has no values to sweep over")
    settings = single_changes(space)
    checked: Space = {}
    for field, values in space.items():
        typed = [_typed(base, setting, field) for setting in settings[field]]
        if isinstance(values, Float) and isinstance(typed[0], int):
            raise SepsceneError(f"{field} takes whole numbers: write randint({values.lower:g},{values.upper + 1:g})")
        if len({json.dumps(value) for value in typed}) < len(typed):
            raise SepsceneError(f"{field} has the same value twice: {typed}")
        checked[field] = values if isinstance(values, Domain) else typed
    return checked


def single_changes(space: Space) -> dict[str, list[dict[str, Any]]]:
    """Field -> settings with each of its values (of a range: its ends) and the first values of the other fields."""
    first = {field: _ends(values)[0] for field, values in space.items()}
    return {field: [{**first, field: value} for value in _ends(values)] for field, values in space.items()}


def _ends(values: list[Any] | Domain) -> list[Any]:
    """The values of a list, or both ends of a range."""
    if isinstance(values, Integer):
        return list(dict.fromkeys((values.lower, values.upper - 1)))
    if isinstance(values, Float):
        return [values.lower, values.upper]
    assert isinstance(values, list)  # RANGES create no other domain
    return values


def _typed(base: Experiment, setting: dict[str, Any], field: str) -> Any:
    """The value of the field in the validated configuration."""
    value = base.changed(setting).value_of(field)
    if isinstance(setting[field], bool) and not isinstance(value, bool):
        raise SepsceneError(f"{field} takes a number, not {setting[field]!r}")
    return value


def draw_settings(space: Space, count: int, seed: int) -> list[dict[str, Any]]:
    """Draw `count` different settings at random from Tune's domains, or fewer if the space has fewer.

    A larger count starts with the same ones. Tune's `BasicVariantGenerator` would repeat settings, and draw each only
    when its trial starts, too late for checking it and for planning what all trials share.
    """
    random = np.random.RandomState(seed)  # the type that Tune's domains require
    domains = {
        field: values if isinstance(values, Domain) else ray.tune.choice(values) for field, values in space.items()
    }
    settings: dict[str, dict[str, Any]] = {}
    for _ in range(100 * count):
        setting = {field: domain.sample(random_state=random) for field, domain in domains.items()}
        settings.setdefault(key_of(setting), setting)
        if len(settings) == count:
            break
    return list(settings.values())


def key_of(setting: dict[str, Any]) -> str:
    """A text that is equal for equal settings."""
    return json.dumps(setting, sort_keys=True)


def shown_setting(setting: dict[str, Any]) -> dict[str, Setting]:
    """A setting as stored in results: lists of names as tuples, lists of numbers as e.g. 3-1, others as JSON."""
    return {field: _shown(value) for field, value in setting.items()}


def _shown(value: Any) -> Setting:
    if isinstance(value, list | tuple) and all(isinstance(part, str) for part in value):
        return tuple(value)
    if isinstance(value, list | tuple) and all(isinstance(part, int | float) for part in value):
        return "-".join(f"{part:g}" for part in value)
    return json.dumps(value) if isinstance(value, list | dict) else value
