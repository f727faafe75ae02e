"""The files of generated scenes, and reading of their isolated sources, for training supervised separators.

This module does not import scipy, which `scenes` needs: programs that only read scenes start faster.

Shapes: S sources of a scene, T samples.
"""

import os
from pathlib import Path

import numpy as np

from sepscene.augment.decoder import open_recording
from sepscene.augment.locations import NO_SUCH_FILE, ClipError


def scenes_manifest(directory: str | os.PathLike[str], split: str) -> Path:
    """The manifest of a split, next to the folder of its scenes."""
    return Path(directory) / f"{split}.csv"


def sources_path(mixture_path: str | os.PathLike[str]) -> Path:
    """Path of the multi-channel file with the isolated sources of a scene, next to the scene."""
    return Path(mixture_path).with_suffix(".sources.wav")


def read_sources(mixture_path: str | os.PathLike[str]) -> np.ndarray:
    """Read the isolated sources (S, T) of a generated scene, float32, in the order of its `source_labels`.

    Raises:
        ClipError: the scene was written without sources, or they cannot be read.
    """
    scene = os.fspath(mixture_path)
    path = sources_path(scene)
    if not os.path.isfile(path):
        if not os.path.isfile(scene):
            raise ClipError(scene, NO_SUCH_FILE)
        raise ClipError(scene, f"{path.name} is missing: generate this split with with_sources=True")
    try:
        with open_recording(str(path)) as decoder:
            wave_TS = np.concatenate(list(decoder.blocks(0, decoder.frames)))
    except ClipError as error:
        raise ClipError(scene, f"its sources in {path.name}: {error.cause}", error.refused) from error
    return np.ascontiguousarray(wave_TS.T)
