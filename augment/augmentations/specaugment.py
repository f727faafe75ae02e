"""SpecAugment from given uniforms: time masks, frequency masks and a mild time warp (Park et al. 2019).

The uniforms come from the draws of the row, so the masks of a row do not depend on the batch, worker or device.

Shapes: X views, L frames, F mel bands, U = 10 uniforms, K masks, N positions.
"""

import torch
from torch import Tensor

from sepscene.augment.augmentations.augmentation import Augmentation
from sepscene.augment.augmentations.settings import SpecAugment


class SpecAugmentation(Augmentation):
    """A time warp, then masks. Masked cells are set to the mean of the view's patch before the warp."""

    Config = SpecAugment
    needs = SpecAugment.needs

    def __call__(self, sound: Tensor, uniforms_XU: Tensor, mixture_XP: Tensor | None) -> Tensor:
        """Uniforms: (width, position) of two time masks and two frequency masks, then (centre, shift) of the warp."""
        _, frames, bands = sound.shape
        width_place = uniforms_XU[:, :8].reshape(-1, 4, 2)
        warped_XLF = _warp(sound, uniforms_XU[:, 8], uniforms_XU[:, 9], self.config.warp_frames)
        time_XL = _mask(width_place[:, :2], self.config.time_mask_frames, frames)
        band_XF = _mask(width_place[:, 2:], self.config.frequency_mask_bands, bands)
        masked_XLF = time_XL[:, :, None] | band_XF[:, None, :]
        mean_X11 = sound.mean(dim=(1, 2), keepdim=True)
        return torch.where(masked_XLF, mean_X11, warped_XLF)


def _mask(width_place_XK2: Tensor, max_width: int, length: int) -> Tensor:
    """Boolean (X, length), true inside any of K masks, each 0 … `max_width` cells wide, at any position."""
    max_width = min(max_width, length)
    width_XK = torch.floor(width_place_XK2[..., 0] * (max_width + 1))
    start_XK = torch.floor(width_place_XK2[..., 1] * (length - width_XK + 1))
    cell = torch.arange(length, device=width_place_XK2.device)
    inside = (cell >= start_XK[..., None]) & (cell < (start_XK + width_XK)[..., None])
    return inside.any(dim=1)


def _warp(logmel_XLF: Tensor, centre_X: Tensor, shift_X: Tensor, max_shift: int) -> Tensor:
    """Shift a random frame by up to `max_shift` frames; both sides are stretched linearly, the ends stay fixed."""
    frames = logmel_XLF.shape[1]
    if max_shift == 0 or frames < 2 * max_shift + 3:
        return logmel_XLF
    # The centre keeps a distance from both ends, so that neither side becomes empty.
    centre_X1 = (max_shift + 1 + centre_X * (frames - 2 * max_shift - 3))[:, None]
    target_X1 = centre_X1 + ((2 * shift_X - 1) * max_shift)[:, None]
    last = frames - 1
    frame_1L = torch.arange(frames, device=logmel_XLF.device, dtype=logmel_XLF.dtype)[None, :]
    left = frame_1L * (centre_X1 / target_X1)
    right = last - (last - frame_1L) * ((last - centre_X1) / (last - target_X1))
    source_XL = torch.where(frame_1L < target_X1, left, right).clamp(0, last)
    return frames_at(logmel_XLF, source_XL)


def frames_at(logmel_XLF: Tensor, place_XN: Tensor) -> Tensor:
    """Log-mels at fractional frame positions by linear interpolation, (X, N, F).

    Args:
        logmel_XLF: log-mels with at least two frames.
        place_XN: positions in [0, L - 1], in frames.
    """
    low_XN = place_XN.floor().long().clamp(max=logmel_XLF.shape[1] - 2)
    part_XN1 = (place_XN - low_XN)[..., None]
    bands = logmel_XLF.shape[2]
    below = logmel_XLF.gather(1, low_XN[..., None].expand(-1, -1, bands))
    above = logmel_XLF.gather(1, (low_XN + 1)[..., None].expand(-1, -1, bands))
    return torch.lerp(below, above, part_XN1)
