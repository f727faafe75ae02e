"""Contrastive pre-training with Ray Train: what each worker does, and the stage that starts them.

Shapes: B pairs of this worker, P samples of a view, L frames, F mels.
"""

import math
import os
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import copy
from pathlib import Path
from typing import Any

import numpy as np
import ray.train
import ray.train.torch
import torch
from torch import Tensor, nn

from sepscene.augment.augmentations.augmentation import Augmenter
from sepscene.augment.crash_counts import CrashCounts
from sepscene.augment.separation.reader import ViewMaker
from sepscene.augment.store.separated_store import SeparatedStore
from sepscene.augment.views import from_pcm
from sepscene.models.encoders.encoder import Encoder
from sepscene.models.encoders.frontend import LogMel
from sepscene.models.encoders.network import network_class
from sepscene.orchestration.config import Experiment
from sepscene.orchestration.records.checkpoints import TrainingState, read_checkpoint, resume_point
from sepscene.orchestration.records.ledger import Ledger
from sepscene.orchestration.records.run_folder import StageFolder
from sepscene.orchestration.runtime.precision import training_precision
from sepscene.orchestration.runtime.ray_compat import leaving_nodes
from sepscene.orchestration.training.builders import build_objective, encoder_config, start_from
from sepscene.orchestration.training.health import BadSteps, Diagnostics, Quarantine, ends_when_memory_is_full
from sepscene.orchestration.training.hooks import Batch, consume_rows, run_steps, usable_rows
from sepscene.orchestration.training.light import LocalReports, local_batches
from sepscene.orchestration.training.optimizer import adamw, learning_rate
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
from sepscene.tasks.distributed.batchnorm import synchronise_batchnorm
from sepscene.tasks.distributed.gather import world_size
from sepscene.tasks.losses.gradcache import accumulate, cut
from sepscene.tasks.losses.joint import JointLoss, JointObjective


class Views(nn.Module):
    """From a batch of the stream to what the encoder reads of both views, on the worker's device."""

    def __init__(self, experiment: Experiment) -> None:
        super().__init__()
        self.front_end = LogMel(experiment.front_end)
        self.augment = Augmenter(experiment.used_augmentations)
        self.reads = network_class(experiment.encoder).reads

    def forward(self, view_B2P: Tensor, columns: Batch) -> tuple[Tensor, Tensor]:
        """Both views of rows: two (B, L, F), or two (B, P) for an encoder that reads waveforms.

        Args:
            view_B2P: waveforms of full scale 1.
            columns: of the same rows, what augmentations drew, and the mixtures where one reads them.
        """
        mixture_B2P = pcm_pair(columns, "mixture", view_B2P.device) if "mixture_1" in columns else None
        view_B2P = self.augment("waveform", view_B2P, columns, mixture_B2P)
        if self.reads == "waveform":
            return view_B2P[:, 0], view_B2P[:, 1]
        logmel_B2LF = self.front_end(view_B2P.flatten(0, 1)).unflatten(0, view_B2P.shape[:2])
        logmel_B2LF = self.augment("log-mel", logmel_B2LF, columns)
        return logmel_B2LF[:, 0], logmel_B2LF[:, 1]


def pcm_pair(columns: Batch, name: str, device: torch.device) -> Tensor:
    """The columns `name_1` and `name_2` of 16-bit sound as waveforms (B, 2, P) of full scale 1."""
    pcm_B2P = np.stack([columns[f"{name}_1"], columns[f"{name}_2"]], axis=1)
    return torch.from_numpy(from_pcm(pcm_B2P)).to(device)


def prepared_objective(experiment: Experiment, device: torch.device, start: str | None = None) -> JointObjective:
    """The networks and losses as a worker trains them: on its device, BatchNorm over all workers, memory format chosen.

    They have fresh weights, or those of the encoder bundle `start`.
    """
    objective = build_objective(experiment)
    if start is not None:
        start_from(objective, Path(start))
    objective = objective.to(device)
    synchronise_batchnorm(objective)  # on its device: CUDA has a kernel of its own
    if device.type == "cuda" or experiment.scale == "tiny":
        # Measured in benchmarks/encoder.py: 1.2 to 1.7 times faster, but slower at full size on a CPU, where CNN14 has
        # the layout of each block that is fastest there.
        objective = objective.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return objective


