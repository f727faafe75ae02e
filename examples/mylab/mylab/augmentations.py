"""An augmentation: tilts the spectrum, as a different microphone would."""

import torch
from pydantic import BaseModel, Field
from torch import Tensor

from sepscene.augment.augmentations.augmentation import Augmentation
from sepscene.augment.augmentations.settings import Needs


class TiltConfig(BaseModel):
    """Settings of the augmentation, in addition to its probability and curriculum."""

    strongest: float = Field(0.5, gt=0, description="largest change at the outermost bands, in log-mel units")


class Tilt(Augmentation):
    """Adds a straight line over the mel bands; its slope is drawn for each view."""

    Config = TiltConfig
    needs = Needs("log-mel", uniforms=1)

    def __call__(self, sound: Tensor, uniforms_XU: Tensor, mixture_XP: Tensor | None) -> Tensor:
        """(X, L, F) to the same shape."""
        slope_X11 = self.config.strongest * (2 * uniforms_XU[:, :, None] - 1)
        return sound + slope_X11 * torch.linspace(-1, 1, sound.shape[2], device=sound.device)
