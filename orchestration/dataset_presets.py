"""The public data sets as `sepscene reproduce --data` uses them: their splits, and how long their clips are.

Whatever `--set` says goes before. Here, and nowhere else, stands what is usual for a data set.
"""

from functools import cache
from typing import Any

from sepscene.orchestration.data_config import FOLDS, Data
from sepscene.tasks.datasets.readers import ManifestError, read_manifest

USUAL: dict[str, dict[str, Any]] = {
    "esc50": {"audio.clip_seconds": 5.0, "data.train": ["1", "2", "3", "4", "5"], "data.test": [FOLDS]},
    "audioset": {"data.train": ["unbalanced_train", "balanced_train"], "data.test": ["eval"]},
    "fsd50k": {"data.train": ["train", "val"], "data.test": ["test"]},
}
"""Format -> dotted fields. Of the splits for training those count that the data has and that are not for testing."""


def data_changes(format: str, root: str, changes: dict[str, Any]) -> dict[str, Any]:
    """The changes that make an experiment use a data set; `changes` themselves go before what is usual.

    Raises:
        SepsceneError: when the data cannot be read.
    """
    usual = dict(USUAL.get(format, {}))
    if usual:
        there = splits_of(format, root)
        tested = changes.get("data.test", ())
        usual["data.train"] = [split for split in usual["data.train"] if split in there and split not in tested]
    return {"data.format": format, "data.root": root, **usual, **changes}


def check_splits(data: Data) -> None:
    """Raise unless the data has clips in every split that is named; scenes are still to be generated.

    Raises:
        SepsceneError: names the splits without a clip, and those that the data has.
    """
    if data.root is None:
        return
    there = splits_of(data.format, data.root)
    for name, wanted in (("train", data.train), ("test", () if data.by_folds else data.test)):
        empty = [split for split in wanted if split not in there]
        if empty or not (wanted or data.by_folds):
            raise ManifestError(
                f"data.{name}: no clip of {data.root} is in {', '.join(empty) or 'no split'}; the data has "
                f"{', '.join(there)}: name some of those, e.g. --set 'data.{name}=[\"{there[0]}\"]'"
            )


@cache
def splits_of(format: str, root: str) -> tuple[str, ...]:
    """The splits of a data set's manifest, which is read once."""
    return tuple(read_manifest(format, root).splits)
