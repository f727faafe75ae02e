"""Saves separators of all kinds as folders of weights (`models.weights`), and loads them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from sepscene.models.card import CARD_FILE, read_card
from sepscene.models.config import CheckpointError, Config, validated
from sepscene.models.custom import CustomCode
from sepscene.models.separators.custom import ARCHITECTURE, CustomSeparator, read_custom
from sepscene.models.separators.foreign import ConvTasNetConfig, ConvTasNetSeparator
from sepscene.models.separators.programs import ProgramConfig, ProgramSeparator, read_program
from sepscene.models.separators.tdcnpp import TDCNpp
from sepscene.models.settings import TDCNppConfig
from sepscene.models.sound import checked_sound
from sepscene.models.weights import check_finite, read_content, read_network, read_tensors, serialised, write_folder

_NETWORKS: dict[str, tuple[type[Config], type[nn.Module]]] = {
    "tdcnpp": (TDCNppConfig, TDCNpp),
    "conv_tasnet": (ConvTasNetConfig, ConvTasNetSeparator),
}


def save_separator(separator: nn.Module, directory: str | Path, metadata: dict[str, Any]) -> str:
    """Write a separator folder and return its digest. A separator in `directory` is replaced.

    Args:
        separator: a TDCNpp, ConvTasNetSeparator or ProgramSeparator.
        directory: the folder; it is created with its parents if it does not exist.
        metadata: JSON values to store with the weights (steps, data, seed, source, …).

    Raises:
        CheckpointError: the module is of another kind, its weights aren't finite, or `directory` contains something
            else.
    """
    directory = Path(directory)
    if not isinstance(separator, TDCNpp | ConvTasNetSeparator | ProgramSeparator):
        raise CheckpointError(
            f"a {type(separator).__name__} can't be saved as a separator: export it with torch.export "
            "and import the program with `sepscene separator import`"
        )
    check_finite(separator, directory)
    card: dict[str, Any] = {"config": separator.config.model_dump(mode="json"), "metadata": metadata}
    if isinstance(separator, ProgramSeparator):
        card["architecture"] = "program"
        return write_folder(directory, card, separator.content, separator.config.file_name).digest
    card["architecture"] = "tdcnpp" if isinstance(separator, TDCNpp) else "conv_tasnet"
    return write_folder(directory, card, serialised(separator)).digest


def load_separator(directory: str | Path | CustomCode) -> nn.Module:
    """Load a separator folder, or build a custom separator: a module in evaluation mode, wave_BT to separated_BST.

    The module has `sample_rate` (hertz) and `sources`. Its input is validated by `models.sound.checked_sound`. Its
    parameters do not require gradients; call `separator.requires_grad_()` to train it further.

    Example:
        >>> separator = sepscene.load_separator("runs/demo/ladder/S2")
        >>> separated_BST = separator(torch.zeros(1, separator.sample_rate))

    Raises:
        CheckpointError: a file is missing, truncated or altered, the architecture is unknown, the weights don't fit
            it or aren't finite, or it is a program that the user doesn't trust. The message names the file.
        SepsceneError: custom code is not trusted, cannot be imported, or its version differs from the folder's.
    """
    separator = CustomSeparator(directory) if isinstance(directory, CustomCode) else _read(Path(directory))
    separator.register_forward_pre_hook(_check_input, with_kwargs=True)
    return separator.requires_grad_(False)


def _check_input(separator: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict]:
    """Validate the input of the network, `wave_BT`."""
    return (checked_sound(*args, **kwargs),), {}


def _read(directory: Path) -> nn.Module:
    card = read_card(directory)
    origin = directory / card.weights
    message = f"{directory / CARD_FILE} has a wrong {card.architecture} config"
    if card.architecture in _NETWORKS:
        settings, network = _NETWORKS[card.architecture]
        config = validated(settings, card.config, message, CheckpointError)
        return read_network(directory, card, lambda: network(config))
    if card.architecture == "program":
        program = validated(ProgramConfig, card.config, message, CheckpointError)
        content = read_content(directory, card)
        separator = ProgramSeparator(program, content, read_program(content, program.kind, origin))
        check_finite(separator, origin)
        return separator.eval()
    if card.architecture == ARCHITECTURE:
        return read_custom(card, read_tensors(directory, card), origin)
    raise CheckpointError(f"{directory} contains an encoder ({card.architecture}), not a separator")
