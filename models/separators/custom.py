"""Custom separators, by import path: any callable with the interface of a separator.

Before a run uses one, it is saved as a folder of weights, as any other separator (`save_custom`). The card names its
code. The rest of the package, from the store to the report, uses only this folder.

Shapes: B clips, S channels, T samples.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from sepscene.models.card import CARD_FILE, WEIGHTS_FILE, WeightsCard, read_card
from sepscene.models.config import CheckpointError, SepsceneError, validated
from sepscene.models.custom import CustomCode, identity, instantiate, reporting_errors
from sepscene.models.weights import check_finite, complete_card, load_weights, serialised, write_folder

ARCHITECTURE = "own-separator"


class SeparatorCallable(Protocol):
    """A processor: a torch module, a callable object or a function, with these attributes.

    The channels of a clip must not depend on the other clips of the batch or on random numbers. They need not sum to
    the mixture. A torch module is moved to the separation actor's device, and its weights are stored with the run. Any
    other callable gets its input on that device and can return its output on any device.

    Attributes:
        sample_rate: hertz; `audio.sample_rate` must be the same.
        sources: number of channels S.
    """

    sample_rate: int
    sources: int

    def __call__(self, wave_BT: Tensor) -> Tensor:
        """Clips (B, T), float32 of full scale 1, to separated_BST, float32 of full scale 1."""


class CustomSeparator(nn.Module):
    """A `SeparatorCallable` as a module with the interface of all separators."""

    def __init__(self, choice: CustomCode) -> None:
        """Build the custom code.

        Raises:
            SepsceneError: see `models.custom.instantiate`; or an attribute is missing.
        """
        super().__init__()
        self.choice = choice
        self.called = instantiate(choice, "separator")
        for name in ("sample_rate", "sources"):
            value = getattr(self.called, name, None)
            if not isinstance(value, int) or value < 1:
                raise SepsceneError(f"the separator {choice.use} needs an attribute {name}, an int of at least 1")
        self.sample_rate = int(self.called.sample_rate)
        self.sources = int(self.called.sources)
        self.eval()

    def forward(self, wave_BT: Tensor) -> Tensor:
        """Separate clips (B, T) into channels (B, S, T).

        Raises:
            SepsceneError: the custom code returned anything but a tensor of this shape.
        """
        separated_BST = self.called(wave_BT)
        expected = (len(wave_BT), self.sources, wave_BT.shape[1])
        if not isinstance(separated_BST, Tensor) or tuple(separated_BST.shape) != expected:
            shape = f" of shape {tuple(separated_BST.shape)}" if hasattr(separated_BST, "shape") else ""
            raise SepsceneError(
                f"the separator {self.choice.use} returns a {type(separated_BST).__name__}{shape}, not a tensor of "
                f"shape {expected}: (B, S, T)"
            )
        return separated_BST.to(wave_BT.device, torch.float32)

    @property
    def config(self) -> dict[str, Any]:
        """The configuration in its card. The separator's digest depends on it and on the weights."""
        return {**identity(self.choice), "sample_rate": self.sample_rate, "sources": self.sources}


def check_separator(separator: CustomSeparator, samples: int) -> None:
    """Check a separator on clips of noise with this many samples, before a run uses it.

    Raises:
        SepsceneError: it fails, returns NaN or infinite samples, or the channels of a clip differ from call to call or
            depend on the other clips of the batch.
    """
    noise = torch.Generator().manual_seed(0)
    wave_BT = 0.1 * torch.randn(2, samples, generator=noise)
    other_BT = wave_BT.clone()
    other_BT[1] = 0.1 * torch.randn(samples, generator=noise)
    part = f"the separator {separator.choice.use}"
    with reporting_errors(part, f"clips of shape {tuple(wave_BT.shape)}"), torch.inference_mode():
        first_ST = separator(wave_BT)[0]
        again_ST = separator(wave_BT)[0]
        in_other_batch_ST = separator(other_BT)[0]
    if not first_ST.isfinite().all():
        raise SepsceneError(
            f"{part} returns NaN or infinite samples for noise of moderate level: check its weights and its arithmetic"
        )
    if not torch.equal(first_ST, again_ST):
        raise SepsceneError(
            f"{part} returns different channels for the same clip: it must draw no random numbers, so that a clip that "
            "is separated again has the same views"
        )
    if not torch.allclose(first_ST, in_other_batch_ST, rtol=0, atol=1e-4):
        raise SepsceneError(f"{part} returns channels that depend on the other clips of a batch: it must not mix clips")


def save_custom(choice: CustomCode, directory: Path) -> WeightsCard:
    """Save a custom separator as a folder of weights, which `load_separator` reads.

    Raises:
        SepsceneError: see `CustomSeparator`; or the folder exists and was saved with other code or other weights.
    """
    fields, content = _content(choice, directory)
    if not (directory / WEIGHTS_FILE).exists():
        return write_folder(directory, fields, content)
    saved = read_card(directory)
    if saved.digest != complete_card(fields, content).digest:
        raise CheckpointError(
            f"{directory} was saved with {_version(saved.config)}, but {_version(fields['config'])} is installed, or "
            "its weights differ: install the version it was saved with, or start another run"
        )
    return saved


def card_of(place: str | CustomCode) -> WeightsCard:
    """The card of a separator: that of its folder, or the one with which a custom separator would be saved.

    Raises:
        SepsceneError: see `read_card` or `CustomSeparator`; or a weight is NaN or infinite.
    """
    return complete_card(*_content(place, Path(place.use))) if isinstance(place, CustomCode) else read_card(place)


def _content(choice: CustomCode, origin: Path) -> tuple[dict[str, Any], bytes]:
    """The card's fields and the weights of a custom separator; `origin` is named in messages."""
    separator = CustomSeparator(choice)
    check_finite(separator, origin)
    return {"architecture": ARCHITECTURE, "config": separator.config}, serialised(separator)


def checkpoint_folders(checkpoints: Mapping[str, str | CustomCode], folder: Path) -> dict[str, str]:
    """Processor name -> folder. Custom separators are saved in `folder` unless they have been saved already.

    Raises:
        SepsceneError: see `save_custom`.
    """
    for name, place in checkpoints.items():
        if isinstance(place, CustomCode):
            save_custom(place, folder / name)
    return {name: place if isinstance(place, str) else str(folder / name) for name, place in checkpoints.items()}


def read_custom(card: WeightsCard, weights: dict[str, Tensor], origin: Path) -> CustomSeparator:
    """The custom separator of a folder, with the saved weights.

    Raises:
        SepsceneError: its code is not trusted, cannot be imported on this machine, is of another version, or the
            weights don't fit.
    """
    use = str(card.config.get("use", ""))
    options = card.config.get("options", {})
    if not isinstance(options, dict):
        raise CheckpointError(
            f"{origin.parent} is damaged: the options of its separator are not a mapping; copy it again"
        )
    message = f"{origin.with_name(CARD_FILE)} has a wrong {card.architecture} config"
    separator = CustomSeparator(validated(CustomCode, {**options, "use": use}, message, CheckpointError))
    if separator.config != card.config:
        raise CheckpointError(
            f"{origin.parent} was saved with {_version(card.config)}, but {_version(separator.config)} is installed: "
            f"install the version it was saved with, or add it to the experiment again as {{use: {use!r}}}"
        )
    load_weights(separator, weights, origin)
    return separator


def _version(config: Mapping[str, Any]) -> str:
    return f"{config.get('use')} {config.get('version')} (file {str(config.get('sha256'))[:12]})"
