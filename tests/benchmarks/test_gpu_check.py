"""The GPU check runs on a CPU with small networks, so that it works the first time where a GPU is at hand."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.gpu_check import PARTS, report, run_part

REPOSITORY = Path(__file__).resolve().parent.parent.parent


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_all_parts_run_on_a_cpu_and_save_their_results(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.gpu_check", "--out", str(tmp_path), "--device", "cpu", "--small"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=570, check=False)
    results = {name: json.loads((tmp_path / f"{name}.json").read_text()) for name in PARTS}
    assert {name: result["failed"] for name, result in results.items() if "failed" in result} == {}
    assert done.returncode == 0, done.stderr
    assert all(row["SNR dB"] > (30 if "bfloat16" in row["way"] else 90) for row in results["networks"]["rows"])
    assert results["copies"]["both give the same samples"] is True
    assert results["losses"]["NT-Xent's gradient, SNR dB"] > 90
    assert results["live"]["steps"] == results["stored"]["steps"] == 4
    text = (tmp_path / "report.md").read_text()
    assert all(f"## {name}" in text for name in PARTS)


def test_a_part_that_fails_is_named_with_its_reason(tmp_path: Path) -> None:
    result = run_part("nothing_like_it", tmp_path, "cpu", small=True, seconds=60)
    assert "nothing_like_it" in result["failed"]
    assert "nothing_like_it" in report({"nothing_like_it": result}, "cpu")
