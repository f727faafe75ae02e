"""Contrastive pre-training with Ray Train: what each worker does, and the driver that starts them.

Shapes: B pairs of this worker, P samples of a view, L frames, F mels.
"""

import json
import math
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import ray.train
import ray.train.torch
import torch
import torch.distributed as dist
from torch import Tensor, nn

from sepscene.augment.crash_counts import CrashCounts
from sepscene.augment.draws import FILLER
from sepscene.augment.specaugment import specaugment
from sepscene.augment.store.separated_store import SeparatedStore
from sepscene.augment.views import from_pcm
from sepscene.models.encoders.cnn14 import Cnn14
from sepscene.models.encoders.encoder import Encoder
from sepscene.models.encoders.frontend import LogMel
from sepscene.orchestration.config import Experiment
from sepscene.orchestration.records.checkpoints import TrainingState, read_checkpoint, resume_point, write_whole
from sepscene.orchestration.records.ledger import Ledger
from sepscene.orchestration.training.builders import build_objective, start_from
from sepscene.orchestration.training.optimizer import adamw, learning_rate
from sepscene.orchestration.training.stage import Reporter, fit
from sepscene.orchestration.training.step_timing import Pace
from sepscene.orchestration.training.stream import execution_options, schedule_of, view_stream
from sepscene.orchestration.training.throughput import StreamBalance
from sepscene.orchestration.training.validation import HandOver, validation_of
from sepscene.tasks.datasets.readers import Manifest
from sepscene.tasks.distributed.batchnorm import synchronise_batchnorm
from sepscene.tasks.distributed.gather import gather_ids, gather_rows, world_size
from sepscene.tasks.losses.diagnostics import collapse_warning, watch
from sepscene.tasks.losses.gradcache import accumulate, cut
from sepscene.tasks.losses.joint import JointLoss, JointObjective

LOG_EVERY_STEPS = 5
BAD_ROWS = "bad_rows.json"
"""In the stage's folder: the rows of each step that was skipped for a loss or gradient that is not finite."""


class Views(nn.Module):
    """From a batch of the stream to the log-mel patches of both views, on the worker's device."""

    def __init__(self, experiment: Experiment) -> None:
        super().__init__()
        self.front_end = LogMel(experiment.front_end)
        self.settings = experiment.specaugment if experiment.views.specaugment else None

    def forward(self, view_B2P: Tensor, uniforms_B2U: Tensor) -> tuple[Tensor, Tensor]:
        """Waveforms of full scale 1 and SpecAugment's uniforms to two (B, L, F)."""
        logmel_XLF = self.front_end(view_B2P.flatten(0, 1))
        if self.settings is not None:
            logmel_XLF = specaugment(logmel_XLF, uniforms_B2U.flatten(0, 1), self.settings)
        logmel_B2LF = logmel_XLF.unflatten(0, view_B2P.shape[:2])
        return logmel_B2LF[:, 0], logmel_B2LF[:, 1]


def prepared_objective(experiment: Experiment, device: torch.device, start: Path | None = None) -> JointObjective:
    """The networks and losses as a worker trains them: on its device, BatchNorm over all workers, memory format chosen.

    Args:
        start: encoder bundle whose weights are the start; none keeps the fresh ones.
    """
    objective = build_objective(experiment)
    if start is not None:
        start_from(objective, start)
    objective = objective.to(device)
    synchronise_batchnorm(objective)  # on its device: CUDA has a kernel of its own
    if device.type == "cuda" or experiment.training.precision == "bfloat16" or experiment.scale == "tiny":
        # Measured in benchmarks/encoder.py: 1.2 to 1.7 times faster, but slower for full-size float32 on a CPU.
        objective = objective.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return objective


