"""A random resized crop of the log-mel (as in BYOL-A, Niizumi et al. 2021, without its padding).

Shapes: X views, L frames, F mel bands, P samples of a view, U uniforms.
"""

import torch
from torch import Tensor

from sepscene.augment.augmentations.augmentation import Augmentation
from sepscene.augment.augmentations.settings import CropResizeSettings
from sepscene.augment.augmentations.specaugment import frames_at


class CropResize(Augmentation):
    """Stretches a random part of the frames and of the bands to the size of the patch."""

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
    return frames_at(logmel_XLF, (start_X1 + frame_1L * share_X1).clamp(0, last))
