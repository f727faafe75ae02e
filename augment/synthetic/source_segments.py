"""Segments of synthetic scenes with their isolated sources: what a supervised separator is trained on.

Shapes: N rows, K sources of a scene, T samples of a segment.
"""

from os import PathLike
from pathlib import Path

import numpy as np
import soundfile

from sepscene.augment.audio import AudioFormat
from sepscene.augment.crash_counts import Columns
from sepscene.augment.draws import FILLER, crop_starts
from sepscene.augment.views import to_pcm


def sources_path(mixture_path: str | PathLike[str]) -> Path:
    """Where the isolated sources of a scene are, in one multi-channel file beside it."""
    return Path(mixture_path).with_suffix(".sources.wav")


def read_sources(mixture_path: str | PathLike[str]) -> np.ndarray:
    """The isolated sources (S, T) of a written scene, float32, in the order of its `source_labels`.

    Raises:
        FileNotFoundError: the scene was written without sources.
    """
    path = sources_path(mixture_path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not there: write the scenes of this split with_sources=True")
    return np.ascontiguousarray(soundfile.read(path, dtype="float32", always_2d=True)[0].T)


def read_source_segments(columns: Columns, audio: AudioFormat, segment_seconds: float) -> Columns:
    """Crop the segments of `reader.read_segments` from the scenes' sources instead of their mixtures.

    Returns:
        `row`, `uri`, `fault`, and `sources` (bytes of K·T int16 samples; K differs between scenes; empty on a fault).
        The sources of a segment add up to its mixture.
    """
    samples = round(segment_seconds * audio.sample_rate)
    sources_N = np.array([b""] * len(columns["row"]), object)
    fault_N = np.array([""] * len(columns["row"]), object)
    for n in np.flatnonzero(columns["row"] != FILLER):
        try:
            source_KT = read_sources(str(columns["uri"][n]))
        except (OSError, RuntimeError) as error:  # soundfile tells a damaged file as a RuntimeError
            fault_N[n] = str(error)
            continue
        length = audio.samples if audio.pad == "repeat" else min(audio.samples, source_KT.shape[1])
        (start,), _ = crop_starts(columns["crop_1_u"][n : n + 1], columns["crop_2_u"][n : n + 1], length, samples, 0)
        segment_KT = source_KT[:, start : start + samples]
        if segment_KT.shape[1] < samples:
            fault_N[n] = f"its sources have {source_KT.shape[1]} samples, fewer than audio.clip_seconds asks for"
            continue
        sources_N[n] = to_pcm(segment_KT).tobytes()
    return {"row": columns["row"], "uri": columns["uri"], "fault": fault_N, "sources": sources_N}
