"""For any content of the files of a run, sweep or evaluation, their readers return or raise a `SepsceneError`.

To run it longer: SEPSCENE_FUZZ_SECONDS=3600 python -m pytest tests/orchestration/records/test_fuzz.py
"""

import os
import socket
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from sepscene.models.config import SepsceneError
from sepscene.models.encoders.encoder import load_encoder, save_encoder
from sepscene.orchestration.config import load_experiment
from sepscene.orchestration.evaluation.compare import load_predictions, save_predictions
from sepscene.orchestration.evaluation.downstream import TaskResult, read_results, result_path
from sepscene.orchestration.evaluation.embedding_writer import EmbeddingOutput
from sepscene.orchestration.mini.study import read_records
from sepscene.orchestration.mini.trial import TrialRecord
from sepscene.orchestration.presets import named_experiment
from sepscene.orchestration.records.checkpoints import (
    TrainingState,
    newest_intact,
    read_ledger,
    read_steps,
    write_checkpoint,
)
from sepscene.orchestration.records.files import read_typed_or, write_text_atomically
from sepscene.orchestration.records.ledger import Ledger
from sepscene.orchestration.records.mlflow_address import tracking_uri_of
from sepscene.orchestration.records.mlflow_mirror import Tracker
from sepscene.orchestration.records.results import (
    LedgerResult,
    ReproductionResults,
    RunResults,
    SweepResults,
    TrialFacts,
    read_metrics,
)
from sepscene.orchestration.records.run_folder import RunFolder
from sepscene.orchestration.records.run_lock import Holder, check_free
from sepscene.orchestration.records.sweep_folder import StudyFolder, SweepFolder
from sepscene.orchestration.reports.run_report import reported_events
from sepscene.orchestration.sweeps.config import SweepConfig
from sepscene.orchestration.sweeps.schedulers import BudgetStopper
from sepscene.orchestration.sweeps.trial_status import outcomes
from sepscene.orchestration.training.replay import last_bad_rows
from sepscene.orchestration.training.throughput import balance_of
from sepscene.tasks.evaluation.scores import measure
from tests.damage import STRANGE, damaged, reworded
from tests.models.encoders.test_encoder import small_encoder
from tests.orchestration.evaluation.test_compare import predictions
from tests.orchestration.samples import write_sample_reproduction, write_sample_run, write_sample_sweep

SECONDS = float(os.environ.get("SEPSCENE_FUZZ_SECONDS", "0.5"))
"""Duration for each kind of file."""


def ledger(folder: Path) -> Path:
    written = Ledger(rows=8, quarantined={"a.wav": "is missing"})
    written.consume(np.array([0, 1, 2, 5]))
    RunFolder(folder).ledger.write_text(written.to_json())
    return RunFolder(folder).ledger


def checkpoint(file: str) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        state = TrainingState(3, Ledger(rows=8), {"weight": torch.ones(2)}, [{"step": 3, "loss": 0.5}])
        write_checkpoint(folder / "step-00000003", state)
        return folder / "step-00000003" / file

    return write


def written(name: str, content: bytes) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        path = folder / name
        path.write_bytes(content)
        return path

    return write


def run_file(name: str) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        write_sample_run(folder)
        return folder / name

    return write


def sweep_file(folder: Path) -> Path:
    write_sample_sweep(folder)
    return folder / "sweep.json"


def reproduction_file(folder: Path) -> Path:
    write_sample_reproduction(folder)
    return folder / "reproduction.json"


def experiment_file(folder: Path) -> Path:
    named_experiment("demo", "tiny").save(RunFolder(folder).experiment)
    return RunFolder(folder).experiment


def skipped_rows(folder: Path) -> Path:
    experiment_file(folder)
    path = RunFolder(folder).stage("pretrain-mix-chan").bad_rows
    path.parent.mkdir(parents=True)
    path.write_text("[[1, 2], [3, 4]]")
    return path


def trial_file(folder: Path) -> Path:
    path = SweepFolder(folder).trial("t1").trial
    facts = TrialFacts(name="t1", settings={"seed": 1}, seed=1, chosen={"alpha": 0.5}, gpus=1.0, steps=8, metric=0.3)
    write_text_atomically(path, facts.model_dump_json())
    return path


def read_trial(folder: Path) -> None:
    outcomes([], folder)
    BudgetStopper(SweepConfig(experiment="demo", over={"seed": "1,2"}), folder, 0.0).gpu_hours()


def predictions_file(folder: Path) -> Path:
    return save_predictions(measure(predictions(1.0, clips=24)), folder / "e.npz")


def embeddings(suffix: str) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        output = EmbeddingOutput(folder / f"o{suffix}", "abc", 4)
        output.add(["a.wav", "b.wav"], np.ones((2, 4), np.float32))
        output.finish()
        return folder / ("o.names.json" if suffix == ".npy" else "o.parquet")

    return write


