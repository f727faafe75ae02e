"""Pre-training of one trial in one process: the rows, draws, losses and ledger of the cluster, views from a store.

Shapes: B pairs of a step, N clips, S channels, L frames of a clip, P frames of a patch, F bands.
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


def refuse_what_is_ignored(experiment: Experiment) -> None:
    """Refuse settings that have no meaning in one process on a CPU, so that none is silently left out.

    Raises:
        SepsceneError: names the fields.
    """
    training = experiment.training
    unusable = {
        "training.microbatch": training.microbatch is not None,
        "training.precision bfloat16": training.precision == "bfloat16",
        "training.validation_every_steps": training.validation_every_steps > 0,
        "data.test folds": experiment.data.by_folds,
    }
    wrong = [field for field, used in unusable.items() if used]
    if wrong:
        raise SepsceneError(f"training in one process on a CPU cannot honour {', '.join(wrong)}: unset it")
    if experiment.views.background == "exchanged" and experiment.data.scenes_profile != "recurring":
        raise SepsceneError("views.background exchanged needs data.scenes_profile recurring: other clips have one only")
    check_parts(experiment)
    if network_class(experiment.encoder).reads == "waveform":
        raise SepsceneError(f"scale mini trains from stored log-mels, and {experiment.encoder.use} reads waveforms")
    on_waveforms = [name for name, one in experiment.used_augmentations.items() if one.needs.sound == "waveform"]
    if on_waveforms:
        raise SepsceneError(
            f"scale mini trains from stored log-mels, and augmentations {', '.join(on_waveforms)} work on waveforms: "
            "leave them out, or use scale tiny"
        )
    check_start(experiment)


class ViewCrops:
    """Both views of rows, cropped from the log-mels of their clips."""

    def __init__(self, experiment: Experiment, store: LogMelStore, processors: dict[str, str], clips: int) -> None:
        self.experiment = experiment
        self.schedule = Schedule(seed=experiment.seed, clips=clips, epochs=experiment.training.epochs)
        self.streams = streams_of(experiment.used_augmentations)
        views = experiment.views
        second = 1 if views.background == "exchanged" else 0
        self.mixtures = (store.mixtures(), store.mixtures(second))
        names = views.combination if views.separates else ()
        # A view of a mix-chan pair that is separated is the second one; of chan-chan pairs the first one is, too.
        self.channels = tuple(
            [store.channels(processors[name], background) for name in names] for background in (0, second)
        )
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
        return self.front_end.level_patches(first), self.front_end.level_patches(second), draws


class MiniTrainer(Pretrainer):
    """Model, optimiser and ledger of one trial."""

    def __init__(self, experiment: Experiment, crops: ViewCrops) -> None:
        """It computes in float32 and channels last, as all trials before it, whatever this CPU does well."""
        in_float32 = experiment.changed({"training.precision": "float32"})
        super().__init__(in_float32, crops.schedule.clips, torch.device("cpu"))
        self.objective.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.crops = crops
        self.losses: dict[str, list[float]] = defaultdict(list)

    def advance(self) -> None:
        """One step on the next rows of the schedule.

        Raises:
            SepsceneError: when the loss is not finite.
        """
        begin = self.ledger.consumed
        row_N = np.arange(begin, min(begin + self.experiment.training.global_batch, self.ledger.rows))
        metrics = self.consume({"row": row_N, "fault": np.full(len(row_N), "")}, len(row_N))
        if metrics["bad"]:
            raise SepsceneError(f"step {self.step} has a loss or gradient that is not finite: lower the learning rate")
        for name in (*self.objective.terms, "gradient_norm"):
            self.losses[name].append(metrics[name])

    def logmels(self, batch: Batch) -> tuple[Tensor, ...]:
        """The log-mel patches (B, P, F) of both views of the rows, from the store."""
        first, second, draws = self.crops(batch["row"])
        views: tuple[Tensor, ...] = self.views.augment("log-mel", torch.stack((first, second), dim=1), draws).unbind(1)
        return views

    def last_losses(self) -> dict[str, float]:
        """The mean of each loss over the last tenth of the steps, and the median norm of the gradient."""
        last = max(1, self.steps // 10)
        means = {name: mean(values[-last:]) for name, values in self.losses.items() if name != "gradient_norm"}
        return means | {"gradient_norm": float(np.median(self.losses["gradient_norm"]))}


def embed(trainer: MiniTrainer, store: LogMelStore, clips_at_once: int = 32) -> np.ndarray:
    """h of every clip (N, D), from its mixture: the mean over patches side by side, as `Encoder` takes it."""
    trunk = trainer.objective.trunk.eval()
    patch = trainer.crops.patch
    logmel_NLF = store.mixtures()
    starts = [*range(0, store.frames - patch, patch), store.frames - patch]
    h = []
    with torch.inference_mode():
        for first in range(0, len(logmel_NLF), clips_at_once):
            clip_BLF = torch.from_numpy(logmel_NLF[first : first + clips_at_once].astype(np.float32))
            patch_BKPF = torch.stack([clip_BLF[:, start : start + patch] for start in starts], dim=1)
            patch_XPF = trainer.crops.front_end.level_patches(patch_BKPF.flatten(0, 1))
            h.append(trunk(patch_XPF).unflatten(0, patch_BKPF.shape[:2]).mean(dim=1).numpy())
    return np.concatenate(h)
