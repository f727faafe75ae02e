"""Keeping separators: any of ours as a folder of weights (`models.weights`), and back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from sepscene.models.card import CARD_FILE, read_card, validated
from sepscene.models.config import CheckpointError
from sepscene.models.custom import CustomCode
from sepscene.models.separators.custom import ARCHITECTURE, CustomSeparator, read_custom
from sepscene.models.separators.foreign import ConvTasNetConfig, ConvTasNetSeparator
from sepscene.models.separators.programs import ProgramConfig, ProgramSeparator, read_program
from sepscene.models.separators.tdcnpp import TDCNpp
from sepscene.models.settings import TDCNppConfig
from sepscene.models.sound import checked_sound
from sepscene.models.weights import check_finite, packed, read_network, read_tensors, verified, write_folder

Separator = TDCNpp | ConvTasNetSeparator | ProgramSeparator


def save_separator(separator: nn.Module, directory: str | Path, metadata: dict[str, Any]) -> str:
    """Write a separator folder and return its digest. An earlier separator in `directory` is replaced.

    Args:
        separator: a TDCNpp, ConvTasNetSeparator or ProgramSeparator.
        directory: the folder to make; its parents are made too.
        metadata: JSON values to keep beside the weights (steps, data, seed, source, …).

    Raises:
        CheckpointError: for another kind of module, for weights that aren't finite, or when `directory` holds
            something that is not a separator.
    """
    directory = Path(directory)
    if not isinstance(separator, Separator):
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
    return write_folder(directory, card, packed(separator)).digest


def load_separator(directory: str | Path | CustomCode) -> nn.Module:
    """Read a separator folder, or make a custom separator: a module in evaluation mode, wave_BT to separated_BST.

    The module has `sample_rate` (hertz) and `sources`. It takes sound as `models.sound.checked_sound` describes it, and
    builds no autograd graph: `separator.requires_grad_()` lets it be trained further.

    Example:
        >>> separator = sepscene.load_separator("runs/demo/ladder/S2")
        >>> separated_BST = separator(torch.zeros(1, separator.sample_rate))

    Raises:
        CheckpointError: a file is missing, truncated or altered, the architecture is unknown, the weights don't fit
            it or aren't finite, or it is a program whose author the user doesn't trust. The message names the file.
        SepsceneError: custom code is not trusted, cannot be imported, or is of another version than made the folder.
    """
    separator = CustomSeparator(directory) if isinstance(directory, CustomCode) else _read(Path(directory))
    separator.register_forward_pre_hook(_check_input)
    return separator.requires_grad_(False)


def _check_input(separator: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """Refuse what is no sound, before the network computes with it."""
    return checked_sound(inputs[0]), *inputs[1:]


def _read(directory: Path) -> nn.Module:
    card = read_card(directory)
    origin = directory / card.weights
    said = f"{directory / CARD_FILE} has a wrong {card.architecture} config"
    if card.architecture == "tdcnpp":
        tdcnpp = validated(TDCNppConfig, card.config, said, CheckpointError)
        return read_network(directory, card, lambda: TDCNpp(tdcnpp))
    if card.architecture == "conv_tasnet":
        conv_tasnet = validated(ConvTasNetConfig, card.config, said, CheckpointError)
        return read_network(directory, card, lambda: ConvTasNetSeparator(conv_tasnet))
    if card.architecture == "program":
        program = validated(ProgramConfig, card.config, said, CheckpointError)
        content = verified(directory, card)
        separator = ProgramSeparator(program, content, read_program(content, program.kind, origin))
        check_finite(separator, origin)
        return separator.eval()
    if card.architecture == ARCHITECTURE:
        return read_custom(card, read_tensors(directory, card), origin)
    raise CheckpointError(f"{directory} holds an encoder ({card.architecture}), not a separator")
