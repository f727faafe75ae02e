"""The first stage of the stream: decodes clips, or reads their views from the SeparatedStore.

Shapes: N rows of a block, T samples of a clip, T' of a segment, K sources of a scene, P samples of a patch.
"""

import time
from collections.abc import Callable
from functools import lru_cache

import numpy as np

from sepscene.augment.audio import AudioFormat, content_hash, pad_sound, read_sound, sound_samples
from sepscene.augment.crash_counts import CrashCounts
from sepscene.augment.draws import FILLER, crop_starts
from sepscene.augment.locations import ClipError
from sepscene.augment.separation.blocks import Columns, ServiceSettings, StoredViews, shared_seconds
from sepscene.augment.separation.read_retries import ReadRetries
from sepscene.augment.separation.service import SeparationService
from sepscene.augment.store.separated_store import SeparatedStore
from sepscene.augment.synthetic.sources import read_sources
from sepscene.augment.views import MIXTURE, to_pcm

_SEGMENT_RETRIES = ReadRetries()
"""Retries of this process, for segments."""


class ClipReader:
    """Decodes the clips of a block, or reads their views from the store."""

    def __init__(
        self, settings: ServiceSettings, store: SeparatedStore | None = None, crash_counts: CrashCounts | None = None
    ) -> None:
        """Args:
        settings: views, audio and checkpoints.
        store: store of separated clips; not used for mix-mix.
        crash_counts: crash quarantine; without it, a clip that crashes its reader does so at each retry.
        """
        self.settings = settings
        self.crash_counts = crash_counts
        self.retries = ReadRetries()
        self.stored = StoredViews(settings, store) if store is not None and settings.processors else None

    def __call__(self, columns: Columns) -> Columns:
        """Read the clips of a block, except those in crash quarantine. See `read` for the columns."""
        columns = columns | {"fault": np.array([""] * len(columns["row"]), object)}
        return self.crash_counts.guard("reading", self.read, columns) if self.crash_counts else self.read(columns)

    def read(self, columns: Columns) -> Columns:
        """Read the clips of a block that have no fault yet.

        Args:
            columns: the draws, `uri` and `offset_seconds`; fillers have row −1.

        Returns:
            The same columns, and `sound` (bytes of int16 samples: the crops if the store has them, else the T samples
            of the clip; empty on a fault), `content` (content hash of the clip, empty without a store), `fault` (empty,
            or the reason why the clip cannot be used), `channel_1`, `channel_2`, `stored` (whether the views come from
            the store), `damaged` (whether the stored entry was damaged), `sound_samples` (length of the clip without
            padding), `read_bytes` (length of `sound`), `reading_seconds` (share of the row in the time of the block),
            `read_at` (Unix time at which the block was finished).
        """
        begin = time.perf_counter()
        count = len(columns["row"])
        block = columns | {
            "sound": np.array([b""] * count, object),
            "content": np.array([""] * count, object),
            "stored": np.zeros(count, bool),
            "damaged": np.zeros(count, bool),
            "sound_samples": np.full(count, self.settings.audio.samples, np.int64),
            "channel_1": np.full(count, MIXTURE, np.int64),
            "channel_2": np.full(count, MIXTURE, np.int64),
        }
        wanted = np.flatnonzero((columns["row"] != FILLER) & (columns["fault"] == "")).tolist()
        block["fault"] = self.retries.read(lambda n: self._read(block, n), wanted, block)
        block["read_bytes"] = np.array([len(sound) for sound in block["sound"]], np.int64)
        return block | {"reading_seconds": shared_seconds(begin, count), "read_at": np.full(count, time.time())}

    def _read(self, block: Columns, n: int) -> None:
        uri = str(block["uri"][n])
        offset = float(block["offset_seconds"][n])
        audio = self.settings.audio
        if self.stored is not None:
            content = content_hash(uri)
            block["content"][n] = content
            block["sound_samples"][n] = _samples_to_crop(uri, content, audio, offset)
            damaged_before = self.stored.damaged_copies(block, n)
            found = self.stored.find(block, n)
            block["damaged"][n] = self.stored.damaged_copies(block, n) > damaged_before
            if found is not None:
                (block["channel_1"][n], block["channel_2"][n]), crops_CP = found
                block["sound"][n] = crops_CP.tobytes()
                block["stored"][n] = True
                return
        wave_T = read_sound(uri, audio, offset)
        block["sound_samples"][n] = audio.samples if audio.pad == "repeat" else len(wave_T)
        block["sound"][n] = to_pcm(pad_sound(wave_T, audio)).tobytes()


