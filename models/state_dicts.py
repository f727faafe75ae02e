"""Reads state dicts of other projects, written by torch.save or safetensors; nothing is unpickled."""

from __future__ import annotations

import io
import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from sepscene.models.config import CheckpointError
from sepscene.models.files import BAD_ZIP

CONTAINERS = ("model", "state_dict")
"""Keys under which checkpoints store the state dict: `model` in PANNs, `state_dict` in Lightning."""

MAX_EXPANSION = 4
"""Weights hardly compress: a file that claims to contain more than this many times its size is damaged or malicious."""

_UNREADABLE = (  # exceptions of torch.load and safetensors for files that are damaged or of another kind
    *BAD_ZIP, SafetensorError, pickle.UnpicklingError, AttributeError, IndexError, TypeError,
)  # fmt: skip


def read_state_dict(file: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the named tensors of a file, and the whole content of the file.

    Args:
        file: a bare state dict, or one under a key of `CONTAINERS`.

    Raises:
        CheckpointError: the file can't be read, is damaged, contains objects other than tensors, or claims tensors that
            are larger than the file.
    """
    try:
        content = file.read_bytes()
    except OSError as error:
        raise CheckpointError(
            f"{file} cannot be read ({error.strerror}): give the path of a file of weights"
        ) from error
    try:
        loaded = load(content) if file.suffix == ".safetensors" else _load(content, file)
    except _UNREADABLE as error:
        reason = (str(error).strip() or "it ends too early").splitlines()[0]
        raise CheckpointError(
            f"{file} can't be read as weights ({reason}): it is damaged, or contains objects other than tensors, which "
            "are not unpickled, for safety; download it again, or save only the state dict"
        ) from error
    tensors: Any = loaded
    for key in CONTAINERS:
        if isinstance(tensors, dict) and isinstance(tensors.get(key), dict):
            tensors = tensors[key]
    if not isinstance(tensors, dict) or not all(isinstance(value, Tensor) for value in tensors.values()):
        raise CheckpointError(
            f"{file} contains a {type(loaded).__name__} without a state dict: save `network.state_dict()`, either "
            "directly or under the key `model`"
        )
    claimed = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    if claimed > MAX_EXPANSION * len(content):
        raise CheckpointError(f"{file} claims tensors of {claimed} bytes but has {len(content)}: it is damaged")
    return dict(tensors), loaded


def without_wrapper(tensors: dict[str, Tensor], known: str) -> dict[str, Tensor]:
    """Remove the prefix that a wrapper (DataParallel's `module.`, Lightning's, …) adds to the names of tensors.

    Args:
        tensors: the state dict; names without the prefix are unchanged.
        known: a name of the network without the wrapper.
    """
    wrapped = [name for name in tensors if name.endswith(f".{known}")]
    if known in tensors or len(wrapped) != 1:
        return tensors
    prefix = wrapped[0].removesuffix(known)
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}


def _load(content: bytes, file: Path) -> Any:
    """Load a file of torch.save. Sizes and checksums of its zip archive are checked here: torch.load does neither."""
    if zipfile.is_zipfile(io.BytesIO(content)):
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            unpacked = sum(entry.file_size for entry in archive.infolist())
            if unpacked > MAX_EXPANSION * len(content):
                raise CheckpointError(f"{file} is rejected: its {len(content)} bytes unpack to {unpacked}")
            broken = archive.testzip()
        if broken:
            raise CheckpointError(f"{file} is damaged: the checksum of {broken} is wrong; download it again")
    return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
