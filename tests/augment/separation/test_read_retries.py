"""Temporary read errors are retried; damaged clips are not."""

import errno
import os
import pickle
from pathlib import Path

import numpy as np
import pytest

from sepscene.augment.audio import AudioFormat, read_clip
from sepscene.augment.locations import TEMPORARY, ClipError, unreadable
from sepscene.augment.separation import read_retries
from sepscene.augment.separation.read_retries import ReadRetries
from sepscene.augment.separation.reader import read_source_segments
from sepscene.augment.synthetic.scenes import SceneConfig, write_scenes


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Records the pauses instead of sleeping."""
    made: list[float] = []
    monkeypatch.setattr(read_retries.time, "sleep", made.append)
    return made


def columns(*uris: str) -> dict[str, np.ndarray]:
    return {"uri": np.array(uris, object)}


def test_a_temporarily_missing_folder_costs_no_clip(tmp_path: Path, pauses: list[float]) -> None:
    there = tmp_path / "sound"
    away = tmp_path / "away"
    there.mkdir()
    block = columns(str(there / "a"), str(there / "b"))
    for path in block["uri"]:
        Path(path).write_text("sound")
    there.rename(away)
    reads: list[int] = []

    def read(n: int) -> None:
        if pauses and away.exists():
            away.rename(there)  # restored during the first pause
        if not Path(block["uri"][n]).exists():
            raise ClipError(block["uri"][n], "no such file")
        reads.append(n)

    assert ReadRetries().read(read, [0, 1], block).tolist() == ["", ""]
    assert reads == [0, 1] and pauses == [0.5]


def test_reads_of_scene_sources_are_retried_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_scenes(tmp_path, 1, 0, "test", SceneConfig(clip_seconds=1.0))
    there = tmp_path / "test"
    away = tmp_path / "away"
    block = columns(str(there / "scene-000000.wav")) | {name: np.zeros(1) for name in ("row", "crop_1_u", "crop_2_u")}
    there.rename(away)
    monkeypatch.setattr(read_retries.time, "sleep", lambda _: away.rename(there))  # restored during the first pause
    found = read_source_segments(block, AudioFormat(clip_seconds=1.0), segment_seconds=0.5)
    assert found["fault"].tolist() == [""] and found["sources"][0]
    (there / "scene-000000.sources.wav").write_text("not sound")
    (fault,) = read_source_segments(block, AudioFormat(clip_seconds=1.0), segment_seconds=0.5)["fault"]
    assert fault.startswith("its sources in scene-000000.sources.wav: not decodable")


def test_a_missing_folder_is_retried_once_per_process(tmp_path: Path, pauses: list[float]) -> None:
    uri = str(tmp_path / "gone" / "a")
    waits = ReadRetries()

    def read(n: int) -> None:
        raise ClipError(uri, "no such file")

    for _ in range(3):
        (fault,) = waits.read(read, [0], columns(uri))
        assert fault == f"{TEMPORARY}: no such file"
    assert pauses == list(read_retries.PAUSES_SECONDS)


def test_a_damaged_or_missing_clip_is_not_retried(tmp_path: Path, pauses: list[float], nano) -> None:
    (tmp_path / "text.wav").write_text("not sound")
    block = columns(str(tmp_path / "text.wav"), str(tmp_path / "missing.wav"))
    faults = ReadRetries().read(lambda n: read_clip(block["uri"][n], nano.audio), [0, 1], block)  # type: ignore[arg-type, return-value]
    assert faults[0].startswith("not decodable") and faults[1] == "no such file" and pauses == []


@pytest.mark.parametrize(("number", "waits"), [(errno.EIO, True), (errno.ESTALE, True), (errno.EACCES, False)])
def test_only_temporary_errors_of_the_system_are_retried(
    number: int, waits: bool, tmp_path: Path, pauses: list[float]
) -> None:
    uri = str(tmp_path / "a.wav")

    def read(n: int) -> None:
        raise unreadable(uri, OSError(number, os.strerror(number)))

    (fault,) = ReadRetries().read(read, [0], columns(uri))
    assert fault.startswith(f"{TEMPORARY}: cannot be read ([Errno {number}]")  # retried by a later command
    assert pauses == (list(read_retries.PAUSES_SECONDS) if waits else [])


def test_a_damaged_archive_is_not_retried(tmp_path: Path, pauses: list[float], nano) -> None:
    """Its message also begins with "cannot be read", but it stays damaged."""
    (tmp_path / "a.tar").write_bytes(b"no archive" * 100)
    (tmp_path / "a.parquet").write_bytes(b"PAR1" + b"no table" * 100 + b"PAR1")
    block = columns(f"{tmp_path}/a.tar#x.wav", f"{tmp_path}/a.parquet#0")
    faults = ReadRetries().read(lambda n: read_clip(block["uri"][n], nano.audio), [0, 1], block)  # type: ignore[arg-type, return-value]
    assert all(fault.startswith("cannot be read (") for fault in faults) and pauses == []


def test_the_error_can_be_pickled() -> None:
    error = pickle.loads(pickle.dumps(unreadable("a.wav", OSError(errno.EIO, "broken"))))
    assert (error.uri, error.refused, str(error)) == ("a.wav", errno.EIO, "a.wav: cannot be read ([Errno 5] broken)")
