"""An audit is kept beside the runs, mirrored to MLflow, and found by the runs that use the same data."""

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
from mlflow import MlflowClient
from mlflow.entities import Run as MlflowRun
from rich.console import Console
from typer.testing import CliRunner

from orchestration.cli import app
from orchestration.config import Experiment
from orchestration.run import Run
from orchestration.tracking import Tracker

pytestmark = pytest.mark.slow  # a SQLite store of MLflow


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Three clips, two of them equal and one that is no sound."""
    root = tmp_path / "data"
    root.mkdir()
    rows = ["uri,labels,split"]
    for name, split in (("a", "train"), ("b", "test"), ("c", "train")):
        soundfile.write(root / f"{name}.wav", 0.1 * np.sin(np.arange(16_000)), 16_000)
        rows.append(f"{name}.wav,x,{split}")
    (root / "c.wav").write_text("no sound")
    (root / "manifest.csv").write_text("\n".join(rows))
    return root


def runs_of(storage: Path) -> dict[str, MlflowRun]:
    client = MlflowClient(tracking_uri=f"sqlite:///{storage}/mlflow.db")
    experiment = client.get_experiment_by_name("sepscene")
    assert experiment is not None
    return {str(run.info.run_name): run for run in client.search_runs([experiment.experiment_id])}


def begun(nano: Experiment, data: Path, storage: Path, name: str) -> None:
    """A run that looks at its data and tells MLflow."""
    experiment = nano.changed({"data.format": "table", "data.root": str(data)})
    folder = storage / name
    folder.mkdir(parents=True)
    run = Run(folder, experiment, Tracker(f"sqlite:///{storage}/mlflow.db", "sepscene", folder), Console(quiet=True))
    train, _ = run.manifests()
    run.record_inputs({}, training=train)


def test_a_run_carries_the_hash_of_the_audit_of_its_data(
    nano: Experiment, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    storage = tmp_path / "runs"
    begun(nano, data, storage, "before")
    words = ["data", "audit", str(data), "--format", "table", "--storage", str(storage)]
    said = CliRunner().invoke(app, words)
    assert said.exit_code == 3 and "corrupt" in said.output
    (folder,) = (storage / "audits").iterdir()
    kept = json.loads((folder / "audit.json").read_text())
    assert f"digest      {kept['digest']}" in (folder / "audit.txt").read_text()
    begun(nano, data, storage, "after")
    begun(nano, data, storage, "sweep/trials/trial")
    (data / "manifest.csv").write_text((data / "manifest.csv").read_text().replace(",x,test", ",y,test"))
    begun(nano, data, storage, "changed")
    found = runs_of(storage)
    assert found["after"].data.tags["audit_hash"] == kept["digest"]
    assert "audit_hash" not in found["before"].data.tags and "audit_hash" not in found["changed"].data.tags
    assert found["trial"].data.tags["audit_hash"] == kept["digest"]
    audit = found[folder.name]
    assert audit.info.status == "FINISHED" and audit.data.tags["audit_hash"] == kept["digest"]
    told = {"clips": 3, "readable": 2, "missing": 0, "corrupt": 1, "duplicates": 1, "leaking": 1}
    assert told.items() <= audit.data.metrics.items()
    client = MlflowClient(tracking_uri=f"sqlite:///{storage}/mlflow.db")
    assert {"audit.txt", "audit.json"} <= {one.path for one in client.list_artifacts(audit.info.run_id)}
