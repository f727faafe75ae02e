"""The built-in augmentations: gain and mix-back of waveforms, SpecAugment and a random resized crop of log-mels.

The uniforms come from the draws of the row, so the result of a row does not depend on the batch, worker or device.

Shapes: X views, P samples of a view, L frames, F mel bands, U uniforms, K masks, N positions.
"""

import torch
from torch import Tensor

from sepscene.augment.augmentations.augmentation import Augmentation
from sepscene.augment.augmentations.settings import CropResizeSettings, GainSettings, MixBackSettings, SpecAugment


class Gain(Augmentation):
    """Changes the level of each view by at most `db` decibels. Samples can exceed full scale; they are not clipped."""

    Config = GainSettings
    needs = GainSettings.needs

    def __call__(self, sound: Tensor, uniforms_XU: Tensor, mixture_XP: Tensor | None) -> Tensor:
        """Uniform: the gain, from lowest to highest."""
        return sound * 10 ** ((2 * uniforms_XU - 1) * self.config.db / 20)


class MixBack(Augmentation):
    """channel + w (mixture - channel): what the separator removed leaks back at level w.

    The mixture is that of the same clip at the same time. It is stored with the row, so that the result does not depend
    on the other rows of the batch. A view that is the mixture itself is not changed.
    """

    Config = MixBackSettings
    needs = MixBackSettings.needs

    def __call__(self, sound: Tensor, uniforms_XU: Tensor, mixture_XP: Tensor | None) -> Tensor:
        """Uniform: the level, from lowest to highest."""
        if mixture_XP is None:
            raise ValueError("mix-back needs the mixture at the time of each view")
        low = self.config.lowest_db
        high = self.config.highest_db
        leak_XP = 10 ** ((low + (high - low) * uniforms_XU) / 20) * (mixture_XP - sound)
        return (sound + leak_XP).where(mixture_XP.any(dim=1, keepdim=True), sound)


class SpecAugmentation(Augmentation):
    """A mild time warp, then masks in time and frequency (Park et al. 2019).

    Masked cells are set to the mean of the view's patch before the warp.
    """

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
    return _frames_at(logmel_XLF, source_XL)


class CropResize(Augmentation):
    """Stretches a random part of the frames and of the bands to the size of the patch.

    As in BYOL-A (Niizumi et al. 2021), without its padding.
    """

    Config = CropResizeSettings
    needs = CropResizeSettings.needs

    def __call__(self, sound: Tensor, uniforms_XU: Tensor, mixture_XP: Tensor | None) -> Tensor:
        """Uniforms: length and position in time, then width and position in frequency."""
        in_time = _stretched(sound, uniforms_XU[:, 0], uniforms_XU[:, 1], self.config.least_time)
        turned = in_time.transpose(1, 2)
        return _stretched(turned, uniforms_XU[:, 2], uniforms_XU[:, 3], self.config.least_frequency).transpose(1, 2)


def _stretched(logmel_XLF: Tensor, length_X: Tensor, place_X: Tensor, min_share: float) -> Tensor:
    """Stretch a part of the frames, at least a share `min_share`, to L frames."""
    last = logmel_XLF.shape[1] - 1
    if last < 1:
        return logmel_XLF
    share_X1 = (min_share + (1 - min_share) * length_X)[:, None]
    start_X1 = place_X[:, None] * (1 - share_X1) * last
    frame_1L = torch.arange(last + 1, device=logmel_XLF.device, dtype=logmel_XLF.dtype)[None, :]
    return _frames_at(logmel_XLF, (start_X1 + frame_1L * share_X1).clamp(0, last))


def _frames_at(logmel_XLF: Tensor, place_XN: Tensor) -> Tensor:
    """Log-mels of at least two frames at N positions in [0, L - 1] by linear interpolation, (X, N, F)."""
    low_XN = place_XN.floor().long().clamp(max=logmel_XLF.shape[1] - 2)
    part_XN1 = (place_XN - low_XN)[..., None]
    bands = logmel_XLF.shape[2]
    below = logmel_XLF.gather(1, low_XN[..., None].expand(-1, -1, bands))
    above = logmel_XLF.gather(1, (low_XN + 1)[..., None].expand(-1, -1, bands))
    return torch.lerp(below, above, part_XN1)
