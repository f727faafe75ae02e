"""A disk that is full when `sepscene embed` merges its parts costs no row."""

from pathlib import Path

import numpy as np
import pytest

from sepscene.models.config import SepsceneError
from sepscene.orchestration.evaluation.embedding_writer import EmbeddingOutput

ROWS = 600
DIM = 1024  # 2.4 MB of parts, and as much for the merged file


@pytest.mark.parametrize("name", ["out.npy", "out.parquet"])
def test_a_full_disk_at_the_end_is_reported_and_the_rows_are_kept(small_disk: Path, name: str) -> None:
    if not small_disk.is_mount():
        pytest.skip("a tmpfs cannot be mounted here")
    h_ND = np.random.default_rng(0).standard_normal((ROWS, DIM)).astype(np.float32)
    names = [f"{n}.wav" for n in range(ROWS)]
    output = EmbeddingOutput(small_disk / name, "digest", DIM)
    output.add(names, h_ND)
    with pytest.raises(SepsceneError, match=rf"{name} cannot be written .*finished rows are kept"):
        output.finish()
    assert [path.name for path in small_disk.rglob("*") if path.is_file()] == ["00000000.parquet"]
    assert EmbeddingOutput(small_disk / name, "digest", DIM).missing([*names, "new.wav"]) == ["new.wav"]
