"""The GPU check runs on a CPU with small networks, so that it works on the first try on a GPU."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.gpu_check.check import NAMES, report, run_in_processes

REPOSITORY = Path(__file__).resolve().parent.parent.parent
CHECKED = [name for name in NAMES if name != "live"]


@pytest.fixture(scope="module")
def checked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished check, without `live`, which differs from `stored` in one setting and takes longest.

    test_whole_run.py covers `live`.
    """
    out = tmp_path_factory.mktemp("check")
    command = [sys.executable, "-m", "benchmarks.gpu_check", "--out", str(out), "--device", "cpu", "--small"]
    command += ["--minutes", "20", "--only", ",".join(CHECKED)]  # takes one or two minutes on an idle machine
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=1250, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return out


def result_of(checked: Path, name: str) -> dict[str, Any]:
    return json.loads((checked / f"{name}.json").read_text())


@pytest.mark.slow
@pytest.mark.timeout(1300)
def test_all_parts_run_on_a_cpu_and_save_their_results(checked: Path) -> None:
    results = {name: result_of(checked, name) for name in CHECKED}
    assert {name: result["failed"] for name, result in results.items() if "failed" in result} == {}
    assert results["copies"]["both give the same samples"] is True
    assert results["losses"]["NT-Xent's gradient, SNR dB"] > 90
    assert "is full" in results["memory"]["too large a batch"]
    assert "lower the batch" in results["memory"]["too large a batch"]
    assert results["stored"]["steps"] == 4
    assert "skipped" in results["tests"]["result"]
    text = (checked / "report.md").read_text()
    assert all(f"## {name}" in text for name in CHECKED)


@pytest.mark.slow
@pytest.mark.timeout(1300)
@pytest.mark.usefixtures("shared_dir")  # has the reference vectors
def test_the_networks_equal_the_reference(checked: Path) -> None:
    rows = result_of(checked, "networks")["rows"]
    assert rows
    assert all(row["SNR dB"] > (30 if "bfloat16" in row["way"] else 90) for row in rows)


@pytest.mark.slow
def test_a_part_that_fails_is_named_with_its_reason_and_the_others_are_kept(tmp_path: Path) -> None:
    (tmp_path / "memory.json").write_text('{"rows": []}')
    run_in_processes(["memory", "nothing_like_it"], tmp_path, "cpu", small=True, seconds=120)
    kept, failed = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("memory", "nothing_like_it"))
    assert kept == {"rows": []}
    assert "failed" in failed
    assert "nothing_like_it" in report({"nothing_like_it": failed}, "cpu")
