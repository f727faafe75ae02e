"""MLflow is unavailable or its store is locked: training continues, and `sepscene sync` sends every metric later."""

import json
import os
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import mlflow
import pytest
import requests

from sepscene.orchestration.config import Experiment
from sepscene.orchestration.records.mlflow_names import metric_name
from sepscene.orchestration.records.results import read_metrics
from tests.faults.faults import STAGE, after, as_command, finish, long_enough, note, start
from tests.faults.hosts import free_port

pytestmark = [pytest.mark.slow, pytest.mark.faults_long, pytest.mark.timeout(600)]


def assert_complete(run_dir: Path, uri: str) -> None:
    """Every metric of every step in the metrics file is in MLflow, once."""
    client = mlflow.MlflowClient(tracking_uri=uri)
    run_id = json.loads((run_dir / "mlflow.json").read_text())["runs"][STAGE]
    for name in ("loss", "rows", "examples_per_second"):
        sent = sorted((point.step, point.value) for point in client.get_metric_history(run_id, metric_name(name)))
        written = sorted((int(r["step"]), float(r[name])) for r in read_metrics(run_dir) if name in r)
        assert sent == written, name
    assert client.get_run(run_id).info.status == "FINISHED"


def sync(run_dir: Path, log: Path, **variables: str) -> None:
    """Run `sepscene sync RUN`."""
    finish(start([sys.executable, "-m", "sepscene", "sync", str(run_dir)], log, **variables), log)


def test_a_server_that_starts_after_the_run(
    nano: Experiment, scenes_dir: Path, ladder: dict[str, str], tmp_path: Path
) -> None:
    port = free_port()
    uri = f"http://127.0.0.1:{port}"
    log = tmp_path / "log"
    run_dir = tmp_path / "runs" / "dead"
    command = as_command(long_enough(nano), ladder, scenes_dir, tmp_path, "dead")
    finish(start(command, log, MLFLOW_TRACKING_URI=uri), log)
    note("MLflow server down", "continues; `sepscene sync` sends everything later", run_dir)
    from sepscene.orchestration.records.mlflow_mirror import Tracker

    assert Tracker("http://127.0.0.1:9", "sepscene", run_dir).unsent > 0
    store = ["--backend-store-uri", f"sqlite:///{tmp_path}/server.db", "--artifacts-destination", str(tmp_path / "art")]
    server = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "mlflow",
            "server",
            "--host",
            "127.0.0.1",
            "--port",
            str(port),
            "--workers",
            "1",
            *store,
        ],
        env={**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + 120
        while not _responds(uri):
            assert time.monotonic() < deadline, "the MLflow server did not start"
            time.sleep(0.5)
        sync(run_dir, log)
        assert_complete(run_dir, uri)
    finally:
        server.terminate()
        server.wait(30)


def _responds(uri: str) -> bool:
    try:
        return requests.get(f"{uri}/health", timeout=5).ok
    except OSError:
        return False


def test_a_store_that_is_locked_during_the_run(
    nano: Experiment, scenes_dir: Path, ladder: dict[str, str], tmp_path: Path
) -> None:
    log = tmp_path / "log"
    run_dir = tmp_path / "runs" / "locked"
    uri = f"sqlite:///{tmp_path}/runs/mlflow.db"
    command = as_command(long_enough(nano), ladder, scenes_dir, tmp_path, "locked")
    locks: list[sqlite3.Connection] = []

    def inject() -> bool:
        store = sqlite3.connect(tmp_path / "runs" / "mlflow.db", check_same_thread=False)
        locks.append(store)
        try:
            store.execute("BEGIN EXCLUSIVE")
        except sqlite3.OperationalError:  # currently in use
            store.close()
            return False
        return True

    injection = after(5, run_dir, inject)
    try:
        finish(start(command, log, MLFLOW_TRACKING_URI=uri), log)
    finally:
        locks[-1].close()
    assert injection.happened
    note("MLflow's SQLite store locked", "continues; `sepscene sync` sends everything later", run_dir, injection.times)
    sync(run_dir, log)
    assert_complete(run_dir, uri)
