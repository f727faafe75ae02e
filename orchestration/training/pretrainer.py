"""The trainer of an encoder: views, objective, optimiser and the training step. It does not need Ray.

Shapes: B pairs of this worker, P samples of a view, L frames, F mels.
"""

import math
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from sepscene.augment.augmentations.augmentation import Augmenter
from sepscene.augment.views import from_pcm
from sepscene.models.encoders.encoder import Encoder
from sepscene.models.encoders.frontend import LogMel
from sepscene.models.encoders.network import network_class
from sepscene.orchestration.config import Experiment
from sepscene.orchestration.records.checkpoints import TrainingState
from sepscene.orchestration.runtime.precision import training_precision
from sepscene.orchestration.training.builders import build_objective, encoder_config, start_from
from sepscene.orchestration.training.hooks import Batch, Worker, consume_rows, usable_rows
from sepscene.orchestration.training.optimizer import adamw, learning_rate
from sepscene.tasks.distributed.batchnorm import synchronise_batchnorm
from sepscene.tasks.distributed.gather import world_size
from sepscene.tasks.losses.gradcache import accumulate, split_into_chunks
from sepscene.tasks.losses.joint import JointLoss, JointObjective


class ViewInputs(nn.Module):
    """Turns a batch of the stream into the encoder's inputs for both views, on the worker's device."""

    def __init__(self, experiment: Experiment) -> None:
        super().__init__()
        self.front_end = LogMel(experiment.front_end)
        self.augment = Augmenter(experiment.used_augmentations)
        self.reads = network_class(experiment.encoder).reads

    def forward(self, view_B2P: Tensor, columns: Batch) -> tuple[Tensor, Tensor]:
        """Both views of rows: two (B, L, F), or two (B, P) for an encoder that reads waveforms.

        Args:
            view_B2P: waveforms of full scale 1.
            columns: the draws of the augmentations for the same rows, and their mixtures if an augmentation needs them.
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
    """The networks and losses as a worker trains them: on its device, in the fastest memory format, with BatchNorm
    synchronised over all workers.

    The trunk starts from the encoder bundle `start`, if given; all other weights are random.
    """
    objective = build_objective(experiment)
    if start is not None:
        start_from(objective, Path(start))
    objective = objective.to(device)
    synchronise_batchnorm(objective)  # after the move to the device: CUDA has a separate kernel
    if device.type == "cuda" or experiment.scale == "tiny":
        # Measured in benchmarks/encoder.py: 1.2 to 1.7 times faster, but slower at full size on a CPU, where CNN14
        # selects the fastest layout for each block.
        objective = objective.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return objective


class Pretrainer(Worker):
    """One worker of the pre-training."""

    def __init__(
        self, experiment: Experiment, clips: int, device: torch.device, checkpoint: Path | None = None
    ) -> None:
        """Args:
        clips: number of training clips.
        checkpoint: continue from this checkpoint; None starts the training.
        """
        self.clips = clips
        self.views = ViewInputs(experiment).to(device)
        start = experiment.training.start_encoder if checkpoint is None else None
        self.objective = prepared_objective(experiment, device, start)
        optimizer = adamw(self.objective, experiment.training, device)
        super().__init__(experiment, self.objective, optimizer, clips * experiment.training.epochs, device)
        self.steps = -(-self.ledger.rows // experiment.training.global_batch)
        """Steps of the whole schedule."""
        self.bad_rows: list[list[int]] = []
        """The rows of each step that was skipped because of a non-finite loss or gradient."""
        if checkpoint is not None:
            self.bad_rows = self.restore(checkpoint).tensors["bad_rows"]
        self.local_rows = experiment.training.global_batch // world_size()
        self.model: nn.Module | None = None if experiment.training.microbatch else self.objective
        """Averages the gradients of all workers; None if `accumulate` does it."""
        self.result: JointLoss | None = None
        """Output of the objective in the last step; None if that step was skipped."""

    @property
    def last_step(self) -> int:
        """Number of the last step of the schedule."""
        left = self.ledger.rows - self.ledger.consumed
        return self.step + -(-left // self.experiment.training.global_batch)

    def state(self) -> TrainingState:
        """The content of a checkpoint from which training can continue."""
        state = super().state()
        state.tensors["bad_rows"] = self.bad_rows
        return state

    def consume(self, batch: Batch, usable: int) -> dict[str, float]:
        """Do one optimiser step on this worker's part of the global batch, and return its metrics.

        If no worker has a usable row, the weights do not change, and the rows count as consumed.
        """
        rate = learning_rate(self.experiment.training, self.step, self.steps)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.result = None
        metrics = self._optimise(self.inputs(batch)) if usable else {"pairs": 0.0, "bad": 0.0}
        rows = consume_rows(self.ledger, batch, self.device, usable)
        if metrics["bad"]:
            self.bad_rows.append(rows)
        self.step += 1
        return {"step": self.step, "learning_rate": rate, "rows": self.ledger.consumed, **metrics}

    def inputs(self, batch: Batch) -> tuple[Tensor, ...]:
        """The encoder's inputs, such as log-mel patches (B, L, F), for both views of the usable rows."""
        usable_B = usable_rows(batch)
        usable = {name: column[usable_B] for name, column in batch.items()}
        logmels: tuple[Tensor, ...] = self.views(pcm_pair(usable, "view", self.device), usable)
        return logmels

    def _optimise(self, logmels: tuple[Tensor, ...]) -> dict[str, float]:
        """Do a step; if its loss or gradient is not finite, leave weights and running averages unchanged.

        Loss and gradient are those of the global batch, so either all workers skip a step or none.
        """
        averages = [buffer.clone() for buffer in self.objective.buffers()]
        self.optimizer.zero_grad(set_to_none=True)
        result = self.loss_and_gradient(logmels)
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

    def loss_and_gradient(self, logmels: tuple[Tensor, ...]) -> JointLoss:
        """The loss of both views, after computing its gradient, in the experiment's precision and microbatches."""
        dtype = torch.bfloat16 if training_precision(self.experiment) == "bfloat16" else None
        weights = self.experiment.objective.weights_at(self.step)
        if self.model is None:
            chunks = split_into_chunks(logmels, self.experiment.training.microbatch or self.local_rows, self.local_rows)
            return accumulate(self.objective, chunks, weights=weights, dtype=dtype)
        with torch.autocast(self.device.type, dtype, enabled=dtype is not None):
            result: JointLoss = self.model(*logmels, weights=weights)
        result.loss.backward()
        return result

    def encoder(self) -> Encoder:
        """The current encoder; it shares its weights with the training."""
        return Encoder(encoder_config(self.experiment), self.objective.trunk).to(self.device)
