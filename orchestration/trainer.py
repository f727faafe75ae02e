"""Starting a Ray Train stage: the same storage, retries and metrics for the separator and for pre-training."""

import os
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import ray.train
import ray.train.torch
from ray.data import Dataset

from models.config import SepsceneError
from orchestration.checkpoints import (
    TrainingState,
    checkpoint_name,
    choose_resume_point,
    newest_sound,
    read_figures,
    read_ledger,
    write_checkpoint,
)
from orchestration.config import Resources
from orchestration.ledger import Ledger
from orchestration.metrics import MetricsFile, fatal_path, recover_metrics

MAX_FAILURES = 8
"""Worker groups that may fail before the stage gives up."""


def fit(
    worker: Callable[[dict[str, Any]], None],
    settings: dict[str, Any],
    stream: Callable[[Ledger], Dataset],
    rows: int,
    run_dir: Path,
    stage: str,
    resources: Resources,
    checkpoints_kept: int | None,
    ordered: bool,
) -> Path:
    """Run one stage to the end of its schedule, through the failures of anything but this process.

    A stage that has reached its end before is left as it is; one that was cut short continues.

    Args:
        worker: the training function of each worker; it finds its resume point under settings["checkpoints"].
        settings: its plain settings.
        stream: builds the data from what a ledger still lacks; called anew for every worker group.
        rows: rows of the schedule.
        run_dir: the run's folder; checkpoints go to RUN/checkpoints/<stage>/.
        stage: name of the stage.
        resources: trainers and where they run.
        checkpoints_kept: how many checkpoints to keep; none keeps all.
        ordered: keep the schedule's order in the stream.

    Returns:
        The last checkpoint.

    Raises:
        SepsceneError: when the stage reports a fatal condition, or fails more often than is reasonable.
    """
    checkpoints = run_dir / "checkpoints" / stage
    metrics = run_dir.resolve() / "metrics.jsonl"

    def remaining() -> Dataset:
        chosen = choose_resume_point(checkpoints)
        if chosen is None:
            return stream(Ledger(rows))
        recover_metrics(metrics, stage, read_figures(chosen))
        return stream(read_ledger(chosen))

    last = newest_sound(checkpoints)
    if last is not None and not read_ledger(last).remaining():
        recover_metrics(metrics, stage, read_figures(last))
        return last

    options = ray.data.ExecutionOptions(preserve_order=ordered)
    trainer = ray.train.torch.TorchTrainer(
        worker,
        train_loop_config={**settings, "checkpoints": str(checkpoints)},
        datasets={"views": remaining},
        dataset_config=ray.train.DataConfig(execution_options=options),
        scaling_config=_scaling(resources),
        run_config=ray.train.RunConfig(
            name=stage,
            storage_path=str(checkpoints.parent.resolve()),
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=checkpoints_kept),
            failure_config=ray.train.FailureConfig(max_failures=MAX_FAILURES),
            callbacks=[MetricsFile(metrics, stage)],  # type: ignore[list-item]
            # Ray's type hints still describe its first Train; this is the second, whose classes these are.
            worker_runtime_env={  # type: ignore[call-arg]
                "env_vars": {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
            },
        ),
    )
    fatal = fatal_path(run_dir, stage)
    fatal.unlink(missing_ok=True)
    try:
        trainer.fit()
    except ray.train.TrainingFailedError as error:
        raise SepsceneError(f"stage {stage} failed: {error}") from error
    if fatal.exists():
        raise SepsceneError(fatal.read_text())
    last = newest_sound(checkpoints)
    if last is None:
        raise SepsceneError(f"{checkpoints} holds no sound checkpoint after training")
    return last


class Reporter:
    """What a worker tells the driver: the figures of its steps, and from rank 0 the checkpoints."""

    def __init__(self) -> None:
        self.unsent: list[dict[str, float]] = []
        self.since_checkpoint: list[dict[str, float]] = []

    def add(self, figures: dict[str, float]) -> None:
        """Keep the figures of a step for the next report."""
        self.unsent.append(figures)
        self.since_checkpoint.append(figures)

    def send(self, state: TrainingState | None = None, fatal: str = "") -> None:
        """Report the steps since the last report; with a state, rank 0 also brings a checkpoint.

        All workers call this together. Ray Train uploads the checkpoint while training goes on.
        """
        metrics = {"steps": self.unsent, "fatal": fatal}
        self.unsent = []
        if state is None or ray.train.get_context().get_world_rank() != 0:
            ray.train.report(metrics)
            return
        folder = Path(tempfile.mkdtemp(prefix="sepscene-checkpoint-"))
        write_checkpoint(folder, replace(state, figures=self.since_checkpoint))
        self.since_checkpoint = []
        ray.train.report(
            metrics,
            checkpoint=ray.train.Checkpoint.from_directory(folder),
            checkpoint_dir_name=checkpoint_name(state.step),
            checkpoint_upload_mode=ray.train.CheckpointUploadMode.ASYNC,
        )


def _scaling(resources: Resources) -> ray.train.ScalingConfig:
    per_worker: dict[str, float] = {"CPU": resources.trainer_cpus}
    if resources.trainer_gpus:
        per_worker["GPU"] = resources.trainer_gpus
    return ray.train.ScalingConfig(
        num_workers=resources.trainers,
        use_gpu=resources.trainer_gpus > 0,
        resources_per_worker=per_worker,
        accelerator_type=resources.trainer_accelerator,
        label_selector=resources.trainer_labels or None,  # type: ignore[call-arg]
    )
