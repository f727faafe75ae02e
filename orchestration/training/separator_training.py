"""Training of the separator with Ray Train, by MixIT or supervised, and its ladder of checkpoints.

Every checkpoint of the ladder is evaluated on held-out clips, and its card gives the metrics.

Shapes: N rows and B mixtures of mixtures of this worker, R = 2 references, K sources, T samples of a segment,
S channels.
"""

import json
import shutil
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import ray.train
import ray.train.torch
import torch
from torch import Tensor, nn

from sepscene.augment.views import from_pcm
from sepscene.models.card import ProcessorName
from sepscene.models.config import SepsceneError
from sepscene.models.files import replace_folder
from sepscene.models.separators.folder import save_separator
from sepscene.models.separators.tdcnpp import TDCNpp
from sepscene.orchestration.config import Experiment
from sepscene.orchestration.records.checkpoints import resume_point
from sepscene.orchestration.records.files import read_typed, write_text_atomically
from sepscene.orchestration.records.run_folder import RunFolder, StageFolder
from sepscene.orchestration.training.health import Quarantine, fatal_when_out_of_memory
from sepscene.orchestration.training.hooks import Batch, Hook, Step, Worker, consume_rows, run_steps, usable_rows
from sepscene.orchestration.training.saving import Reporting, Saving
from sepscene.orchestration.training.stage import RayStage
from sepscene.orchestration.training.stream import segment_stream
from sepscene.tasks.datasets.readers import Manifest
from sepscene.tasks.distributed.gather import rank, sum_over_workers, world_size
from sepscene.tasks.evaluation.separation_scores import score_separation
from sepscene.tasks.losses.mixit import loudest_targets, mixit_loss, supervised_loss

STAGE = "separator"

MEMORY_ADVICE = "lower separator.batch_mixtures or separator.segment_seconds, or raise resources.trainers"


def separator_steps(experiment: Experiment) -> int:
    """Steps until the last checkpoint of the ladder."""
    return max(experiment.separator.ladder.steps.values())


def read_ladder(run_dir: Path) -> dict[str, str]:
    """Processor name -> separator folder, for the checkpoints that a run has so far.

    Raises:
        SepsceneError: the run's index is not valid, or names a checkpoint outside of the ladder's folder.
    """
    files = RunFolder(run_dir)
    try:
        folders = read_typed(files.ladder_index, dict[ProcessorName, ProcessorName], "train the separator again")
    except FileNotFoundError:
        return {}
    return {name: str(files.ladder / folder) for name, folder in folders.items()}


def add_to_ladder(run_dir: Path, name: str, step: int, separator: TDCNpp, metadata: dict[str, Any]) -> None:
    """Save a checkpoint permanently as ladder/<name>-<step>-<digest>, and add it to the ladder's index."""
    files = RunFolder(run_dir)
    fresh = files.unfinished_ladder_checkpoint(name, step)
    digest = save_separator(separator, fresh, {"name": name, "step": step, **metadata})
    final = files.ladder_checkpoint(name, step, digest)
    if final.exists():  # the process was killed before it wrote the index
        shutil.rmtree(fresh)
    else:
        replace_folder(fresh, final)
    index = {key: Path(folder).name for key, folder in read_ladder(run_dir).items()} | {name: final.name}
    write_text_atomically(files.ladder_index, json.dumps(index, indent=2))


