"""An audit is stored next to the runs and found by those that use the same data; for MLflow see test_whole_run.py."""

import json
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import soundfile
from mlflow import MlflowClient
from rich.console import Console
from typer.testing import CliRunner

from sepscene.orchestration.cli.main import app
from sepscene.orchestration.config import Experiment
from sepscene.orchestration.pipeline.run import Run
from sepscene.orchestration.records.mlflow_mirror import Tracker

pytestmark = pytest.mark.slow  # imports Ray, though it starts none


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Three clips, of which two are equal and one is not a sound file."""
    root = tmp_path / "data"
    root.mkdir()
    rows = ["uri,labels,split"]
    for name, split in (("a", "train"), ("b", "test"), ("c", "train")):
        soundfile.write(root / f"{name}.wav", 0.1 * np.sin(np.arange(16_000)), 16_000)
        rows.append(f"{name}.wav,x,{split}")
    (root / "c.wav").write_text("not a sound")
    (root / "manifest.csv").write_text("\n".join(rows))
    return root


def recorded_by(nano: Experiment, data: Path, folder: Path) -> dict[str, str]:
    """The inputs that a run in this folder sends to MLflow."""
    run = Run(folder, nano.changed({"data.format": "table", "data.root": str(data)}), Mock(spec=Tracker), Console())
    train, _ = run.manifests
    run.record_inputs({}, training=train)
    return run.inputs


def test_a_run_carries_the_hash_of_the_audit_of_its_data(
    nano: Experiment, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    storage = tmp_path / "runs"
    assert "audit_hash" not in recorded_by(nano, data, storage / "before")
    result = CliRunner().invoke(app, ["data", "audit", str(data), "--format", "table", "--storage", str(storage)])
    assert result.exit_code == 3 and "corrupt" in result.output
    (folder,) = (storage / "audits").iterdir()
    findings = json.loads((folder / "audit.json").read_text())
    assert f"digest      {findings['digest']}" in (folder / "audit.txt").read_text()
    (logged,) = MlflowClient(tracking_uri=f"sqlite:///{storage}/mlflow.db").search_runs(["1"])
    assert logged.info.run_name == folder.name and logged.data.tags["audit_hash"] == findings["digest"]
    assert logged.data.metrics.items() >= {
        "clips": 3, "readable": 2, "missing": 0, "corrupt": 1, "duplicates": 1, "leaking": 1,
    }.items()  # fmt: skip
    for name in ("after", "sweep/trials/trial"):
        assert recorded_by(nano, data, storage / name)["audit_hash"] == findings["digest"]
    (data / "manifest.csv").write_text((data / "manifest.csv").read_text().replace(",x,test", ",y,test"))
    assert "audit_hash" not in recorded_by(nano, data, storage / "changed")
