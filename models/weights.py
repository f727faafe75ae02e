"""Folders of weights: stores, verifies and loads the networks of separators and encoders.

A folder contains its card (`models.card`) and one weights file: `model.safetensors` for networks that Sepscene can
build, `program.pt` or `program.pt2` for imported programs. The folder of an encoder also has a README. A folder is
written under a temporary name and then renamed, so it is complete or absent even if the process is killed. It can come
from an untrusted source: no network is built before the checksum of the weights and their shapes are verified.
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
    """Write a folder of weights and return its card. An existing folder of weights is replaced.

    Args:
        directory: created with its parents if it does not exist.
        card: architecture, config and metadata, as fields of `WeightsCard`.
        content: content of the weights file.
        weights: name of the weights file.
        readme: content of the README; None: no README.

    Raises:
        CheckpointError: `directory` contains something that is not a folder of weights.
    """
    foreign = {path.name for path in directory.iterdir()} - OUR_FILES if directory.exists() else set()
    if foreign:
        raise CheckpointError(
            f"{directory} contains files that do not belong to a separator or an encoder ({min(foreign)}): choose "
            "another folder"
        )
    complete = complete_card(card, content, weights)
    directory.parent.mkdir(parents=True, exist_ok=True)
    fresh = directory.parent / f".{directory.name}-{uuid.uuid4().hex}"
    fresh.mkdir()
    try:
        (fresh / weights).write_bytes(content)
        (fresh / CARD_FILE).write_text(card_text(complete))
        if readme is not None:
            (fresh / README).write_text(readme, encoding="utf-8")
        replace_folder(fresh, directory)
    except BaseException:
        shutil.rmtree(fresh, ignore_errors=True)
        raise
    return complete


def complete_card(card: dict[str, Any], content: bytes, weights: str = WEIGHTS_FILE) -> WeightsCard:
    """The card with the name and the checksum of the weights file; for the arguments, see `write_folder`."""
    return WeightsCard(**card, weights=weights, sha256=hashlib.sha256(content).hexdigest())


def card_text(card: WeightsCard) -> str:
    """Content of `config.json`."""
    return card.model_dump_json(indent=2) + "\n"


def serialised(network: nn.Module) -> bytes:
    """The network's state as the content of a safetensors file; weights that share memory are stored separately."""
    state = {name: value.detach().cpu() for name, value in network.state_dict().items()}
    return save({name: value.clone(memory_format=torch.contiguous_format) for name, value in state.items()})


def read_content(directory: Path, card: WeightsCard) -> bytes:
    """Read the weights file of a folder and verify its checksum.

    Raises:
        CheckpointError: the file is missing, or its checksum differs from the card's.
    """
    path = directory / card.weights
    try:
        content = path.read_bytes()
    except OSError as error:
        raise CheckpointError(
            f"{path} is missing or cannot be read: the folder is not complete, copy it again with all its files"
        ) from error
    found = hashlib.sha256(content).hexdigest()
    if found != card.sha256:
        raise CheckpointError(
            f"{path} is damaged: its SHA-256 is {found}, but {card.sha256} in {CARD_FILE}; copy the folder again"
        )
    return content


def read_tensors(directory: Path, card: WeightsCard) -> dict[str, Tensor]:
    """The tensors of a folder's weights file, by name.

    Raises:
        CheckpointError: the file is missing, damaged or not a safetensors file.
    """
    try:
        return load(read_content(directory, card))
    except SafetensorError as error:
        raise CheckpointError(
            f"{directory / card.weights} is not a safetensors file ({error}); copy the folder again"
        ) from error


def read_network(directory: Path, card: WeightsCard, build: Callable[[], Network]) -> Network:
    """The network that `build` returns, with the weights of a folder, in evaluation mode.

    Raises:
        CheckpointError: the weights are missing, damaged, not finite, or don't fit the network. The message names the
            file.
    """
    path = directory / card.weights
    tensors = read_tensors(directory, card)
    with torch.device("meta"):  # allocates no memory, as a card can claim any sizes, and draws no weights
        network = build()
    expected = network.state_dict()
    check_shapes(network, tensors, path)
    weights = {name: tensor.to(expected[name].dtype) for name, tensor in tensors.items()}
    tied = len(list(network.parameters())) < len(list(network.named_parameters(remove_duplicate=False)))
    network.load_state_dict(weights, assign=True)
    # Custom code can have buffers that are not saved, or tied parameters, which assigned tensors would separate.
    if tied or any(buffer.is_meta for buffer in network.buffers()):
        with torch.random.fork_rng(devices=[]):  # the weights that are drawn here are overwritten
            network = build()
        network.load_state_dict(weights)
    check_finite(network, path)
    return network.eval()


def check_finite(network: nn.Module, origin: Path) -> None:
    """Raise a CheckpointError that names `origin` if a weight of the network is NaN or infinite."""
    for name, tensor in network.state_dict().items():
        if not tensor.numel() or not (tensor.is_floating_point() or tensor.is_complex()):
            continue
        real = torch.view_as_real(tensor) if tensor.is_complex() else tensor
        # aminmax needs one pass, and returns NaN if there is any NaN.
        if not torch.stack(torch.aminmax(real)).isfinite().all():
            raise CheckpointError(
                f"{origin}: weight {name} contains NaN or infinite values: the training diverged before this "
                "checkpoint was written; use an earlier one"
            )


def load_weights(network: nn.Module, weights: dict[str, Tensor], origin: Path) -> None:
    """Load exactly these tensors into a network; raises the errors of `check_shapes`."""
    check_shapes(network, weights, origin)
    network.load_state_dict(weights)


def check_shapes(network: nn.Module, weights: dict[str, Tensor], origin: Path) -> None:
    """Check that weights have exactly the names and shapes of a network.

    Raises:
        CheckpointError: they do not; the message lists the missing, unknown or misshapen weights of `origin`.
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