class SeparatorTrainer(Worker):
    """One worker of the separator's training."""

    def __init__(self, experiment: Experiment, rows: int, device: torch.device, checkpoint: Path | None) -> None:
        """Args:
        rows: of the schedule.
        checkpoint: continue from this checkpoint; None starts the training.
        """
        self.supervised = experiment.separator.objective == "supervised"
        self.samples = round(experiment.separator.segment_seconds * experiment.audio.sample_rate)
        torch.manual_seed(experiment.seed)
        self.separator = TDCNpp(experiment.separator.network).to(device)
        optimizer = torch.optim.Adam(self.separator.parameters(), lr=experiment.separator.learning_rate)
        super().__init__(experiment, self.separator, optimizer, rows, device)
        if checkpoint is not None:
            self.restore(checkpoint)
        self.model: nn.Module = self.separator
        """Averages the gradients of all workers."""

    def consume(self, batch: Batch, usable: int) -> dict[str, float]:
        """Do one optimiser step on this worker's part of the batch, and return its metrics.

        If no worker has a usable row, the weights do not change, and the rows count as consumed.
        """
        name = "supervised_loss" if self.supervised else "mixit_loss"
        losses = {name: self._optimise(*self._loss(batch))} if usable else {}
        consume_rows(self.ledger, batch, self.device, usable)
        self.step += 1
        return {"step": self.step, **losses, "rows": self.ledger.consumed}

    def _loss(self, batch: Batch) -> tuple[Tensor, int]:
        """Sum of the losses over this worker's usable mixtures, and their number."""
        mixtures = self._scenes(batch) if self.supervised else self._pairs(batch)
        if not mixtures:  # a loss of zero, because this worker must still take part in the exchange of gradients
            return self.model(torch.zeros(1, self.samples, device=self.device)).sum() * 0, 0
        estimate_BST = self.model(torch.stack([source_KT.sum(dim=0) for source_KT in mixtures]))
        if not self.supervised:
            return mixit_loss(torch.stack(mixtures), estimate_BST).loss_B.sum(), len(mixtures)
        # One scene at a time: they differ in the number of sources.
        losses = [
            supervised_loss(loudest_targets(source_KT, len(estimate_ST))[None], estimate_ST[None])
            for source_KT, estimate_ST in zip(mixtures, estimate_BST, strict=True)
        ]
        return torch.stack(losses).sum(), len(mixtures)

    def _pairs(self, batch: Batch) -> list[Tensor]:
        """Pairs of consecutive rows whose clips are both usable, each (R, T)."""
        wave_BRT = from_pcm(batch["segment"]).reshape(-1, 2, self.samples)
        usable_B = usable_rows(batch).reshape(-1, 2).all(axis=1)
        return list(torch.from_numpy(wave_BRT[usable_B]).to(self.device))

    def _scenes(self, batch: Batch) -> list[Tensor]:
        """The sources of the usable rows, each (K, T)."""
        return [
            torch.from_numpy(from_pcm(np.frombuffer(pcm, np.int16).reshape(-1, self.samples))).to(self.device)
            for pcm in batch["sources"][usable_rows(batch)]
        ]

    def _optimise(self, loss: Tensor, local: int) -> float:
        """Do a step on the mean loss over the mixtures of all workers, which can have different numbers of them."""
        workers = world_size()
        count = sum_over_workers(torch.tensor(float(local), device=self.device))
        loss = loss * (workers / count.clamp_min(1))
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.separator.parameters(), self.experiment.separator.clip_gradient_norm)
        self.optimizer.step()
        return float(sum_over_workers(loss)) / workers


class LadderHook(Hook):
    """Evaluates and saves the weights at the steps of the ladder. For rank 0 only."""

    def __init__(self, worker: SeparatorTrainer, run_dir: Path, held_out: list[tuple[str, float]]) -> None:
        """Save the current weights if their step is one of the ladder's.

        Args:
            held_out: URIs and offsets of the clips on which checkpoints are evaluated.
        """
        self.worker = worker
        self.run_dir = run_dir
        self.held_out = held_out
        self._keep({})

    def after_step(self, step: Step) -> None:
        """Save the weights with the loss of their last step."""
        mixtures = self.worker.ledger.consumed // (1 if self.worker.supervised else 2)
        losses = {name: value for name, value in step.metrics.items() if name.endswith("_loss")}
        self._keep({**losses, "mixtures": mixtures})

    def _keep(self, metadata: dict[str, Any]) -> None:
        worker = self.worker
        for name, step in worker.experiment.separator.ladder.steps.items():
            if step == worker.step and name not in read_ladder(self.run_dir):
                add_to_ladder(self.run_dir, name, step, worker.separator, metadata | self._scores())

    def _scores(self) -> dict[str, float]:
        """Metrics on the held-out clips for the card of a checkpoint; empty without such clips."""
        if len(self.held_out) < 2:
            return {}
        experiment = self.worker.experiment
        separator = self.worker.separator.eval()
        scores = score_separation(
            lambda wave_BT: separator(wave_BT.to(self.worker.device)),
            self.held_out,
            experiment.audio,
            experiment.evaluation.separator_mixtures,
        )
        separator.train()
        return scores.means()


