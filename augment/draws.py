"""Every random choice of a run as a column.

A run is a finite schedule of rows 0 … R−1. Row r determines, by a stateless counter-based hash of (seed, r), its epoch,
clip, processor, channel, crop starts and what augmentations draw. No stage keeps random state: a retried row gives the
same view, and the result does not depend on how many workers or actors there are.

Shapes: N rows, U uniforms of one augmentation for one view.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from pydantic import Field

from sepscene.models.config import Config

FILLER = -1
"""Row number of a filler: it evens out the last global batch and carries nothing."""

SPECAUGMENT_UNIFORMS = 10
"""Uniforms of one SpecAugment instance: two for each of 2 time masks and 2 frequency masks, two for the warp."""

_BELOW_ONE = np.float32(1 - 2**-24)
"""The largest float32 below 1: of 53-bit uniforms one in 3e7 rounds to 1.0, and a mask would be too wide by a cell."""

# One stream for each kind of choice. The numbers are part of the file format of a run: never renumber them. Those of an
# augmentation follow from its name (`Stream`), except the uniforms of SpecAugment, which are older than the others.
_PERMUTATION, _PROCESSOR, _CHANNEL, _CROP_1, _CROP_2, _SECOND_CHANNEL, _SPECAUGMENT = range(1, 8)

OF_VIEWS = ("channel_u", "second_channel_u", "crop_1_u", "crop_2_u")
"""Columns of uniforms that are not an augmentation's."""


@dataclass(frozen=True)
class Stream:
    """What one augmentation draws for each view.

    Its streams are numbered by the hash of its name, so that its draws are the same whatever others there are.

    Attributes:
        name: of the augmentation; `NAME_u` and `NAME_on` are its columns.
        uniforms: for each view.
        points: (share of the run's rows that is done, probability), in order; between them it changes linearly.
    """

    name: str
    uniforms: int = SPECAUGMENT_UNIFORMS
    points: tuple[tuple[float, float], ...] = ((0.0, 1.0),)

    @property
    def number(self) -> int:
        """Of the first stream: this one and the next decide which views are changed; the uniforms follow."""
        return int.from_bytes(hashlib.sha256(self.name.encode()).digest()[:6], "big") << 16

    @property
    def first_uniform(self) -> int:
        """Number of the stream of the first uniform."""
        return _SPECAUGMENT if self.name == "specaugment" else self.number + 2

    def probability(self, done_N: np.ndarray) -> np.ndarray:
        """The probability when a share `done_N` of the run's rows is done."""
        times = [at for at, _ in self.points]
        return np.interp(done_N, times, [probability for _, probability in self.points])


class Schedule(Config):
    """The rows of a run: `epochs` passes over `clips`, each in a fresh order, drawn from `seed`."""

    seed: int = Field(ge=0)
    clips: int = Field(ge=1)
    epochs: int = Field(ge=1)

    @property
    def rows(self) -> int:
        """Number of rows R."""
        return self.clips * self.epochs

    def epoch(self, row_N: np.ndarray) -> np.ndarray:
        """The epoch of each row."""
        return row_N // self.clips

    def clip(self, row_N: np.ndarray) -> np.ndarray:
        """The clip of each row: within an epoch, every clip exactly once."""
        epoch_N = self.epoch(row_N)
        clip_N = np.empty(len(row_N), np.int64)
        for epoch in np.unique(epoch_N):
            here = epoch_N == epoch
            clip_N[here] = _permutation(self.seed, int(epoch), self.clips)[row_N[here] % self.clips]
        return clip_N


