"""Settings of public data sets for `sepscene reproduce --data`: their splits and the length of their clips.

`--set` takes precedence over them.
"""

from functools import cache
from typing import Any

from sepscene.orchestration.data_config import FOLDS, Data
from sepscene.tasks.datasets.readers import ManifestError, read_manifest

_PRESETS: dict[str, dict[str, Any]] = {
    "esc50": {"audio.clip_seconds": 5.0, "data.train": ["1", "2", "3", "4", "5"], "data.test": [FOLDS]},
    "audioset": {"data.train": ["unbalanced_train", "balanced_train"], "data.test": ["eval"]},
    "fsd50k": {"data.train": ["train", "val"], "data.test": ["test"]},
}
"""Format -> dotted fields. Only those training splits are used that the data has and that are not used for testing."""


def data_changes(format: str, root: str, changes: dict[str, Any]) -> dict[str, Any]:
    """The changes that make an experiment use a data set; `changes` take precedence over the presets.

    Raises:
        SepsceneError: when the data cannot be read.
    """
    preset = dict(_PRESETS.get(format, {}))
    if preset:
        present = splits_of(format, root)
        tested = changes.get("data.test", ())
        preset["data.train"] = [split for split in preset["data.train"] if split in present and split not in tested]
    return {"data.format": format, "data.root": root, **preset, **changes}


def check_splits(data: Data) -> None:
    """Check that the data has clips in every split that the configuration names; generated scenes are not checked.

    Raises:
        SepsceneError: names the splits without clips, and the splits of the data.
    """
    if data.root is None:
        return
    present = splits_of(data.format, data.root)
    for name, wanted in (("train", data.train), ("test", () if data.by_folds else data.test)):
        empty = [split for split in wanted if split not in present]
        if empty or not (wanted or data.by_folds):
            fault = f"no clip of {data.root} is in split {', '.join(empty)}" if empty else "no split is given"
            raise ManifestError(
                f"data.{name}: {fault}; the data has {', '.join(present)}: choose some of these, e.g. "
                f"--set 'data.{name}=[\"{present[0]}\"]'"
            )


@cache
def splits_of(format: str, root: str) -> tuple[str, ...]:
    """The splits of a data set. Its manifest is read only once."""
    return tuple(read_manifest(format, root).splits)
