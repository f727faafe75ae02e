"""Clips listed in Python, from any iterable, become a table that every command reads."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import sepscene
from sepscene.tasks.datasets.readers import ManifestError, read_manifest
from sepscene.tasks.datasets.tables import read_parquet_columns


def test_the_table_is_what_was_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    listed = [
        {"uri": "a.wav", "labels": ["dog", "cat"], "split": "dev", "duration": 3.0},
        {"uri": Path("b.wav"), "label": "dog;cat", "offset": 1.5},
        {"uri": "shard.tar#x/c.wav", "labels": None, "clip_id": "third"},
        {"uri": "s3://bucket/d.flac", "labels": float("nan")},
        sepscene.Clip("fifth", f"{tmp_path}/e.wav", ("owl",), "test", 2.0),
    ]
    file = sepscene.write_clips((clip for clip in listed), "lists")
    manifest = read_manifest("clips", str(file))
    here = str(tmp_path)
    assert [tuple(row.values()) for row in manifest.clips.to_pylist()] == [
        (f"{here}/a.wav", f"{here}/a.wav", ["dog", "cat"], "dev", 0.0),
        (f"{here}/b.wav@1.5", f"{here}/b.wav", ["dog", "cat"], "train", 1.5),
        ("third", f"{here}/shard.tar#x/c.wav", [], "train", 0.0),
        ("s3://bucket/d.flac", "s3://bucket/d.flac", [], "train", 0.0),
        ("fifth", f"{here}/e.wav", ["owl"], "test", 2.0),
    ]
    assert manifest.notes == ("fields of the clips that are not read: duration",)
    assert sepscene.write_clips(listed, "lists") == file, "the same clips have the same file"
    assert sepscene.write_clips(listed[1:], "lists") != file
    assert read_parquet_columns(str(file), pa.fs.LocalFileSystem()).num_rows == 5


@pytest.mark.parametrize(
    ("clips", "message"),
    [
        ([], "the clips: the data set is empty"),
        ([{"labels": "dog"}], "clip 0 has no uri; it has labels"),
        ([{"uri": "a.wav"}, {"uri": "a.wav"}], "listed twice: 1, e.g. .*a.wav"),
        ([{"uri": "a.wav", "offset_seconds": -1}], "clip 0: offset_seconds is -1"),
        (["a.wav"], "clip 0 is a str: give a mapping with `uri`"),
        ([{"uri": "caf\udce9.wav"}], "not UTF-8"),
        ([{"uri": 5}], "clip 0: uri has type int; give a path"),
        ([{"uri": b"a.wav"}], "clip 0: uri has type bytes; give a path"),
        ([{"uri": f"{n}.wav", "split": str(n)} for n in range(2**15)], "has 32768 different splits"),
    ],
)
def test_invalid_clips_are_refused(clips: list, message: str, tmp_path: Path) -> None:
    with pytest.raises(sepscene.SepsceneError, match=message):
        sepscene.write_clips(clips, tmp_path)
    assert not list(tmp_path.iterdir())


def test_another_table_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="is not a file"):
        read_manifest("clips", str(tmp_path))
    pq.write_table(pa.table({"uri": ["a.wav"]}), tmp_path / "a.parquet")
    with pytest.raises(ManifestError, match=r"is not a table of sepscene\.write_clips"):
        read_manifest("clips", str(tmp_path / "a.parquet"))
