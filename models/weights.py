"""Folders of weights: how the networks of separators and encoders are kept, verified and read back.

A folder holds its card (`models.card`) and one file of weights: `model.safetensors` for networks that we can build,
`program.pt` or `program.pt2` for imported programs; an encoder's also a README. It is written beside its place and
renamed into it, so it is whole or absent, whatever dies meanwhile. A folder may come from a stranger: nothing is built
before the checksum of the weights is verified and their shapes are those of the card.
"""

from __future__ import annotations

import hashlib
import shutil
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from sepscene.models.card import CARD_FILE, WEIGHTS_FILE, WeightsCard
from sepscene.models.config import CheckpointError
from sepscene.models.files import replace_folder

README = "README.md"
OUR_FILES = {CARD_FILE, WEIGHTS_FILE, README, "program.pt", "program.pt2"}

Network = TypeVar("Network", bound=nn.Module)


def write_folder(
    directory: Path, card: dict[str, Any], content: bytes, weights: str = WEIGHTS_FILE, readme: str | None = None
) -> WeightsCard:
    """Write a folder of weights and return its card. An earlier one in `directory` is replaced.

    Args:
        directory: made if need be, with its parents.
        card: architecture, config and metadata, as fields of `WeightsCard`.
        content: bytes of the file of weights, whose name is `weights`.

    Raises:
        CheckpointError: `directory` holds something that is not a folder of weights.
    """
    foreign = {path.name for path in directory.iterdir()} - OUR_FILES if directory.exists() else set()
    if foreign:
        raise CheckpointError(
            f"{directory} is not empty and holds no separator or encoder alone ({min(foreign)}): choose another folder"
        )
    signed = sealed(card, content, weights)
    directory.parent.mkdir(parents=True, exist_ok=True)
    fresh = directory.parent / f".{directory.name}-{uuid.uuid4().hex}"
    fresh.mkdir()
    try:
        (fresh / weights).write_bytes(content)
        (fresh / CARD_FILE).write_text(card_text(signed))
        if readme is not None:
            (fresh / README).write_text(readme, encoding="utf-8")
        replace_folder(fresh, directory)
    except BaseException:
        shutil.rmtree(fresh, ignore_errors=True)
        raise
    return signed


def sealed(card: dict[str, Any], content: bytes, weights: str = WEIGHTS_FILE) -> WeightsCard:
    """The card with the name and the checksum of the file of weights; arguments as of `write_folder`."""
    return WeightsCard(**card, weights=weights, sha256=hashlib.sha256(content).hexdigest())


def card_text(card: WeightsCard) -> str:
    """Content of `config.json`."""
    return card.model_dump_json(indent=2) + "\n"


def packed(network: nn.Module) -> bytes:
    """The network's state as the content of a safetensors file."""
    return save({name: value.detach().cpu().contiguous() for name, value in network.state_dict().items()})


def verified(directory: Path, card: WeightsCard) -> bytes:
    """Content of the folder's file of weights.

    Raises:
        CheckpointError: the file is missing, or its checksum is not the card's.
    """
    path = directory / card.weights
    try:
        content = path.read_bytes()
    except OSError as error:
        raise CheckpointError(
            f"{path} is missing or cannot be read: the folder is not complete, copy it again with all of its files"
        ) from error
    found = hashlib.sha256(content).hexdigest()
    if found != card.sha256:
        raise CheckpointError(
            f"{path} is damaged: its SHA-256 is {found}, {CARD_FILE} says {card.sha256}; copy the folder again"
        )
    return content


def read_tensors(directory: Path, card: WeightsCard) -> dict[str, Tensor]:
    """The weights of a folder by name.

    Raises:
        CheckpointError: the file is missing, damaged or no safetensors file.
    """
    try:
        return load(verified(directory, card))
    except SafetensorError as error:
        raise CheckpointError(
            f"{directory / card.weights} is not a safetensors file ({error}); copy the folder again"
        ) from error


def read_network(directory: Path, card: WeightsCard, build: Callable[[], Network]) -> Network:
    """The network that `build` makes, with the weights of a folder, in evaluation mode.

    Raises:
        CheckpointError: the weights are missing, damaged, not finite, or don't fit the network; the file is named.
    """
    path = directory / card.weights
    tensors = read_tensors(directory, card)
    with torch.device("meta"):  # sizes without memory, a card may claim any; and no weights are drawn
        network = build()
    expected = network.state_dict()
    check_shapes(network, tensors, path)
    weights = {name: tensor.to(expected[name].dtype) for name, tensor in tensors.items()}
    network.load_state_dict(weights, assign=True)
    if any(buffer.is_meta for buffer in network.buffers()):  # computed while building and not saved, by custom code
        with torch.random.fork_rng(devices=[]):  # the weights drawn while building are thrown away
            network = build()
        network.load_state_dict(weights)
    check_finite(network, path)
    return network.eval()


def check_finite(network: nn.Module, origin: Path) -> None:
    """Raise CheckpointError when a weight of the network is NaN or infinite; `origin` is named."""
    for name, tensor in network.state_dict().items():
        # The bounds are one pass; a NaN is the bound of whatever it is in.
        if tensor.numel() and not torch.stack(torch.aminmax(tensor)).isfinite().all():
            raise CheckpointError(
                f"{origin}: weight {name} holds NaN or infinite values: the training diverged before this "
                "checkpoint was written; use an earlier one"
            )


def load_weights(network: nn.Module, weights: dict[str, Tensor], origin: Path) -> None:
    """Fill a network with exactly the named tensors; errors as `check_shapes`."""
    check_shapes(network, weights, origin)
    network.load_state_dict(weights)


def check_shapes(network: nn.Module, weights: dict[str, Tensor], origin: Path) -> None:
    """Every name or shape that differs between a network and the weights for it is an error.

    Raises:
        CheckpointError: names the missing, unknown or misshapen weights of `origin`.
    """
    expected = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    problems = [f"{name} is missing" for name in expected if name not in weights]
    problems += [f"{name} is unknown" for name in weights if name not in expected]
    problems += [
        f"{name} has shape {tuple(weights[name].shape)}, not {shape}"
        for name, shape in expected.items()
        if name in weights and tuple(weights[name].shape) != shape
    ]
    if problems:
        shown = "; ".join(problems[:8]) + (f"; and {len(problems) - 8} more" if len(problems) > 8 else "")
        raise CheckpointError(f"{origin} doesn't fit a {type(network).__name__} of the configured sizes: {shown}")
