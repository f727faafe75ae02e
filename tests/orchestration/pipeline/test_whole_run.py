"""A whole run from the command line, at the smallest sizes, with its output to a pipe: its output and its folder."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from mlflow import MlflowClient
from typer.testing import CliRunner

from sepscene.models.encoders.encoder import load_encoder
from sepscene.orchestration.cli.main import app
from sepscene.orchestration.config import Experiment
from sepscene.orchestration.records.ledger import Ledger
from sepscene.orchestration.records.results import RunResults, read_metrics

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]
ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def finished(nano: Experiment, scenes_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, str]:
    """The run's folder, and the command's standard output and standard error."""
    storage = tmp_path_factory.mktemp("whole")
    data = nano.data.changed({"root": str(scenes_dir)})
    # One trainer, so that mix-chan, which separates live, uses Ray Train, and mix-mix trains in the driver's process.
    one = {"data": data, "table_row": "table4/S2+N/simclr-cp", "resources.trainers": 1}
    nano.changed(one).save(storage / "nano.yaml")
    variables = {**os.environ, "RAY_AUTH_MODE": "disabled", "RAY_worker_niceness": "0", "COLUMNS": "100"}
    variables.pop("MLFLOW_TRACKING_URI", None)
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        audit = ["data", "audit", str(scenes_dir), "--format", "scenes", "--storage", str(storage)]
        assert CliRunner().invoke(app, audit).exit_code == 0
    done = subprocess.run(
        [
            *(sys.executable, "-m", "sepscene", "pretrain", str(storage / "nano.yaml")),
            *("--storage", str(storage), "--run-id", "whole"),
        ],
        cwd=ROOT, env=variables, capture_output=True, text=True, timeout=560, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    return storage / "whole", done.stdout, done.stderr


def test_the_output_shows_progress_results_and_next_steps_and_nothing_else(finished: tuple[Path, str, str]) -> None:
    run, output, errors = finished
    assert errors == "" and "raylet" not in output
    for stage in ("train separator", "pretrain-mix-chan", "pretrain-mix-mix", "evaluate"):
        assert any(line.startswith(stage) for line in output.splitlines()), f"no progress of {stage}:\n{output}"
    summary = output[output.index("encoder") :]
    for name in ("report.html", "listen.html", "encoder"):
        assert str(run / name) in summary.replace("\n", "")
    assert 'href="report.html"' in (run / "listen.html").read_text()
    assert f"sepscene ui {run}" in summary
    assert f"sepscene embed {run}" in summary


def test_the_folder_contains_all_results(finished: tuple[Path, str, str], nano: Experiment) -> None:
    run, *_ = finished
    results = RunResults.load(run)
    assert [encoder.name for encoder in results.encoders] == ["mix-chan", "mix-mix", "untrained"]
    stages = {stage.name for stage in results.stages}
    assert {"separator", "pretrain-mix-chan", "pretrain-mix-mix", "evaluate"} <= stages
    rows = nano.training.epochs * 24
    assert Ledger.load(run / "ledger.json").intervals == [(0, rows)]
    assert max(record["step"] for record in read_metrics(run) if record["stage"] == "pretrain-mix-chan") == rows // 16
    assert load_encoder(run / "encoder").embedding_dim == 16
    card = (run / "encoder" / "README.md").read_text()
    metric = results.encoders[0].metrics["shallow_map"]
    assert f"| shallow_map | {metric.value:.4f} | {metric.low:.4f} to {metric.high:.4f} |" in card
    assert {path.name for path in (run / "plots").iterdir()} >= {"answer.svg", "ladder.svg", "map0.svg", "curve0.svg"}


def test_everything_is_in_mlflow(finished: tuple[Path, str, str]) -> None:
    run, *_ = finished
    client = MlflowClient(tracking_uri=f"sqlite:///{run.parent}/mlflow.db")
    experiment = client.get_experiment_by_name("sepscene")
    assert experiment is not None
    found = {one.info.run_name: one for one in client.search_runs([experiment.experiment_id])}
    (kept,) = (run.parent / "audits").iterdir()
    assert set(found) == {
        kept.name, "whole", "whole/separator", "whole/pretrain-mix-chan", "whole/pretrain-mix-mix", "whole/evaluate",
    }  # fmt: skip
    parent = found["whole"]
    assert {one.info.status for one in found.values()} == {"FINISHED"}
    digests = [pair.split("=")[1] for pair in parent.data.tags["separator_digest"].split(",")]
    assert digests == [processor.digest[:12] for processor in RunResults.load(run).ladder]
    assert len(parent.data.tags["data_hash"]) == 64
    audit = json.loads((kept / "audit.json").read_text())
    assert parent.data.tags["audit_hash"] == found[kept.name].data.tags["audit_hash"] == audit["digest"]
    metrics = {"clips": 36, "readable": 36, "missing": 0, "corrupt": 0, "duplicates": 0, "leaking": 0}
    assert metrics.items() <= found[kept.name].data.metrics.items()
    assert {one.path for one in client.list_artifacts(found[kept.name].info.run_id)} == {"audit.json", "audit.txt"}
    assert {"experiment", "table_row", "combination", "temperature", "alpha", "git_commit"} <= parent.data.tags.keys()
    assert {one.dataset.name for one in parent.inputs.dataset_inputs} == {"scenes train", "scenes test"}
    kept = {artifact.path for artifact in client.list_artifacts(parent.info.run_id)}
    assert {
        "experiment.yaml",
        "ledger.json",
        "report.html",
        "report.md",
        "results.json",
        "listen.html",
        "listen",
        "plots",
    } <= kept
    assert "system/cpu_utilization_percentage" in found["whole/pretrain-mix-chan"].data.metrics
    trained = found["whole/pretrain-mix-chan"].data
    ours = [name for name in trained.metrics if not name.startswith("system/")]
    # MLflow sorts its sections: loss first, quality next. A name without a slash would come last.
    assert sorted({name.split("/")[0] for name in ours}) == [
        "1_loss", "2_quality", "3_representation", "4_training", "5_pace", "6_balance",
    ]  # fmt: skip
    assert {"1_loss/loss", "4_training/quarantined", "6_balance/silent_share", "6_balance/waiting_share"} <= set(ours)
    assert trained.params == parent.data.params
    stages = ("readers", "separation", "trainers")
    quantities = ("busy", "rows_per_second", "queue_blocks", "bytes_per_second")
    both = {(stage, name) for stage in stages for name in quantities} - {("trainers", name) for name in quantities[2:]}
    assert {f"6_balance/{stage}_{name}" for stage, name in both} <= trained.metrics.keys()  # written at the end
    assert {f"5_pace/{stage}_{name}" for stage, name in both} <= trained.metrics.keys()  # written during training
    assert "the bottleneck: " in trained.tags["bottleneck"]
    assert parent.data.tags["bottleneck"] == trained.tags["bottleneck"]
    (version,) = client.search_model_versions("name = 'sepscene-nano'")
    assert version.run_id == found["whole/pretrain-mix-chan"].info.run_id
    weights = json.loads((run / "encoder" / "config.json").read_text())["sha256"]
    assert version.tags["sha256"] == weights


def test_the_tutorials_next_steps_work_on_it(finished: tuple[Path, str, str], scenes_dir: Path, tmp_path: Path) -> None:
    """Steps 2 and 4 of docs/tutorial.md: compare with the baseline, embed files, load the encoder in Python."""
    run, *_ = finished
    out = tmp_path / "embeddings.parquet"
    for words in (
        ["compare", str(run), str(run), "--encoder-a", "mix-mix"],
        ["embed", str(run), str(scenes_dir / "test.csv"), "--out", str(out)],
        ["report", str(run)],
        ["sync", str(run)],
    ):
        result = CliRunner().invoke(app, words)
        assert result.exit_code == 0, (words, result.output, result.exception)
    assert pq.read_table(out).num_rows == 12
    (snippet,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "tutorial.md").read_text(), flags=re.DOTALL)
    names = {"wave_BT": torch.zeros(2, 32_000)}
    exec(snippet.replace("runs/mine/encoder", str(run / "encoder")), names)
    assert names["h_BD"].shape == (2, 16)
