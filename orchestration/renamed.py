"""Names that differed in earlier versions, so that messages about old files and settings can give the new name."""

from pydantic import ValidationError

_FIELDS = {"judge": "scoring", "figures": "metrics", "figure": "metric"}
"""Name of a field in earlier versions -> its current name."""

OLD_METRICS_FILE = "figures.json"
"""The file in checkpoints of earlier versions that is now `metrics.json`."""


def new_name(field: str) -> str | None:
    """The current name of a dotted field that was renamed; None for any other field."""
    parent, dot, last = field.rpartition(".")
    return f"{parent}{dot}{_FIELDS[last]}" if last in _FIELDS else None


def renamed_field(error: ValidationError) -> str:
    """A message about the first unknown field that was renamed; empty if there is none."""
    for fault in error.errors(include_url=False, include_input=False):
        field = ".".join(str(part) for part in fault["loc"])
        new = new_name(field)
        if fault["type"] == "extra_forbidden" and new:
            return f"{field} was renamed to {new}; the file was written by an earlier version"
    return ""
