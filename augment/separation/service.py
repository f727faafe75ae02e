"""The separation service: separates the clips of rows and crops their two views.

It is a callable without random state, so that a repeated call returns the same bytes. A clip that cannot be separated
results in a row with a `fault`, and the stream continues.

Torch is imported when the first separator is loaded. Ray processes that only pass the service on, and processes whose
store has every clip, do not import it, which saves seconds at the start and hundreds of megabytes each.

Shapes: N rows of a block, T samples of a clip, P samples of a patch, S channels, C crops of a row.
"""

import os
import time
from collections.abc import Iterator
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from sepscene.augment.audio import AudioFormat
from sepscene.augment.crash_counts import CrashCounts
from sepscene.augment.draws import VIEW_COLUMNS
from sepscene.augment.separation.blocks import Columns, Found, ServiceSettings, StoredViews, row_crops, shared_seconds
from sepscene.augment.separation.channel_scores import ChannelScores
from sepscene.augment.store.separated_store import SeparatedStore
from sepscene.augment.views import MIXTURE, levels_db, to_pcm
from sepscene.models.config import SepsceneError
from sepscene.models.custom import CustomCode

if TYPE_CHECKING:
    from torch import nn

    from sepscene.augment.separation.forward import Forward, Result

_CONSUMED = (*VIEW_COLUMNS, "sound", "offset_seconds", "read_at")
"""Columns that are not passed on."""


def open_separator(name: str, folder: str | CustomCode, audio: AudioFormat) -> "nn.Module":
    """Load a processor's checkpoint. A custom separator is built and tested on noise.

    Raises:
        SepsceneError: the checkpoint is missing, damaged or of another sample rate, or the custom code cannot be used.
    """
    from sepscene.models.separators.custom import CustomSeparator, check_separator
    from sepscene.models.separators.folder import load_separator

    try:
        separator = load_separator(folder)
        if isinstance(folder, CustomCode) and isinstance(separator, CustomSeparator):
            check_separator(separator, audio.samples)
    except SepsceneError as error:
        raise SepsceneError(f"processor {name}: {error}") from error
    if separator.sample_rate != audio.sample_rate:
        raise SepsceneError(
            f"processor {name} ({folder}) works at {separator.sample_rate} Hz but audio.sample_rate is "
            f"{audio.sample_rate} Hz; set audio.sample_rate to {separator.sample_rate} or choose another separator"
        )
    return separator


