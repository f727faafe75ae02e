"""From a clip and its separated channels to the two views of a positive pair.

Sound travels as 16-bit PCM between the stages: that halves the bytes, is what the SeparatedStore keeps, and makes a
view from the store equal to a live one bit for bit.

Shapes: T samples of a clip, P samples of a patch, S channels of a separator.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Annotated, Any, Literal, get_args

import numpy as np
from pydantic import BeforeValidator, Discriminator, Field, Tag, model_validator

from sepscene.augment.draws import Schedule, Stream, crop_starts, draw
from sepscene.models.config import Config
from sepscene.models.custom import CustomCode, as_custom
from sepscene.models.spelling import unknown

PCM_SCALE = 32767.0
"""16-bit PCM of full scale 1.0."""

PCM_BYTES = 2
"""Of one sample."""

MIXTURE = -1
"""The channel number that stands for the mixture itself."""


ChannelRule = Literal["uniform", "loudest", "softmax-energy"]


def _rule_or_custom(value: Any) -> Any:
    rules = get_args(ChannelRule)
    value = as_custom(value)
    if isinstance(value, str) and value not in rules:
        raise ValueError(f"{unknown(value, rules, 'rule')}, or an import path package.module:Name")
    return value


ChannelChoice = Annotated[
    Annotated[ChannelRule, Tag("<rule>")] | Annotated[CustomCode, Tag("<custom>")],
    Discriminator(lambda value: "<rule>" if isinstance(value, str) else "<custom>"),
    BeforeValidator(_rule_or_custom),
]
"""A rule by the channels' levels, or custom code that scores them (`augment.separation.channel_scores`)."""


class CurriculumPoint(Config):
    """The OR rule's probabilities at one point of the run; between two points they change linearly."""

    at: float = Field(ge=0, le=1, description="share of the run's rows that are done: 0 is its start, 1 its end")
    weights: tuple[float, ...] = Field(description="one for each processor of views.combination, not normalised")


class Views(Config):
    """How a clip becomes a positive pair."""

    pair: Literal["mix-mix", "mix-chan", "chan-chan"] = "mix-chan"
    combination: tuple[str, ...] = Field(("S2",), description="processors under the OR rule; each row draws one")
    weights: tuple[float, ...] | None = Field(
        None, description="probabilities of the processors; none is uniform [open]"
    )
    curriculum: tuple[CurriculumPoint, ...] = Field(
        (), description="probabilities of the processors over the run, instead of `weights` [beyond the paper]"
    )
    channel: ChannelChoice = Field(
        "uniform",
        description="how the channel is chosen [open; ours: uniform over the audible ones]. Or your own score, "
        "`package.module:Name` or `{use: …, its fields}`: drawn with the softmax of the audible channels' scores",
    )
    silence_db: float = Field(
        -60.0, le=0, description="a channel whose RMS is below this (dBFS) is passed over [open; ours]"
    )
    patch_seconds: float = Field(0.96, gt=0, description="length of a view [open; ours]")
    tp_delta_seconds: float = Field(10.0, ge=0, description="largest distance of the two crops' starts [open; ours]")
    specaugment: bool = Field(True, description="SpecAugment on both views (paper: yes); false leaves it out")
    background: Literal["kept", "exchanged"] = Field(
        "kept",
        description="exchanged: the second view has another background than the first; synthetic scenes at scale mini "
        "only [beyond the paper]",
    )

    @model_validator(mode="after")
    def _weights_match(self) -> "Views":
        if not self.combination:
            raise ValueError("views.combination is empty: name at least one processor, e.g. [S2, N]")
        given = {"views.weights": self.weights} if self.weights is not None else {}
        given |= {f"views.curriculum at {point.at:g}": point.weights for point in self.curriculum}
        for field, weights in given.items():
            if len(weights) != len(self.combination):
                raise ValueError(f"{field} must hold one probability for each processor of views.combination")
            if min(weights) < 0 or sum(weights) <= 0:
                raise ValueError(f"{field} must not be negative and must not all be zero")
        times = [point.at for point in self.curriculum]
        if times and self.weights is not None:
            raise ValueError("views.weights and views.curriculum both say how probable processors are: give one")
        if any(later <= earlier for earlier, later in pairwise(times)):
            raise ValueError("views.curriculum must be in order: each point's `at` after the one before")
        return self

    @property
    def separates(self) -> bool:
        """Whether a view of the pair may be a separated channel; "mix-mix" crops both views from the clip itself."""
        return self.pair != "mix-mix"

    @property
    def processor_weights(self) -> tuple[float, ...]:
        """The OR rule's probabilities, not yet normalised: uniform unless `weights` says otherwise; with a curriculum
        their mean over the run.
        """
        if self.curriculum:
            return tuple(self.weights_at((np.arange(1000) + 0.5) / 1000).mean(axis=0).tolist())
        return self.weights or (1.0,) * len(self.combination)

    def weights_at(self, done_N: np.ndarray) -> np.ndarray:
        """(N, K): the curriculum's probabilities, which sum to 1, when a share `done_N` of the run's rows is done."""
        share_PK = np.array([point.weights for point in self.curriculum], np.float64)
        share_PK /= share_PK.sum(axis=1, keepdims=True)
        times = [point.at for point in self.curriculum]
        return np.stack([np.interp(done_N, times, share_P) for share_P in share_PK.T], axis=1)

    def draw(
        self, schedule: Schedule, row_N: np.ndarray, streams: Sequence[Stream] = (Stream("specaugment"),)
    ) -> dict[str, np.ndarray]:
        """All random choices of rows, see `augment.draws.draw`; under a curriculum the processor depends on the row."""
        weights = self.weights_at(row_N / schedule.rows) if self.curriculum else self.processor_weights
        return draw(schedule, row_N, weights, streams)


