"""Runs the templates in the programs for which they are written; see slurm.py, onprem.py and skypilot.py."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from sepscene.orchestration.records.ledger import Ledger

pytestmark = [pytest.mark.hosts, pytest.mark.timeout(3000)]
ROOT = Path(__file__).resolve().parents[2]
SKYPILOT = "skypilot==0.14.1"


def in_namespaces(module: str, folder: Path, *arguments: str) -> dict[str, Any]:
    """Run a scenario in its own process and network namespaces; returns its outcome."""
    as_root = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
    spaces = ["unshare", *as_root, "--pid", "--fork", "--mount-proc", "--net", "--mount", "--uts", "--kill-child"]
    command = [*spaces, sys.executable, "-m", module, str(folder), *arguments]
    with (folder / "scenario.log").open("wb") as log:
        process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT)
        try:
            assert process.wait(2800) == 0, (folder / "scenario.log").read_text()[-3000:]
        finally:
            process.kill()
    outcome: dict[str, Any] = json.loads((folder / "outcome.json").read_text())
    return outcome


@pytest.mark.skipif(not shutil.which("slurmctld"), reason="needs Debian's slurmctld, slurmd, slurm-client and munge")
def test_slurm_trains_on_two_nodes_stops_with_a_checkpoint_and_continues(tmp_path: Path) -> None:
    outcome = in_namespaces("tests.clusters.slurm", tmp_path)
    logs = [(tmp_path / "work" / "runs" / f"slurm-{job}.log").read_text() for job in outcome["jobs"]]
    assert "stopped; all completed work is kept" in logs[0], logs[0][-3000:]
    assert 0 < outcome["rows_at_stop"] < outcome["rows"]
    assert outcome["state"] == 2 * ["JobState=COMPLETED", "ExitCode=0:0"], logs[1][-3000:]  # of both components
    ledger = Ledger.load(tmp_path / "runs" / "mine" / "ledger.json")
    assert ledger.intervals == [(0, outcome["rows"])] and not ledger.quarantined


@pytest.mark.skipif(not all(map(shutil.which, ("sshd", "ssh", "rsync"))), reason="needs sshd, ssh and rsync")
def test_ray_up_over_sshd_starts_a_cluster_that_trains_stops_and_continues(tmp_path: Path) -> None:
    outcome = in_namespaces("tests.clusters.onprem", tmp_path)
    assert (outcome["up"], outcome["stop"], outcome["again"], outcome["down"]) == (0, 0, 0, 0), outcome
    assert outcome["stopped"] != 0 and 0 < outcome["rows_at_stop"] < outcome["rows"]
    ledger = Ledger.load(tmp_path / "runs" / "mine" / "ledger.json")
    assert ledger.intervals == [(0, outcome["rows"])] and not ledger.quarantined


def test_skypilot_keeps_its_workers_until_the_run_has_ended(tmp_path: Path) -> None:
    uv = [sys.executable, "-m", "uv"]
    python = tmp_path / "sky" / "bin" / "python"
    subprocess.run([*uv, "venv", "--quiet", "--python", sys.executable, str(tmp_path / "sky")], check=True)
    subprocess.run([*uv, "pip", "install", "--quiet", "--python", str(python), SKYPILOT], check=True, timeout=600)
    outcome = in_namespaces("tests.clusters.skypilot", tmp_path, str(python))
    logs = [(tmp_path / f"n{rank}.run.log").read_text() for rank in (0, 1)]
    assert (outcome["head"], outcome["worker"]) == (0, 0), logs[0][-3000:] + logs[1][-1000:]
    ledger = Ledger.load(tmp_path / "share" / "runs" / "mine" / "ledger.json")
    assert ledger.intervals == [(0, ledger.rows)]