@lru_cache(maxsize=1 << 16)
def _samples_to_crop(uri: str, content: str, audio: AudioFormat, offset: float) -> int:
    """Number of samples from which the views are cropped. The hash `content` makes the cache permanently valid."""
    return audio.samples if audio.pad == "repeat" else sound_samples(uri, audio, offset)


class ViewMaker:
    """Both stages in one process, for streams in which (almost) nothing must be separated.

    Mix-mix needs no separator. If the store already has every clip, only lost or damaged entries must be separated; in
    that case the separators are loaded and run on the CPU of this process.
    """

    def __init__(
        self, settings: ServiceSettings, store: SeparatedStore | None = None, crash_counts: CrashCounts | None = None
    ) -> None:
        """Args: as `ClipReader`."""
        self.reader = ClipReader(settings, store, crash_counts)
        self.service = SeparationService(settings, store, crash_counts, load_now=False)

    def __call__(self, columns: Columns) -> Columns:
        """Generate the views of a block; see `SeparationService.serve` for the columns."""
        return self.service(self.reader(columns))


def read_segments(columns: Columns, audio: AudioFormat, segment_seconds: float) -> Columns:
    """Decode the clips of a block and crop one segment from each, at the first view's draw, to train a separator.

    Returns:
        `row`, `uri`, `fault`, and `segment` (int16, (N, T')), zeros on a fault.
    """
    samples = round(segment_seconds * audio.sample_rate)
    segment_NT = np.zeros((len(columns["row"]), samples), np.int16)

    def read(n: int) -> None:
        sound_T = read_sound(str(columns["uri"][n]), audio, float(columns["offset_seconds"][n]))
        start = _segment_start(columns, n, audio, len(sound_T), samples)
        segment_NT[n] = to_pcm(pad_sound(sound_T, audio)[start : start + samples])

    return _read_segments(read, columns) | {"segment": segment_NT}


def read_source_segments(columns: Columns, audio: AudioFormat, segment_seconds: float) -> Columns:
    """As `read_segments`, from the sources of generated scenes instead of their mixtures.

    Returns:
        `row`, `uri`, `fault`, and `sources` (bytes of K·T' int16 samples; K differs between scenes; empty on a fault).
        The sources of a segment sum to its mixture.
    """
    samples = round(segment_seconds * audio.sample_rate)
    sources_N = np.array([b""] * len(columns["row"]), object)

    def read(n: int) -> None:
        uri = str(columns["uri"][n])
        source_KT = read_sources(uri)
        start = _segment_start(columns, n, audio, source_KT.shape[1], samples)
        segment_KT = source_KT[:, start : start + samples]
        if segment_KT.shape[1] < samples:
            raise ClipError(uri, f"its sources have only {source_KT.shape[1]} samples; audio.clip_seconds is longer")
        sources_N[n] = to_pcm(segment_KT).tobytes()

    return _read_segments(read, columns) | {"sources": sources_N}


def _segment_start(columns: Columns, n: int, audio: AudioFormat, sound_samples: int, samples: int) -> int:
    length = audio.samples if audio.pad == "repeat" else min(audio.samples, sound_samples)
    start, _ = crop_starts(columns["crop_1_u"][n], columns["crop_2_u"][n], length, samples, 0)
    return int(start)


def _read_segments(read: Callable[[int], None], columns: Columns) -> Columns:
    """Call `read` for each row that is not a filler."""
    fault_N = _SEGMENT_RETRIES.read(read, np.flatnonzero(columns["row"] != FILLER).tolist(), columns)
    return {"row": columns["row"], "uri": columns["uri"], "fault": fault_N}
