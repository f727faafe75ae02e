"""What a run says of its clips before it starts."""

from pathlib import Path

import numpy as np
import pytest
import soundfile

from sepscene.augment.audio import AudioFormat
from sepscene.tasks.datasets.first_look import first_look
from sepscene.tasks.datasets.labels import ManifestError
from sepscene.tasks.datasets.readers import Manifest, read_manifest


def data_set(root: Path, seconds: float, silent: int, count: int = 4) -> Manifest:
    (root / "dog").mkdir()
    for n in range(count):
        level = 0.0 if n < silent else 0.1
        soundfile.write(root / f"dog/{n}.wav", np.full(round(16_000 * seconds), level), 16_000)
    return read_manifest("directory", str(root))


def test_nothing_to_say(tmp_path: Path) -> None:
    assert first_look(data_set(tmp_path, 1.0, silent=0), AudioFormat(clip_seconds=1.0)) == []


def test_short_and_silent_clips(tmp_path: Path) -> None:
    silent, short = first_look(data_set(tmp_path, 0.5, silent=1), AudioFormat(clip_seconds=1.0))
    assert silent.startswith("1 of 4") and short.startswith("4 of 4") and "0.50 s" in short


def test_silence_alone_ends_before_it_begins(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match=r"all 4 clips that were looked at are silent.*0.wav"):
        first_look(data_set(tmp_path, 1.0, silent=4), AudioFormat(clip_seconds=1.0))