class Pretrainer:
    """One worker of the pre-training: model, optimiser, ledger, and what it tells the driver."""

    def __init__(self, experiment: Experiment, clips: int, folder: Path, start: Path | None = None) -> None:
        """Begin at the resume point of `folder`, the stage's; without one at the encoder bundle `start`, if any."""
        self.experiment, self.clips, self.folder = experiment, clips, folder
        self.device = ray.train.torch.get_device()
        self.views = Views(experiment).to(self.device)
        checkpoint = resume_point(folder)
        objective = prepared_objective(experiment, self.device, start if checkpoint is None else None)
        self.optimizer = adamw(objective, experiment.training, self.device)
        rows = schedule_of(experiment, clips).rows
        self.steps = -(-rows // experiment.training.global_batch)
        self.step, self.ledger = 0, Ledger(rows)
        self.bad_rows: list[list[int]] = []
        self.objective = objective
        if checkpoint is not None:
            self._restore(read_checkpoint(checkpoint))
        self.local_rows = experiment.training.global_batch // world_size()
        self.model: nn.Module | None = None  # none: gradients are averaged by `accumulate`
        if not experiment.training.microbatch:
            # Views of the buckets: the gradients lie in memory once.
            self.model = ray.train.torch.prepare_model(
                objective, parallel_strategy_kwargs={"broadcast_buffers": False, "gradient_as_bucket_view": True}
            )
        self.faults: dict[str, str] = {}
        self.events: list[str] = []
        """What has happened and is not told yet."""
        self.collapsed = False  # whether the last look found h collapsed

    def _restore(self, state: TrainingState) -> None:
        self.objective.load_state_dict(state.tensors["model"])
        self.optimizer.load_state_dict(state.tensors["optimizer"])
        self.bad_rows = state.tensors["bad_rows"]
        self.step, self.ledger = state.step, state.ledger

    def state(self) -> TrainingState:
        """What a checkpoint must hold to continue from here."""
        tensors = {
            "model": self.objective.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "bad_rows": self.bad_rows,
        }
        return TrainingState(self.step, self.ledger, tensors)

    def consume(self, batch: dict[str, np.ndarray]) -> dict[str, float]:
        """One optimiser step on this worker's part of the global batch; returns its figures."""
        row_B, fault_B = batch["row"], batch["fault"]
        present_B = row_B != FILLER
        usable_B = present_B & (fault_B == "")
        for n in np.flatnonzero(present_B & ~usable_B):
            self.faults[str(batch["uri"][n])] = str(fault_B[n])
        rate = learning_rate(self.experiment.training, self.step, self.steps)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        figures = self._optimise(self._logmels(batch, usable_B))
        rows = gather_ids(torch.from_numpy(row_B[present_B]).to(self.device))
        if figures["bad"]:
            self._note_bad(rows)
        self.ledger.consume(np.array(rows, np.int64))
        self.step += 1
        return {"step": self.step, "learning_rate": rate, "rows": self.ledger.consumed, **figures}

    def _note_bad(self, rows: list[int]) -> None:
        """Keep the rows of a skipped step where `sepscene replay` finds them; their number counts over restarts."""
        self.bad_rows.append(rows)
        if ray.train.get_context().get_world_rank() == 0:
            write_whole(self.folder / BAD_ROWS, json.dumps(self.bad_rows))
            self.events.append(f"step {self.step + 1} is skipped: {len(rows)} rows from {rows[0]} on")

    def _logmels(self, batch: dict[str, np.ndarray], usable_B: np.ndarray) -> tuple[Tensor, ...]:
        """The log-mel patches (B, L, F) of both views of the usable rows; of four, when each task has its own."""
        view_B2P = np.stack([batch["view_1"][usable_B], batch["view_2"][usable_B]], axis=1)
        uniforms_B2U = batch["specaugment_u"][usable_B].reshape(len(view_B2P), 2, -1)
        logmels: tuple[Tensor, ...] = self.views(
            torch.from_numpy(from_pcm(view_B2P)).to(self.device),
            torch.from_numpy(uniforms_B2U).to(self.device),
        )
        if self.experiment.objective.coincidence_pairs == "same":
            return logmels
        own_B = torch.from_numpy(batch["row"][usable_B] % 2 == 1).to(self.device)
        return *(view[~own_B] for view in logmels), *(view[own_B] for view in logmels)

    def _optimise(self, logmels: tuple[Tensor, ...]) -> dict[str, float]:
        """A step, unless its loss or gradient is not finite: then weights and running averages stay as they were.

        Loss and gradient are those of the global batch, so all workers skip a bad step together or none does.
        """
        averages = [buffer.clone() for buffer in self.objective.buffers()]
        self.optimizer.zero_grad(set_to_none=True)
        result = self._loss_and_gradient(logmels)
        limit = self.experiment.training.clip_gradient_norm
        norm = float(nn.utils.clip_grad_norm_(self.objective.parameters(), limit))
        figures = {name: float(value) for name, value in result.parts.items()} | {"gradient_norm": norm}
        if not (math.isfinite(figures["loss"]) and math.isfinite(norm)):
            for buffer, before in zip(self.objective.buffers(), averages, strict=True):
                buffer.copy_(before)
            return {**figures, "bad": 1.0}
        self.optimizer.step()
        watched = self._watch(result) if (self.step + 1) % LOG_EVERY_STEPS == 0 else {}
        return {**figures, **watched, "bad": 0.0}

    def _loss_and_gradient(self, logmels: tuple[Tensor, ...]) -> JointLoss:
        dtype = torch.bfloat16 if self.experiment.training.precision == "bfloat16" else None
        if self.model is None:
            # With four views a chunk has rows of either task: half as many of each.
            rows = max(1, (self.experiment.training.microbatch or self.local_rows) * 2 // len(logmels))
            chunks = cut(logmels, rows, self.local_rows)
            return accumulate(self.objective, chunks, alpha=self._alpha(), dtype=dtype)
        with torch.autocast(self.device.type, dtype, enabled=dtype is not None):
            result: JointLoss = self.model(*logmels, alpha=self._alpha())
        result.loss.backward()
        return result

    def _watch(self, result: JointLoss) -> dict[str, float]:
        """Whether the representation is healthy, over the global batch; all workers call it, rank 0 looks."""
        h_1_ND, h_2_ND = gather_rows(result.h_1_nD), gather_rows(result.h_2_nD)
        if ray.train.get_context().get_world_rank() != 0:
            return {}
        figures = watch(replace(result, h_1_nD=h_1_ND, h_2_nD=h_2_ND), self.objective.coincidence)
        warning = collapse_warning(figures)
        if warning and not self.collapsed:
            self.events.append(warning)
        self.collapsed = bool(warning)
        return figures

    def encoder(self) -> Encoder:
        """The encoder as it is now; it shares its weights with the training."""
        trunk = self.objective.trunk
        assert isinstance(trunk, Cnn14)
        return Encoder(self.views.front_end, trunk, self.experiment.views.patch_seconds)

    def _alpha(self) -> float:
        settings = self.experiment.objective
        return settings.alpha * min(1.0, (self.step + 1) / max(1, settings.alpha_warmup_steps))

    def take_events(self) -> list[str]:
        """What has happened since they were asked for."""
        events, self.events = self.events, []
        return events

    def must_stop(self) -> str:
        """Share the faults of all workers; returns why the run must stop, or nothing."""
        if len(self.bad_rows) > self.experiment.training.bad_steps:
            return (
                f"{len(self.bad_rows)} steps had a NaN or infinite loss or gradient, more than training.bad_steps = "
                f"{self.experiment.training.bad_steps}; the last one's rows: {_some(self.bad_rows[-1])}; all are in "
                f"{self.folder / BAD_ROWS}, and `sepscene replay RUN` computes the last step's again, one by one"
            )
        everyone = [self.faults]
        if dist.is_initialized():
            everyone = [{} for _ in range(dist.get_world_size())]
            dist.all_gather_object(everyone, self.faults)
        for faults in everyone:
            self.ledger.quarantined.update(faults)
        share = len(self.ledger.quarantined) / self.clips
        if share <= self.experiment.training.quarantine_share:
            return ""
        uri, reason = next(iter(self.ledger.quarantined.items()))
        return (
            f"{len(self.ledger.quarantined)} of {self.clips} clips cannot be used, more than "
            f"training.quarantine_share = {self.experiment.training.quarantine_share:g}; the first: {uri}: {reason}"
        )


def _some(rows: list[int]) -> str:
    return ", ".join(map(str, rows[:8])) + (", …" if len(rows) > 8 else "")


def pretrain_worker(settings: dict[str, Any]) -> None:
    """What every Ray Train worker runs: consume its part of the stream, report, checkpoint."""
    experiment = Experiment.model_validate(settings["experiment"])
    start = Path(settings["start"]) if settings["start"] else None
    worker = Pretrainer(experiment, settings["clips"], Path(settings["checkpoints"]), start)
    pace = Pace(experiment, worker.device, ray.train.get_context().get_world_size())
    shard = ray.train.get_dataset_shard("views")
    batches = iter(shard.iter_batches(batch_size=worker.local_rows, batch_format="numpy", prefetch_batches=2))
    every, validate_every = experiment.training.checkpoint_every_steps, experiment.training.validation_every_steps
    reporter, hand_over = Reporter(settings, worker.state), HandOver()
    balance = StreamBalance(experiment, worker.device)
    asked = time.perf_counter()
    while (batch := next(batches, None)) is not None:
        with reporter.step(worker.device):
            arrived = time.perf_counter()
            balance.add(batch, arrived - asked)
            figures = worker.consume(batch)
            done = time.perf_counter()
            pairs = figures["pairs"] + figures.get("coincidence_pairs", 0.0)
            save = worker.step % every == 0
            validate = validate_every > 0 and (worker.step % validate_every == 0 or worker.step == worker.steps)
            tells = save or validate or worker.step % LOG_EVERY_STEPS == 0
            figures |= pace.figures(pairs, asked, arrived, done)
            fatal = worker.must_stop() if tells else ""
            if tells:
                figures |= balance.figures() | {"quarantined": len(worker.ledger.quarantined)}
            reporter.add(figures)
            for event in (*worker.take_events(), hand_over.take_fault(), balance.advice()):
                reporter.tell(worker.step, event)
            asked = done
            if tells:
                reporter.send(save, fatal, hand_over.report_options(wait=validate))
                if fatal:
                    return
            if validate and reporter.is_first:
                hand_over.start(worker.encoder(), worker.step)
    fatal = worker.must_stop()
    save = not fatal and worker.step % every != 0
    reporter.finish(save, fatal, hand_over.report_options(wait=True))


def pretrain(
    experiment: Experiment,
    manifest: Manifest,
    checkpoints: Mapping[str, str],
    run_dir: Path,
    stage: str,
    store: SeparatedStore | None = None,
) -> Path:
    """Pre-train an encoder over the whole schedule, or continue; returns the newest checkpoint.

    Args:
        experiment: what to train.
        manifest: the training clips; labels are not looked at.
        checkpoints: processor name -> separator folder; may be empty for mix-mix.
        run_dir: the run's folder; checkpoints go to RUN/checkpoints/<stage>/.
        stage: name of the stage in metrics and checkpoints.
        store: where separated clips are kept; none separates every row live.
    """
    start = experiment.training.start_encoder
    return fit(
        pretrain_worker,
        {
            "experiment": experiment.model_dump(mode="json"),
            "clips": len(manifest.clips),
            "start": start and str(Path(start).resolve()),  # workers have folders of their own
        },
        lambda ledger: view_stream(
            experiment, manifest, checkpoints, ledger, store, CrashCounts(run_dir / "crash_counts")
        ),
        schedule_of(experiment, len(manifest.clips)).rows,
        run_dir,
        stage,
        experiment.resources,
        checkpoints_kept=experiment.training.checkpoints_kept,
        options=execution_options(experiment),
        validation=validation_of(experiment, manifest, run_dir, stage),
    )
