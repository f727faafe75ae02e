"""The separation service: rows with their draws and their sound in, rows with two view crops out.

A plain callable that keeps no random state, so a repeated call gives the same bytes. A clip that can't be separated
becomes a row with a `fault`; it never breaks the stream.

Torch is imported where the first separator is loaded: the processes of Ray that only pass the service on, and those
whose store holds every clip, do without, which saves each of them seconds at its start and hundreds of megabytes.

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
from sepscene.augment.draws import OF_VIEWS
from sepscene.augment.separation.blocks import (
    Columns,
    ServiceSettings,
    StoredViews,
    crop_places,
    shared_seconds,
    sound_levels,
    starts_of,
)
from sepscene.augment.separation.channel_scores import ChannelScores
from sepscene.augment.store.separated_store import SeparatedStore
from sepscene.augment.views import MIXTURE, choose_channels, levels_db, to_pcm
from sepscene.models.config import SepsceneError
from sepscene.models.custom import CustomCode

if TYPE_CHECKING:
    from torch import nn

    from sepscene.augment.separation.forward import Forward, Result

_CONSUMED = (*OF_VIEWS, "sound", "offset_seconds", "read_at")
"""Columns that end here; all others go through the service as they are, or with a few rows changed."""

Separated = tuple[int, np.ndarray, np.ndarray, np.ndarray, np.ndarray | None]
"""A row's position, its mixture (T,), its separated channels (S, T), their levels (S,), their own scores (S,)."""


def open_separator(name: str, folder: str | CustomCode, audio: AudioFormat) -> "nn.Module":
    """Load a processor's checkpoint; a custom separator is made, and tried on noise.

    Raises:
        SepsceneError: names the processor whose checkpoint is missing, damaged, or of another sample rate, or whose
            code cannot be used.
    """
    from sepscene.models.separators.custom import CustomSeparator, try_separator
    from sepscene.models.separators.folder import load_separator

    try:
        separator = load_separator(folder)
        if isinstance(folder, CustomCode) and isinstance(separator, CustomSeparator):
            try_separator(separator, audio.samples)
    except SepsceneError as error:
        raise SepsceneError(f"processor {name}: {error}") from error
    if separator.sample_rate != audio.sample_rate:
        raise SepsceneError(
            f"processor {name} ({folder}) works at {separator.sample_rate} Hz but audio.sample_rate is "
            f"{audio.sample_rate} Hz; set audio.sample_rate to {separator.sample_rate} or choose another separator"
        )
    return separator


