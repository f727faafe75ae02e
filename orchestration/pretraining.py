"""Contrastive pre-training with Ray Train: what each worker does, and the driver that starts them.

Shapes: B pairs of this worker, P samples of a view, L frames, F mels.
"""

import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import ray.train
import ray.train.torch
import torch
import torch.distributed as dist
from torch import Tensor, nn

from augment.draws import FILLER
from augment.specaugment import specaugment
from augment.store import SeparatedStore
from augment.strikes import Strikes
from augment.views import from_pcm
from models.cnn14 import Cnn14
from models.config import SepsceneError
from models.encoder import Encoder
from models.frontend import LogMel
from models.heads import CoincidenceHead, SimilarityHead
from orchestration.balance import StreamBalance
from orchestration.checkpoints import (
    TrainingState,
    read_checkpoint,
    resume_point,
)
from orchestration.config import Experiment
from orchestration.ledger import Ledger
from orchestration.stream import schedule_of, view_stream
from orchestration.trainer import Reporter, fit
from tasks.batchnorm import synchronise_batchnorm
from tasks.gather import gather_ids
from tasks.joint import JointObjective
from tasks.manifests import Manifest

LOG_EVERY_STEPS = 5


def build_objective(experiment: Experiment) -> JointObjective:
    """Encoder trunk, heads and losses with fresh weights, the same on every worker for the same seed."""
    torch.manual_seed(experiment.seed)
    settings, dim = experiment.objective, experiment.encoder.embedding_dim
    return JointObjective(
        Cnn14(experiment.encoder),
        SimilarityHead(dim, settings.head_hidden, settings.projection_dim),
        CoincidenceHead(dim, settings.head_hidden) if settings.alpha > 0 else None,
        temperature=settings.temperature,
        learn_temperature=settings.learn_temperature,
    )


def learning_rate(experiment: Experiment, step: int, steps: int) -> float:
    """Learning rate of step 0 … steps−1: linear warm-up, then half a cosine down to zero."""
    training = experiment.training
    warmup = max(1, round(training.warmup_share * steps))
    if step < warmup:
        return training.learning_rate * (step + 1) / warmup
    return training.learning_rate * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


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