class MixtureRate(Hook):
    """Adds the number of mixtures per second to the metrics."""

    def __init__(self, batch_mixtures: int) -> None:
        self.batch_mixtures = batch_mixtures

    def after_step(self, step: Step) -> None:
        """Add the rate of this step, including its wait for data."""
        step.metrics["mixtures_per_second"] = self.batch_mixtures / step.seconds


def separator_worker(
    experiment: Experiment, clips: int, rows: int, folder: StageFolder, held_out: list[tuple[str, float]]
) -> None:
    """The training function of each Ray Train worker: train on its part of the stream, with all hooks."""
    separator = experiment.separator
    worker = SeparatorTrainer(experiment, rows, ray.train.torch.get_device(), resume_point(folder))
    worker.model = ray.train.torch.prepare_model(worker.separator)
    local_rows = 2 * separator.batch_mixtures // world_size()
    shard = ray.train.get_dataset_shard("views")
    batches = shard.iter_batches(batch_size=local_rows, batch_format="numpy")
    hooks: list[Hook] = [MixtureRate(separator.batch_mixtures), Quarantine(worker, clips)]
    if rank() == 0:
        hooks += [LadderHook(worker, folder.run.path, held_out), Saving(worker, folder, kept=1)]
    with fatal_when_out_of_memory(folder, MEMORY_ADVICE):
        run_steps(worker, batches, [*hooks, Reporting()])


def train_separator(
    experiment: Experiment,
    manifest: Manifest,
    run_dir: Path,
    held_out: Manifest | None = None,
    callbacks: Sequence[ray.train.UserCallback] = (),
) -> dict[str, str]:
    """Train the separator to the last step of its ladder, or continue; returns processor name -> folder.

    Args:
        manifest: the training clips; labels are ignored.
        held_out: clips on which every checkpoint is evaluated.
        callbacks: the user's callbacks for Ray Train.

    Raises:
        SepsceneError: as `Stage.run`; or a finished ladder has lost checkpoints.
    """
    steps = experiment.separator.ladder.steps
    for name, network in experiment.separator.beside.items():
        if name not in read_ladder(run_dir):
            torch.manual_seed(experiment.seed)
            add_to_ladder(run_dir, name, 0, TDCNpp(network), {})
    if set(read_ladder(run_dir)) >= set(steps):
        return read_ladder(run_dir)
    clips = held_out.clips.slice(0, 2 * experiment.evaluation.separator_mixtures).to_pylist() if held_out else []
    scored = [(clip["uri"], clip["offset_seconds"]) for clip in clips]
    rows = separator_steps(experiment) * 2 * experiment.separator.batch_mixtures
    if rows == 0:  # the ladder has only the untrained checkpoint
        LadderHook(SeparatorTrainer(experiment, 0, torch.device("cpu"), None), run_dir, scored)
    else:
        folder = RunFolder(run_dir.resolve()).stage(STAGE)
        worker = partial(separator_worker, experiment, len(manifest), rows, folder, scored)
        stream = partial(segment_stream, experiment, manifest)
        RayStage(folder, rows, experiment, worker, stream, callbacks=callbacks).run()
        if missing := ", ".join(steps.keys() - read_ladder(run_dir)):
            raise SepsceneError(
                f"{RunFolder(run_dir).ladder} has no {missing}, although the separator is trained: restore the folder, "
                f"or delete {folder.path} to train it again"
            )
    return read_ladder(run_dir)
