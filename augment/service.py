"""The separation service: rows with their draws in, rows with two view crops out.

Two plain callables, one for each stage of the stream. `ClipReader` decodes, or takes the views from the SeparatedStore
where the clip has been separated before; `SeparationService` separates the rest. Neither keeps random state, so a
repeated call gives the same bytes. A clip that can't be read or separated becomes a row with a `fault`; it never breaks
the stream.

Shapes: N rows of a block, T samples of a clip, P samples of a patch, S channels.
"""

from collections.abc import Iterator, Mapping
from typing import Literal

import numpy as np
import torch
from torch import nn

from augment.audio import AudioFormat, ClipError, content_hash, read_clip
from augment.draws import FILLER, crop_starts
from augment.store import SeparatedStore, StoreKey
from augment.strikes import Columns, Strikes
from augment.views import (
    MIXTURE,
    Views,
    choose_channels,
    from_pcm,
    levels_db,
    patch_samples,
    to_pcm,
    view_starts,
)
from models.config import Config, SepsceneError
from models.separation import fast_separator
from models.separators import load_separator, separator_digest


class ServiceSettings(Config):
    """What both stages must agree on."""

    views: Views
    audio: AudioFormat
    checkpoints: dict[str, str]
    """Processor name -> separator folder, for every name in `views.combination`; may be empty for mix-mix."""

    @property
    def processors(self) -> tuple[str, ...]:
        """The processors in the order that the draws' `processor` column counts them; none for mix-mix."""
        return () if self.views.pair == "mix-mix" else self.views.combination

    def digests(self) -> tuple[str, ...]:
        """Digest of each processor's checkpoint, in order."""
        return tuple(separator_digest(self.checkpoints[name]) for name in self.processors)

    def store_settings(self, offset_seconds: float) -> str:
        """What a store entry depends on beside the clip's content and the checkpoint."""
        return f"{self.audio.model_dump_json()}@{offset_seconds:g}"


def open_separator(name: str, folder: str, audio: AudioFormat) -> nn.Module:
    """Load a processor's checkpoint.

    Raises:
        SepsceneError: names the processor whose checkpoint is missing, damaged, or of another sample rate.
    """
    try:
        separator = load_separator(folder)
    except SepsceneError as error:
        raise SepsceneError(f"processor {name}: {error}") from error
    if separator.sample_rate != audio.sample_rate:
        raise SepsceneError(
            f"processor {name} ({folder}) works at {separator.sample_rate} Hz but audio.sample_rate is "
            f"{audio.sample_rate} Hz; set audio.sample_rate to {separator.sample_rate} or choose another separator"
        )
    return separator


class ClipReader:
    """Decodes the clips of a block, or makes their views from the store."""

    def __init__(
        self, settings: ServiceSettings, store: SeparatedStore | None = None, strikes: Strikes | None = None
    ) -> None:
        self.settings, self.store, self.strikes = settings, store, strikes
        self.digests = settings.digests()

    def __call__(self, columns: Columns) -> Columns:
        """Read the clips of a block; clips on the poison list are left alone. See `read` for the columns."""
        columns = columns | {"fault": np.array([""] * len(columns["row"]), object)}
        return self.strikes.guard("reading", self.read, columns) if self.strikes else self.read(columns)

    def read(self, columns: Columns) -> Columns:
        """Read the clips of a block that have no fault yet.

        Args:
            columns: the draws, `uri` and `offset_seconds`; fillers have row −1.

        Returns:
            The same columns and `pcm` (bytes of T int16 samples; empty on a fault, and where the store had the
            views), `content` (the clip's content hash, empty without a store), `fault` (empty, or why the clip can't
            be used), `view_1`, `view_2` (int16, (N, P)), `channel_1`, `channel_2`, `ready` (the views are made).
        """
        count = len(columns["row"])
        block = _empty_views(self.settings, count) | {
            "pcm": np.array([b""] * count, object),
            "content": np.array([""] * count, object),
            "fault": columns["fault"].copy(),
            "ready": np.zeros(count, bool),
        }
        block = columns | block
        starts_N2 = _starts(columns, self.settings)
        for n in np.flatnonzero((columns["row"] != FILLER) & (columns["fault"] == "")):
            try:
                self._read(block, starts_N2, int(n))
            except ClipError as error:
                block["fault"][n] = error.cause
        return block

    def _read(self, block: Columns, starts_N2: np.ndarray, n: int) -> None:
        uri, offset = str(block["uri"][n]), float(block["offset_seconds"][n])
        if self.store is not None:
            block["content"][n] = content_hash(uri)
            block["ready"][n] = _views_from_store(self.store, self.settings, self.digests, block, starts_N2, n)
        if not block["ready"][n]:
            block["pcm"][n] = to_pcm(read_clip(uri, self.settings.audio, offset)).tobytes()


