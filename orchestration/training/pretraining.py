"""Contrastive pre-training with Ray Train: what each worker does, and the stage that starts them."""

import os
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import copy
from pathlib import Path
from typing import Any

import ray.train
import ray.train.torch
import torch

from sepscene.augment.crash_counts import CrashCounts
from sepscene.augment.separation.reader import ViewMaker
from sepscene.augment.store.separated_store import SeparatedStore
from sepscene.orchestration.config import Experiment
from sepscene.orchestration.records.checkpoints import resume_point
from sepscene.orchestration.records.ledger import Ledger
from sepscene.orchestration.records.run_folder import RunFolder, StageFolder
from sepscene.orchestration.runtime.ray_compat import leaving_nodes
from sepscene.orchestration.training.health import BadSteps, Diagnostics, Quarantine, ends_when_memory_is_full
from sepscene.orchestration.training.hooks import Batch, run_steps
from sepscene.orchestration.training.light import LocalReports, local_batches, starts_light
from sepscene.orchestration.training.pretrainer import Pretrainer
from sepscene.orchestration.training.saving import Reporting, Saving
from sepscene.orchestration.training.stage import Stage
from sepscene.orchestration.training.step_timing import StepTiming
from sepscene.orchestration.training.stream import (
    draws_of,
    execution_options,
    schedule_of,
    service_settings,
    view_stream,
)
from sepscene.orchestration.training.throughput import StreamBalance
from sepscene.orchestration.training.validation import HandOver, validation_of
from sepscene.tasks.datasets.readers import Manifest
from sepscene.tasks.distributed.gather import world_size


def pretrain_worker(settings: dict[str, Any]) -> None:
    """What every Ray Train worker runs: its part of the stream, step by step, with the hooks beside it."""
    if settings["folder"].fatal.exists():
        return  # a worker group before this one has found that to go on is no use
    worker = _pretrainer(settings, ray.train.torch.get_device())
    if worker.model is not None:
        # Views of the buckets: the gradients lie in memory once.
        one_copy = {"broadcast_buffers": False, "gradient_as_bucket_view": True}
        worker.model = ray.train.torch.prepare_model(worker.objective, parallel_strategy_kwargs=one_copy)
    shard = ray.train.get_dataset_shard("views")
    batches = shard.iter_batches(batch_size=worker.local_rows, batch_format="numpy")
    _train(worker, settings, batches, leaving_nodes, ray.train.report)


def _pretrainer(settings: dict[str, Any], device: torch.device) -> Pretrainer:
    experiment = Experiment.model_validate(settings["experiment"])
    return Pretrainer(experiment, settings["clips"], device, resume_point(settings["folder"]))


def _train(
    worker: Pretrainer,
    settings: dict[str, Any],
    batches: Iterable[Batch],
    leaving: Callable[[], set[str]],
    report: Callable[..., None],
) -> None:
    """Args: batches: this worker's parts of the global ones; leaving, report: as `Saving` and `Reporting` take them."""
    folder: StageFolder = settings["folder"]
    training = worker.experiment.training
    saving = Saving(folder, worker.state, training.checkpoint_every_steps, training.checkpoints_kept, leaving)
    hooks = [
        StepTiming(worker.experiment, worker.device, world_size()),
        BadSteps(folder, worker.bad_rows, training.bad_steps),
        Quarantine(worker.ledger, settings["clips"], training.quarantine_share, worker.device),
        Diagnostics(lambda: worker.result, worker.objective.coincidence_head),
        StreamBalance(worker.experiment, worker.device),
        HandOver(worker.encoder, training.validation_every_steps, worker.last_step),
        saving,
        Reporting(report),
    ]
    with ends_when_memory_is_full(folder, memory_advice(worker.experiment, worker.local_rows)):
        run_steps(worker, batches, hooks, saving.pause)


def memory_advice(experiment: Experiment, local_rows: int) -> str:
    """What makes a step smaller, on a trainer with this many rows of the global batch."""
    smaller = max(1, (experiment.training.microbatch or local_rows) // 2)
    return (
        f"set training.microbatch={smaller} (the same loss over the whole batch, in smaller passes), or lower "
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
    """Pre-train an encoder over the whole schedule, or continue; returns the newest checkpoint.

    A trainer that can do without a process of its own works in this one (`light.py`), unless there are callbacks.

    Args:
        manifest: the training clips; labels are not looked at.
        checkpoints: processor name -> separator folder; may be empty for mix-mix.
        stage: name of the stage in metrics and checkpoints.
        store: where separated clips are kept; none separates every row live.
        callbacks: the user's own, for Ray Train.

    Raises:
        SepsceneError: as `Stage.run`.
    """
    folder = RunFolder(run_dir.resolve()).stage(stage)
    crashes = CrashCounts(folder.run.crashes)
    start = experiment.training.start_encoder
    if start is not None:  # workers have working folders of their own
        experiment = experiment.changed({"training.start_encoder": str(Path(start).resolve())})
    validation = validation_of(experiment, manifest, folder)

    def here(settings: dict[str, Any], ledger: Ledger, stop: threading.Event) -> None:
        torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))  # of this thread, as a worker's
        # The store is opened anew, as in another process: the maker closes it at its end.
        make = ViewMaker(service_settings(experiment, checkpoints), copy(store), crashes)
        batches = local_batches(draws_of(experiment, manifest, ledger), make, experiment.training, stop)
        reports = LocalReports(folder, validation)
        _train(_pretrainer(settings, torch.device("cpu")), settings, batches, set, reports)

    return Stage(
        folder=folder,
        worker=pretrain_worker,
        settings={"experiment": experiment.model_dump(mode="json"), "clips": len(manifest.clips)},
        stream=lambda ledger: view_stream(experiment, manifest, checkpoints, ledger, store, crashes, folder.shown),
        rows=schedule_of(experiment, len(manifest.clips)).rows,
        resources=experiment.resources,
        options=execution_options(experiment),
        validation=validation,
        callbacks=callbacks,
        here=here if starts_light(experiment) and not callbacks else None,
    ).run()
