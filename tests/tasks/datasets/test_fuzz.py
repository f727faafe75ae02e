"""For files with any content, a reader returns a result or raises a `SepsceneError`, and nothing else.

To run it longer: SEPSCENE_FUZZ_SECONDS=3600 python -m pytest tests/tasks/datasets/test_fuzz.py
"""

import io
import json
import os
import tarfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile

from sepscene.augment.audio import AudioFormat, check_audio, read_clip
from sepscene.models.config import SepsceneError
from sepscene.tasks.datasets.audit import audit
from sepscene.tasks.datasets.manifest import Clip, make_manifest
from sepscene.tasks.datasets.readers import read_manifest
from tests.damage import damaged

SECONDS = float(os.environ.get("SEPSCENE_FUZZ_SECONDS", "3"))
"""For each kind of file; there are nine."""


def sound(format: str) -> bytes:
    sink = io.BytesIO()
    soundfile.write(sink, np.random.default_rng(0).uniform(-0.3, 0.3, 3_000), 16_000, format=format)
    return sink.getvalue()


def tar_file() -> bytes:
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w") as archive:
        for name, data in (("a.wav", sound("WAV")), ("a.json", b'{"labels": ["dog"], "offset_seconds": 0.1}')):
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return sink.getvalue()


def parquet_file() -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"audio": [sound("WAV")] * 2, "label": [0, -1], "split": ["train", "test"]}), sink)
    return bytes(sink.getvalue().to_pybytes())


def clips_file(notes: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    table = make_manifest([Clip("a", "a.wav", ("dog",), "train", 0.0)], "the test").clips
    pq.write_table(table.replace_schema_metadata({b"sepscene.notes": notes}), sink)
    return bytes(sink.getvalue().to_pybytes())


def arrow_file() -> bytes:
    sink = pa.BufferOutputStream()
    cells = [{"bytes": sound("WAV"), "path": "a.wav"}] * 2
    table = pa.table({"audio": cells, "label": [0, -1], "split": ["train", "test"], "labels": [["dog"], []]})
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=1)
    return bytes(sink.getvalue().to_pybytes())


def _audited(format: str) -> Callable[[Path], object]:
    return lambda path: audit(read_manifest(format, str(path.parent), survey=True), threads=1)


KINDS: dict[str, tuple[list[bytes], str, Callable[[Path], object]]] = {
    "sound": ([sound(f) for f in ("WAV", "FLAC", "OGG", "MP3", "AIFF", "CAF", "W64", "AU")], "a.wav", lambda path: (
        check_audio(str(path)), read_clip(str(path), AudioFormat(clip_seconds=0.1), 0.05))),
    "csv": ([b"uri,labels,split,offset_seconds\na.wav,dog;cat,train,0\nb.wav,,test,1.5\n"], "manifest.csv",
            _audited("table")),
    "jsonl": ([json.dumps({"file_name": "a.wav", "labels": ["dog"]}).encode() * 2,
               json.dumps({"file_name": "a.wav", "label": "d\ud800g"}).encode()], "metadata.jsonl",
              _audited("folder")),
    "tar": ([tar_file()], "a.tar", _audited("shards")),
    "parquet": ([parquet_file()], "a.parquet", _audited("parquet")),
    "state": ([b'{"_data_files": [{"filename": "a.arrow"}], "_split": "train"}', b'{"_data_files": ' + b"[" * 9_000],
              "state.json", _audited("huggingface")),
    "clips": ([clips_file(b'["a note"]'), clips_file(b"5"), clips_file(b"[" * 9_000)], "a.parquet",
              lambda path: audit(read_manifest("clips", str(path), survey=True), threads=1)),
    "arrow": ([arrow_file()], "a.arrow", _audited("huggingface")),
    "segments": ([b'# a\naaaaaaaaaaa, 30.000, 40.000, "/m/1"\n'], "eval_segments.csv", _audited("audioset")),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.timeout(SECONDS + 120)
@pytest.mark.parametrize("kind", KINDS)
def test_only_typed_errors_are_raised(tmp_path: Path, kind: str) -> None:
    originals, name, read = KINDS[kind]
    (tmp_path / "class_labels_indices.csv").write_text("index,mid,display_name\n0,/m/1,Dog\n")
    (tmp_path / "state.json").write_text('{"_data_files": [{"filename": "a.arrow"}]}')
    (tmp_path / "a.arrow").write_bytes(arrow_file())
    (tmp_path / "aaaaaaaaaaa.wav").write_bytes(sound("WAV"))
    rng = np.random.default_rng(len(kind))
    end = time.monotonic() + SECONDS
    tried = 0
    while time.monotonic() < end or tried < 20:
        data = damaged(originals[tried % len(originals)], rng)
        (tmp_path / name).write_bytes(data)
        tried += 1
        try:
            read(tmp_path / name)
        except SepsceneError:
            continue
        except BaseException as error:
            pytest.fail(f"{kind}, try {tried}: {error!r} of {data!r}")
