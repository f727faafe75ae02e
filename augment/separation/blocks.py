"""What a block of rows carries from stage to stage, and how its views come out of the SeparatedStore.

Each row carries one piece of `sound` in 16 bits: the whole clip where it must be separated, both crops where they are
made already, nothing where the clip can't be used. A row also carries what it has cost (`reading_seconds`,
`separation_seconds`, …), so that whoever consumes it knows how busy each stage is, whatever happens on the way.

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
"""A row's two channels and its crops, int16 (C, P); see `crop_places`."""


class ServiceSettings(Config):
    """What both stages must agree on."""

    views: Views
    audio: AudioFormat
    checkpoints: dict[str, str]
    """Processor name -> separator folder, for every name in `views.combination`; may be empty for mix-mix."""
    precision: Precision = "float32"
    """Of the separators; "bfloat16" where the device has it."""
    mixtures: bool = False
    """Whether rows also carry the mixture at the place of each view, for augmentations that read it."""

    @property
    def processors(self) -> tuple[str, ...]:
        """The processors in the order that the draws' `processor` column counts them; none for mix-mix."""
        return self.views.combination if self.views.separates else ()

    @property
    def patch(self) -> int:
        """Samples P of a view."""
        return patch_samples(self.views, self.audio.sample_rate)

    @property
    def crops(self) -> int:
        """Crops that leave with a row: its views, and where asked for the mixture at the place of each."""
        return 4 if self.mixtures else 2

    def digests(self) -> tuple[str, ...]:
        """Digest of each processor's checkpoint, in order."""
        return tuple(read_card(self.checkpoints[name]).digest for name in self.processors)

    def store_settings(self, offset_seconds: float) -> str:
        """What a store entry depends on beside the clip's content and the checkpoint."""
        # float32 goes without saying, as in stores that were filled before anybody said it
        precision = "" if self.precision == "float32" else f" {self.precision}"
        return f"{self.audio.model_dump_json()}@{exact_seconds(offset_seconds)}{precision}"


def starts_of(columns: Columns, settings: ServiceSettings) -> np.ndarray:
    """(N, 2): where both crops of each row start, within the sound of its clip (`sound_samples`)."""
    starts = view_starts(columns, settings.views, columns["sound_samples"], settings.audio.sample_rate)
    return np.stack(starts, axis=1)


def start_of(columns: Columns, settings: ServiceSettings, n: int) -> np.ndarray:
    """(2,): the same of row n alone."""
    row = {name: columns[name][n : n + 1] for name in ("crop_1_u", "crop_2_u", "sound_samples")}
    return starts_of(row, settings)[0]


def sound_levels(levels_S: np.ndarray, sound_samples: int, settings: ServiceSettings) -> np.ndarray:
    """Levels over the sound of a clip, of those over the clip with its padding, which is silent."""
    return levels_S + np.float32(10 * np.log10(settings.audio.samples / sound_samples))


def shared_seconds(begin: float, count: int) -> np.ndarray:
    """The time since `begin` (of `time.perf_counter`), shared evenly among the rows of a block: float32 (N,)."""
    return np.full(count, (time.perf_counter() - begin) / max(1, count), np.float32)


def crop_places(chosen: tuple[int, int], starts_2: np.ndarray, settings: ServiceSettings) -> list[tuple[int, int, int]]:
    """(number, channel, start) of the crops of a row that are not silence: of its views, then where asked for of the
    mixture at the place of each, which is silence where the view is the mixture itself.
    """
    views = list(zip((0, 1), chosen, starts_2.tolist(), strict=True))
    mixtures = [(2 + n, MIXTURE, start) for n, channel, start in views if channel != MIXTURE]
    return [*views, *mixtures] if settings.mixtures else views


class StoredViews:
    """Makes a row's two views from the SeparatedStore."""

    def __init__(self, settings: ServiceSettings, store: SeparatedStore) -> None:
        self.settings = settings
        self.store = store
        self.digests = settings.digests()
        self.scores = ChannelScores.of(settings.views)

    def keys(self, columns: Columns, n: int) -> tuple[StoreKey, ...]:
        """Where row n's separated channels are, its mixture, and with custom channel scores those."""
        content = str(columns["content"][n])
        suffix = self.settings.store_settings(float(columns["offset_seconds"][n]))
        digest = self.digests[columns["processor"][n]]
        names = (digest, "mixture", *((self.scores.processor(digest),) if self.scores else ()))
        return tuple(StoreKey(content, name, suffix) for name in names)

    def keep(
        self, columns: Columns, n: int, mixture_T: np.ndarray, pcm_ST: np.ndarray, levels_S: np.ndarray,
        score_S: np.ndarray | None,
    ) -> None:  # fmt: skip
        """Put what was separated of row n's clip into the store."""
        separated, *beside = self.keys(columns, n)
        # What is beside first: where the store is full, a separated clip without it would be of no use.
        if beside[0] not in self.store:
            self.store.put(beside[0], mixture_T[None], levels_db(mixture_T[None]))
        if score_S is not None:  # the levels of an entry without sound
            self.store.put(beside[1], np.zeros((len(score_S), 1), np.int16), score_S)
        self.store.put(separated, pcm_ST, levels_S)

    def look(self, columns: Columns, starts_2: np.ndarray, n: int) -> tuple[Found | None, bool]:
        """As `find`, and whether the store had row n's sound, but torn or altered, which nobody had seen before."""
        keys = self.keys(columns, n)
        known = sum(map(self.store.damaged_copies, keys))
        found = self.find(columns, starts_2, n)
        return found, sum(map(self.store.damaged_copies, keys)) > known

    def find(self, columns: Columns, starts_2: np.ndarray, n: int) -> Found | None:
        """The channels and the crops of row n; None where the store lacks any part of them."""
        separated, mixture, *scores = self.keys(columns, n)
        levels_S = self.store.levels(separated)
        score_S = self.store.levels(scores[0]) if scores else None
        if levels_S is None or (scores and score_S is None):
            return None
        levels_S = sound_levels(levels_S, int(columns["sound_samples"][n]), self.settings)
        uniforms = columns["channel_u"][n], columns["second_channel_u"][n]
        chosen = choose_channels(levels_S, *uniforms, self.settings.views, score_S)
        crops_CP = np.zeros((self.settings.crops, self.settings.patch), np.int16)
        for c, channel, start in crop_places(chosen, starts_2, self.settings):
            key, track = (mixture, 0) if channel == MIXTURE else (separated, channel)
            crop = self.store.get_crop(key, track, start, self.settings.patch)
            if crop is None:
                return None
            crops_CP[c] = crop
        return chosen, crops_CP
