"""A whole sweep from the command line whose driver is killed: it continues, and repeats nothing."""

import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from mlflow import MlflowClient

from sepscene.augment.store.upkeep import list_store
from sepscene.orchestration.config import Experiment
from sepscene.orchestration.records.results import RunResults, SweepResults
from tests.faults.faults import finish, start

pytestmark = [pytest.mark.slow, pytest.mark.faults_long, pytest.mark.timeout(900)]
SECONDS = 420


def start_sweep(storage: Path, *further: str) -> subprocess.Popen[bytes]:
    """Start a sweep of mix-mix and mix-chan, which need different processors, with two seeds each."""
    command = [sys.executable, "-m", "sepscene", "sweep", str(storage / "nano.yaml")]
    command += ["--over", "views.pair=mix-mix,mix-chan", "--seeds", "2", "--storage", str(storage), *further]
    return start(command, storage / "log", RAY_worker_niceness="0")


def wait_for(condition: Any, process: subprocess.Popen[bytes], log: Path) -> None:
    """Wait until the condition holds; fails after SECONDS, or when the process ends."""
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert process.poll() is None and time.monotonic() < deadline, log.read_text()[-3000:]
        time.sleep(0.2)


@pytest.fixture(scope="module")
def storage(nano: Experiment, scenes_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the YAML file of the experiment that is swept."""
    folder = tmp_path_factory.mktemp("sweep")
    data = nano.data.changed({"root": str(scenes_dir)})
    two_at_once = {f"resources.{process}_cpus": 0.1 for process in ("trainer", "separation", "reader")}
    shared = {**two_at_once, "store.mode": "read-through"}
    nano.changed({"data": data}).changed(shared).save(folder / "nano.yaml")
    return folder


def test_a_sweep_continues_after_its_driver_was_killed_and_repeats_nothing(
    storage: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    process = start_sweep(storage, "--id", "whole")
    sweep = storage / "whole"
    log = storage / "log"
    try:
        wait_for(lambda: any(sweep.glob("trials/*/finished")), process, log)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait(30)
    done = {path: path.stat().st_mtime_ns for path in sweep.glob("trials/*/finished")}
    assert done and len(done) < 4
    weights = [path.stat().st_mtime_ns for path in sorted((sweep / "shared").rglob("model.safetensors"))]

    finish(start_sweep(storage, "--resume"), log, SECONDS)
    assert {path: path.stat().st_mtime_ns for path in done} == done
    assert weights == [path.stat().st_mtime_ns for path in sorted((sweep / "shared").rglob("model.safetensors"))]
    results = SweepResults.load(sweep)
    assert [trial.status for trial in results.trials] == ["finished"] * 4
    ledgers = [RunResults.load(sweep / trial.run_dir).ledger for trial in results.trials]
    assert [ledger.rows if ledger else 0 for ledger in ledgers] == [4 * 24] * 4

    listing = list_store(str(sweep / "store"))
    processors = {group.processor: group.entries for group in listing.groups}
    assert set(processors.values()) == {24} and len(processors) == 3, "each clip is separated once, for all trials"

    page = (sweep / "report.html").read_text()
    assert "shared/listen.html" in page and (sweep / "shared" / "listen.html").exists()
    assert all(f"{quote(trial.run_dir)}/report.html" in page for trial in results.trials)

    client = MlflowClient(tracking_uri=f"sqlite:///{storage}/mlflow.db")
    (experiment,) = [one for one in client.search_experiments() if one.name == "sepscene"]
    runs = {run.info.run_name: run for run in client.search_runs([experiment.experiment_id], max_results=1000)}
    logged = {one.path for one in client.list_artifacts(runs["shared"].info.run_id)}
    assert {"listen.html", "listen"} <= logged, "the listening page of the ladder and its sounds"
    parent = runs["whole"]
    for trial in results.trials:
        child = runs[Path(trial.run_dir).name]
        assert child.data.tags["mlflow.parentRunId"] == parent.info.run_id
        assert child.data.tags["sweep.views.pair"] == trial.settings["views.pair"]
        assert child.info.status == "FINISHED"
