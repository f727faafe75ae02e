"""The separation service: rows with decoded clips in, rows with two view crops out.

Two plain callables, one for each stage of the stream. Neither keeps random state, so a repeated call gives the same
bytes. A clip that can't be read or separated becomes a row with a `fault`; it never breaks the stream.

Shapes: N rows of a block, T samples of a clip, P samples of a patch, S channels.
"""

from collections.abc import Mapping

import numpy as np
import torch
from torch import nn

from augment.audio import AudioFormat, ClipError, read_clip
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
from models import load_separator
from models.config import SepsceneError

Columns = dict[str, np.ndarray]

FILLER = -1
"""Row number of a filler: it evens out the last global batch and carries nothing."""


def read_rows(columns: Columns, audio: AudioFormat) -> Columns:
    """Decode the clips of a block.

    Args:
        columns: `row`, `uri`, `offset_seconds` and whatever else; fillers have row −1.
        audio: rate and length of the clips.

    Returns:
        The same columns and `pcm` (bytes of T int16 samples, empty on a fault) and `fault` (empty, or why the clip
        can't be used).
    """
    pcm, fault = [], []
    for row, uri, offset in zip(columns["row"], columns["uri"], columns["offset_seconds"], strict=True):
        data, reason = b"", ""
        if row != FILLER:
            try:
                data = to_pcm(read_clip(str(uri), audio, float(offset))).tobytes()
            except ClipError as error:
                reason = error.cause
        pcm.append(data)
        fault.append(reason)
    return {**columns, "pcm": np.array(pcm, object), "fault": np.array(fault, object)}


class SeparationService:
    """Hosts every processor of a combination and turns decoded clips into the two views of each row.

    A block is grouped by processor, so that each network runs on as large a batch as there is. What leaves is only
    the two crops in 16 bits: about 60 kB a row instead of 2 MB.
    """

    def __init__(
        self,
        checkpoints: Mapping[str, str],
        views: Views,
        audio: AudioFormat,
        device: str = "cpu",
        clips_per_forward: int = 4,
    ) -> None:
        """Load the checkpoints.

        Args:
            checkpoints: processor name -> separator folder, for every name in `views.combination`.
            views: how views are made.
            audio: rate and length of the clips.
            device: where the separators run.
            clips_per_forward: clips in one forward pass; bounds the memory.

        Raises:
            SepsceneError: for a damaged checkpoint, or one trained at another sample rate.
        """
        self.views, self.audio, self.device, self.clips_per_forward = views, audio, device, clips_per_forward
        self.separators: list[nn.Module] = []
        if views.pair != "mix-mix":
            self.separators = [self._load(name, checkpoints[name]) for name in views.combination]

    def _load(self, name: str, folder: str) -> nn.Module:
        separator = load_separator(folder)
        if separator.sample_rate != self.audio.sample_rate:
            raise SepsceneError(
                f"processor {name} ({folder}) works at {separator.sample_rate} Hz but audio.sample_rate is "
                f"{self.audio.sample_rate} Hz; set audio.sample_rate to {separator.sample_rate} or choose another separator"
            )
        return separator.to(self.device).eval().requires_grad_(False)

    def __call__(self, columns: Columns) -> Columns:
        """Separate the clips of a block and crop both views.

        Args:
            columns: what `read_rows` returns, with the draws of each row.

        Returns:
            `row`, `clip`, `epoch`, `processor`, `fault`, `uri`, `specaugment_u`; `view_1`, `view_2` (int16, (N, P));
            `channel_1`, `channel_2` (int64, −1 is the mixture).
        """
        count = len(columns["row"])
        samples = patch_samples(self.views, self.audio.sample_rate)
        view_N2P = np.zeros((count, 2, samples), np.int16)
        channel_N2 = np.full((count, 2), MIXTURE, np.int64)
        fault_N = columns["fault"].copy()
        starts = np.stack(
            view_starts(columns, self.views, self.audio.samples, self.audio.sample_rate), axis=1
        )
        for n, separated_ST in self._separate(columns, fault_N):
            mixture_T = np.frombuffer(columns["pcm"][n], np.int16)
            channel_N2[n] = choose_channels(
                levels_db(separated_ST), columns["channel_u"][n], columns["second_channel_u"][n], self.views
            )
            for view, (channel, start) in enumerate(zip(channel_N2[n], starts[n], strict=True)):
                source_T = mixture_T if channel == MIXTURE else separated_ST[channel]
                view_N2P[n, view] = source_T[start : start + samples]
        kept = ("row", "clip", "epoch", "processor", "uri", "specaugment_u")
        return {
            **{name: columns[name] for name in kept},
            "fault": fault_N,
            "view_1": view_N2P[:, 0],
            "view_2": view_N2P[:, 1],
            "channel_1": channel_N2[:, 0],
            "channel_2": channel_N2[:, 1],
        }

    def _separate(self, columns: Columns, fault_N: np.ndarray):  # type: ignore[no-untyped-def]
        """Yield (position, separated int16 (S, T)) of each usable row; mark the others in `fault_N`."""
        usable = [n for n, pcm in enumerate(columns["pcm"]) if pcm]
        if not self.separators:
            nothing_ST = np.empty((0, self.audio.samples), np.int16)
            yield from ((n, nothing_ST) for n in usable)
            return
        for index, separator in enumerate(self.separators):
            mine = [n for n in usable if columns["processor"][n] == index]
            for start in range(0, len(mine), self.clips_per_forward):
                some = mine[start : start + self.clips_per_forward]
                wave_BT = from_pcm(np.stack([np.frombuffer(columns["pcm"][n], np.int16) for n in some]))
                with torch.inference_mode():
                    separated_BST = separator(torch.from_numpy(wave_BT).to(self.device)).float().cpu().numpy()
                for n, separated_ST in zip(some, separated_BST, strict=True):
                    if np.isfinite(separated_ST).all():
                        yield n, to_pcm(separated_ST)
                    else:
                        fault_N[n] = f"processor {self.views.combination[index]} gave NaN or infinite samples"
