"""Data sets written by save_to_disk of Hugging Face's `datasets`, read without it: clips, splits, labels, errors."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import soundfile

from sepscene.augment.audio import AudioFormat, read_clip
from sepscene.augment.locations import ClipError
from sepscene.orchestration.evaluation.embed_files import list_files
from sepscene.tasks.datasets.audit import audit
from sepscene.tasks.datasets.readers import ManifestError, read_manifest

datasets = pytest.importorskip("datasets", reason="the package that writes them is installed for development only")
AUDIO = AudioFormat(clip_seconds=0.5)


def sound(number: int) -> bytes:
    sink = io.BytesIO()
    soundfile.write(sink, np.full(8_000, number / 10), 16_000, format="WAV")
    return sink.getvalue()


def data_set(column: str = "audio") -> Any:
    cells = [{"bytes": sound(number), "path": f"{number}.wav"} for number in range(1, 7)]
    whole = datasets.Dataset.from_dict({"speaker": list("abcdef"), column: cells, "label": [0, 1, 0, 1, -1, 0]})
    return whole.cast_column(column, datasets.Audio()).cast_column("label", datasets.ClassLabel(names=["dog", "cat"]))


def peaks(root: Path) -> list[float]:
    uris = read_manifest("huggingface", str(root)).clips["uri"].to_pylist()
    return [round(float(read_clip(uri, AUDIO, 0.0).max()), 3) for uri in uris]


def test_a_dictionary_of_splits(tmp_path: Path) -> None:
    whole = data_set()
    parts = {"train": whole.select([5, 0, 4]), "mine": whole.shuffle(seed=0).select(range(2))}
    datasets.DatasetDict(parts).save_to_disk(tmp_path / "dict")
    manifest = read_manifest("huggingface", str(tmp_path / "dict"), survey=True)
    assert manifest.splits == ("mine", "train") and manifest.skipped == ()
    assert manifest.select("train").clips["labels"].to_pylist() == [["dog"], ["dog"], []]
    assert peaks(tmp_path / "dict")[2:] == [0.6, 0.1, 0.5], "the order and the selection of save_to_disk"
    found = audit(manifest)
    assert (found.clips, found.readable, found.unlabelled) == (5, 5, 1)
    assert list_files([f"huggingface:{tmp_path / 'dict'}"]) == manifest.clips["uri"].to_pylist()


def test_one_data_set_in_several_files_with_another_column(tmp_path: Path) -> None:
    data_set("speech").save_to_disk(tmp_path / "one", num_shards=4)
    manifest = read_manifest("huggingface", str(tmp_path / "one"))
    assert manifest.splits == ("train",) and peaks(tmp_path / "one") == [0.1, 0.2, 0.3, 0.4, 0.5, 0.6]
    assert manifest.clips["clip_id"][2].as_py() == "data-00001-of-00004.arrow#0"


def test_rows_that_a_file_does_not_have_are_refused(tmp_path: Path) -> None:
    data_set().save_to_disk(tmp_path)
    (uri,) = read_manifest("huggingface", str(tmp_path)).clips["uri"].to_pylist()[:1]
    read_clip(uri, AUDIO, 0.0)
    with pytest.raises(ClipError, match="the file has fewer rows"):
        read_clip(uri.replace("#0", "#6"), AUDIO, 0.0)
    with pytest.raises(ClipError, match="'x' is not a row number"):
        read_clip(uri.replace("#0", "#x"), AUDIO, 0.0)
    with pytest.raises(ClipError, match="from a local folder"):
        read_clip("memory://somewhere/a.arrow#0", AUDIO, 0.0)


def test_a_row_without_bytes_is_a_corrupt_clip(tmp_path: Path) -> None:
    table = pa.table({"audio": [{"bytes": sound(1), "path": None}, {"bytes": None, "path": "/etc/passwd"}]})
    with pa.ipc.new_stream(tmp_path / "a.arrow", table.schema) as writer:
        writer.write_table(table)
    (tmp_path / "state.json").write_text('{"_data_files": [{"filename": "a.arrow"}]}')
    found = audit(read_manifest("huggingface", str(tmp_path)))
    assert found.corrupt == (("a.arrow#1", "the audio column holds no bytes in this row"),)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "contains no state.json; write the data set there with its method save_to_disk"),
        ({"state.json": "{}"}, "is not what save_to_disk writes"),
        ({"state.json": "[1"}, "is not what save_to_disk writes"),
        (
            {"state.json": json.dumps({"_data_files": [{"filename": "../a.arrow"}]})},
            "is outside of the data set's root",
        ),
        ({"state.json": json.dumps({"_data_files": [{"filename": "a.arrow"}]})}, r"a\.arrow: cannot be read as Arrow"),
    ],
)
def test_other_folders_are_refused(files: dict[str, str], message: str, tmp_path: Path) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(ManifestError, match=message):
        read_manifest("huggingface", str(tmp_path))


@pytest.mark.parametrize("columns", [{"sound": [b"x"]}, {"labels": ["dog"]}])
def test_a_file_without_a_column_of_sound(columns: dict[str, list], tmp_path: Path) -> None:
    table = pa.table(columns)
    with pa.ipc.new_stream(tmp_path / "a.arrow", table.schema) as writer:
        writer.write_table(table)
    (tmp_path / "state.json").write_text('{"_data_files": [{"filename": "a.arrow"}]}')
    with pytest.raises(ManifestError, match="has no audio columns"):
        read_manifest("huggingface", str(tmp_path))
