"""A run's data sets, and the output of its stages: progress, events, and sometimes the balance of the stream."""

import io
import json
import time
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import soundfile
from rich.console import Console

from sepscene.orchestration.config import Experiment
from sepscene.orchestration.pipeline.run import BALANCE_EVERY, Run
from sepscene.orchestration.records.checkpoints import TrainingState, write_checkpoint
from sepscene.orchestration.records.ledger import Ledger
from sepscene.orchestration.records.metrics_log import append_metrics
from sepscene.orchestration.records.mlflow_mirror import Tracker
from sepscene.orchestration.records.run_folder import RunFolder

pytestmark = pytest.mark.slow  # imports Ray, though it starts none
BALANCE = {
    "readers/rows_per_second": 20.0, "readers/busy": 0.02, "readers/queue_blocks": 0.1, "readers/bytes_per_second": 2e4,
    "trainers/rows_per_second": 20.0, "trainers/busy": 0.75,
}  # fmt: skip


def test_every_tenth_balance_is_printed(nano: Experiment, tmp_path: Path) -> None:
    out = io.StringIO()
    run = Run(tmp_path, nano, Mock(spec=Tracker), Console(file=out, width=100))
    reports = [{"step": 5 * n, "rows": 80 * n, **BALANCE} for n in range(1, 2 * BALANCE_EVERY + 5)]
    steps = [record for report in reports for record in ({"step": report["step"] - 1, "loss": 1.0}, report)]
    with run.stage("pretrain", "pretrain", 10_000):
        append_metrics(RunFolder(tmp_path).stage("another"), reports)
        append_metrics(RunFolder(tmp_path).stage("pretrain"), [*steps, {"event": "another stage is the bottleneck"}])
    line = "pretrain: readers 20 rows/s, 2% busy, 0.1 blocks wait, 20 kB/s; trainers 20 rows/s, 75% busy, waiting 25%"
    assert out.getvalue().splitlines().count(line) == 2
    assert "pretrain: another stage is the bottleneck" in out.getvalue()


def test_a_continued_stage_shows_the_progress_of_the_earlier_command(nano: Experiment, tmp_path: Path) -> None:
    steps = [{"step": 3, "rows": 48}, {"step": 4, "rows": 64}]
    folder = RunFolder(tmp_path).stage("pretrain-mix-chan")
    write_checkpoint(folder.path / "step-00000004", TrainingState(4, Ledger(160), {}, steps))
    out = io.StringIO()
    run = Run(tmp_path, nano, Mock(spec=Tracker), Console(file=out, width=100))
    with run.stage("pretrain-mix-chan", "pretrain-mix-chan", 160):
        pass
    assert " 64/160 " in out.getvalue().splitlines()[0]


def test_the_time_of_an_interrupted_stage_counts(nano: Experiment, tmp_path: Path) -> None:
    def interrupt() -> None:
        time.sleep(0.2)
        raise KeyboardInterrupt

    run = Run(tmp_path, nano, Mock(spec=Tracker), Console(quiet=True))
    with pytest.raises(KeyboardInterrupt), run.stage("pretrain-mix-chan", "pretrain-mix-chan", 160):
        interrupt()
    with run.stage("pretrain-mix-chan", "pretrain-mix-chan", 160):
        pass
    assert json.loads(run.files.timings.read_text())["pretrain-mix-chan"] >= 0.2


def test_cross_validation_counts_clips_without_a_label_once(nano: Experiment, tmp_path: Path) -> None:
    rows = ["uri,labels,split"]
    for n in range(4):
        soundfile.write(tmp_path / f"{n}.wav", np.random.default_rng(n).uniform(-0.1, 0.1, 32_000), 16_000)
        rows.append(f"{n}.wav,{'dog' if n else ''},fold{n % 2}")
    (tmp_path / "manifest.csv").write_text("\n".join(rows))
    data = {"format": "table", "root": str(tmp_path), "train": ("fold0", "fold1"), "test": ("folds",)}
    folds = nano.changed({f"data.{name}": value for name, value in data.items()})
    out = io.StringIO()
    train, test = Run(tmp_path, folds, Mock(spec=Tracker), Console(file=out, width=200)).manifests
    assert train is test
    notes = [line for line in out.getvalue().splitlines() if "no label" in line]
    assert notes == ["note          1 of 4 clips have no label; the evaluation leaves them out"]


def test_scenes_are_generated_unless_the_tables_of_both_splits_exist(nano: Experiment, tmp_path: Path) -> None:
    few = nano.changed({"data.scenes_train": 3, "data.scenes_test": 2})
    scenes = RunFolder(tmp_path).scenes
    generated = []
    for interrupted in (False, False, True):
        if interrupted:  # before it wrote the last table
            (scenes / "test.csv").unlink()
        out = io.StringIO()
        train, test = Run(tmp_path, few, Mock(spec=Tracker), Console(file=out, width=100)).manifests
        assert (len(train), len(test)) == (3, 2)
        generated.append("generate sound scenes" in out.getvalue())
    assert generated == [True, False, True]
    assert sorted(path.name for path in scenes.iterdir()) == ["test", "test.csv", "train", "train.csv"]
