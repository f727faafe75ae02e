"""Validation of sound that is passed to a network: arrays or tensors, of floats with full scale 1 or of integers.

Shapes: B clips, T samples.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from sepscene.models.config import SepsceneError
from sepscene.models.settings import MAX_PEAK

MIN_SAMPLES = 32
"""More clips than samples, with fewer samples than this, indicate one multichannel clip with transposed axes."""

_SILENCE = {torch.uint8: 128, torch.int8: 0, torch.int16: 0, torch.int32: 0}
"""Supported integer types, and their value for silence."""


def checked_sound(wave_BT: Any, device: torch.device | None = None) -> Tensor:
    """The clips as a float32 tensor (B, T) of full scale 1. Floats up to `MAX_PEAK` are not clipped.

    Args:
        wave_BT: NumPy array or tensor (B, T): floats of full scale 1, or int8, uint8, int16, int32, whose full scale is
            that of their type.
        device: device of the result; None: unchanged.

    Raises:
        SepsceneError: wrong shape or type, no samples, NaN or infinite samples, or floats at the scale of integers.
    """
    sound_BT = _tensor(wave_BT)
    if sound_BT.ndim != 2:
        raise SepsceneError(
            f"sound must have the shape (B, T), clips by samples, not {tuple(sound_BT.shape)}: pass one mono clip as "
            "wave[None]"
        )
    clips, samples = sound_BT.shape
    if samples == 0 or clips == 0:
        raise SepsceneError(f"sound of shape {(clips, samples)} contains no samples: leave empty clips out")
    if samples < min(clips, MIN_SAMPLES):
        raise SepsceneError(
            f"sound of shape {(clips, samples)} means {clips} clips of {samples} samples, but looks like one clip of "
            "several channels, as soundfile returns it: pass wave.mean(1)[None] for its mono mix, or wave.T"
        )
    if sound_BT.dtype in _SILENCE:
        full_scale = 2.0 ** (torch.iinfo(sound_BT.dtype).bits - 1)
        sound_BT = (sound_BT.to(device, torch.float32) - _SILENCE[sound_BT.dtype]) / full_scale
    elif sound_BT.is_floating_point():
        sound_BT = sound_BT.to(device, torch.float32)
    else:
        raise SepsceneError(f"sound of type {sound_BT.dtype} has no full scale: pass floats in [-1, 1], or int16")
    peak = float(torch.linalg.vector_norm(sound_BT.detach(), float("inf")))
    if not np.isfinite(peak):
        raise SepsceneError("the sound contains NaN or infinite samples: remove them")
    if peak > MAX_PEAK:
        raise SepsceneError(f"sound must have full scale 1, but this reaches {peak:g}: divide it by its full scale")
    return sound_BT


def limited_sound(wave_BT: Any, device: torch.device | None = None) -> Tensor:
    """As `checked_sound`, clipped to [-1, 1], the range on which encoders are trained and to which files are clipped.

    Raises:
        SepsceneError: as `checked_sound`.
    """
    return checked_sound(wave_BT, device).clamp(-1.0, 1.0)


def _tensor(wave_BT: Any) -> Tensor:
    if isinstance(wave_BT, Tensor):
        return wave_BT
    try:
        array = np.asarray(wave_BT)
    except ValueError as error:  # a list of clips of different lengths
        raise SepsceneError(f"sound must be an array or tensor (B, T): {error}") from None
    if array.dtype.kind not in "fiu":
        found = f"a {type(wave_BT).__name__} of {array.dtype}"
        raise SepsceneError(f"sound must be an array or tensor of numbers, not {found}")
    try:
        return torch.from_numpy(np.ascontiguousarray(array.astype(array.dtype.newbyteorder("="))))
    except TypeError:
        raise SepsceneError(f"sound of type {array.dtype} is not supported: pass float32 or int16") from None
