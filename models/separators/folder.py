"""The separator folder: how a checkpoint of any separator is kept, verified and named.

A folder holds `config.json` (architecture, its sizes, metadata, checksum) and one file of weights:
`model.safetensors` for networks that we can build, `program.pt` or `program.pt2` for imported programs.
It is written beside its place and renamed into it, so a folder is whole or absent, whatever dies meanwhile.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import uuid
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import nn

from sepscene.models.checkpoints import check_finite, load_weights, replace_folder
from sepscene.models.config import CheckpointError
from sepscene.models.separators.card import CONFIG_FILE, WEIGHTS_FILE, Architecture, SeparatorCard, read_card
from sepscene.models.separators.foreign import ConvTasNetConfig, ConvTasNetSeparator
from sepscene.models.separators.programs import ProgramConfig, ProgramSeparator
from sepscene.models.separators.tdcnpp import TDCNpp
from sepscene.models.settings import TDCNppConfig

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
    target = Path(directory)
    if target.exists() and any(target.iterdir()) and not (target / CONFIG_FILE).is_file():
        raise CheckpointError(f"{target} is not empty and holds no separator: choose another folder")
    if not isinstance(separator, Separator):
        raise CheckpointError(
            f"a {type(separator).__name__} can't be saved as a separator: export it with torch.export or "
            "torch.jit and import the program with `sepscene separator import`"
        )
    check_finite(separator, target)
    target.parent.mkdir(parents=True, exist_ok=True)
    fresh = target.parent / f".{target.name}-{uuid.uuid4().hex}"
    fresh.mkdir()
    try:
        card = _write_weights(separator, fresh, metadata)
        (fresh / CONFIG_FILE).write_text(json.dumps(card.model_dump(), indent=2, sort_keys=True) + "\n")
        replace_folder(fresh, target)
    except BaseException:
        shutil.rmtree(fresh, ignore_errors=True)
        raise
    return card.digest


def load_separator(directory: str | Path) -> nn.Module:
    """Read a separator folder into a module in evaluation mode that maps wave_BT to separated_BST.

    The module has `sample_rate` (hertz) and `sources`.

    Raises:
        CheckpointError: a file is missing, truncated or altered, the architecture is unknown, or the weights
            don't fit it or aren't finite. The message names the file.
    """
    directory = Path(directory)
    card = read_card(directory)
    weights = directory / card.weights
    if not weights.is_file():
        raise CheckpointError(f"{weights} is missing: copy the separator folder again, with all of its files")
    with weights.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != card.sha256:
        raise CheckpointError(
            f"{weights} is damaged: its SHA-256 is {found}, {CONFIG_FILE} says {card.sha256}; copy it again"
        )
    try:
        separator = _build(card, weights)
    except ValidationError as error:
        raise CheckpointError(f"{directory / CONFIG_FILE} has a wrong {card.architecture} config: {error}") from error
    check_finite(separator, weights)
    return separator.eval()


def _build(card: SeparatorCard, weights: Path) -> nn.Module:
    if card.architecture == "program":
        return ProgramSeparator.load(weights, ProgramConfig(**card.config))
    try:
        tensors = load_file(weights)
    except SafetensorError as error:
        raise CheckpointError(f"{weights} is not a safetensors file ({error}); copy it again") from error
    with torch.random.fork_rng(devices=[]):  # the weights drawn while building are thrown away
        separator: nn.Module
        if card.architecture == "tdcnpp":
            separator = TDCNpp(TDCNppConfig(**card.config))
        else:
            separator = ConvTasNetSeparator(ConvTasNetConfig(**card.config))
    load_weights(separator, tensors, weights)
    return separator


def _write_weights(separator: Separator, directory: Path, metadata: dict[str, Any]) -> SeparatorCard:
    architecture: Architecture
    if isinstance(separator, ProgramSeparator):
        architecture, path = "program", directory / separator.config.file_name
        path.write_bytes(separator.content)
    else:
        architecture = "tdcnpp" if isinstance(separator, TDCNpp) else "conv_tasnet"
        path = directory / WEIGHTS_FILE
        tensors = {name: value.detach().cpu().contiguous() for name, value in separator.state_dict().items()}
        path.write_bytes(save(tensors))
    return SeparatorCard(
        architecture=architecture,
        config=separator.config.model_dump(),
        metadata=metadata,
        weights=path.name,
        sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
    )
