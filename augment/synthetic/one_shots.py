"""Recorded events: labelled one-shot recordings in a folder replace the synthetic events.

Two layouts are supported: FOLDER/LABEL/*.wav (also flac, ogg, aiff), and that of ESC-50, FOLDER/audio/* with
FOLDER/meta/esc50.csv.

Shapes: T samples, C channels.
"""

import csv
from collections.abc import Callable, Mapping
from functools import cache, partial
from pathlib import Path

import numpy as np

from sepscene.augment.decoder import open_recording
from sepscene.augment.synthetic.synthesis import Synth
from sepscene.models.config import SepsceneError

EventMaker = Callable[[Synth], np.ndarray]
"""Generates an instance of an event class: float32 (T,), of any level."""

SUFFIXES = (".wav", ".flac", ".ogg", ".aiff")
SILENCE_DB = -40.0
"""Leading and trailing sound below this level, relative to the peak, is removed."""


@cache
def one_shot_makers(folder: str) -> Mapping[str, EventMaker]:
    """Label -> function that draws one of its recordings.

    Raises:
        SepsceneError: the folder has no labelled recordings, or its table lacks a column.
    """
    recordings: dict[str, list[Path]] = {}
    for label, path in _esc50(Path(folder)) or _by_folder(Path(folder)):
        recordings.setdefault(label, []).append(path)
    if not recordings:
        raise SepsceneError(
            f"one_shots {folder} has no labelled recordings: it must contain LABEL/*.wav, or audio/ and meta/esc50.csv"
        )
    return {label: partial(_draw, tuple(paths)) for label, paths in sorted(recordings.items())}


def _by_folder(folder: Path) -> list[tuple[str, Path]]:
    return [(path.parent.name, path) for path in sorted(folder.glob("*/*")) if path.suffix.lower() in SUFFIXES]


def _esc50(folder: Path) -> list[tuple[str, Path]]:
    table = folder / "meta" / "esc50.csv"
    if not table.exists():
        return []
    with table.open(newline="") as file:
        rows = csv.DictReader(file)
        missing = {"category", "filename"} - set(rows.fieldnames or ())
        if missing:
            raise SepsceneError(f"{table} lacks the columns {', '.join(sorted(missing))}: use the file of ESC-50")
        named = [(row["category"], folder / "audio" / row["filename"]) for row in rows]
    return [(label, path) for label, path in named if path.exists()]


def _draw(paths: tuple[Path, ...], synth: Synth) -> np.ndarray:
    """Draw one of the recordings, see `_read`."""
    return _read(paths[int(synth.integers(len(paths)))], synth.rate)


@cache
def _read(path: Path, rate: int) -> np.ndarray:
    """A recording as mono at a sample rate, without surrounding silence, with peak 1."""
    import torch  # only needed for recorded events
    from torchaudio.functional import resample

    with open_recording(str(path)) as decoder:  # not `read_audio`, which clips at full scale
        wave_TC = decoder.file.read(dtype="float32", always_2d=True)
    wave_T = resample(torch.from_numpy(wave_TC.mean(axis=1)), decoder.sample_rate, rate).numpy()
    loud = np.flatnonzero(np.abs(wave_T) > 10 ** (SILENCE_DB / 20) * np.abs(wave_T).max(initial=0))
    if not len(loud):
        raise SepsceneError(f"{path} is silent: remove it from the one-shots")
    kept_T = wave_T[loud[0] : loud[-1] + 1]
    return (kept_T / np.abs(kept_T).max()).astype(np.float32)
