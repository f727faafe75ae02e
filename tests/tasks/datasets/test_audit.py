"""The audit finds problems and counts clips, and its digest depends only on the data; the quick check before a run."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile

from sepscene.augment.audio import AudioFormat
from sepscene.tasks.datasets.audit import Audit, audit, quick_check
from sepscene.tasks.datasets.labels import ManifestError
from sepscene.tasks.datasets.readers import Manifest, read_manifest

TABLE = """uri,labels,split,offset_seconds
a.wav,dog,train,0
b.flac,dog;cat,train,0
copy.wav,cat,test,0
none.wav,cat,test,0
empty.wav,owl,test,0
text.wav,,train,0
cut.wav,owl,train,0
nan.wav,owl,train,0
a.wav,dog,train,0.5
a.wav,dog,train,99
"""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    folder = tmp_path / "data"
    folder.mkdir()
    soundfile.write(folder / "a.wav", rng.uniform(-0.5, 0.5, (16_000, 2)), 16_000)
    soundfile.write(folder / "b.flac", rng.uniform(-0.5, 0.5, 88_200), 44_100)
    soundfile.write(folder / "nan.wav", np.array([0.1, np.nan]), 16_000, subtype="FLOAT")
    shutil.copy(folder / "a.wav", folder / "copy.wav")
    (folder / "cut.wav").write_bytes((folder / "a.wav").read_bytes()[:-100])
    (folder / "empty.wav").write_bytes(b"")
    (folder / "text.wav").write_text("no sound")
    (folder / "manifest.csv").write_text(TABLE)
    return folder


def found(root: Path, threads: int = 2) -> Audit:
    return audit(read_manifest("table", str(root)), threads)


def test_how_recordings_sound(tmp_path: Path) -> None:
    tone = 0.3 * np.sin(np.arange(16_000) / 10)
    sounds = {
        "antiphase": np.stack([tone, -tone], 1),
        "dead_channel": np.stack([tone, 0 * tone], 1),
        "silence": 0 * tone,
        "whisper": 1e-4 * tone,
        "hot": 5 * tone,
        "clipped": np.clip(5 * tone, -1, 1),
        "offset": tone + 0.2,
        "blip": tone[:160],
        "long": np.tile(tone, 30),
        "good": tone,
        "int16": 32767 * tone,
    }
    for name, wave in sounds.items():
        soundfile.write(tmp_path / f"{name}.wav", wave, 16_000, subtype="FLOAT")
    result = audit(read_manifest("directory", str(tmp_path)))
    assert {what.split(",")[0]: names for what, _, names in result.sound} == {
        "silent": ("silence.wav",),
        "nearly silent": ("whisper.wav",),
        "have channels that cancel each other in the mean; the loudest one is used": ("antiphase.wav",),
        "have a silent channel": ("dead_channel.wav",),
        "clipped": ("clipped.wav", "hot.wav"),
        "exceed full scale and are clipped": ("hot.wav",),
        "have a constant offset (DC) of more than 0.05": ("offset.wav",),
        "shorter than 0.1 s": ("blip.wav",),
        "longer than 6 h": ("long.wav",),
    }
    assert [name for name, _ in result.corrupt] == ["int16.wav"] and "1 silent, every sample is 0" in result.text()


def test_an_audit_reports_missing_damaged_and_unlabelled_clips_and_formats(root: Path) -> None:
    done: list[int] = []
    result = audit(read_manifest("table", str(root)), 2, done.append)
    assert done == list(range(1, 9)), "each recording once, although three clips share one"
    assert (result.clips, result.readable, result.unlabelled) == (10, 4, 1)
    assert result.missing == ("none.wav",)
    causes = dict(result.corrupt)
    assert list(causes) == ["empty.wav", "text.wav", "cut.wav", "nan.wav", "a.wav@99"]
    for name, words in (("empty", "0 bytes"), ("text", "not decodable"), ("cut", "truncated"), ("nan", "NaN")):
        assert words in causes[f"{name}.wav"]
    assert "past the end (1.000 s)" in causes["a.wav@99"]
    assert result.durations is not None
    assert (result.durations.total, result.durations.longest, result.durations.median) == (4.0, 2.0, 1.0)
    assert result.sample_rates == ((16_000, 2), (44_100, 1)) and result.channels == ((2, 2), (1, 1))
    assert result.labels == (("dog", 4), ("cat", 3), ("owl", 3)) and result.splits == (("test", 3), ("train", 7))
    assert result.duplicates == (("a.wav", "copy.wav", "a.wav@0.5", "a.wav@99"),) and result.leaking == 1


def test_the_text_lists_all_findings(root: Path) -> None:
    text = found(root).text()
    for words in ("clips       10, readable 4", "none.wav", "cut.wav: truncated", "WARNING     1 of the duplicates"):
        assert words in text
    assert text.splitlines()[-1] == f"digest      {found(root).digest}"


def test_the_digest_depends_on_the_data_not_on_its_location_or_the_threads(root: Path) -> None:
    first = found(root)
    shutil.copytree(root, root.parent / "moved")
    assert found(root.parent / "moved", threads=1).digest == first.digest
    soundfile.write(root / "b.flac", np.random.default_rng(1).uniform(-0.5, 0.5, 88_200), 44_100)
    changed = found(root)
    assert changed.digest != first.digest and changed.manifest_digest == first.manifest_digest
    assert replace(changed, content_digest=first.content_digest) == first, "only the content has changed"


def test_absent_clips_are_missing(root: Path) -> None:
    manifest = replace(read_manifest("table", str(root)), absent=("gone",))
    result = audit(manifest)
    assert result.missing == ("gone", "none.wav") and result.readable == 4


def test_nothing_readable(tmp_path: Path) -> None:
    (tmp_path / "manifest.csv").write_text("uri,labels,split\na.wav,,train\n")
    result = found(tmp_path)
    assert result.durations is None and result.readable == 0 and "duration" not in result.text()


def data_set(root: Path, seconds: float, silent: int, count: int = 4) -> Manifest:
    (root / "dog").mkdir()
    for n in range(count):
        level = 0.0 if n < silent else 0.1
        soundfile.write(root / f"dog/{n}.wav", np.full(round(16_000 * seconds), level), 16_000)
    return read_manifest("directory", str(root))


def test_valid_clips_give_no_notes(tmp_path: Path) -> None:
    assert quick_check(data_set(tmp_path, 1.0, silent=0), AudioFormat(clip_seconds=1.0)) == []


def test_short_and_silent_clips(tmp_path: Path) -> None:
    silent, short = quick_check(data_set(tmp_path, 0.5, silent=1), AudioFormat(clip_seconds=1.0))
    assert silent.startswith("1 of 4") and short.startswith("4 of 4") and "0.50 s" in short


def test_a_run_on_silence_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match=r"all 4 clips that were checked are silent.*0.wav"):
        quick_check(data_set(tmp_path, 1.0, silent=4), AudioFormat(clip_seconds=1.0))
