"""Separation of clips of any length in bounded memory, in windows that overlap and fade into each other.

A separator's norms take their statistics over all that it is given, and the exact statistics of a long clip
would need every layer to wait for the whole clip. So each window is normed by its own statistics, as the
network was trained to do on clips of some ten seconds. Two neighbouring windows hence differ by a little
everywhere; that is what the fade is for. Within the fade both see their whole receptive field, so nothing
else differs there. Clips up to one and a half windows are separated in one piece, exactly.

Shapes: S sources, T samples.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from pydantic import Field
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from sepscene.models.config import Config, SepsceneError


class LongClips(Config):
    """How long clips are cut. All defaults are ours."""

    window_seconds: float = Field(default=20.0, gt=0, description="separated at once; memory grows with it")
    fade_seconds: float = Field(default=0.5, gt=0, description="cross-fade between neighbouring windows")
    receptive_seconds: float = Field(
        default=2.56, gt=0, description="reach of a separator that doesn't tell; a TDCN++ has 2.5525 s"
    )


def separate_long(separator: nn.Module, wave_T: Tensor, cut: LongClips | None = None) -> Tensor:
    """Separate one clip of any length: wave_T -> separated_ST, on the wave's device.

    Raises:
        SepsceneError: the window is too short for the separator's receptive field.
    """
    return torch.cat(list(separate_stream(separator, [wave_T], cut)), dim=1)


@torch.inference_mode()
def separate_stream(separator: nn.Module, blocks_T: Iterable[Tensor], cut: LongClips | None = None) -> Iterator[Tensor]:
    """Separate a clip that comes in blocks of any size; at most two windows are held at a time.

    Args:
        separator: maps (1, T) to (1, S, T); has `sample_rate`.
        blocks_T: consecutive pieces of one clip, mono, at the separator's rate.
        cut: lengths of windows and fades.

    Yields:
        Consecutive pieces (S, t) of the separated clip, together as long as it. Sources keep their order: a
        window whose outputs come in another order than those of the window before is reordered.

    Raises:
        SepsceneError: the window is too short for the separator's receptive field.
    """
    cut = cut or LongClips()
    rate: int = separator.sample_rate  # type: ignore[assignment]
    window, fade = round(cut.window_seconds * rate), round(cut.fade_seconds * rate)
    margin = -(-_receptive_samples(separator, cut, rate) // 2)
    overlap = 2 * margin + fade
    if window < 2 * overlap:
        raise SepsceneError(
            f"window_seconds {cut.window_seconds:g} is too short: neighbours share {overlap / rate:.2f} s; "
            f"take at least {2 * overlap / rate:.2f} s"
        )
    seam = Seam(margin, fade)
    held_T: Tensor | None = None
    for block_T in blocks_T:
        held_T = block_T if held_T is None else torch.cat([held_T, block_T])
        while len(held_T) > 1.5 * window:
            separated_ST = separator(held_T[None, :window])[0]
            yield seam.join(separated_ST, keep=overlap)
            held_T = held_T[window - overlap :]
    if held_T is not None and len(held_T):
        yield seam.join(separator(held_T[None])[0], keep=0)


class Seam:
    """Joins each window to the one before; remembers the part that the next one overlaps."""

    def __init__(self, margin: int, fade: int):
        self.margin, self.fade = margin, fade
        self.before_ST: Tensor | None = None

    def join(self, separated_ST: Tensor, keep: int) -> Tensor:
        """Fade the remembered overlap into a new window; hold its last `keep` samples back for the next."""
        if (before_ST := self.before_ST) is not None:
            overlap = before_ST.shape[1]
            separated_ST = separated_ST[_order(before_ST, separated_ST[:, :overlap])].clone()
            ramp_T = torch.zeros(overlap, device=separated_ST.device)
            middle = slice(self.margin, self.margin + self.fade)
            ramp_T[middle] = (torch.arange(self.fade, device=ramp_T.device) + 0.5) / self.fade
            ramp_T[self.margin + self.fade :] = 1.0
            separated_ST[:, :overlap] = before_ST + ramp_T * (separated_ST[:, :overlap] - before_ST)
        end = separated_ST.shape[1] - keep
        self.before_ST = separated_ST[:, end:].clone()
        return separated_ST[:, :end]


def _order(before_ST: Tensor, after_ST: Tensor) -> list[int]:
    """Which new source continues each old one: the assignment with the largest sum of correlations."""
    correlation_SS = (before_ST.double() @ after_ST.double().T).cpu().numpy()
    best = linear_sum_assignment(correlation_SS, maximize=True)[1]
    gained = correlation_SS[range(len(best)), best].sum() - correlation_SS.trace()
    power = float(before_ST.double().square().sum())
    return best.tolist() if gained > 1e-3 * power else list(range(len(best)))  # near a tie: stay


def _receptive_samples(separator: nn.Module, cut: LongClips, rate: int) -> int:
    known = getattr(getattr(separator, "config", None), "receptive_field_samples", None)
    return known or round(cut.receptive_seconds * rate)
