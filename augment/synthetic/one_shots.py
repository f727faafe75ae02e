"""Recorded events: a folder of labelled one-shots takes the place of the synthetic events.

Two layouts are read: FOLDER/LABEL/*.wav (also flac, ogg, aiff), and that of ESC-50, FOLDER/audio/* with
FOLDER/meta/esc50.csv.
"""

import csv
from collections.abc import Callable, Mapping
from functools import cache, partial
from pathlib import Path

import numpy as np

from sepscene.augment.decoder import open_recording
from sepscene.models.config import SepsceneError

EventMaker = Callable[[np.random.Generator, int], np.ndarray]
"""Makes one instance of an event class at a sample rate: float32 (T,), of any level."""

SUFFIXES = (".wav", ".flac", ".ogg", ".aiff")
SILENCE_DB = -40.0
"""Leading and trailing sound that is softer than the peak by more than this is cut off."""


@cache
def one_shot_makers(folder: str) -> Mapping[str, EventMaker]:
    """Label -> what draws one of its recordings.

    Raises:
        SepsceneError: when the folder holds no labelled recordings.
    """
    recordings: dict[str, list[Path]] = {}
    for label, path in _esc50(Path(folder)) or _by_folder(Path(folder)):
        recordings.setdefault(label, []).append(path)
    if not recordings:
        raise SepsceneError(
            f"one_shots {folder} holds no labelled recordings: it needs LABEL/*.wav, or audio/ and meta/esc50.csv"
        )
    return {label: partial(_draw, tuple(paths)) for label, paths in sorted(recordings.items())}


def _by_folder(folder: Path) -> list[tuple[str, Path]]:
    return [(path.parent.name, path) for path in sorted(folder.glob("*/*")) if path.suffix.lower() in SUFFIXES]


def _esc50(folder: Path) -> list[tuple[str, Path]]:
    table = folder / "meta" / "esc50.csv"
    if not table.exists():
        return []
    with table.open(newline="") as file:
        named = [(row["category"], folder / "audio" / row["filename"]) for row in csv.DictReader(file)]
    return [(label, path) for label, path in named if path.exists()]


def _draw(paths: tuple[Path, ...], rng: np.random.Generator, rate: int) -> np.ndarray:
    """One of the recordings without the silence around it, as one channel at the rate, of peak 1."""
    return _read(paths[int(rng.integers(len(paths)))], rate)


@cache
def _read(path: Path, rate: int) -> np.ndarray:
    import torch  # only scenes with recorded events need it
    from torchaudio.functional import resample

    with open_recording(str(path)) as decoder:  # not `audio`, whose limit to full scale would change loud recordings
        wave_TC = decoder.file.read(dtype="float32", always_2d=True)
    wave_T = resample(torch.from_numpy(wave_TC.mean(axis=1)), decoder.sample_rate, rate).numpy()
    loud = np.flatnonzero(np.abs(wave_T) > 10 ** (SILENCE_DB / 20) * np.abs(wave_T).max(initial=0))
    if not len(loud):
        raise SepsceneError(f"{path} is silent: remove it from the one-shots")
    kept_T = wave_T[loud[0] : loud[-1] + 1]
    return (kept_T / np.abs(kept_T).max()).astype(np.float32)
