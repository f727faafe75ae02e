"""Augmentations of waveforms by levels: gain, and the rest of the clip mixed back into a separated channel.

Shapes: X views, P samples of a view.
"""

from torch import Tensor

from sepscene.augment.augmentations.augmentation import Augmentation
from sepscene.augment.augmentations.settings import GainSettings, MixBackSettings


class Gain(Augmentation):
    """Each view louder or softer, by at most `db` decibels. Nothing is clipped: samples may pass full scale."""

    Config = GainSettings
    needs = GainSettings.needs

    def __call__(self, sound: Tensor, uniforms_XU: Tensor, mixture_XP: Tensor | None) -> Tensor:
        """Uniform: the gain, from softest to loudest."""
        return sound * 10 ** ((2 * uniforms_XU - 1) * self.config.db / 20)


class MixBack(Augmentation):
    """channel + w (mixture - channel): all that the separator took away leaks back at the level w.

    The mixture is that of the row's own clip, at the very place of the view. It comes with the row, so the result does
    not depend on which rows share a batch or a worker, which it would with another clip of the batch. A view that is
    the mixture itself stays as it is.
    """

    Config = MixBackSettings
    needs = MixBackSettings.needs

    def __call__(self, sound: Tensor, uniforms_XU: Tensor, mixture_XP: Tensor | None) -> Tensor:
        """Uniform: the level, from lowest to highest."""
        if mixture_XP is None:
            raise ValueError("mix-back needs the mixture at the place of each view")
        low = self.config.lowest_db
        high = self.config.highest_db
        leak_XP = 10 ** ((low + (high - low) * uniforms_XU) / 20) * (mixture_XP - sound)
        return (sound + leak_XP).where(mixture_XP.any(dim=1, keepdim=True), sound)
