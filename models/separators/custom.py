"""Separators of a user's own, by import path: any callable under the contract of every separator.

Before a run uses one, it is written as a folder of weights like any other (`keep`): its card names the code, its
weights are those that it had. Everything behind, from the store to the report, sees a folder.

Shapes: B clips, S channels, T samples.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from sepscene.models.card import CARD_FILE, WEIGHTS_FILE, WeightsCard, read_card, validated
from sepscene.models.config import CheckpointError, SepsceneError
from sepscene.models.custom import CustomCode, identity, make, tried
from sepscene.models.weights import check_finite, load_weights, packed, sealed, write_folder

ARCHITECTURE = "own-separator"


class SeparatorCallable(Protocol):
    """A processor: a torch module, an object that can be called, or a function with these attributes.

    It must give a clip the same channels in any batch and at any time: it draws no random numbers. The channels need
    not sum to the mixture. A torch module is moved to the separation actor's device, and its weights are kept with the
    run; anything else gets its sound there and may answer from anywhere.

    Attributes:
        sample_rate: hertz of the sound that it works on; `audio.sample_rate` must be the same.
        sources: number of channels S that it gives.
    """

    sample_rate: int
    sources: int

    def __call__(self, wave_BT: Tensor) -> Tensor:
        """Clips (B, T), float32 of full scale 1, to separated_BST, float32 of full scale 1."""


class CustomSeparator(nn.Module):
    """A `SeparatorCallable` behind the contract of every separator of the project."""

    def __init__(self, choice: CustomCode) -> None:
        """Raises: SepsceneError: as `custom.make`, or it does not say its sample rate and its sources."""
        super().__init__()
        self.choice = choice
        self.called = make(choice, "separator")
        for name in ("sample_rate", "sources"):
            value = getattr(self.called, name, None)
            if not isinstance(value, int) or value < 1:
                raise SepsceneError(f"the separator {choice.use} needs an attribute {name}, a whole number from 1")
        self.sample_rate = int(self.called.sample_rate)
        self.sources = int(self.called.sources)
        self.eval()

    def forward(self, wave_BT: Tensor) -> Tensor:
        """Separate clips (B, T) into channels (B, S, T).

        Raises:
            SepsceneError: it gave something else.
        """
        separated_BST = self.called(wave_BT)
        wanted = (len(wave_BT), self.sources, wave_BT.shape[1])
        if not isinstance(separated_BST, Tensor) or tuple(separated_BST.shape) != wanted:
            shape = f" of {tuple(separated_BST.shape)}" if hasattr(separated_BST, "shape") else ""
            raise SepsceneError(
                f"the separator {self.choice.use} gives a {type(separated_BST).__name__}{shape}, not a tensor of "
                f"{wanted}: (B, S, T)"
            )
        return separated_BST.to(wave_BT.device, torch.float32)

    @property
    def config(self) -> dict[str, Any]:
        """What its card says; with the weights it is all that the separator's digest depends on."""
        return {**identity(self.choice), "sample_rate": self.sample_rate, "sources": self.sources}


def try_separator(separator: CustomSeparator, samples: int) -> None:
    """Separate two clips of noise of this many samples, before a run is built on it.

    Raises:
        SepsceneError: it fails, gives NaN or infinite samples, or a clip's channels depend on chance or on the batch.
    """
    noise = torch.Generator().manual_seed(0)
    wave_BT, other_BT = (0.1 * torch.randn(2, samples, generator=noise) for _ in range(2))
    said = f"the separator {separator.choice.use}"
    with tried(said, f"clips of {tuple(wave_BT.shape)}"), torch.inference_mode():
        first, again, beside = (
            separator(clips_BT)[0] for clips_BT in (wave_BT, wave_BT, torch.stack((wave_BT[0], other_BT[0])))
        )
    if not first.isfinite().all():
        raise SepsceneError(f"{said} gives NaN or infinite samples for noise of moderate level")
    if not torch.equal(first, again):
        raise SepsceneError(
            f"{said} gives the same clip other channels each time: it must draw no random numbers, or a clip that is "
            "separated again has other views"
        )
    if not torch.allclose(first, beside, rtol=0, atol=1e-4):
        raise SepsceneError(f"{said} gives a clip other channels beside another clip: treat each alone")


def keep(choice: CustomCode, directory: Path) -> WeightsCard:
    """Write a custom separator as a folder of weights, from which `load_separator` makes it again.

    Raises:
        SepsceneError: as `CustomSeparator`; or the folder holds it already, made by other code or with other weights.
    """
    separator = CustomSeparator(choice)
    check_finite(separator, directory)
    content = {"architecture": ARCHITECTURE, "config": separator.config}
    if (directory / WEIGHTS_FILE).exists():
        before = read_card(directory)
        now = sealed(content, packed(separator))
        if before.digest != now.digest:
            raise CheckpointError(
                f"{directory} was made with {_version(before.config)}; here is {_version(now.config)}, or its weights "
                "are others: install what it was made with, or begin another run"
            )
        return before
    return write_folder(directory, content, packed(separator))


def card_of(place: str | CustomCode) -> WeightsCard:
    """The card of a separator: of its folder, or the one that a custom separator would have.

    Raises:
        SepsceneError: as `read_card` or `CustomSeparator`.
    """
    if not isinstance(place, CustomCode):
        return read_card(place)
    separator = CustomSeparator(place)
    return sealed({"architecture": ARCHITECTURE, "config": separator.config}, packed(separator))


def kept_checkpoints(checkpoints: Mapping[str, str | CustomCode], folder: Path) -> dict[str, str]:
    """Processor name -> folder; custom separators are written into `folder` where they are not there yet.

    Raises:
        SepsceneError: as `keep`.
    """
    kept = {}
    for name, place in checkpoints.items():
        if isinstance(place, CustomCode):
            keep(place, folder / name)
        kept[name] = str(folder / name) if isinstance(place, CustomCode) else place
    return kept


def read_custom(card: WeightsCard, weights: dict[str, Tensor], origin: Path) -> CustomSeparator:
    """The custom separator of a folder, with the weights that were kept.

    Raises:
        SepsceneError: its code is not trusted, cannot be imported here, is of another version, or the weights don't
            fit.
    """
    use = str(card.config.get("use", ""))
    options = card.config.get("options", {})
    if not isinstance(options, dict):
        raise CheckpointError(f"{origin.parent} is damaged: the options of its separator are no fields; copy it again")
    said = f"{origin.with_name(CARD_FILE)} has a wrong {card.architecture} config"
    separator = CustomSeparator(validated(CustomCode, {**options, "use": use}, said, CheckpointError))
    if separator.config != card.config:
        raise CheckpointError(
            f"{origin.parent} was made with {_version(card.config)}; here is {_version(separator.config)}: install "
            "what it was made with, or take it into the experiment again as "
            f"{{use: {use!r}}}"
        )
    load_weights(separator, weights, origin)
    return separator


def _version(config: Mapping[str, Any]) -> str:
    return f"{config.get('use')} {config.get('version')} (file {str(config.get('sha256'))[:12]})"