def task_result(folder: Path) -> Path:
    result = TaskResult(
        encoder="e", digest="d", task="t", metrics={"map": 0.5}, sounds=3, left_out={"a.wav": "is missing"}
    )
    path = result_path(folder, result.task, result.encoder, result.digest)
    path.write_text(result.model_dump_json())
    return path


def bundle(folder: Path) -> Path:
    save_encoder(small_encoder(), folder, {"title": "an encoder"})
    return folder / "config.json"


def read_all_metrics(folder: Path) -> None:
    records = read_metrics(folder)
    reported_events(records)
    balance_of(records, "pretrain")


def study_trial(folder: Path) -> Path:
    record = TrialRecord(
        row="table2/mix-mix", seed=0, config_digest="d", commit="c", finished="2026-01-01T00:00:00+00:00", seconds=1.0,
        steps=4, steps_per_second=4.0, metrics={"shallow_map": 0.3}, perceptrons=(0.3,), replicates=(0.2, 0.4),
        losses={}, diagnostics={}, ledger=LedgerResult(rows=8, consumed=8, lost=0, twice=0),
    )  # fmt: skip
    record.save(StudyFolder(folder).trial("table2/mix-mix", 0))
    return StudyFolder(folder).trial("table2/mix-mix", 0)


def read_mlflow(folder: Path) -> None:
    tracking_uri_of(folder)
    Tracker(f"sqlite:///{folder}/mlflow.db", "sepscene", folder)


MLFLOW = b'{"uri": "sqlite:////nowhere/mlflow.db", "runs": {"": "abc"}, "calls": 1, "positions": {"metrics.jsonl": 7}}'
CALL = b'{"kind": "tag", "stage": "", "milliseconds": 1, "argument": {"a": "b"}}\n'
ENDED = Holder(host=socket.gethostname(), pid=1, process_began=1.0, since="2026-01-01").model_dump_json().encode()
"""A process of this host that has ended."""

KINDS: dict[str, tuple[Callable[[Path], Path], Callable[[Path], object]]] = {
    "results.json": (run_file("results.json"), RunResults.load),
    "metrics.jsonl": (run_file("metrics.jsonl"), read_all_metrics),
    "experiment.yaml": (experiment_file, lambda folder: load_experiment(RunFolder(folder).experiment)),
    "sweep.json": (sweep_file, SweepResults.load),
    "reproduction.json": (reproduction_file, ReproductionResults.load),
    "ledger.json": (ledger, lambda folder: Ledger.load(RunFolder(folder).ledger)),
    "stages.json": (written("stages.json", b'{"separator": 3.5, "evaluate": 1}'), lambda folder: read_typed_or(
        RunFolder(folder).timings, dict[str, float], {})),
    "manifest.json": (checkpoint("manifest.json"), newest_intact),
    "a checkpoint's ledger": (checkpoint("ledger.json"), lambda folder: read_ledger(folder / "step-00000003")),
    "a checkpoint's metrics": (checkpoint("metrics.json"), lambda folder: read_steps(folder / "step-00000003")),
    "a checkpoint's state": (checkpoint("state.pt"), newest_intact),
    "bad-rows": (skipped_rows, last_bad_rows),
    "running.json": (written("running.json", ENDED), lambda folder: check_free(RunFolder(folder))),
    "mlflow.json": (written("mlflow.json", MLFLOW), read_mlflow),
    "mlflow-calls.jsonl": (written("mlflow-calls.jsonl", CALL * 3), read_mlflow),
    "trial.json": (trial_file, read_trial),
    "predictions": (predictions_file, lambda folder: measure(load_predictions(folder / "e.npz"))),
    "o.parquet": (embeddings(".parquet"), lambda folder: EmbeddingOutput(folder / "o.parquet", "abc", 4)),
    "o.names.json": (embeddings(".npy"), lambda folder: EmbeddingOutput(folder / "o.npy", "abc", 4)),
    "a task's result": (task_result, read_results),
    "a study's trial": (study_trial, read_records),
    "config.json": (bundle, load_encoder),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.timeout(SECONDS + 120)
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", KINDS)
def test_only_sepscene_errors_are_raised(tmp_path: Path, kind: str) -> None:
    write, read = KINDS[kind]
    path = write(tmp_path)
    original = path.read_bytes()
    rng = np.random.default_rng(len(kind))
    read(tmp_path)
    end = time.monotonic() + SECONDS
    tried = 0
    while time.monotonic() < end or tried < len(STRANGE):
        change = (damaged, reworded)[tried % 2]
        data = STRANGE[tried] if tried < len(STRANGE) else change(original, rng)
        path.write_bytes(data)
        tried += 1
        try:
            read(tmp_path)
        except SepsceneError:
            continue
        except BaseException as error:
            pytest.fail(f"{kind}, try {tried}: {error!r} of {data[:2000]!r}")
