"""Parse the labels, offset and split of a clip from a cell of a table, an archive or a Parquet file.

"No label" is always an empty list: for an empty cell, null, NaN and the class number −1.
"""

import math
from collections.abc import Sequence
from typing import Any

from sepscene.models.config import SepsceneError

TEST_SPLITS = ("test", "testing", "eval", "evaluation")
SPLIT_NAMES = ("train", "training", "val", "valid", "validation", "dev", *TEST_SPLITS)
"""Names of folders and prefixes of shards that are recognised as splits."""

_NO_LABEL = ("", "-1", "-1.0", "nan", "NaN", "None", "<NA>")
"""Texts that mean the same as null: class number −1, and missing values as programs write them to tables."""

_MOST_DIGITS = 18
"""A longer text of digits is not a class number."""


class ManifestError(SepsceneError):
    """A data set that cannot be used; the message names the file, the problem and the fix."""


def split_labels(value: Any, separator: str = ";") -> tuple[str, ...]:
    """Labels from a cell: a list, or text with separators; blanks, nulls, NaN and repetitions are dropped."""
    if isinstance(value, str):
        value = value.split(separator)
    parts = value if isinstance(value, list | tuple) else [value]
    texts = [str(part).strip() for part in parts if not _is_missing(part)]
    return tuple(dict.fromkeys(text for text in texts if text))


def class_labels(value: Any, names: Sequence[str], where: str) -> tuple[str, ...]:
    """Labels from class numbers, as indices into `names`; −1 is no label, as in Hugging Face's ClassLabel.

    Raises:
        ManifestError: a number without a name.
    """
    labels: list[str] = []
    for part in value if isinstance(value, list | tuple) else [value]:
        number = _class_number(part)
        if number is None:
            labels += split_labels(part)
        elif names and not 0 <= number < len(names):
            raise ManifestError(f"{where}: label {number} has no name; the schema names {len(names)} classes")
        else:
            labels.append(names[number] if names else str(number))
    return tuple(dict.fromkeys(labels))


def _class_number(part: Any) -> int | None:
    """An integer, even if pandas has stored it as float because others are missing; None for anything else."""
    if isinstance(part, bool) or _is_missing(part):
        return None
    if isinstance(part, float):
        return int(part) if part.is_integer() else None
    if isinstance(part, str):
        digits = part.strip().removeprefix("-")
        return int(part) if digits.isascii() and digits.isdigit() and len(digits) <= _MOST_DIGITS else None
    return part if isinstance(part, int) else None


def _is_missing(part: Any) -> bool:
    """Whether a cell, or a part of one, means that there is no label."""
    if isinstance(part, str):
        return part.strip() in _NO_LABEL
    return part is None or (isinstance(part, float) and math.isnan(part)) or part == -1


def parse_offset(value: Any, where: str) -> float:
    """An offset in seconds from a cell; an empty one is 0.

    Raises:
        ManifestError: not a number, negative, NaN or infinite.
    """
    try:
        seconds = float(value or 0)
    except (TypeError, ValueError, OverflowError):
        seconds = math.nan
    if not (math.isfinite(seconds) and seconds >= 0):
        raise ManifestError(f"{where}: offset_seconds is {value!r}; give a number of seconds, 0 or more")
    return seconds


def split_of_folder(relative: str) -> str | None:
    """The first folder of a path that is named like a split."""
    return next((part for part in relative.split("/")[:-1] if part.lower() in SPLIT_NAMES), None)


def split_of_shard(relative: str) -> str:
    """The split of a shard: a folder named like a split, or the start of its name (`train-000.tar`); else "train"."""
    begin = relative.rsplit("/", 1)[-1].split(".")[0].split("-")[0].split("_")[0]
    return split_of_folder(relative) or (begin if begin.lower() in SPLIT_NAMES else "train")
