"""Evaluate a separator on held-out clips: MixIT's loss, SI-SDR improvement without and with known sources.

Shapes: B = 1 mixture at a time, R = 2 references, K sources, S channels, T samples.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sepscene.augment.audio import AudioFormat, ClipError, read_clip
from sepscene.augment.synthetic.sources import read_sources
from sepscene.tasks.losses.mixit import mixit_loss, mixture_improvement, si_sdr_improvement


@dataclass(frozen=True)
class SeparatorScores:
    """Metrics of the held-out mixtures, one value per mixture."""

    improvement_db: np.ndarray
    """SI-SDR improvement of the remixed references (MoMi) on mixtures of two clips."""
    loss: np.ndarray
    """MixIT's loss on the same mixtures, in dB."""
    source_improvement_db: np.ndarray
    """SI-SDR improvement of the channels over the mixture on single scenes, best match with the isolated sources;
    empty if the clips have none."""

    def means(self) -> dict[str, float | int]:
        """The means, for the card of a checkpoint."""
        metrics: dict[str, float | int] = {"held_out_mixtures": len(self.loss)}
        for name in ("improvement_db", "loss", "source_improvement_db"):
            values_N = getattr(self, name)
            values_N = values_N[np.isfinite(values_N)]
            if len(values_N):
                metrics[f"held_out_{name}"] = round(float(values_N.mean()), 4)
        return metrics


def score_separation(
    separate: Callable[[Tensor], Tensor], clips: Sequence[tuple[str, float]], audio: AudioFormat, mixtures: int
) -> SeparatorScores:
    """Evaluate mixtures of two consecutive held-out clips, and single clips with known sources.

    Args:
        separate: wave_BT -> separated_BST.
        clips: (URI, offset in seconds) of held-out clips; a pair with a clip that cannot be read is left out.
        audio: the format in which they are read.
        mixtures: maximum number of mixtures.
    """
    improvement = []
    loss = []
    with_sources = []
    for first in range(0, min(2 * mixtures, len(clips) - 1), 2):
        try:
            pair = [read_clip(uri, audio, offset) for uri, offset in clips[first : first + 2]]
        except ClipError:
            continue  # the evaluation of the test split reports it
        reference_BRT = torch.from_numpy(np.stack(pair))[None]
        with torch.inference_mode():
            estimate_BST = separate(reference_BRT.sum(dim=1)).float().cpu()
            improvement.append(float(mixture_improvement(reference_BRT, estimate_BST)))
            loss.append(float(mixit_loss(reference_BRT, estimate_BST).loss_B.mean()))
            with_sources += _on_known_sources(separate, clips[first][0], reference_BRT[:, 0])
    return SeparatorScores(np.array(improvement), np.array(loss), np.array(with_sources))


def _on_known_sources(separate: Callable[[Tensor], Tensor], uri: str, mixture_BT: Tensor) -> list[float]:
    try:
        source_BKT = torch.from_numpy(read_sources(uri))[None]
    except ClipError:
        return []
    if source_BKT.shape[2] != mixture_BT.shape[1]:
        return []  # another sample rate, or part of a longer scene
    return [float(si_sdr_improvement(mixture_BT, source_BKT, separate(mixture_BT).float().cpu()))]