def read_segments(columns: Columns, audio: AudioFormat, segment_seconds: float) -> Columns:
    """Decode the clips of a block and crop the first view's segment from each, for the training of a separator.

    Returns:
        `row`, `uri`, `fault`, and `segment` (int16, (N, T')), zeros on a fault.
    """
    samples = round(segment_seconds * audio.sample_rate)
    start_N, _ = crop_starts(columns["crop_1_u"], columns["crop_2_u"], audio.samples, samples, 0)
    segment_NT = np.zeros((len(start_N), samples), np.int16)
    fault_N = np.array([""] * len(start_N), object)
    for n in np.flatnonzero(columns["row"] != FILLER):
        try:
            clip_T = read_clip(str(columns["uri"][n]), audio, float(columns["offset_seconds"][n]))
            segment_NT[n] = to_pcm(clip_T[start_N[n] : start_N[n] + samples])
        except ClipError as error:
            fault_N[n] = error.cause
    return {"row": columns["row"], "uri": columns["uri"], "fault": fault_N, "segment": segment_NT}


class SeparationService:
    """Hosts every processor of a combination and turns decoded clips into the two views of each row.

    A block is grouped by processor, so that each network runs on as large a batch as there is. What leaves is only
    the two crops in 16 bits: about 60 kB a row instead of 2 MB.
    """

    def __init__(
        self,
        settings: ServiceSettings,
        store: SeparatedStore | None = None,
        strikes: Strikes | None = None,
        device: str = "cpu",
        precision: Literal["float32", "bfloat16"] = "float32",
        clips_per_forward: int = 1,
    ) -> None:
        """Load the checkpoints.

        Args:
            settings: views, audio and checkpoints.
            store: where separated clips are kept; none separates every row live.
            strikes: the poison list; none lets a deadly clip kill its actor for ever.
            device: where the separators run.
            precision: "float32", or "bfloat16" where the device has it.
            clips_per_forward: clips in one forward pass. Every pass has exactly this many, short ones are padded with
                silence: matrix kernels round differently for other shapes, and a view must not depend on its
                neighbours. One is best on a CPU; a GPU wants several.

        Raises:
            SepsceneError: for a damaged checkpoint, or one trained at another sample rate.
        """
        self.settings, self.store, self.strikes, self.device = settings, store, strikes, device
        self.clips_per_forward = clips_per_forward
        self.digests = settings.digests()
        self.separators = [self._load(name, precision) for name in settings.processors]

    def __del__(self) -> None:
        """Publish what this actor separated; Ray Data deletes the callable when its actor ends in peace."""
        store = getattr(self, "store", None)
        if store is not None:
            store.close()

    def _load(self, name: str, precision: Literal["float32", "bfloat16"]) -> nn.Module:
        separator = open_separator(name, self.settings.checkpoints[name], self.settings.audio)
        return fast_separator(separator, self.device, precision)

    def __call__(self, columns: Columns) -> Columns:
        """Make the views of a block; clips on the poison list are left alone. See `serve` for the columns."""
        return self.strikes.guard("separation", self.serve, columns) if self.strikes else self.serve(columns)

    def serve(self, columns: Columns) -> Columns:
        """Separate the clips of a block that are not `ready` and crop both views.

        Args:
            columns: what `ClipReader` returns.

        Returns:
            `row`, `clip`, `epoch`, `processor`, `fault`, `uri`, `specaugment_u`, `ready`; `view_1`, `view_2` (int16,
            (N, P)); `channel_1`, `channel_2` (int64, −1 is the mixture).
        """
        kept = (
            "row",
            "clip",
            "epoch",
            "processor",
            "uri",
            "specaugment_u",
            "ready",
            "channel_1",
            "channel_2",
        )
        block = {name: columns[name].copy() for name in (*kept, "fault", "view_1", "view_2")}
        starts_N2 = _starts(columns, self.settings)
        for n, mixture_T, separated_ST in self._separated(columns, block, starts_N2):
            views = self.settings.views
            chosen = choose_channels(
                levels_db(separated_ST), columns["channel_u"][n], columns["second_channel_u"][n], views
            )
            for view, (channel, start) in enumerate(zip(chosen, starts_N2[n], strict=True), start=1):
                source_T = mixture_T if channel == MIXTURE else separated_ST[channel]
                block[f"view_{view}"][n] = source_T[start : start + block["view_1"].shape[1]]
                block[f"channel_{view}"][n] = channel
        return block

    def _separated(
        self, columns: Columns, block: Columns, starts_N2: np.ndarray
    ) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        """Yield (position, mixture (T,), separated (S, T)) of each usable row; mark the others in block["fault"]."""
        usable = [n for n, pcm in enumerate(columns["pcm"]) if pcm and not columns["fault"][n]]
        mixtures = {n: np.frombuffer(columns["pcm"][n], np.int16) for n in usable}
        if not self.separators:
            nothing_ST = np.empty((0, self.settings.audio.samples), np.int16)
            yield from ((n, mixtures[n], nothing_ST) for n in usable)
            return
        if self.store is not None:  # separated since the reader looked, perhaps in this very actor
            found = columns | {name: block[name] for name in ("view_1", "view_2", "channel_1", "channel_2")}
            usable = [
                n for n in usable if not _views_from_store(self.store, self.settings, self.digests, found, starts_N2, n)
            ]
        for index in range(len(self.separators)):
            mine = [n for n in usable if columns["processor"][n] == index]
            for start in range(0, len(mine), self.clips_per_forward):
                some = mine[start : start + self.clips_per_forward]
                separated_BST = self._forward(index, np.stack([mixtures[n] for n in some]))
                for n, separated_ST in zip(some, separated_BST, strict=True):
                    if not np.isfinite(separated_ST).all():
                        name = self.settings.processors[index]
                        block["fault"][n] = f"processor {name} gave NaN or infinite samples"
                        continue
                    pcm_ST = to_pcm(separated_ST)
                    self._keep(columns, n, index, mixtures[n], pcm_ST)
                    yield n, mixtures[n], pcm_ST

    def _forward(self, index: int, pcm_BT: np.ndarray) -> np.ndarray:
        wave_BT = np.zeros((self.clips_per_forward, pcm_BT.shape[1]), np.float32)
        wave_BT[: len(pcm_BT)] = from_pcm(pcm_BT)
        with torch.inference_mode():
            separated_BST = self.separators[index](torch.from_numpy(wave_BT).to(self.device))
        return separated_BST[: len(pcm_BT)].float().cpu().numpy()

    def _keep(self, columns: Columns, n: int, index: int, mixture_T: np.ndarray, pcm_ST: np.ndarray) -> None:
        if self.store is None:
            return
        content, settings = (
            str(columns["content"][n]),
            self.settings.store_settings(float(columns["offset_seconds"][n])),
        )
        self.store.put(StoreKey(content, self.digests[index], settings), pcm_ST, levels_db(pcm_ST))
        self.store.put(StoreKey(content, "mixture", settings), mixture_T[None], levels_db(mixture_T[None]))


