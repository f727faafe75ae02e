"""What the networks take as sound from a notebook: arrays or tensors, of full scale 1 or integers, and nothing odd.

Shapes: B clips, T samples.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from sepscene.models.config import SepsceneError
from sepscene.models.settings import LOUDEST

FEWEST_SAMPLES = 32
"""Many clips of fewer samples are channels of one clip, written the other way round."""

_ZERO = {torch.uint8: 128, torch.int8: 0, torch.int16: 0, torch.int32: 0}
"""Integers that sound is stored in, and their value for silence."""


def checked_sound(wave_BT: Any, device: torch.device | None = None) -> Tensor:
    """The clips as a float32 tensor (B, T) of full scale 1; floats between that and `LOUDEST` are left as they are.

    Args:
        wave_BT: NumPy array or tensor (B, T): floats of full scale 1, or int8, uint8, int16, int32, whose full scale is
            that of their type.
        device: where the tensor shall lie; none leaves it.

    Raises:
        SepsceneError: another shape or type, no samples, NaN or infinite samples, floats at the scale of integers.
    """
    sound_BT = _tensor(wave_BT)
    if sound_BT.ndim != 2:
        raise SepsceneError(
            f"sound has the shape (B, T), clips by samples, not {tuple(sound_BT.shape)}: one mono clip is wave[None]"
        )
    clips, samples = sound_BT.shape
    if samples == 0 or clips == 0:
        raise SepsceneError(f"sound of shape {(clips, samples)} holds no samples: leave empty clips out")
    if samples < min(clips, FEWEST_SAMPLES):
        raise SepsceneError(
            f"sound of shape {(clips, samples)} is read as {clips} clips of {samples} samples; it looks like one clip "
            "of several channels, as soundfile gives it: pass wave.mean(1)[None] for its mono mix, or wave.T"
        )
    if sound_BT.dtype in _ZERO:
        full_scale = torch.iinfo(sound_BT.dtype).bits - 1
        sound_BT = (sound_BT.to(device, torch.float32) - _ZERO[sound_BT.dtype]) / 2.0**full_scale
    elif sound_BT.is_floating_point():
        sound_BT = sound_BT.to(device, torch.float32)
    else:
        raise SepsceneError(f"sound of type {sound_BT.dtype} has no full scale: pass floats in [-1, 1], or int16")
    peak = float(torch.linalg.vector_norm(sound_BT.detach(), float("inf")))
    if not peak <= LOUDEST:
        what = f"reaches {peak:g}: divide integers by their full scale" if np.isfinite(peak) else "is NaN or infinite"
        raise SepsceneError(f"sound has full scale 1, but this {what}")
    return sound_BT


def limited_sound(wave_BT: Any, device: torch.device | None = None) -> Tensor:
    """As `checked_sound`, limited to [-1, 1]: the level that encoders are trained on, and read from files.

    Raises:
        SepsceneError: as `checked_sound`.
    """
    return checked_sound(wave_BT, device).clamp(-1.0, 1.0)


def _tensor(wave_BT: Any) -> Tensor:
    if isinstance(wave_BT, Tensor):
        return wave_BT
    array = np.asarray(wave_BT)
    if array.dtype.kind not in "fiu":
        raise SepsceneError(f"sound is an array or tensor of numbers, not a {type(wave_BT).__name__} of {array.dtype}")
    try:
        return torch.from_numpy(np.ascontiguousarray(array.astype(array.dtype.newbyteorder("="))))
    except TypeError:
        raise SepsceneError(f"sound of type {array.dtype} is not understood: pass float32 or int16") from None