def to_pcm(wave: np.ndarray) -> np.ndarray:
    """Float samples of full scale 1.0 to int16, saturating."""
    scaled = wave * PCM_SCALE
    np.rint(scaled, out=scaled)
    return np.clip(scaled, -PCM_SCALE, PCM_SCALE, out=scaled).astype(np.int16)


def from_pcm(pcm: np.ndarray) -> np.ndarray:
    """Int16 samples to float32 of full scale 1.0."""
    return pcm.astype(np.float32) / PCM_SCALE


def levels_db(pcm_ST: np.ndarray) -> np.ndarray:
    """RMS of each channel over the whole clip in dBFS, float32 of length S; digital silence is −200 dB."""
    sample_ST = pcm_ST.astype(np.float64)  # their squares add up exactly
    power_S = np.einsum("st,st->s", sample_ST, sample_ST) / (pcm_ST.shape[-1] * PCM_SCALE**2)
    return (10 * np.log10(np.maximum(power_S, 1e-20))).astype(np.float32)


def choose_channel(
    levels_S: np.ndarray, uniform: float, views: Views, taken: int | None = None, score_S: np.ndarray | None = None
) -> int:
    """Pick a channel by the rule of `views`, among those that are audible and not `taken`.

    Args:
        levels_S: RMS of each channel in dBFS.
        uniform: the row's draw in [0, 1).
        views: rule and silence threshold.
        taken: a channel that the other view already uses.
        score_S: where `views.channel` is custom code, its score of each channel.

    Returns:
        Its number, or `MIXTURE` when no channel is left (docs/paper.md: if both are silent, the mixture is used).
    """
    audible = [s for s in range(len(levels_S)) if levels_S[s] >= views.silence_db and s != taken]
    if not audible:
        return MIXTURE
    if views.channel == "loudest":
        return max(audible, key=lambda s: levels_S[s])
    if views.channel == "uniform":
        return audible[int(uniform * len(audible))]
    if score_S is not None:
        share = np.exp(score_S[audible].astype(np.float64) - score_S[audible].max())
    else:
        power = 10.0 ** (levels_S[audible].astype(np.float64) / 10)
        share = np.exp(power / power.sum())  # softmax over each channel's share of the energy
    edges = np.cumsum(share / share.sum())[:-1]
    return audible[int(np.searchsorted(edges, uniform, side="right"))]


def choose_channels(
    levels_S: np.ndarray, channel_u: float, second_channel_u: float, views: Views, score_S: np.ndarray | None = None
) -> tuple[int, int]:
    """The channels of both views of a row; `MIXTURE` stands for the mixture."""
    if not views.separates:
        return MIXTURE, MIXTURE
    first = choose_channel(levels_S, channel_u, views, score_S=score_S)
    if views.pair == "mix-chan":
        return MIXTURE, first
    return first, choose_channel(levels_S, second_channel_u, views, taken=first, score_S=score_S)


def view_starts(
    draws: dict[str, np.ndarray], views: Views, clip_samples: int | np.ndarray, sample_rate: int
) -> tuple[np.ndarray, np.ndarray]:
    """Where both crops of each row start (temporal proximity), in samples; `clip_samples` as of `crop_starts`."""
    return crop_starts(
        draws["crop_1_u"],
        draws["crop_2_u"],
        clip_samples,
        patch_samples(views, sample_rate),
        round(views.tp_delta_seconds * sample_rate),
    )


def patch_samples(views: Views, sample_rate: int) -> int:
    """Length P of a view in samples."""
    return round(views.patch_seconds * sample_rate)
