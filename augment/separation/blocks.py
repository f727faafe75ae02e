"""Blocks of rows that are passed from stage to stage, and reading of their views from the SeparatedStore.

Each row has a 16-bit column `sound`: the whole clip if it must be separated, only the crops if the store has them, or
nothing if the clip cannot be used. Each row also has its costs (`reading_seconds`, `separation_seconds`, …), from which
the consumer computes the load of each stage.

Shapes: N rows of a block, T samples of a clip, P samples of a patch, S channels, C crops of a row.
"""

import time

import numpy as np

from sepscene.augment.audio import AudioFormat
from sepscene.augment.locations import exact_seconds
from sepscene.augment.separation.channel_scores import ChannelScores
from sepscene.augment.store.separated_store import SeparatedStore, StoreKey
from sepscene.augment.views import MIXTURE, Views, choose_channels, levels_db, patch_samples, view_starts
from sepscene.models.card import read_card
from sepscene.models.config import Config
from sepscene.models.settings import Precision

Columns = dict[str, np.ndarray]
Found = tuple[tuple[int, int], np.ndarray]
"""The two channels of a row, and its crops, int16 (C, P); see `row_crops`."""


class ServiceSettings(Config):
    """Settings shared by both stages."""

    views: Views
    audio: AudioFormat
    checkpoints: dict[str, str]
    """Processor name -> separator folder, for every name in `views.combination`; can be empty for mix-mix."""
    precision: Precision = "float32"
    """Precision of the separators; "bfloat16" only if the device supports it."""
    mixtures: bool = False
    """Whether rows also have the mixture at the time of each view, for augmentations that read it."""

    @property
    def processors(self) -> tuple[str, ...]:
        """The processors in the order of the draws' column `processor`; none for mix-mix."""
        return self.views.combination if self.views.separates else ()

    @property
    def patch(self) -> int:
        """Number of samples P of a view."""
        return patch_samples(self.views, self.audio.sample_rate)

    @property
    def crops(self) -> int:
        """Number of crops C per row: its views and, with `mixtures`, the mixture at the time of each view."""
        return 4 if self.mixtures else 2

    def digests(self) -> tuple[str, ...]:
        """Digests of the processors' checkpoints, in order."""
        return tuple(read_card(self.checkpoints[name]).digest for name in self.processors)

    def store_settings(self, offset_seconds: float) -> str:
        """All that a store entry depends on in addition to the clip's content and the checkpoint."""
        # float32 is not stated, for compatibility with older stores
        precision = "" if self.precision == "float32" else f" {self.precision}"
        return f"{self.audio.model_dump_json()}@{exact_seconds(offset_seconds)}{precision}"


def shared_seconds(begin: float, count: int) -> np.ndarray:
    """The time since `begin` (`time.perf_counter`), divided evenly among the rows of a block, float32 (N,)."""
    return np.full(count, (time.perf_counter() - begin) / max(1, count), np.float32)


def row_crops(
    columns: Columns, n: int, settings: ServiceSettings, levels_S: np.ndarray, score_S: np.ndarray | None
) -> tuple[tuple[int, int], list[tuple[int, int, int]]]:
    """The channels of both views of row n, and those of its crops that are not silence, as (number, channel, start).

    The views come first. With `settings.mixtures`, the mixture at the time of each view follows, unless the view is the
    mixture itself: then that crop is silence.

    Args:
        columns: the draws, and `sound_samples`, within which the crops start.
        n: position of the row.
        settings: settings of the views.
        levels_S: level of each channel over the padded clip in dBFS.
        score_S: custom score of each channel, if `views.channel` is custom code.
    """
    sound_samples = int(columns["sound_samples"][n])
    levels_S = levels_S + np.float32(10 * np.log10(settings.audio.samples / sound_samples))  # the padding is silent
    uniforms = columns["channel_u"][n], columns["second_channel_u"][n]
    chosen = choose_channels(levels_S, *uniforms, settings.views, score_S)
    draws = {name: columns[name][n] for name in ("crop_1_u", "crop_2_u")}
    starts = map(int, view_starts(draws, settings.views, sound_samples, settings.audio.sample_rate))
    views = list(zip((0, 1), chosen, starts, strict=True))
    mixtures = [(2 + view, MIXTURE, start) for view, channel, start in views if channel != MIXTURE]
    return chosen, [*views, *mixtures] if settings.mixtures else views


class StoredViews:
    """Reads the views of rows from the SeparatedStore."""

    def __init__(self, settings: ServiceSettings, store: SeparatedStore) -> None:
        self.settings = settings
        self.store = store
        self.digests = settings.digests()
        self.scores = ChannelScores.of(settings.views)

    def keys(self, columns: Columns, n: int) -> tuple[StoreKey, ...]:
        """Store keys of row n: its separated channels, its mixture and, with custom channel scores, its scores."""
        content = str(columns["content"][n])
        suffix = self.settings.store_settings(float(columns["offset_seconds"][n]))
        digest = self.digests[columns["processor"][n]]
        names = (digest, "mixture", *((self.scores.processor(digest),) if self.scores else ()))
        return tuple(StoreKey(content, name, suffix) for name in names)

    def put(
        self, columns: Columns, n: int, mixture_T: np.ndarray, pcm_ST: np.ndarray, levels_S: np.ndarray,
        score_S: np.ndarray | None,
    ) -> None:  # fmt: skip
        """Put the separated clip of row n into the store."""
        separated, mixture, *scores = self.keys(columns, n)
        # The separated channels last: if the store is full, they would be useless without the other entries.
        if mixture not in self.store:
            self.store.put(mixture, mixture_T[None], levels_db(mixture_T[None]))
        if score_S is not None:  # stored as the levels of an entry without sound
            self.store.put(scores[0], np.zeros((len(score_S), 1), np.int16), score_S)
        self.store.put(separated, pcm_ST, levels_S)

    def damaged_copies(self, columns: Columns, n: int) -> int:
        """Number of stored entries of row n that have been found damaged so far."""
        return sum(map(self.store.damaged_copies, self.keys(columns, n)))

    def find(self, columns: Columns, n: int) -> Found | None:
        """The channels and crops of row n, or None if any part of them is missing in the store."""
        separated, mixture, *scores = self.keys(columns, n)
        levels_S = self.store.levels(separated)
        score_S = self.store.levels(scores[0]) if scores else None
        if levels_S is None or (scores and score_S is None):
            return None
        chosen, places = row_crops(columns, n, self.settings, levels_S, score_S)
        crops_CP = np.zeros((self.settings.crops, self.settings.patch), np.int16)
        for c, channel, start in places:
            key, number = (mixture, 0) if channel == MIXTURE else (separated, channel)
            crop = self.store.get_crop(key, number, start, self.settings.patch)
            if crop is None:
                return None
            crops_CP[c] = crop
        return chosen, crops_CP