class SeparationService:
    """Runs the processors of a combination on decoded clips and returns the two views of each row.

    The rows of a block are grouped by processor, for large batches. The result has only the 16-bit crops: about 60 kB
    per row instead of 2 MB.
    """

    def __init__(
        self,
        settings: ServiceSettings,
        store: SeparatedStore | None = None,
        crash_counts: CrashCounts | None = None,
        device: str = "cpu",
        clips_per_forward: int = 1,
        load_now: bool = True,
    ) -> None:
        """Load the checkpoints.

        Args:
            settings: views, audio, checkpoints, and precision of the separators.
            store: store of separated clips; without one, every row is separated live.
            crash_counts: crash quarantine; without it, a clip that crashes its actor does so at each retry.
            device: device of the separators.
            clips_per_forward: clips per forward pass, see `Forward`.
            load_now: if false, load the checkpoints only when a clip must be separated.

        Raises:
            SepsceneError: a checkpoint is damaged or was trained at another sample rate.
        """
        self.settings = settings
        self.store = store
        self.crash_counts = crash_counts
        self.device = device
        self.clips_per_forward = clips_per_forward
        self.dropped = np.int64(0)  # entries that the store did not keep, as reported so far
        self.number = int.from_bytes(os.urandom(4), "big")  # identifies this actor
        self.stored = StoredViews(settings, store) if store is not None and settings.processors else None
        self.scores = self.stored.scores if self.stored else ChannelScores.of(settings.views)
        if load_now:
            _ = self.separators, self.forward  # loads both cached properties

    def __del__(self) -> None:
        """Publish what this actor separated: Ray Data deletes the callable when the actor exits normally."""
        store = getattr(self, "store", None)
        if store is not None:
            store.close()

    @cached_property
    def separators(self) -> "list[nn.Module]":
        """The processors' networks, in the order of the draws."""
        from sepscene.models.separators.fast_path import fast_separator

        settings = self.settings
        opened = [open_separator(name, settings.checkpoints[name], settings.audio) for name in settings.processors]
        return [fast_separator(separator, self.device, settings.precision) for separator in opened]

    @cached_property
    def forward(self) -> "Forward":
        """Runs the networks on `clips_per_forward` clips at a time."""
        from sepscene.augment.separation.forward import Forward

        return Forward(self.device, self.clips_per_forward)

    def __call__(self, columns: Columns) -> Columns:
        """Generate the views of a block, except for clips in crash quarantine. See `serve` for the columns."""
        if self.crash_counts is None or not _to_separate(columns):
            return self.serve(columns)
        return self.crash_counts.guard("separation", self.serve, columns)

    def serve(self, columns: Columns) -> Columns:
        """Separate the clips of a block whose views are not from the store, and crop both views.

        Args:
            columns: the output of `ClipReader`.

        Returns:
            The same columns without those in `_CONSUMED`, and `view_1`, `view_2` and, with `settings.mixtures`,
            `mixture_1`, `mixture_2` (int16, (N, P)), zeros on a fault, see `row_crops`; `channel_1`, `channel_2`
            (int64, −1 is the mixture); `separation_seconds` (share of the row in the time of the block),
            `queued_seconds` (time between reading and separation), `made_at` (Unix time at which the block was
            finished), `made_by` (a random number of this actor), `dropped` (in the first row: separated clips that the
            store did not keep since the previous block, because it or its disk is full).
        """
        begin = time.perf_counter()
        began_at = time.time()
        count = len(columns["row"])
        block = {name: column.copy() for name, column in columns.items() if name not in _CONSUMED}
        crops_NCP = np.zeros((count, self.settings.crops, self.settings.patch), np.int16)
        for n in np.flatnonzero(columns["stored"]).tolist():
            crops_NCP[n] = np.frombuffer(columns["sound"][n], np.int16).reshape(self.settings.crops, -1)
        for n, (chosen, crops_CP) in self._views(columns, block):
            block["channel_1"][n], block["channel_2"][n] = chosen
            crops_NCP[n] = crops_CP
        crops = zip(("view_1", "view_2", "mixture_1", "mixture_2"), crops_NCP.swapaxes(0, 1), strict=False)
        return block | {
            **{name: np.ascontiguousarray(crop_NP) for name, crop_NP in crops},
            "queued_seconds": np.maximum(began_at - columns["read_at"], 0.0).astype(np.float32),
            "separation_seconds": shared_seconds(begin, count),
            "made_at": np.full(count, time.time()),
            "made_by": np.full(count, self.number, np.int64),
            "dropped": self._dropped(count),
        }

    def _dropped(self, count: int) -> np.ndarray:
        dropped_N = np.zeros(count, np.int64)
        if self.store is not None and count:
            dropped_N[0] = self.store.counters.dropped - self.dropped
            self.dropped += dropped_N[0]
        return dropped_N

    def _views(self, columns: Columns, block: Columns) -> Iterator[tuple[int, Found]]:
        """The views of the rows to separate, with their positions.

        If a clip has been separated since the reader searched for it, its views come from the store. Each pass is
        submitted before the results of the previous one are processed.
        """
        left = []
        for n in _to_separate(columns):
            found = self.stored.find(columns, n) if self.stored else None
            if found is None:
                left.append(n)
            else:
                block["stored"][n] = True
                yield n, found
        if not self.settings.processors:
            nothing_ST = np.empty((0, self.settings.audio.samples), np.int16)
            yield from ((n, self._crop(columns, n, nothing_ST, np.empty(0, np.float32), None)) for n in left)
        previous: tuple[int, list[int], Result] | None = None
        for index in range(len(self.settings.processors)):
            own = [n for n in left if columns["processor"][n] == index]
            for start in range(0, len(own), self.clips_per_forward):
                batch = own[start : start + self.clips_per_forward]
                mixture_BT = np.stack([_mixture(columns, n) for n in batch])
                result = self.forward.submit(self.separators[index], mixture_BT)
                if previous:
                    yield from self._finished(columns, block, *previous)
                previous = (index, batch, result)
        if previous:
            yield from self._finished(columns, block, *previous)

    def _finished(
        self, columns: Columns, block: Columns, index: int, batch: list[int], result: "Result"
    ) -> Iterator[tuple[int, Found]]:
        """The views of a finished pass, whose clips are put into the store; set `fault` on failure."""
        for n, separated_ST in zip(batch, result(), strict=True):
            if not np.isfinite(separated_ST).all():
                block["fault"][n] = f"processor {self.settings.processors[index]} returned NaN or infinite samples"
                continue
            mixture_T = _mixture(columns, n)
            pcm_ST = to_pcm(separated_ST)
            score_S = self.scores(mixture_T, pcm_ST) if self.scores else None
            if score_S is not None and not np.isfinite(score_S).all():
                block["fault"][n] = f"the channel score {self.settings.views.channel} is {score_S.tolist()}"
                continue
            levels_S = levels_db(pcm_ST)
            if self.stored is not None:
                self.stored.put(columns, n, mixture_T, pcm_ST, levels_S, score_S)
            yield n, self._crop(columns, n, pcm_ST, levels_S, score_S)

    def _crop(
        self, columns: Columns, n: int, pcm_ST: np.ndarray, levels_S: np.ndarray, score_S: np.ndarray | None
    ) -> Found:
        """The views of row n from its separated channels."""
        chosen, places = row_crops(columns, n, self.settings, levels_S, score_S)
        crops_CP = np.zeros((self.settings.crops, self.settings.patch), np.int16)
        for c, channel, start in places:
            track_T = _mixture(columns, n) if channel == MIXTURE else pcm_ST[channel]
            crops_CP[c] = track_T[start : start + self.settings.patch]
        return chosen, crops_CP


def _to_separate(columns: Columns) -> list[int]:
    """Positions of the rows whose clip must be separated."""
    carries = columns["read_bytes"] > 0
    return np.flatnonzero(carries & ~columns["stored"] & (columns["fault"] == "")).tolist()


def _mixture(columns: Columns, n: int) -> np.ndarray:
    """The whole clip of row n, int16 (T,)."""
    return np.frombuffer(columns["sound"][n], np.int16)