def draw(
    schedule: Schedule,
    row_N: np.ndarray,
    weights: tuple[float, ...] | np.ndarray,
    streams: Sequence[Stream] = (Stream("specaugment"),),
) -> dict[str, np.ndarray]:
    """All random choices of the given rows.

    Args:
        schedule: the run's rows.
        row_N: int64 row numbers in [0, R), in any order.
        weights: probability of each processor of the combination (the OR rule), the same for all rows (K,) or each
            row's own (N, K); they are normalised to sum to 1.
        streams: of the augmentations.

    Returns:
        Columns of length N: `row`, `epoch`, `clip` (int64); `processor` (int64, index into the combination); uniforms
        in [0, 1) as float64: `channel_u`, `second_channel_u`, `crop_1_u`, `crop_2_u`; and for each augmentation
        `NAME_u`, float32 (N, 2·U), its uniforms for both views side by side, and unless its probability is 1 `NAME_on`,
        bool (N, 2), which of the views it changes.
    """
    row_N = np.asarray(row_N, np.int64)
    mixed_N = _mix(row_N.astype(np.uint64))

    def uniform(stream: int) -> np.ndarray:
        word_N = _hash(schedule.seed, stream, mixed_N)
        return (word_N >> np.uint64(11)) * 2.0**-53

    share_NK = np.broadcast_to(np.atleast_2d(np.asarray(weights, np.float64)), (len(row_N), np.shape(weights)[-1]))
    edge_NK = np.cumsum(share_NK / share_NK.sum(axis=1, keepdims=True), axis=1)[:, :-1]
    augmentations: dict[str, np.ndarray] = {}
    for stream in streams:
        drawn = [uniform(stream.first_uniform + k) for k in range(2 * stream.uniforms)]
        augmentations[f"{stream.name}_u"] = np.minimum(np.stack(drawn, axis=1).astype(np.float32), _BELOW_ONE)
        if any(probability < 1 for _, probability in stream.points):
            probability_N = stream.probability(row_N / schedule.rows)
            decided = [uniform(stream.number + view) < probability_N for view in range(2)]
            augmentations[f"{stream.name}_on"] = np.stack(decided, axis=1)
    return {
        "row": row_N,
        "epoch": schedule.epoch(row_N),
        "clip": schedule.clip(row_N),
        "processor": (edge_NK <= uniform(_PROCESSOR)[:, None]).sum(axis=1),
        "channel_u": uniform(_CHANNEL),
        "second_channel_u": uniform(_SECOND_CHANNEL),
        "crop_1_u": uniform(_CROP_1),
        "crop_2_u": uniform(_CROP_2),
        **augmentations,
    }


def crop_starts(
    crop_1_u_N: np.ndarray,
    crop_2_u_N: np.ndarray,
    clip_samples: int | np.ndarray,
    crop_samples: int,
    delta_samples: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Temporal proximity sampling: where the two crops of each clip start, at most `delta_samples` apart.

    The first start is uniform over the clip; the second is uniform over the part of the clip that lies within the
    distance, so that a large distance gives two independent uniform crops (docs/paper.md, front-end).

    Args:
        crop_1_u_N: uniforms of the first crop.
        crop_2_u_N: and of the second.
        clip_samples: length of the clips, one for all or (N,); a clip shorter than a crop is cropped from its start.
        crop_samples: length of a crop.
        delta_samples: largest distance of the two starts.

    Returns:
        Two int64 arrays of length N, in samples.
    """
    last = np.maximum(0, np.asarray(clip_samples) - crop_samples)
    start_1_N = np.floor(crop_1_u_N * (last + 1)).astype(np.int64)
    low_N = np.maximum(0, start_1_N - delta_samples)
    high_N = np.minimum(last, start_1_N + delta_samples)
    start_2_N = low_N + np.floor(crop_2_u_N * (high_N - low_N + 1)).astype(np.int64)
    return start_1_N, start_2_N


@lru_cache(maxsize=4)
def _permutation(seed: int, epoch: int, clips: int) -> np.ndarray:
    """A uniform permutation: the order of hashed keys. Kept for a few epochs, as neighbouring rows share it."""
    stream = int(_mix(np.array([_PERMUTATION * 2**32 + epoch], np.uint64))[0])
    key = _hash(seed, stream, _mix(np.arange(clips, dtype=np.uint64)))
    order = np.argsort(key, kind="stable")
    order.setflags(write=False)
    return order


def _hash(seed: int, stream: int, mixed_N: np.ndarray) -> np.ndarray:
    """64 well-mixed bits for each (seed, stream, counter), given the counters already mixed once."""
    key = _mix(_mix(np.array([seed], np.uint64)) ^ np.array([stream], np.uint64))
    return _mix(mixed_N ^ key)


def _mix(word_N: np.ndarray) -> np.ndarray:
    """SplitMix64's output function (Steele, Lea & Flood 2014): a bijection of 64-bit words that avalanches."""
    word_N = word_N + np.uint64(0x9E3779B97F4A7C15)
    word_N ^= word_N >> np.uint64(30)
    word_N *= np.uint64(0xBF58476D1CE4E5B9)
    word_N ^= word_N >> np.uint64(27)
    word_N *= np.uint64(0x94D049BB133111EB)
    word_N ^= word_N >> np.uint64(31)
    return word_N
