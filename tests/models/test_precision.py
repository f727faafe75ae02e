"""What `auto` means on which device."""

from pathlib import Path

import pytest

from sepscene.models import precision
from sepscene.models.precision import bfloat16_time_ratio, choose, cpu_has_amx


@pytest.mark.parametrize(
    ("gpus", "accelerator", "amx", "chosen"),
    [
        (0.5, None, False, "bfloat16"),
        (1, "H100", False, "bfloat16"),
        (1, "T4", True, "float32"),
        (0, None, True, "bfloat16"),
        (0, None, False, "float32"),
    ],
)
def test_auto_takes_what_the_device_does_well(monkeypatch, gpus, accelerator, amx, chosen):
    monkeypatch.setattr(precision, "cpu_has_amx", lambda: amx)
    assert choose("auto", gpus, accelerator) == chosen
    for explicit in ("float32", "bfloat16"):
        assert choose(explicit, gpus, accelerator) == explicit


@pytest.mark.parametrize(
    ("flags", "has"), [("fpu avx512f amx_tile amx_bf16", True), ("fpu avx512f", False), (None, False)]
)
def test_matrix_units_are_read_from_the_flags_of_the_cpu(tmp_path: Path, flags, has):
    if flags is not None:
        (tmp_path / "cpuinfo").write_text(f"processor\t: 0\nflags\t\t: {flags}\nbugs\t\t: amx_bf16\n")
    assert cpu_has_amx(str(tmp_path / "cpuinfo")) is has


def test_the_ratio_is_measured_once():
    ratio = bfloat16_time_ratio()
    assert 0.01 < ratio < 100
    assert bfloat16_time_ratio() == ratio
