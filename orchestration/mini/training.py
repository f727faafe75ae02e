"""Pre-training of one trial in one process: rows, draws, losses and ledger as on a cluster, views from a store.

Shapes: B pairs of a step, N clips, S channels, L frames of a clip, P frames of a patch, F bands,
K crops of a clip, X patches.
"""

from collections import defaultdict
from statistics import mean

import numpy as np
import torch
from torch import Tensor

from sepscene.augment.augmentations.settings import streams_of
from sepscene.augment.draws import Schedule
from sepscene.augment.views import MIXTURE, choose_channels, patch_samples, view_starts
from sepscene.models.config import SepsceneError
from sepscene.models.encoders.frontend import LogMel
from sepscene.models.encoders.network import network_class
from sepscene.orchestration.config import Experiment
from sepscene.orchestration.mini.data import LogMelStore
from sepscene.orchestration.training.builders import check_parts, check_start
from sepscene.orchestration.training.hooks import Batch
from sepscene.orchestration.training.pretrainer import Pretrainer

EMBED_CLIPS = 32
"""Clips per forward pass of `embed`."""


def check_supported(experiment: Experiment) -> None:
    """Check that no setting would be silently ignored: some are not supported in one process on a CPU.

    Raises:
        SepsceneError: when a setting is not supported; names the fields.
    """
    training = experiment.training
    unsupported = {
        "training.microbatch": training.microbatch is not None,
        "training.precision bfloat16": training.precision == "bfloat16",
        "training.validation_every_steps": training.validation_every_steps > 0,
        "data.test folds": experiment.data.by_folds,
    }
    used = [field for field, is_used in unsupported.items() if is_used]
    if used:
        raise SepsceneError(f"training in one process on a CPU does not support {', '.join(used)}: unset it")
    if experiment.views.background == "exchanged" and experiment.data.scenes_profile != "recurring":
        raise SepsceneError(
            "views.background exchanged needs data.scenes_profile recurring: only these scenes have two backgrounds"
        )
    check_parts(experiment)
    if network_class(experiment.encoder).reads == "waveform":
        raise SepsceneError(
            f"scale mini trains from stored log-mels, but {experiment.encoder.use} reads waveforms: use another "
            "encoder, or scale tiny"
        )
    on_waveforms = [name for name, one in experiment.used_augmentations.items() if one.needs.sound == "waveform"]
    if on_waveforms:
        raise SepsceneError(
            f"scale mini trains from stored log-mels, but augmentations {', '.join(on_waveforms)} work on waveforms: "
            "remove them, or use scale tiny"
        )
    check_start(experiment)


class ViewCrops:
    """Crops both views of rows from the stored log-mels of their clips."""

    def __init__(self, experiment: Experiment, store: LogMelStore) -> None:
        self.experiment = experiment
        self.schedule = Schedule(seed=experiment.seed, clips=len(store.manifest), epochs=experiment.training.epochs)
        self.streams = streams_of(experiment.used_augmentations)
        views = experiment.views
        second = 1 if views.background == "exchanged" else 0  # the background of the second view
        self.mixtures = (store.mixtures(), store.mixtures(second))
        names = views.combination if views.separates else ()
        folders = [str(experiment.separator.checkpoints[name]) for name in names]
        # Pairs mix-chan separate the second view only, pairs chan-chan both.
        self.channels = [[store.channels(folder, background) for folder in folders] for background in (0, second)]
        self.front_end = LogMel(experiment.front_end)
        self.hop = experiment.front_end.hop_samples
        self.patch = experiment.front_end.frames(patch_samples(views, experiment.audio.sample_rate))
        self.last = store.frames - self.patch

    def __call__(self, row_N: np.ndarray) -> tuple[Tensor, Tensor, dict[str, np.ndarray]]:
        """Log-mel patches (B, P, F) of both views, before augmentations, and the draws of the rows."""
        views = self.experiment.views
        audio = self.experiment.audio
        draws = views.draw(self.schedule, row_N, self.streams)
        starts = np.stack(view_starts(draws, views, audio.samples, audio.sample_rate), axis=1)
        frame_B2 = np.minimum(np.rint(starts / self.hop).astype(np.int64), self.last)
        view_B2PF = np.empty((len(row_N), 2, self.patch, self.experiment.front_end.mel_bands), np.float32)
        for n, (clip, processor) in enumerate(zip(draws["clip"], draws["processor"], strict=True)):
            levels_S = self.channels[-1][processor][1][clip] if self.channels[-1] else np.empty(0, np.float32)
            chosen = choose_channels(levels_S, draws["channel_u"][n], draws["second_channel_u"][n], views)
            for view, channel in enumerate(chosen):
                part = slice(frame_B2[n, view], frame_B2[n, view] + self.patch)
                if channel == MIXTURE:
                    view_B2PF[n, view] = self.mixtures[view][clip, part]
                else:
                    view_B2PF[n, view] = self.channels[view][processor][0][clip, channel, part]
        first, second = torch.from_numpy(view_B2PF).unbind(1)
        return self.front_end.normalise_patches(first), self.front_end.normalise_patches(second), draws


