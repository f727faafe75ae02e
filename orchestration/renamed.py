"""Names that differed in earlier versions, so that messages about old files and settings can give the new name."""

_FIELDS = {"judge": "scoring", "figures": "metrics", "figure": "metric"}
"""Name of a field in earlier versions -> its current name."""

OLD_METRICS_FILE = "figures.json"
"""The file in checkpoints of earlier versions that is now `metrics.json`."""


def new_name(field: str) -> str | None:
    """The current name of a dotted field that was renamed; None for any other field."""
    parent, dot, last = field.rpartition(".")
    return f"{parent}{dot}{_FIELDS[last]}" if last in _FIELDS else None