class SeparationService:
    """Hosts every processor of a combination and turns decoded clips into the two views of each row.

    A block is grouped by processor, so that each network runs on as large a batch as there is. What leaves is only
    the two crops in 16 bits: about 60 kB a row instead of 2 MB.
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
            settings: views, audio, checkpoints and the separators' precision.
            store: where separated clips are kept; none separates every row live.
            crash_counts: of clips; without them a deadly clip kills its actor forever.
            device: where the separators run.
            clips_per_forward: clips in one forward pass, see `Forward`.
            load_now: false leaves the checkpoints alone until a clip must be separated.

        Raises:
            SepsceneError: for a damaged checkpoint, or one trained at another sample rate.
        """
        self.settings = settings
        self.store = store
        self.crash_counts = crash_counts
        self.device = device
        self.clips_per_forward = clips_per_forward
        self.dropped = np.int64(0)  # entries that the store has not kept, as far as blocks have said so
        self.number = int.from_bytes(os.urandom(4), "big")  # tells this actor from the others
        self.stored = StoredViews(settings, store) if store is not None and settings.processors else None
        self.scores = self.stored.scores if self.stored else ChannelScores.of(settings.views)
        if load_now:
            _ = self.separators, self.forward

    def __del__(self) -> None:
        """Publish what this actor separated; Ray Data deletes the callable when its actor ends in peace."""
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
        """What passes clips through them."""
        from sepscene.augment.separation.forward import Forward

        return Forward(self.device, self.clips_per_forward)

    def __call__(self, columns: Columns) -> Columns:
        """Make the views of a block; clips in crash quarantine are left alone. See `serve` for the columns."""
        if self.crash_counts is None or not _to_separate(columns):
            return self.serve(columns)
        return self.crash_counts.guard("separation", self.serve, columns)

    def serve(self, columns: Columns) -> Columns:
        """Separate the clips of a block whose views are not made yet, and crop both views.

        Args:
            columns: what `ClipReader` returns.

        Returns:
            The same columns without those that are used up here (`_CONSUMED`); `view_1`, `view_2` and where asked for
            `mixture_1`, `mixture_2`, see `crop_places` (int16, (N, P)), zeros on a fault; `channel_1`, `channel_2`
            (int64, −1 is the mixture); `separation_seconds` (this row's share of the block), `queued_seconds` (between
            the reader's end and the beginning here), `made_at` (when the block was done, seconds of the day's clock),
            `made_by` (a number of this very service), `dropped` (in the first row: separated clips that the store has
            not kept since the block before, because it or its disk is full).
        """
        begin = time.perf_counter()
        began_at = time.time()
        count = len(columns["row"])
        block = {name: column.copy() for name, column in columns.items() if name not in _CONSUMED}
        starts_N2 = starts_of(columns, self.settings)
        crops_NCP = np.zeros((count, self.settings.crops, self.settings.patch), np.int16)
        for n in np.flatnonzero(columns["stored"]).tolist():
            crops_NCP[n] = np.frombuffer(columns["sound"][n], np.int16).reshape(self.settings.crops, -1)
        rows = [n for n in _to_separate(columns) if not self._from_store(columns, block, crops_NCP, starts_N2, n)]
        for n, mixture_T, separated_ST, levels_S, score_S in self._separated(columns, block, rows):
            uniforms = columns["channel_u"][n], columns["second_channel_u"][n]
            levels_S = sound_levels(levels_S, int(columns["sound_samples"][n]), self.settings)
            chosen = choose_channels(levels_S, *uniforms, self.settings.views, score_S)
            block["channel_1"][n], block["channel_2"][n] = chosen
            for c, channel, start in crop_places(chosen, starts_N2[n], self.settings):
                track_T = mixture_T if channel == MIXTURE else separated_ST[channel]
                crops_NCP[n, c] = track_T[start : start + self.settings.patch]
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

    def _from_store(
        self, columns: Columns, block: Columns, crops_NCP: np.ndarray, starts_N2: np.ndarray, n: int
    ) -> bool:
        """Row n's views, if its clip was separated since the reader looked, perhaps in this very actor."""
        found = self.stored.find(columns, starts_N2[n], n) if self.stored else None
        if found is None:
            return False
        (block["channel_1"][n], block["channel_2"][n]), crops_NCP[n] = found
        block["stored"][n] = True
        return True

    def _separated(self, columns: Columns, block: Columns, rows: list[int]) -> Iterator[Separated]:
        """Pass the clips through the networks; the next pass is submitted before the last one is looked at."""
        mixtures = {n: _mixture(columns, n) for n in rows}
        if not self.settings.processors:
            nothing_ST = np.empty((0, self.settings.audio.samples), np.int16)
            yield from ((n, mixtures[n], nothing_ST, np.empty(0, np.float32), None) for n in rows)
            return
        passes = [
            (index, mine[start : start + self.clips_per_forward])
            for index in range(len(self.settings.processors))
            for mine in [[n for n in rows if columns["processor"][n] == index]]
            for start in range(0, len(mine), self.clips_per_forward)
        ]
        before: tuple[int, list[int], Result] | None = None
        for index, some in passes:
            result = self.forward.submit(self.separators[index], np.stack([mixtures[n] for n in some]))
            if before:
                yield from self._finished(columns, block, *before)
            before = (index, some, result)
        if before:
            yield from self._finished(columns, block, *before)

    def _finished(
        self, columns: Columns, block: Columns, index: int, some: list[int], result: "Result"
    ) -> Iterator[Separated]:
        """The clips of a pass that is done, in 16 bits, kept in the store; a fault is marked in block["fault"]."""
        for n, separated_ST in zip(some, result(), strict=True):
            if not np.isfinite(separated_ST).all():
                block["fault"][n] = f"processor {self.settings.processors[index]} gave NaN or infinite samples"
                continue
            mixture_T = _mixture(columns, n)
            pcm_ST = to_pcm(separated_ST)
            score_S = self.scores(mixture_T, pcm_ST) if self.scores else None
            if score_S is not None and not np.isfinite(score_S).all():
                block["fault"][n] = f"the channel score {self.settings.views.channel} is {score_S.tolist()}"
                continue
            levels_S = levels_db(pcm_ST)
            if self.stored is not None:
                self.stored.keep(columns, n, mixture_T, pcm_ST, levels_S, score_S)
            yield n, mixture_T, pcm_ST, levels_S, score_S


def _to_separate(columns: Columns) -> list[int]:
    """Positions of the rows that carry a whole clip."""
    carries = columns["read_bytes"] > 0
    return np.flatnonzero(carries & ~columns["stored"] & (columns["fault"] == "")).tolist()


def _mixture(columns: Columns, n: int) -> np.ndarray:
    """The whole clip of row n, int16 (T,)."""
    return np.frombuffer(columns["sound"][n], np.int16)
