"""Segments of synthetic scenes with their isolated sources: what a supervised separator is trained on.

Shapes: N rows, K sources of a scene, T samples of a segment.
"""

import numpy as np

from augment.audio import AudioFormat
from augment.draws import FILLER, crop_starts
from augment.scenes import read_sources
from augment.strikes import Columns
from augment.views import to_pcm


def read_source_segments(columns: Columns, audio: AudioFormat, segment_seconds: float) -> Columns:
    """Crop the segments of `augment.service.read_segments` from the scenes' sources instead of their mixtures.

    Returns:
        `row`, `uri`, `fault`, and `sources` (bytes of K·T int16 samples; K differs between scenes; empty on a fault).
        The sources of a segment add up to its mixture.
    """
    samples = round(segment_seconds * audio.sample_rate)
    start_N, _ = crop_starts(columns["crop_1_u"], columns["crop_2_u"], audio.samples, samples, 0)
    sources_N = np.array([b""] * len(start_N), object)
    fault_N = np.array([""] * len(start_N), object)
    for n in np.flatnonzero(columns["row"] != FILLER):
        try:
            source_KT = read_sources(str(columns["uri"][n]))
        except (OSError, RuntimeError) as error:  # soundfile tells a damaged file as a RuntimeError
            fault_N[n] = str(error)
            continue
        segment_KT = source_KT[:, start_N[n] : start_N[n] + samples]
        if segment_KT.shape[1] < samples:
            fault_N[n] = f"its sources have {source_KT.shape[1]} samples, fewer than audio.clip_seconds asks for"
            continue
        sources_N[n] = to_pcm(segment_KT).tobytes()
    return {"row": columns["row"], "uri": columns["uri"], "fault": fault_N, "sources": sources_N}
