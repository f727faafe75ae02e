"""Messages for unknown names: the known names, and the one with the most similar spelling."""

import difflib
import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any, get_args

from pydantic import BaseModel


def nearest(name: str, known: Collection[str], cutoff: float = 0.5) -> str:
    """The known name with the most similar spelling; empty if none is similar."""
    by_lower = {each.lower(): each for each in known}
    near = difflib.get_close_matches(name.lower(), by_lower, n=1, cutoff=cutoff)
    return by_lower[near[0]] if near else ""


def unknown(name: str, known: Collection[str], what: str) -> str:
    """A message for an unknown name; `what` is the kind of thing, e.g. "encoder"."""
    near = nearest(name, known)
    hint = f" (did you mean {near}?)" if near else ""
    return f"there is no {what} {name!r}{hint}; known names: {', '.join(known)}"


def unknown_field(model: type[BaseModel], location: tuple[int | str, ...]) -> str:
    """A message for a field, at pydantic's `location`, that the model of the whole configuration does not have."""
    *parents, last = location
    siblings = _fields_at(model, parents)
    spellings = dict.fromkeys(siblings, "")
    if not parents:  # the user may have left out the section
        spellings = {path.rpartition(".")[2]: path for path in _dotted(model)} | spellings
    near = nearest(str(last), spellings, cutoff=0.6)
    hint = f" (did you mean {spellings[near] or near}?)" if near else ""
    return f"unknown field{hint}; known fields: {', '.join(siblings)}"


def near_choice(fault: Mapping[str, Any]) -> str:
    """A hint for pydantic's error about a field with fixed choices: the most similar one. Empty for other errors."""
    if fault["type"] != "literal_error":
        return ""
    near = nearest(str(fault["input"]), re.findall(r"'([^']*)'", fault["ctx"]["expected"]))
    return f", did you mean {near}?" if near else ""


def _fields_at(model: type[BaseModel], location: Collection[int | str]) -> list[str]:
    """Names of the fields, including short forms, of the models at a location."""
    here = [model]
    for part in location:
        if str(part).startswith("<"):  # the tag of a member of a union
            here = [one for one in here if f"<{one.model_fields['use'].default}>" == part] or here
        else:  # the key of a mapping or the index of a list keeps the models of the values
            fields = [one.model_fields[str(part)] for one in here if part in one.model_fields]
            here = [found for field in fields for found in _models_in(field.annotation)] or here
    return list(dict.fromkeys(name for one in here for name in (*one.model_fields, *getattr(one, "short_names", ()))))


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [found for part in get_args(annotation) for found in _models_in(part)]


def _dotted(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Dotted names of all fields of a model and of the models nested in it; those closer to the root come last."""
    for name, field in model.model_fields.items():
        for below in _models_in(field.annotation):
            yield from _dotted(below, f"{prefix}{name}.")
    yield from (f"{prefix}{name}" for name in (*model.model_fields, *getattr(model, "short_names", ())))