class Pretrainer:
    """One worker of the pre-training: model, optimiser and ledger. It needs no Ray; see `hooks.Worker`."""

    def __init__(
        self, experiment: Experiment, clips: int, device: torch.device, checkpoint: Path | None = None
    ) -> None:
        """At its start, or as a checkpoint left it; `clips`: their number."""
        self.experiment = experiment
        self.device = device
        self.views = Views(experiment).to(device)
        start = experiment.training.start_encoder if checkpoint is None else None
        self.objective = prepared_objective(experiment, device, start)
        self.optimizer = adamw(self.objective, experiment.training, device)
        self.step = 0
        self.ledger = Ledger(schedule_of(experiment, clips).rows)
        self.steps = -(-self.ledger.rows // experiment.training.global_batch)
        """Of the whole schedule."""
        self.bad_rows: list[list[int]] = []
        """The rows of each step that was skipped for a loss or gradient that is not finite."""
        if checkpoint is not None:
            state = read_checkpoint(checkpoint)
            self.objective.load_state_dict(state.tensors["model"])
            self.optimizer.load_state_dict(state.tensors["optimizer"])
            self.bad_rows = state.tensors["bad_rows"]
            self.step = state.step
            self.ledger = state.ledger.try_again()
        self.local_rows = experiment.training.global_batch // world_size()
        self.model: nn.Module | None = None if experiment.training.microbatch else self.objective
        """What averages the gradients of all workers; none where `accumulate` does."""
        self.result: JointLoss | None = None
        """What the objective gave in the last step; none where that was skipped."""

    @property
    def last_step(self) -> int:
        """Number of the step with which the schedule ends."""
        left = self.ledger.rows - self.ledger.consumed
        return self.step + -(-left // self.experiment.training.global_batch)

    def state(self) -> TrainingState:
        """What a checkpoint must hold to continue from here."""
        tensors = {
            "model": self.objective.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "bad_rows": self.bad_rows,
        }
        return TrainingState(self.step, self.ledger, tensors)

    def consume(self, batch: Batch, usable: int) -> dict[str, float]:
        """One optimiser step on this worker's part of the global batch; returns its metrics.

        Where no worker has a usable row there is nothing to learn from: the weights stay, the rows count as consumed.
        """
        rate = learning_rate(self.experiment.training, self.step, self.steps)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.result = None
        metrics = self._optimise(self._logmels(batch)) if usable else {"pairs": 0.0, "bad": 0.0}
        rows = consume_rows(self.ledger, batch, self.device, usable)
        if metrics["bad"]:
            self.bad_rows.append(rows)
        self.step += 1
        return {"step": self.step, "learning_rate": rate, "rows": self.ledger.consumed, **metrics}

    def _logmels(self, batch: Batch) -> tuple[Tensor, ...]:
        """The log-mel patches (B, L, F) of both views of the usable rows."""
        usable_B = usable_rows(batch)
        usable = {name: column[usable_B] for name, column in batch.items()}
        logmels: tuple[Tensor, ...] = self.views(pcm_pair(usable, "view", self.device), usable)
        return logmels

    def _optimise(self, logmels: tuple[Tensor, ...]) -> dict[str, float]:
        """A step, unless its loss or gradient is not finite: then weights and running averages stay as they were.

        Loss and gradient are those of the global batch, so all workers skip a bad step together or none does.
        """
        averages = [buffer.clone() for buffer in self.objective.buffers()]
        self.optimizer.zero_grad(set_to_none=True)
        result = self._loss_and_gradient(logmels)
        limit = self.experiment.training.clip_gradient_norm
        norm = float(nn.utils.clip_grad_norm_(self.objective.parameters(), limit))
        metrics = {name: float(value) for name, value in result.parts.items()} | {"gradient_norm": norm}
        if not (math.isfinite(metrics["loss"]) and math.isfinite(norm)):
            for buffer, before in zip(self.objective.buffers(), averages, strict=True):
                buffer.copy_(before)
            return {**metrics, "bad": 1.0}
        self.optimizer.step()
        self.result = result
        return {**metrics, "bad": 0.0}

    def _loss_and_gradient(self, logmels: tuple[Tensor, ...]) -> JointLoss:
        dtype = torch.bfloat16 if training_precision(self.experiment) == "bfloat16" else None
        weights = self.experiment.objective.weights_at(self.step)
        if self.model is None:
            chunks = cut(logmels, self.experiment.training.microbatch or self.local_rows, self.local_rows)
            return accumulate(self.objective, chunks, weights=weights, dtype=dtype)
        with torch.autocast(self.device.type, dtype, enabled=dtype is not None):
            result: JointLoss = self.model(*logmels, weights=weights)
        result.loss.backward()
        return result

    def encoder(self) -> Encoder:
        """The encoder as it is now; it shares its weights with the training."""
        return Encoder(encoder_config(self.experiment), self.objective.trunk).to(self.device)


def pretrain_worker(settings: dict[str, Any]) -> None:
    """What every Ray Train worker runs: its part of the stream, step by step, with the hooks beside it."""
    if _folder(settings).fatal.exists():
        return  # a worker group before this one has found that to go on is no use
    worker = _pretrainer(settings, ray.train.torch.get_device())
    if worker.model is not None:
        # Views of the buckets: the gradients lie in memory once.
        one_copy = {"broadcast_buffers": False, "gradient_as_bucket_view": True}
        worker.model = ray.train.torch.prepare_model(worker.objective, parallel_strategy_kwargs=one_copy)
    shard = ray.train.get_dataset_shard("views")
    batches = shard.iter_batches(batch_size=worker.local_rows, batch_format="numpy")
    _train(worker, settings, batches, leaving_nodes, ray.train.report)


def _folder(settings: dict[str, Any]) -> StageFolder:
    return StageFolder(Path(settings["run"]), settings["stage"])


def _pretrainer(settings: dict[str, Any], device: torch.device) -> Pretrainer:
    experiment = Experiment.model_validate(settings["experiment"])
    return Pretrainer(experiment, settings["clips"], device, resume_point(_folder(settings)))


def _train(
    worker: Pretrainer,
    settings: dict[str, Any],
    batches: Iterable[Batch],
    leaving: Callable[[], set[str]],
    report: Callable[..., None],
) -> None:
    """Args: batches: this worker's parts of the global ones; leaving, report: as `Saving` and `Reporting` take them."""
    folder = _folder(settings)
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
    light: bool = False,
) -> Path:
    """Pre-train an encoder over the whole schedule, or continue; returns the newest checkpoint.

    Args:
        manifest: the training clips; labels are not looked at.
        checkpoints: processor name -> separator folder; may be empty for mix-mix.
        stage: name of the stage in metrics and checkpoints.
        store: where separated clips are kept; none separates every row live.
        callbacks: the user's own, for Ray Train.
        light: train in this process; for an experiment of which `starts_light` says that it can.

    Raises:
        SepsceneError: as `Stage.run`.
    """
    folder = StageFolder(run_dir, stage)
    crashes = CrashCounts(folder.crashes)
    start = experiment.training.start_encoder
    if start is not None:  # workers have working folders of their own
        experiment = experiment.changed({"training.start_encoder": str(Path(start).resolve())})
    validation = validation_of(experiment, manifest, folder)

    def here(settings: dict[str, Any], ledger: Ledger, stop: threading.Event) -> None:
        torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))  # of this thread, as a worker's
        # The store is opened anew, as in another process: the maker closes it at its end.
        make = ViewMaker(service_settings(experiment, checkpoints), copy(store), crashes)
        batches = local_batches(draws_of(experiment, manifest, ledger), make, experiment.training, stop)
        reports = LocalReports(_folder(settings), validation)
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
        here=here if light else None,
    ).run()
