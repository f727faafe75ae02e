"""Contrastive pre-training with Ray Train: the function of each worker, and the stage that starts them."""

import os
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import ray.train
import ray.train.torch
import torch

from sepscene.augment.crash_counts import CrashCounts
from sepscene.augment.separation.reader import ViewMaker
from sepscene.augment.store.separated_store import SeparatedStore
from sepscene.orchestration.config import Experiment
from sepscene.orchestration.records.checkpoints import resume_point
from sepscene.orchestration.records.run_folder import RunFolder, StageFolder
from sepscene.orchestration.runtime.ray_compat import leaving_nodes
from sepscene.orchestration.training.health import BadSteps, Diagnostics, Quarantine, fatal_when_out_of_memory
from sepscene.orchestration.training.hooks import Batch, Hook, run_steps
from sepscene.orchestration.training.local_trainer import LocalReports, local_batches, trains_in_driver
from sepscene.orchestration.training.pretrainer import Pretrainer
from sepscene.orchestration.training.saving import Reporting, Saving
from sepscene.orchestration.training.stage import RayStage, Stage
from sepscene.orchestration.training.step_timing import StepTiming
from sepscene.orchestration.training.stream import draws_of, schedule_of, service_settings, view_stream
from sepscene.orchestration.training.throughput import StreamBalance
from sepscene.orchestration.training.validation import ValidationHook, validation_of
from sepscene.tasks.datasets.readers import Manifest
from sepscene.tasks.distributed.gather import rank, world_size


def pretrain_worker(experiment: Experiment, clips: int, folder: StageFolder) -> None:
    """The training function of each Ray Train worker: train on its part of the stream, with all hooks."""
    worker = Pretrainer(experiment, clips, ray.train.torch.get_device(), resume_point(folder))
    if worker.model is not None:
        # Gradients are views of the buckets, so that they are in memory only once.
        one_copy = {"broadcast_buffers": False, "gradient_as_bucket_view": True}
        worker.model = ray.train.torch.prepare_model(worker.objective, parallel_strategy_kwargs=one_copy)
    shard = ray.train.get_dataset_shard("views")
    batches = shard.iter_batches(batch_size=worker.local_rows, batch_format="numpy")
    _train(worker, folder, batches, leaving_nodes, ray.train.report)


@dataclass(frozen=True)
class LocalStage(Stage):
    """A small stage that this process trains, in place of a Ray Train worker (see `local_trainer.py`).

    Attributes:
        make: creates the function that computes the views of a block.
        validation: as returned by `validation_of`.
    """

    experiment: Experiment
    manifest: Manifest
    make: Callable[[], ViewMaker]
    validation: ray.train.ValidationConfig | None

    def fit(self, stop: threading.Event) -> None:
        """Train until the end of the schedule, or until `stop`."""
        torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))  # of this thread, as in a worker
        draws = draws_of(self.experiment, self.manifest, self.ledger())
        batches = local_batches(draws, self.make(), self.experiment.training, stop)
        worker = Pretrainer(self.experiment, len(self.manifest), torch.device("cpu"), resume_point(self.folder))
        _train(worker, self.folder, batches, set, LocalReports(self.folder, self.validation))


def _train(
    worker: Pretrainer,
    folder: StageFolder,
    batches: Iterable[Batch],
    leaving: Callable[[], set[str]],
    report: Callable[..., None],
) -> None:
    """Train on this worker's parts of the global batches; for `leaving` see `Saving`, for `report` see `Reporting`."""
    hooks: list[Hook] = [
        StepTiming(worker.experiment, worker.device, world_size()),
        BadSteps(worker, folder),
        Quarantine(worker, worker.clips),
        Diagnostics(worker),
        StreamBalance(worker.experiment, worker.device),
    ]
    if rank() == 0:
        kept = worker.experiment.training.checkpoints_kept
        hooks += [ValidationHook(worker), Saving(worker, folder, kept, leaving)]
    with fatal_when_out_of_memory(folder, memory_advice(worker.experiment, worker.local_rows)):
        run_steps(worker, batches, [*hooks, Reporting(report)])


def memory_advice(experiment: Experiment, local_rows: int) -> str:
    """How to make a step smaller, on a trainer with this many rows of the global batch."""
    smaller = max(1, (experiment.training.microbatch or local_rows) // 2)
    return (
        f"set training.microbatch={smaller} (the same loss over the whole batch, computed in smaller passes), or lower "
        "training.global_batch, or raise resources.trainers"
    )


def pretrain(
    experiment: Experiment,
    manifest: Manifest,
    checkpoints: Mapping[str, str],
    run_dir: Path,
    stage: str,
    store: SeparatedStore | None = None,
    callbacks: Sequence[ray.train.UserCallback] = (),
) -> Path:
    """Pre-train an encoder over the whole schedule, or continue, and return the newest checkpoint.

    A small stage trains in this process (`LocalStage`), unless there are callbacks.

    Args:
        manifest: the training clips; their labels are used for validation only.
        checkpoints: processor name -> separator folder; can be empty for mix-mix.
        stage: name of the stage in metrics and checkpoints.
        store: where separated clips are kept; None separates every row live.
        callbacks: the user's callbacks for Ray Train.

    Raises:
        SepsceneError: as `Stage.run`.
    """
    folder = RunFolder(run_dir.resolve()).stage(stage)
    crashes = CrashCounts(folder.run.crashes)
    rows = schedule_of(experiment, len(manifest)).rows
    start = experiment.training.start_encoder
    if start is not None:  # workers have other working directories
        experiment = experiment.changed({"training.start_encoder": str(Path(start).resolve())})
    validation = validation_of(experiment, manifest, folder)
    if trains_in_driver(experiment) and not callbacks:
        # A copy opens the store again, as in another process, because ViewMaker closes its store.
        make = partial(ViewMaker, service_settings(experiment, checkpoints), copy(store), crashes)
        return LocalStage(folder, rows, experiment, manifest, make, validation).run()
    worker = partial(pretrain_worker, experiment, len(manifest), folder)
    stream = partial(
        view_stream, experiment, manifest, checkpoints, store=store, crash_counts=crashes, run_name=folder.shown
    )
    return RayStage(folder, rows, experiment, worker, stream, validation, callbacks).run()
