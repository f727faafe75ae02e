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
from typing import Any, Literal

import torch
from pydantic import Field, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import nn

from models.checkpoints import CheckpointError, check_finite, load_weights, replace_folder
from models.config import Config
from models.foreign import ConvTasNetConfig, ConvTasNetSeparator
from models.programs import ProgramConfig, ProgramSeparator
from models.tdcnpp import TDCNpp, TDCNppConfig

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"

Architecture = Literal["tdcnpp", "conv_tasnet", "program"]
Separator = TDCNpp | ConvTasNetSeparator | ProgramSeparator


class SeparatorCard(Config):
    """What `config.json` of a separator folder says."""

    format: Literal[1] = 1
    architecture: Architecture
    config: dict[str, Any] = Field(description="fields of the architecture's configuration class")
    metadata: dict[str, Any] = Field(default_factory=dict, description="where the weights come from; free form")
    weights: str = Field(pattern=r"^\w[\w.]*$", description="name of the file of weights in the folder")
    sha256: str = Field(pattern="^[0-9a-f]{64}$", description="of the file of weights")

    @property
    def digest(self) -> str:
        """Names the function that the checkpoint computes: architecture, sizes and weights, not metadata."""
        content = {"architecture": self.architecture, "config": self.config, "sha256": self.sha256}
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


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


def separator_digest(directory: str | Path) -> str:
    """The digest that names what the separator in `directory` computes; reads `config.json` only.

    Raises:
        CheckpointError: `config.json` is missing or can't be understood.
    """
    return read_card(directory).digest


def read_card(directory: str | Path) -> SeparatorCard:
    """The contents of `config.json`, without a look at the weights.

    Raises:
        CheckpointError: the file is missing or can't be understood.
    """
    path = Path(directory) / CONFIG_FILE
    try:
        return SeparatorCard.model_validate_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(
            f"{path} is missing: {Path(directory)} is not a separator folder; make one with "
            "`sepscene separator import`, or take it from a run's ladder/"
        ) from error
    except (ValidationError, UnicodeDecodeError, NotADirectoryError) as error:
        raise CheckpointError(f"{path} is not the description of a separator: {error}") from error


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