class NonFiniteError(SepsceneError):
    """The loss or the gradient of a step was not finite."""


class MiniTrainer(Pretrainer):
    """Model, optimiser and ledger of one trial."""

    def __init__(self, experiment: Experiment, store: LogMelStore) -> None:
        """Always float32 and channels last, on any CPU, so that results stay comparable with earlier trials."""
        in_float32 = experiment.changed({"training.precision": "float32"})
        super().__init__(in_float32, len(store.manifest), torch.device("cpu"))
        self.objective.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.crops = ViewCrops(experiment, store)
        self.losses: dict[str, list[float]] = defaultdict(list)

    def advance(self) -> None:
        """Train one step on the next rows of the schedule.

        A trial does not need the loop of `training.hooks`: its rows are in memory, so that no batch is waited for, and
        in its two minutes nothing is saved, validated or reported between steps. A bad step ends it.

        Raises:
            NonFiniteError: when the loss or the gradient is not finite.
        """
        begin = self.ledger.consumed
        row_N = np.arange(begin, min(begin + self.experiment.training.global_batch, self.ledger.rows))
        metrics = self.consume({"row": row_N, "fault": np.full(len(row_N), "")}, len(row_N))
        if metrics["bad"]:
            raise NonFiniteError(f"step {self.step} has a loss or gradient that is not finite: lower the learning rate")
        for name in (*self.objective.terms, "gradient_norm"):
            self.losses[name].append(metrics[name])

    def inputs(self, batch: Batch) -> tuple[Tensor, ...]:
        """The augmented log-mel patches (B, P, F) of both views, from the store."""
        first, second, draws = self.crops(batch["row"])
        views: tuple[Tensor, ...] = self.views.augment("log-mel", torch.stack((first, second), dim=1), draws).unbind(1)
        return views

    def last_losses(self) -> dict[str, float]:
        """The mean of each loss over the last tenth of the steps, and the median gradient norm over all steps."""
        last = max(1, self.steps // 10)
        means = {name: mean(values[-last:]) for name, values in self.losses.items() if name != "gradient_norm"}
        return means | {"gradient_norm": float(np.median(self.losses["gradient_norm"]))}


def embed(trainer: MiniTrainer, store: LogMelStore) -> np.ndarray:
    """h of every clip (N, D), from its mixture: the mean over adjacent patches, as in `Encoder`."""
    trunk = trainer.objective.trunk.eval()
    patch = trainer.crops.patch
    logmel_NLF = store.mixtures()
    starts = [*range(0, store.frames - patch, patch), store.frames - patch]
    h = []
    with torch.inference_mode():
        for first in range(0, len(logmel_NLF), EMBED_CLIPS):
            clip_BLF = torch.from_numpy(logmel_NLF[first : first + EMBED_CLIPS].astype(np.float32))
            patch_BKPF = torch.stack([clip_BLF[:, start : start + patch] for start in starts], dim=1)
            patch_XPF = trainer.crops.front_end.normalise_patches(patch_BKPF.flatten(0, 1))
            h.append(trunk(patch_XPF).unflatten(0, patch_BKPF.shape[:2]).mean(dim=1).numpy())
    return np.concatenate(h)