def _starts(columns: Columns, settings: ServiceSettings) -> np.ndarray:
    """(N, 2): where both crops of each row start."""
    return np.stack(view_starts(columns, settings.views, settings.audio.samples, settings.audio.sample_rate), axis=1)


def _empty_views(settings: ServiceSettings, count: int) -> Columns:
    samples = patch_samples(settings.views, settings.audio.sample_rate)
    return {
        "view_1": np.zeros((count, samples), np.int16),
        "view_2": np.zeros((count, samples), np.int16),
        "channel_1": np.full(count, MIXTURE, np.int64),
        "channel_2": np.full(count, MIXTURE, np.int64),
    }


def _views_from_store(
    store: SeparatedStore,
    settings: ServiceSettings,
    digests: tuple[str, ...],
    block: Mapping[str, np.ndarray],
    starts_N2: np.ndarray,
    n: int,
) -> bool:
    """Fill row n's views from the store; False, and nothing changed, where it lacks any part of them."""
    if not digests:
        return False
    content, suffix = str(block["content"][n]), settings.store_settings(float(block["offset_seconds"][n]))
    separated = StoreKey(content, digests[block["processor"][n]], suffix)
    mixture = StoreKey(content, "mixture", suffix)
    levels_S = store.levels(separated)
    if levels_S is None:
        return False
    chosen = choose_channels(levels_S, block["channel_u"][n], block["second_channel_u"][n], settings.views)
    crops = []
    for channel, start in zip(chosen, starts_N2[n], strict=True):
        key, track = (mixture, 0) if channel == MIXTURE else (separated, channel)
        crops.append(store.get_crop(key, track, int(start), block["view_1"].shape[1]))
    if any(crop is None for crop in crops):
        return False
    for view, (channel, crop) in enumerate(zip(chosen, crops, strict=True), start=1):
        block[f"view_{view}"][n], block[f"channel_{view}"][n] = crop, channel
    return True
