"""SpecAugment from given uniforms: time masks, frequency masks and a mild time warp (Park et al. 2019).

The uniforms come from the row's draws, so a row's masks are the same whatever batch, worker or device computes them.

Shapes: B patches, L frames, F mel bands, U = 10 uniforms, N places between frames.
"""

import torch
from torch import Tensor

from sepscene.augment.augmentations.augmentation import Augmentation
from sepscene.augment.augmentations.settings import SpecAugment


class SpecAugmentation(Augmentation):
    """SpecAugment as an augmentation."""

    Config = SpecAugment
    needs = SpecAugment.needs

    def __call__(self, sound: Tensor, uniforms_XU: Tensor, mixture_XP: Tensor | None) -> Tensor:
        """See `specaugment`."""
        return specaugment(sound, uniforms_XU, self.config)


def specaugment(logmel_BLF: Tensor, uniforms_BU: Tensor, settings: SpecAugment | None = None) -> Tensor:
    """Warp in time, then mask; masked cells get the mean of the example's own patch.

    Args:
        logmel_BLF: log-mel patches.
        uniforms_BU: uniforms in [0, 1), ten for each patch: (width, place) of two time masks and two frequency masks,
            then (centre, shift) of the warp.
        settings: sizes of masks and warp.

    Returns:
        A new tensor like `logmel_BLF`. Example b depends on row b of the inputs alone.
    """
    settings = settings or SpecAugment()
    _, frames, bands = logmel_BLF.shape
    width_place = uniforms_BU[:, :8].reshape(-1, 4, 2)
    warped_BLF = _warp(logmel_BLF, uniforms_BU[:, 8], uniforms_BU[:, 9], settings.warp_frames)
    time_BL = _mask(width_place[:, :2], settings.time_mask_frames, frames)
    band_BF = _mask(width_place[:, 2:], settings.frequency_mask_bands, bands)
    masked_BLF = time_BL[:, :, None] | band_BF[:, None, :]
    mean_B11 = logmel_BLF.mean(dim=(1, 2), keepdim=True)
    return torch.where(masked_BLF, mean_B11, warped_BLF)


def _mask(width_place_BK2: Tensor, widest: int, length: int) -> Tensor:
    """Boolean (B, length): true inside any of K masks, each 0 … `widest` cells wide and anywhere inside."""
    widest = min(widest, length)
    width_BK = torch.floor(width_place_BK2[..., 0] * (widest + 1))
    start_BK = torch.floor(width_place_BK2[..., 1] * (length - width_BK + 1))
    cell = torch.arange(length, device=width_place_BK2.device)
    inside = (cell >= start_BK[..., None]) & (cell < (start_BK + width_BK)[..., None])
    return inside.any(dim=1)


def _warp(logmel_BLF: Tensor, centre_B: Tensor, shift_B: Tensor, furthest: int) -> Tensor:
    """Move a frame near the centre by up to `furthest` frames; both sides stretch linearly, the ends stay."""
    frames = logmel_BLF.shape[1]
    if furthest == 0 or frames < 2 * furthest + 3:
        return logmel_BLF
    # The centre keeps a distance from both ends, so that neither side is squeezed to nothing.
    centre_B1 = (furthest + 1 + centre_B * (frames - 2 * furthest - 3))[:, None]
    target_B1 = centre_B1 + ((2 * shift_B - 1) * furthest)[:, None]
    last = frames - 1
    frame_1L = torch.arange(frames, device=logmel_BLF.device, dtype=logmel_BLF.dtype)[None, :]
    left = frame_1L * (centre_B1 / target_B1)
    right = last - (last - frame_1L) * ((last - centre_B1) / (last - target_B1))
    source_BL = torch.where(frame_1L < target_B1, left, right).clamp(0, last)
    return frames_at(logmel_BLF, source_BL)


def frames_at(logmel_BLF: Tensor, place_BN: Tensor) -> Tensor:
    """The log-mels at places between frames, linear between the two beside: (B, N, F).

    Args:
        logmel_BLF: at least two frames.
        place_BN: in [0, L - 1], in frames.
    """
    low_BN = place_BN.floor().long().clamp(max=logmel_BLF.shape[1] - 2)
    part_BN1 = (place_BN - low_BN)[..., None]
    bands = logmel_BLF.shape[2]
    below = logmel_BLF.gather(1, low_BN[..., None].expand(-1, -1, bands))
    above = logmel_BLF.gather(1, (low_BN + 1)[..., None].expand(-1, -1, bands))
    return torch.lerp(below, above, part_BN1)
