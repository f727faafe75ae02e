"""The interface of augmentations, and their application to the views of a batch.

Shapes: B rows, X = 2 B views, P samples of a view, L frames, F mel bands, U uniforms of one augmentation.
"""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import BaseModel
from torch import Tensor

from sepscene.augment.augmentations.settings import AugmentationChoice, Needs
from sepscene.models.config import SepsceneError
from sepscene.models.custom import reporting_errors, settings_for
from sepscene.models.names import AUGMENTATIONS, resolve


class Augmentation:
    """Base class of augmentations. A custom one sets both class attributes and implements `__call__`.

    Attributes:
        Config: pydantic model of the settings; an instance is built as `Class(config)`.
        needs: the kind of sound that it changes, and its number of uniforms per view.
    """

    Config: ClassVar[type[BaseModel]]
    needs: ClassVar[Needs]

    def __init__(self, config: Any) -> None:
        self.config = config

    def __call__(self, sound: Tensor, uniforms_XU: Tensor, mixture_XP: Tensor | None) -> Tensor:
        """Return augmented views of the same shape.

        View x must depend only on row x of the inputs, and all randomness must come from its uniforms. Then the result
        is the same for any number of workers, and after a restart.

        Args:
            sound: waveforms (X, P) of full scale 1, or log-mels (X, L, F).
            uniforms_XU: float32 in [0, 1).
            mixture_XP: with `needs.mixture`, the mixture of the clip at the same time as each view; silence if the view
                is the mixture itself.
        """
        raise NotImplementedError


def build_augmentation(name: str, choice: AugmentationChoice) -> Augmentation:
    """Build an augmentation from its settings.

    Raises:
        SepsceneError: custom code cannot be imported, is not an augmentation, has no `Config`, or rejects its settings.
    """
    found = resolve(choice.use, AUGMENTATIONS, "augmentation")
    if not (isinstance(found, type) and issubclass(found, Augmentation)):
        raise SepsceneError(
            f"augmentations.{name}: {choice.use} is not a subclass of augment.augmentations.augmentation.Augmentation"
        )
    _ = choice.needs  # raises if they are missing or invalid
    return found(settings_for(found, choice, f"augmentations.{name} ({choice.use})"))


class Augmenter:
    """The augmentations of a run, applied in the given order: first to waveforms, then to log-mels."""

    def __init__(self, chosen: Mapping[str, AugmentationChoice]) -> None:
        """Raises: SepsceneError: as `build_augmentation`."""
        self.augmentations = {name: build_augmentation(name, choice) for name, choice in chosen.items()}

    def __call__(
        self,
        kind: Literal["waveform", "log-mel"],
        sound: Tensor,
        columns: Mapping[str, np.ndarray],
        mixture_B2P: Tensor | None = None,
    ) -> Tensor:
        """Apply the augmentations of one kind.

        Args:
            kind: the kind of `sound`.
            sound: both views of B rows, (B, 2, P) or (B, 2, L, F).
            columns: the draws of the rows (`augment.draws`): `NAME_u` and, unless the probability is 1, `NAME_on`.
            mixture_B2P: see `Augmentation`.
        """
        mixture_XP = None if mixture_B2P is None else mixture_B2P.flatten(0, 1)
        changed = sound.flatten(0, 1)
        for name, augmentation in self.augmentations.items():
            if augmentation.needs.sound != kind:
                continue
            shape = (len(changed), augmentation.needs.uniforms)
            uniforms_XU = torch.from_numpy(columns[f"{name}_u"]).to(sound.device).reshape(shape)
            before = changed
            changed = augmentation(changed, uniforms_XU, mixture_XP)
            if f"{name}_on" in columns:
                on_X = torch.from_numpy(columns[f"{name}_on"]).to(sound.device).reshape(len(before))
                changed = torch.where(on_X.reshape(-1, *[1] * (before.ndim - 1)), changed, before)
        return changed.unflatten(0, sound.shape[:2])


def check_augmentation(name: str, choice: AugmentationChoice, shape: tuple[int, ...]) -> None:
    """Test a custom augmentation on three random views before a run uses it.

    Args:
        name: name in the configuration, for error messages.
        choice: settings of the augmentation.
        shape: shape of one view, (P,) or (L, F).

    Raises:
        SepsceneError: as `build_augmentation`; or it fails, does not return finite numbers of the same shape, draws its
            own random numbers, or makes a view depend on other views.
    """
    augmentation = build_augmentation(name, choice)
    label = f"augmentations.{name} ({choice.use})"
    with reporting_errors(label, f"views of {shape}"), torch.random.fork_rng(devices=[]), torch.no_grad():
        sound = 0.1 * torch.randn(3, *shape)
        uniforms_XU = torch.rand(3, choice.needs.uniforms)
        mixture_XP = 0.1 * torch.randn(3, *shape) if choice.needs.mixture else None
        whole = augmentation(sound.clone(), uniforms_XU, mixture_XP)
        again = augmentation(sound.clone(), uniforms_XU, mixture_XP)
        alone = augmentation(sound[1:2], uniforms_XU[1:2], None if mixture_XP is None else mixture_XP[1:2])
    if not isinstance(whole, Tensor) or whole.shape != sound.shape or not whole.isfinite().all():
        raise SepsceneError(f"{label} must return finite numbers of the shape of its input, {tuple(sound.shape)}")
    if not torch.equal(whole, again):
        raise SepsceneError(f"{label} draws its own random numbers: use its uniforms, and declare enough of them")
    if not torch.allclose(whole[1:2], alone, rtol=1e-4, atol=1e-5):
        raise SepsceneError(f"{label} makes a view depend on other views: it must process each view independently")
