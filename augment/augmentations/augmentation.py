"""The seam for augmentations: what one must offer, and how those of a configuration are applied to views.

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
from sepscene.models.custom import settings_for, tried
from sepscene.models.names import AUGMENTATIONS, resolve


class Augmentation:
    """A random change of views; one of your own derives from this and says what it needs and does.

    Attributes:
        Config: of the class, a pydantic model of the settings with which it is built as `Class(config)`.
        needs: of the class, on what it works and how many uniforms it draws for each view.
    """

    Config: ClassVar[type[BaseModel]]
    needs: ClassVar[Needs]

    def __init__(self, config: Any) -> None:
        self.config = config

    def __call__(self, sound: Tensor, uniforms_XU: Tensor, mixture_XP: Tensor | None) -> Tensor:
        """Changed views, of the same shape.

        View x must depend on row x of the inputs alone, and all that is random must come from its uniforms: so the
        result is the same for any number of workers, and after a restart.

        Args:
            sound: waveforms (X, P) of full scale 1, or log-mels (X, L, F).
            uniforms_XU: in [0, 1), float32.
            mixture_XP: where `needs.mixture` asks for it, the mixture of the clip at the place of each view; silence
                where the view is that mixture itself.
        """
        raise NotImplementedError


def build_augmentation(name: str, choice: AugmentationChoice) -> Augmentation:
    """An augmentation from its settings.

    Raises:
        SepsceneError: custom code cannot be imported, is no augmentation, has no `Config`, or refuses its settings.
    """
    found = resolve(choice.use, AUGMENTATIONS, "augmentation")
    if not (isinstance(found, type) and issubclass(found, Augmentation)):
        raise SepsceneError(
            f"augmentations.{name}: {choice.use} is not a class of augment.augmentations.augmentation.Augmentation"
        )
    _ = choice.needs
    return found(settings_for(found, choice, f"augmentations.{name} ({choice.use})"))


class Augmenter:
    """The augmentations of a run: those on waveforms, then those on log-mels, each kind in the order given."""

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
            kind: of `sound`.
            sound: both views of B rows, (B, 2, P) or (B, 2, L, F).
            columns: of the rows' draws (`augment.draws`), `NAME_u` and, unless its probability is 1, `NAME_on`.
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


def try_augmentation(name: str, choice: AugmentationChoice, shape: tuple[int, ...]) -> None:
    """Try a custom augmentation on three random views, before a run is built on it.

    Args:
        name: in the configuration, for messages.
        choice: its settings.
        shape: of one view, (P,) or (L, F).

    Raises:
        SepsceneError: as `build_augmentation`; or it fails, gives something else than finite numbers of the same
            shape, draws random numbers of its own, or lets a view depend on another one.
    """
    augmentation = build_augmentation(name, choice)
    said = f"augmentations.{name} ({choice.use})"
    with tried(said, f"views of {shape}"), torch.random.fork_rng(devices=[]), torch.no_grad():
        sound = 0.1 * torch.randn(3, *shape)
        uniforms_XU = torch.rand(3, choice.needs.uniforms)
        mixture_XP = 0.1 * torch.randn(3, *shape) if choice.needs.mixture else None
        whole, again = (augmentation(sound.clone(), uniforms_XU, mixture_XP) for _ in range(2))
        alone = augmentation(sound[1:2], uniforms_XU[1:2], None if mixture_XP is None else mixture_XP[1:2])
    if not isinstance(whole, Tensor) or whole.shape != sound.shape or not whole.isfinite().all():
        raise SepsceneError(f"{said} does not give finite numbers of the shape of its views, {tuple(sound.shape)}")
    if not torch.equal(whole, again):
        raise SepsceneError(f"{said} draws random numbers of its own: use its uniforms, and declare enough of them")
    if not torch.allclose(whole[1:2], alone, rtol=1e-4, atol=1e-5):
        raise SepsceneError(f"{said} gives a view another result beside other views: it must look at each one alone")
