"""How often two crops of a scene share an audible event, so that events are sufficient for coincidence prediction.

Shapes: S sources of a scene (the events, then the background), T samples, N pairs of crops.
"""

from collections.abc import Iterable

import numpy as np

from sepscene.augment.draws import crop_starts
from sepscene.augment.views import Views, patch_samples

AUDIBLE_DB = -10.0
"""An event is audible in a crop if its power there is at least this level relative to the mixture [ours]."""
_PAIRS = 64  # pairs of crops per scene


def shared_event_rate(scenes: Iterable[np.ndarray], crop_samples: int, delta_samples: int) -> float:
    """Share of positive pairs, drawn by temporal proximity, whose two crops have an audible event in common.

    Args:
        scenes: the sources (S, T) of each scene, the background last.
        crop_samples: length of a crop.
        delta_samples: largest distance between the starts of two crops.

    Returns:
        A share from 0 to 1; NaN without scenes.
    """
    rng = np.random.default_rng(0)
    found = []
    for source_ST in scenes:
        start_NN = crop_starts(rng.random(_PAIRS), rng.random(_PAIRS), source_ST.shape[1], crop_samples, delta_samples)
        first_SN, second_SN = (audible_events(source_ST, start_N, crop_samples) for start_N in start_NN)
        found.append((first_SN & second_SN).any(axis=0).mean())
    return float(np.mean(found)) if found else float("nan")


def describe_shared_events(scenes: Iterable[np.ndarray], views: Views, sample_rate: int) -> str:
    """`shared_event_rate` for the settings of the views, as text: "93% of positive pairs (-10 dB, 32 scenes)"."""
    known = list(scenes)
    rate = shared_event_rate(known, patch_samples(views, sample_rate), round(views.tp_delta_seconds * sample_rate))
    return f"{rate:.0%} of positive pairs ({AUDIBLE_DB:g} dB, {len(known)} scenes)"


def audible_events(source_ST: np.ndarray, start_N: np.ndarray, crop_samples: int) -> np.ndarray:
    """Which events are audible in which crops, boolean (S - 1, N)."""
    power_SN = _power(source_ST[:-1], start_N, crop_samples)
    mixture_1N = _power(source_ST.sum(axis=0, keepdims=True), start_N, crop_samples)
    return power_SN >= np.maximum(10 ** (AUDIBLE_DB / 10) * mixture_1N, np.finfo(np.float64).tiny)


def _power(wave_ST: np.ndarray, start_N: np.ndarray, samples: int) -> np.ndarray:
    """Energy (S, N) of each wave in each crop."""
    sums = np.pad(np.cumsum(np.square(wave_ST, dtype=np.float64), axis=1), ((0, 0), (1, 0)))
    return sums[:, start_N + samples] - sums[:, start_N]
