"""The two views of a positive pair, from a clip and its separated channels.

Sound is passed between the stages as 16-bit PCM, the format of the SeparatedStore. This halves the bytes, and makes
views from the store bit-identical to live ones.

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
"""The 16-bit PCM value of full scale 1.0."""

PCM_BYTES = 2
"""Bytes of one sample."""

MIXTURE = -1
"""The channel number of the mixture itself."""


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
"""A rule based on the channels' levels, or custom code that scores the channels (`separation.channel_scores`)."""


class CurriculumPoint(Config):
    """The OR rule's probabilities at one point of the run; they are interpolated linearly between points."""

    at: float = Field(ge=0, le=1, description="completed share of the run's rows: 0 is the start, 1 the end")
    weights: tuple[float, ...] = Field(description="one per processor of views.combination; need not sum to 1")


class Views(Config):
    """How the positive pair of a clip is generated."""

    pair: Literal["mix-mix", "mix-chan", "chan-chan"] = Field(
        "mix-chan",
        description="what the two views are: two crops of the mixture, the mixture and a channel [stated], or two "
        "channels [ours]",
    )
    combination: tuple[str, ...] = Field(("S2",), description="processors of the OR rule; one is drawn per row")
    weights: tuple[float, ...] | None = Field(None, description="probabilities of the processors; none: uniform [open]")
    curriculum: tuple[CurriculumPoint, ...] = Field(
        (), description="probabilities of the processors over the run, instead of `weights` [ours]"
    )
    channel: ChannelChoice = Field(
        "uniform",
        description="how the channel is chosen among the audible ones; uniform: with equal probabilities [open]. A "
        "custom score, `package.module:Name` or `{use: …, its fields}`, draws from the softmax of their scores",
    )
    silence_db: float = Field(
        -60.0, le=0, description="a channel is skipped if its RMS is below this level in dBFS [open]"
    )
    patch_seconds: float = Field(0.96, gt=0, description="length of a view [open]")
    tp_delta_seconds: float = Field(10.0, ge=0, description="largest distance between the two crops' starts [open]")
    specaugment: bool = Field(True, description="apply SpecAugment to both views (paper: yes)")
    background: Literal["kept", "exchanged"] = Field(
        "kept",
        description="exchanged: the second view has a different background; synthetic scenes at scale mini only [ours]",
    )

    @model_validator(mode="after")
    def _weights_match(self) -> "Views":
        if not self.combination:
            raise ValueError("views.combination is empty: name at least one processor, e.g. [S2, N]")
        given = {"views.weights": self.weights} if self.weights is not None else {}
        given |= {f"views.curriculum at {point.at:g}": point.weights for point in self.curriculum}
        for field, weights in given.items():
            if len(weights) != len(self.combination):
                raise ValueError(f"{field} must have one probability for each processor of views.combination")
            if min(weights) < 0 or sum(weights) <= 0:
                raise ValueError(f"{field} must not be negative and must not all be zero")
        times = [point.at for point in self.curriculum]
        if times and self.weights is not None:
            raise ValueError("views.weights and views.curriculum both set the processors' probabilities: give only one")
        if any(later <= earlier for earlier, later in pairwise(times)):
            raise ValueError("views.curriculum must be in order: each `at` must be larger than the previous one")
        return self

    @property
    def separates(self) -> bool:
        """Whether a view can be a separated channel; with "mix-mix", both views are crops of the clip itself."""
        return self.pair != "mix-mix"

    @property
    def processor_weights(self) -> tuple[float, ...]:
        """The OR rule's probabilities, not normalised. Uniform without `weights`; with a curriculum, the mean over the
        run.
        """
        if self.curriculum:
            return tuple(self.weights_at((np.arange(1000) + 0.5) / 1000).mean(axis=0).tolist())
        return self.weights or (1.0,) * len(self.combination)

    def weights_at(self, done_N: np.ndarray) -> np.ndarray:
        """The curriculum's normalised probabilities (N, K), when the share `done_N` of the rows is completed."""
        share_PK = np.array([point.weights for point in self.curriculum], np.float64)
        share_PK /= share_PK.sum(axis=1, keepdims=True)
        times = [point.at for point in self.curriculum]
        return np.stack([np.interp(done_N, times, share_P) for share_P in share_PK.T], axis=1)

    def draw(
        self, schedule: Schedule, row_N: np.ndarray, streams: Sequence[Stream] = (Stream("specaugment"),)
    ) -> dict[str, np.ndarray]:
        """All random choices of the given rows, see `augment.draws.draw`, with the curriculum of the processors."""
        weights = self.weights_at(row_N / schedule.rows) if self.curriculum else self.processor_weights
        return draw(schedule, row_N, weights, streams)


def to_pcm(wave: np.ndarray) -> np.ndarray:
    """Convert float samples of full scale 1.0 to int16, with saturation."""
    scaled = wave * PCM_SCALE
    np.rint(scaled, out=scaled)
    return np.clip(scaled, -PCM_SCALE, PCM_SCALE, out=scaled).astype(np.int16)


def from_pcm(pcm: np.ndarray) -> np.ndarray:
    """Convert int16 samples to float32 of full scale 1.0."""
    return pcm.astype(np.float32) / PCM_SCALE


def levels_db(pcm_ST: np.ndarray) -> np.ndarray:
    """RMS of each channel over the whole clip in dBFS, float32 (S,); digital silence is −200 dB."""
    sample_ST = pcm_ST.astype(np.float64)  # sums of squares are exact in float64
    power_S = np.einsum("st,st->s", sample_ST, sample_ST) / (pcm_ST.shape[-1] * PCM_SCALE**2)
    return (10 * np.log10(np.maximum(power_S, 1e-20))).astype(np.float32)


def choose_channel(
    levels_S: np.ndarray, uniform: float, views: Views, taken: int | None = None, score_S: np.ndarray | None = None
) -> int:
    """Choose an audible channel other than `taken` by the rule of `views`.

    Args:
        levels_S: RMS of each channel in dBFS.
        uniform: the row's draw in [0, 1).
        views: rule and silence threshold.
        taken: a channel that is already used by the other view.
        score_S: score of each channel if `views.channel` is custom code.

    Returns:
        The channel's number, or `MIXTURE` if none is left (docs/paper.md: if both are silent, the mixture is used).
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
    """The channels of both views of a row, or `MIXTURE`."""
    if not views.separates:
        return MIXTURE, MIXTURE
    first = choose_channel(levels_S, channel_u, views, score_S=score_S)
    if views.pair == "mix-chan":
        return MIXTURE, first
    return first, choose_channel(levels_S, second_channel_u, views, taken=first, score_S=score_S)


def view_starts(
    draws: dict[str, np.ndarray], views: Views, clip_samples: int | np.ndarray, sample_rate: int
) -> tuple[np.ndarray, np.ndarray]:
    """Starts of both crops of each row in samples; `clip_samples` as in `crop_starts`."""
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
