"""Write docs/configuration.md from the fields of the configuration.

python docs/make_configuration.py            # writes the page
python docs/make_configuration.py --check    # says whether it is current, writes nothing
"""

import sys
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from sepscene.orchestration.config import Experiment

PAGE = Path(__file__).parent / "configuration.md"
UNITS = {
    "_seconds": "s",
    "_samples": "samples",
    "_steps": "steps",
    "_hz": "Hz",
    "_db": "dB",
    "_bytes": "bytes",
    "_percent": "%",
    "_share": "0 to 1",
    "_hours": "h",
    "sample_rate": "Hz",
}
"""End of a field's name -> its unit."""
HEAD = """\
# Configuration

Every number of a run has a field here. `sepscene show NAME` prints a named experiment as YAML; change a field there, or
with `--set FIELD=VALUE`, e.g. `--set objective.temperature=0.1`. `RUN/experiment.yaml` holds all fields of a run as
they were used.

Defaults hold unless a named experiment says otherwise. Marks at the end of a meaning: **[stated]** the paper's authors
say so; **[code]** read in their public code or in that of the networks they used; **[open]** no source says it, the
default is ours ([paper.md](paper.md)).

This page is made by `python docs/make_configuration.py`; a test fails when it is not current.
"""


def main(arguments: list[str]) -> int:
    """Write the page, or with --check compare; returns the exit code."""
    text = page()
    if arguments == ["--check"]:
        current = PAGE.exists() and PAGE.read_text(encoding="utf-8") == text
        print("current" if current else "not current: run python docs/make_configuration.py")
        return not current
    PAGE.write_text(text, encoding="utf-8")
    return 0


def page() -> str:
    """The whole page."""
    sections = [HEAD.rstrip()]
    for prefix, model in sections_of(Experiment, ""):
        rows = [row(prefix, name, field) for name, field in model.model_fields.items() if not inner(field)]
        if rows:
            about = " ".join((model.__doc__ or "").split("\n\n")[0].split())
            table = ["| field | type | unit | default | meaning |", "|---|---|---|---|---|", *rows]
            sections.append("\n".join([f"## `{prefix or 'experiment'}`{chosen_by(model)}", about, "", *table]))
    return "\n\n".join(sections) + "\n"


def sections_of(model: type[BaseModel], prefix: str) -> Iterator[tuple[str, type[BaseModel]]]:
    """A model and the models of its fields, each with its dotted name."""
    yield prefix, model
    for name, field in model.model_fields.items():
        for found in inner(field):
            yield from sections_of(found, f"{prefix}.{name}".lstrip("."))
        for found in choices(field):
            yield f"{prefix}.{name}.NAME".lstrip("."), found


def choices(field: FieldInfo) -> list[type[BaseModel]]:
    """The models from which each value of a collection is chosen by its `use`; empty for other fields."""
    if typing.get_origin(field.annotation) is not dict:
        return []
    union = typing.get_args(field.annotation)[1]
    if typing.get_origin(union) is typing.Annotated:
        union = typing.get_args(union)[0]
    return models_among(typing.get_args(union))


def inner(field: FieldInfo) -> list[type[BaseModel]]:
    """The models of which a field holds one; empty for a collection, or where it may be a plain value."""
    options = typing.get_args(field.annotation) or (field.annotation,)
    if typing.get_origin(field.annotation) in (tuple, list, dict):
        return []
    return models_among(options)


def models_among(options: tuple[Any, ...]) -> list[type[BaseModel]]:
    """Those of a union's parts that are models."""
    plain = [typing.get_args(each)[0] if typing.get_origin(each) is typing.Annotated else each for each in options]
    models = [each for each in plain if isinstance(each, type) and issubclass(each, BaseModel)]
    return models if set(plain) <= {*models, type(None)} else []


def chosen_by(model: type[BaseModel]) -> str:
    """What a heading adds for a model that is one of several: the name by which it is chosen."""
    use = model.model_fields.get("use")
    if use is None:
        return ""
    return f" with `use: {use.default}`" if use.default is not PydanticUndefined else " with `use: package.module:Name`"


def row(prefix: str, name: str, field: FieldInfo) -> str:
    """One field as a line of a table."""
    unit = next((unit for end, unit in UNITS.items() if name.endswith(end)), "")
    meaning = " ".join((field.description or "").split())
    cells = (f"`{name}`", f"`{type_of(field.annotation)}`", unit, f"`{default_of(field)}`", meaning)
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def type_of(annotation: Any) -> str:
    """A type as it is written: `int | None`, `"a" | "b"`, `tuple[float, ...]`."""
    origin, parts = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return type_of(parts[0])
    if origin is typing.Literal:
        return " | ".join(repr(part).replace("'", '"') for part in parts)
    if origin in (typing.Union, types.UnionType):
        return " | ".join(type_of(part) for part in parts)
    if origin is not None:
        return f"{origin.__name__}[{', '.join('...' if part is Ellipsis else type_of(part) for part in parts)}]"
    return "None" if annotation is type(None) else getattr(annotation, "__name__", str(annotation))


def default_of(field: FieldInfo) -> str:
    """The default as YAML would have it; "required" where there is none."""
    value = field.get_default(call_default_factory=True)
    if value is PydanticUndefined:
        return "required"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict) and any(hasattr(each, "use") for each in value.values()):
        return f"{{{', '.join(f'{name}: {{use: {each.use}}}' for name, each in value.items())}}}"
    if isinstance(value, tuple):
        return f"[{', '.join(str(each) for each in value)}]"
    return "null" if value is None else str(value)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
