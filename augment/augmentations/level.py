"""Augmentations of waveforms that change levels: gain, and mixing the rest of the clip back into a channel.

Shapes: X views, P samples of a view, U uniforms.
"""

from torch import Tensor

from sepscene.augment.augmentations.augmentation import Augmentation
from sepscene.augment.augmentations.settings import GainSettings, MixBackSettings


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
