"""Random draws: every random choice of a run is a column.

A run is a finite schedule of rows 0 … R−1. Epoch, clip, processor, channel, crop starts and the uniforms of the
augmentations of row r are a stateless counter-based hash of (seed, r). No stage keeps random state: a retried row gives
the same views, and the result does not depend on the number of workers or actors.

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
"""Row number of a filler, an empty row that completes the last global batch."""

SPECAUGMENT_UNIFORMS = 10
"""Uniforms of SpecAugment per view: two for each of 2 time masks and 2 frequency masks, two for the warp."""

_BELOW_ONE = np.float32(1 - 2**-24)
"""The largest float32 below 1. One in 3e7 53-bit uniforms rounds to 1.0, which would make a mask one cell too wide."""

# One stream for each kind of choice. The numbers are part of the file format of a run: never renumber them. The streams
# of an augmentation follow from its name (`Stream`), except the uniforms of SpecAugment, for compatibility.
_PERMUTATION, _PROCESSOR, _CHANNEL, _CROP_1, _CROP_2, _SECOND_CHANNEL, _SPECAUGMENT = range(1, 8)

VIEW_COLUMNS = ("channel_u", "second_channel_u", "crop_1_u", "crop_2_u")
"""Columns of uniforms that do not belong to an augmentation."""


@dataclass(frozen=True)
class Stream:
    """The draws of one augmentation.

    The numbers of its streams come from the hash of its name, so that its draws do not depend on other augmentations.

    Attributes:
        name: name of the augmentation; its columns are `NAME_u` and `NAME_on`.
        uniforms: number of uniforms per view.
        points: (completed share of the run's rows, probability), in order; linear in between.
    """

    name: str
    uniforms: int = SPECAUGMENT_UNIFORMS
    points: tuple[tuple[float, float], ...] = ((0.0, 1.0),)

    @property
    def number(self) -> int:
        """Number of the first stream. The first two decide which of the two views are changed; the uniforms follow."""
        return int.from_bytes(hashlib.sha256(self.name.encode()).digest()[:6], "big") << 16

    @property
    def first_uniform(self) -> int:
        """Number of the stream of the first uniform."""
        return _SPECAUGMENT if self.name == "specaugment" else self.number + 2

    def probability(self, done_N: np.ndarray) -> np.ndarray:
        """The probability when the share `done_N` of the run's rows is completed."""
        times = [at for at, _ in self.points]
        return np.interp(done_N, times, [probability for _, probability in self.points])


class Schedule(Config):
    """The rows of a run: `epochs` passes over `clips`, each in a new random order that depends on `seed`."""

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
        """The clip of each row; each clip occurs exactly once per epoch."""
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
        schedule: the rows of the run.
        row_N: int64 row numbers in [0, R), in any order.
        weights: probability of each processor of the combination (the OR rule), either the same for all rows (K,) or
            per row (N, K); normalised to sum to 1.
        streams: the draws of the augmentations.

    Returns:
        Columns of length N: `row`, `epoch`, `clip` (int64); `processor` (int64, index into the combination); uniforms
        in [0, 1) as float64: `channel_u`, `second_channel_u`, `crop_1_u`, `crop_2_u`; and for each augmentation
        `NAME_u`, float32 (N, 2·U), the concatenated uniforms of both views, and unless its probability is 1 `NAME_on`,
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

    The first start is uniform over the clip. The second is uniform over the part of the clip within this distance, so
    that a large distance gives two independent uniform crops (docs/paper.md, front-end).

    Args:
        crop_1_u_N: uniforms of the first crop.
        crop_2_u_N: uniforms of the second crop.
        clip_samples: length of the clips, a scalar or (N,); a clip shorter than a crop is cropped from its start.
        crop_samples: length of a crop.
        delta_samples: largest distance between the two starts.

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
    """A uniform permutation: the order of hashed keys. Cached for a few epochs, because neighbouring rows share it."""
    stream = int(_mix(np.array([_PERMUTATION * 2**32 + epoch], np.uint64))[0])
    key = _hash(seed, stream, _mix(np.arange(clips, dtype=np.uint64)))
    order = np.argsort(key, kind="stable")
    order.setflags(write=False)
    return order


def _hash(seed: int, stream: int, mixed_N: np.ndarray) -> np.ndarray:
    """64 pseudo-random bits for each (seed, stream, counter), from counters that are already mixed once."""
    key = _mix(_mix(np.array([seed], np.uint64)) ^ np.array([stream], np.uint64))
    return _mix(mixed_N ^ key)


def _mix(word_N: np.ndarray) -> np.ndarray:
    """The output function of SplitMix64 (Steele, Lea & Flood 2014), a bijective mixing function of 64-bit words."""
    word_N = word_N + np.uint64(0x9E3779B97F4A7C15)
    word_N ^= word_N >> np.uint64(30)
    word_N *= np.uint64(0xBF58476D1CE4E5B9)
    word_N ^= word_N >> np.uint64(27)
    word_N *= np.uint64(0x94D049BB133111EB)
    word_N ^= word_N >> np.uint64(31)
    return word_N
