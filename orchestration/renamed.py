"""What earlier versions called by another name: files and settings of theirs are answered with the name of today."""

from pydantic import ValidationError

_FIELDS = {"judge": "scoring", "figures": "metrics", "figure": "metric"}
"""Name of a field in earlier versions -> its name now."""

OLD_STEPS = "figures.json"
"""What a checkpoint of an earlier version holds in the place of `metrics.json`."""


def new_name(field: str) -> str | None:
    """The name of today for a dotted field of an earlier version; None for a field that was never there."""
    parent, dot, last = field.rpartition(".")
    return f"{parent}{dot}{_FIELDS[last]}" if last in _FIELDS else None


def renamed_field(error: ValidationError) -> str:
    """A sentence about the first unknown field that an earlier version had; empty where there is none."""
    for fault in error.errors(include_url=False, include_input=False):
        field = ".".join(str(part) for part in fault["loc"])
        new = new_name(field)
        if fault["type"] == "extra_forbidden" and new:
            return f"{field}: it is called {new} now, the file was written by an earlier version"
    return ""
