"""MixIT training of the separator with Ray Train, and its ladder of checkpoints.

Shapes: B mixtures of mixtures of this worker, T samples of a segment, S channels.
"""

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import ray.train
import ray.train.torch
import torch
from torch import Tensor, nn

from augment.draws import FILLER, Schedule
from augment.views import from_pcm
from models.separators import save_separator
from models.tdcnpp import TDCNpp
from orchestration.checkpoints import (
    TrainingState,
    read_checkpoint,
    resume_point,
)
from orchestration.config import Experiment
from orchestration.ledger import Ledger
from orchestration.stream import segment_stream
from orchestration.trainer import Reporter, fit
from tasks.gather import gather_ids, sum_over_workers
from tasks.manifests import Manifest
from tasks.mixit import mixit_loss

STAGE = "separator"
LOG_EVERY_STEPS = 5


def separator_steps(experiment: Experiment) -> int:
    """Steps until the last checkpoint of the ladder."""
    return max(experiment.separator.ladder.steps.values())


def separator_schedule(experiment: Experiment, clips: int) -> tuple[Schedule, int]:
    """The schedule of the separator's training and how many of its rows are used."""
    rows = separator_steps(experiment) * 2 * experiment.separator.batch_mixtures
    return Schedule(seed=experiment.seed, clips=clips, epochs=max(1, -(-rows // clips))), rows


def read_ladder(run_dir: Path) -> dict[str, str]:
    """Processor name -> separator folder, for the checkpoints that a run has made so far."""
    index = run_dir / "ladder" / "ladder.json"
    if not index.exists():
        return {}
    return {name: str(run_dir / "ladder" / folder) for name, folder in json.loads(index.read_text()).items()}


def add_to_ladder(run_dir: Path, name: str, step: int, separator: TDCNpp, metadata: dict[str, Any]) -> None:
    """Keep a checkpoint for good as ladder/<name>-<step>-<digest>, and enter it in the ladder's index."""
    ladder = run_dir / "ladder"
    fresh = ladder / f".{name}-{step}"
    digest = save_separator(separator, fresh, {"name": name, "step": step, **metadata})
    final = ladder / f"{name}-{step}-{digest[:12]}"
    if final.exists():
        return  # a repeated step after a restart gives the same weights
    fresh.rename(final)
    index = {key: Path(folder).name for key, folder in read_ladder(run_dir).items()} | {name: final.name}
    partial = ladder / "ladder.json.partial"
    partial.write_text(json.dumps(index, indent=2))
    partial.replace(ladder / "ladder.json")


class SeparatorTrainer:
    """One worker of the separator's training."""

    def __init__(self, experiment: Experiment, run_dir: Path, rows: int, checkpoint: Path | None) -> None:
        self.experiment, self.run_dir = experiment, run_dir
        self.device = ray.train.torch.get_device()
        torch.manual_seed(experiment.seed)
        self.separator = TDCNpp(experiment.separator.network).to(self.device)
        self.optimizer = torch.optim.Adam(self.separator.parameters(), lr=experiment.separator.learning_rate)
        self.step, self.ledger = 0, Ledger(rows)
        if checkpoint is not None:
            state = read_checkpoint(checkpoint)
            self.separator.load_state_dict(state.tensors["model"])
            self.optimizer.load_state_dict(state.tensors["optimizer"])
            self.step, self.ledger = state.step, state.ledger
        self.model = ray.train.torch.prepare_model(self.separator)
        self.reporter = Reporter()
        self.is_first = ray.train.get_context().get_world_rank() == 0
        self.keep_on_ladder({})

    def keep_on_ladder(self, metadata: dict[str, Any]) -> None:
        """Keep the weights if the ladder has a rung at this step."""
        for name, step in self.experiment.separator.ladder.steps.items():
            if self.is_first and step == self.step and name not in read_ladder(self.run_dir):
                add_to_ladder(self.run_dir, name, step, self.separator, metadata)

    def consume(self, batch: dict[str, np.ndarray]) -> dict[str, float]:
        """One optimiser step on this worker's part of the batch; returns its figures."""
        present_N = batch["row"] != FILLER
        usable_P = ((batch["fault"] == "") & present_N).reshape(-1, 2).all(axis=1)
        wave_PRT = from_pcm(batch["segment"]).reshape(len(usable_P), 2, -1)
        reference_BRT = torch.from_numpy(wave_PRT[usable_P]).to(self.device)
        loss = self._optimise(reference_BRT)
        row_N = torch.from_numpy(batch["row"][present_N]).to(self.device)
        self.ledger.consume(np.array(gather_ids(row_N), np.int64))
        self.step += 1
        self.keep_on_ladder({"mixit_loss": loss, "mixtures": self.ledger.consumed // 2})
        return {"step": self.step, "mixit_loss": loss, "rows": self.ledger.consumed}

    def _optimise(self, reference_BRT: Tensor) -> float:
        """Mean loss over the mixtures of all workers; workers may hold unequal numbers of them."""
        count = sum_over_workers(torch.tensor(float(len(reference_BRT)), device=self.device))
        share = ray.train.get_context().get_world_size() / count.clamp_min(1)
        if len(reference_BRT):
            result = mixit_loss(reference_BRT, self.model(reference_BRT.sum(dim=1)))
            loss = result.loss_B.sum() * share
        else:  # nothing usable here: take part in the exchange of gradients with zeros
            loss = self.model(torch.zeros(1, reference_BRT.shape[2], device=self.device)).sum() * 0
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.separator.parameters(), self.experiment.separator.clip_gradient_norm)
        self.optimizer.step()
        return float(sum_over_workers(loss)) / ray.train.get_context().get_world_size()

    def state(self) -> TrainingState:
        """What a checkpoint must hold to continue from here."""
        tensors = {"model": self.separator.state_dict(), "optimizer": self.optimizer.state_dict()}
        return TrainingState(self.step, self.ledger, tensors)


def separator_worker(settings: dict[str, Any]) -> None:
    """What every Ray Train worker runs."""
    experiment = Experiment.model_validate(settings["experiment"])
    start = resume_point(Path(settings["checkpoints"]))
    worker = SeparatorTrainer(experiment, Path(settings["run_dir"]), settings["rows"], start)
    local_rows = 2 * experiment.separator.batch_mixtures // ray.train.get_context().get_world_size()
    shard = ray.train.get_dataset_shard("views")
    asked = time.perf_counter()
    for batch in shard.iter_batches(batch_size=local_rows, batch_format="numpy", prefetch_batches=2):
        figures = worker.consume(batch)
        now = time.perf_counter()
        figures["mixtures_per_second"] = experiment.separator.batch_mixtures / (now - asked)
        worker.reporter.add(figures)
        asked = now
        save = worker.step % experiment.training.checkpoint_every_steps == 0
        if save or worker.step % LOG_EVERY_STEPS == 0:
            worker.reporter.send(worker.state() if save else None)
    save = worker.step % experiment.training.checkpoint_every_steps != 0
    worker.reporter.send(worker.state() if save else None)


def train_separator(experiment: Experiment, manifest: Manifest, run_dir: Path) -> dict[str, str]:
    """Train the separator to the top of its ladder, or continue; returns processor name -> folder.

    Args:
        experiment: separator, audio and resources.
        manifest: the training clips; labels are not looked at.
        run_dir: the run's folder.
    """
    steps = experiment.separator.ladder.steps
    if set(read_ladder(run_dir)) >= set(steps):
        return read_ladder(run_dir)
    schedule, rows = separator_schedule(experiment, len(manifest.clips))
    if rows == 0:  # only the untrained checkpoint is wanted
        torch.manual_seed(experiment.seed)
        untrained = TDCNpp(experiment.separator.network)
        for name in steps:
            add_to_ladder(run_dir, name, 0, untrained, {})
        return read_ladder(run_dir)
    fit(
        separator_worker,
        {"experiment": experiment.model_dump(mode="json"), "run_dir": str(run_dir.resolve()), "rows": rows},
        lambda ledger: segment_stream(experiment, manifest, schedule, ledger),
        rows,
        run_dir,
        STAGE,
        experiment.resources,
        checkpoints_kept=1,
        ordered=experiment.training.ordered,
    )
    return read_ladder(run_dir)