class Pretrainer:
    """One worker of the pre-training: model, optimiser, ledger, and what it tells the driver."""

    def __init__(self, experiment: Experiment, clips: int, checkpoint: Path | None) -> None:
        self.experiment, self.clips = experiment, clips
        self.device = ray.train.torch.get_device()
        self.views = Views(experiment).to(self.device)
        objective = synchronise_batchnorm(build_objective(experiment)).to(self.device)
        self.optimizer = torch.optim.AdamW(
            objective.parameters(),
            lr=experiment.training.learning_rate,
            weight_decay=experiment.training.weight_decay,
        )
        rows = schedule_of(experiment, clips).rows
        self.steps = -(-rows // experiment.training.global_batch)
        self.step, self.ledger = 0, Ledger(rows)
        if self.device.type == "cuda" or experiment.training.precision == "bfloat16" or experiment.scale == "tiny":
            # Measured in benchmarks/encoder.py: 1.2 to 1.7 times faster, but slower for full-size float32 on a CPU.
            objective = objective.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.objective = objective
        if checkpoint is not None:
            self._restore(read_checkpoint(checkpoint))
        self.model = ray.train.torch.prepare_model(objective, parallel_strategy_kwargs={"broadcast_buffers": False})
        self.faults: dict[str, str] = {}
        self.bad_rows: list[list[int]] = []

    def _restore(self, state: TrainingState) -> None:
        self.objective.load_state_dict(state.tensors["model"])
        self.optimizer.load_state_dict(state.tensors["optimizer"])
        self.step, self.ledger = state.step, state.ledger

    def consume(self, batch: dict[str, np.ndarray]) -> dict[str, float]:
        """One optimiser step on this worker's part of the global batch; returns its figures."""
        row_B, fault_B = batch["row"], batch["fault"]
        present_B = row_B != FILLER
        usable_B = present_B & (fault_B == "")
        for n in np.flatnonzero(present_B & ~usable_B):
            self.faults[str(batch["uri"][n])] = str(fault_B[n])
        rate = learning_rate(self.experiment, self.step, self.steps)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        parts = self._optimise(batch, usable_B)
        rows = gather_ids(torch.from_numpy(row_B[present_B]).to(self.device))
        if parts["bad"]:
            self.bad_rows.append(rows)
        self.ledger.consume(np.array(rows, np.int64))
        self.step += 1
        return {"step": self.step, "learning_rate": rate, "rows": self.ledger.consumed, **parts}

    def _optimise(self, batch: dict[str, np.ndarray], usable_B: np.ndarray) -> dict[str, float]:
        view_B2P = np.stack([batch["view_1"][usable_B], batch["view_2"][usable_B]], axis=1)
        uniforms_B2U = batch["specaugment_u"][usable_B].reshape(len(view_B2P), 2, -1)
        logmels = self.views(
            torch.from_numpy(from_pcm(view_B2P)).to(self.device),
            torch.from_numpy(uniforms_B2U).to(self.device),
        )
        half = self.experiment.training.precision == "bfloat16"
        with torch.autocast(self.device.type, torch.bfloat16, enabled=half):
            result = self.model(*logmels, alpha=self._alpha())
        figures = {name: float(value) for name, value in result.parts.items()}
        # The parts are those of the global batch, so all workers skip a bad step together or none does.
        if not math.isfinite(figures["loss"]):
            return {**figures, "bad": 1.0}
        self.optimizer.zero_grad(set_to_none=True)
        result.loss.backward()
        limit = self.experiment.training.clip_gradient_norm
        norm = float(nn.utils.clip_grad_norm_(self.objective.parameters(), limit))
        if math.isfinite(norm):
            self.optimizer.step()
        return {**figures, "gradient_norm": norm, "bad": float(not math.isfinite(norm))}

    def _alpha(self) -> float:
        settings = self.experiment.objective
        return settings.alpha * min(1.0, (self.step + 1) / max(1, settings.alpha_warmup_steps))

    def must_stop(self) -> str:
        """Share the faults of all workers; returns why the run must stop, or nothing."""
        if len(self.bad_rows) > self.experiment.training.bad_steps:
            return (
                f"{len(self.bad_rows)} steps had a NaN or infinite loss or gradient, more than training.bad_steps; the "
                f"last one's rows: {self.bad_rows[-1]}; compute them one by one with `sepscene replay RUN --row N`"
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

    def state(self) -> TrainingState:
        """What a checkpoint must hold to continue from here."""
        tensors = {"model": self.objective.state_dict(), "optimizer": self.optimizer.state_dict()}
        return TrainingState(self.step, self.ledger, tensors)


def pretrain_worker(settings: dict[str, Any]) -> None:
    """What every Ray Train worker runs: consume its part of the stream, report, checkpoint."""
    experiment = Experiment.model_validate(settings["experiment"])
    worker = Pretrainer(experiment, settings["clips"], resume_point(Path(settings["checkpoints"])))
    local_rows = experiment.training.global_batch // ray.train.get_context().get_world_size()
    shard = ray.train.get_dataset_shard("views")
    batches = iter(shard.iter_batches(batch_size=local_rows, batch_format="numpy", prefetch_batches=2))
    every = experiment.training.checkpoint_every_steps
    reporter = Reporter(settings)
    balance = StreamBalance(experiment, worker.device)
    asked = time.perf_counter()
    while (batch := next(batches, None)) is not None:
        arrived = time.perf_counter()
        balance.add(batch, arrived - asked)
        figures = worker.consume(batch)
        done = time.perf_counter()
        figures["examples_per_second"] = figures["pairs"] / (done - asked)
        figures["waiting_share"] = (arrived - asked) / (done - asked)
        save = worker.step % every == 0
        tells = save or worker.step % LOG_EVERY_STEPS == 0
        reporter.add(figures | (balance.figures() if tells else {}))
        asked = done
        if tells:
            fatal = worker.must_stop()
            save = reporter.checkpoint_wanted() or save
            reporter.send(worker.state() if save else None, fatal)
            if fatal:
                return
    fatal = worker.must_stop()
    save = not fatal and worker.step % every != 0
    reporter.finish(worker.state() if save else None, fatal)


def encoder_of(experiment: Experiment, state: TrainingState | None) -> Encoder:
    """The encoder of a checkpoint, or the untrained one of the experiment's seed."""
    objective = build_objective(experiment)
    if state is not None:
        objective.load_state_dict(state.tensors["model"])
    trunk = objective.trunk
    if not isinstance(trunk, Cnn14):
        raise SepsceneError("this checkpoint does not hold a CNN14")
    return Encoder(LogMel(experiment.front_end), trunk, experiment.views.patch_seconds).eval()


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
    return fit(
        pretrain_worker,
        {"experiment": experiment.model_dump(mode="json"), "clips": len(manifest.clips)},
        lambda ledger: view_stream(experiment, manifest, checkpoints, ledger, store, Strikes(run_dir / "strikes")),
        schedule_of(experiment, len(manifest.clips)).rows,
        run_dir,
        stage,
        experiment.resources,
        checkpoints_kept=experiment.training.checkpoints_kept,
        ordered=experiment.training.ordered,
    )
