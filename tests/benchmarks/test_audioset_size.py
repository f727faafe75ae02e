"""All parts of the benchmark run on its synthetic manifests and stores."""

import pytest

from benchmarks.audioset_size import PARTS, in_a_process, measure, write_table


@pytest.mark.slow
@pytest.mark.parametrize("part", sorted(PARTS.keys() - {"stream"}))  # `stream` needs Ray and is covered by other tests
def test_every_part_runs(part, tmp_path):
    write_table(1000, tmp_path)
    seconds, mib = in_a_process(measure, part, 1000, tmp_path)
    assert 0 < seconds < 60
    assert 10 < mib < 2000
