"""Reads the state dicts that other people's trainings leave, of torch.save or safetensors; nothing is unpickled."""

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
"""Where trainings keep the state dict: PANNs' under `model`, Lightning's under `state_dict`."""

UNPACKED = 4
"""Weights don't shrink: a file that claims more than this many times its size is damaged or a trap."""

_UNREADABLE = (  # what torch.load and safetensors raise on files that are damaged or something else
    *BAD_ZIP, SafetensorError, pickle.UnpicklingError, AttributeError, IndexError, TypeError,
)  # fmt: skip


def read_state_dict(file: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The named tensors of a file, and all that the file holds.

    Args:
        file: a bare state dict, or one under a name of `CONTAINERS`.

    Raises:
        CheckpointError: the file can't be read, is damaged, holds more than tensors, or claims more than it holds.
    """
    try:
        content = file.read_bytes()
    except OSError as error:
        raise CheckpointError(
            f"{file} cannot be read ({error.strerror}): give the path of a file of weights"
        ) from error
    try:
        holds = load(content) if file.suffix == ".safetensors" else _load(content, file)
    except _UNREADABLE as error:
        reason = (str(error).strip() or "it ends too early").splitlines()[0]
        raise CheckpointError(
            f"{file} can't be read as weights ({reason}): it is damaged or holds more than tensors, which is not "
            "unpickled, for safety; download it again, or save the state dict alone"
        ) from error
    tensors: Any = holds
    for key in CONTAINERS:
        if isinstance(tensors, dict) and isinstance(tensors.get(key), dict):
            tensors = tensors[key]
    if not isinstance(tensors, dict) or not all(isinstance(value, Tensor) for value in tensors.values()):
        raise CheckpointError(
            f"{file} holds no state dict: it holds a {type(holds).__name__}; save `network.state_dict()`, alone or "
            "under `model`"
        )
    claimed = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    if claimed > UNPACKED * len(content):
        raise CheckpointError(f"{file} claims tensors of {claimed} bytes but has {len(content)}: it is damaged")
    return dict(tensors), holds


def without_wrapper(tensors: dict[str, Tensor], known: str) -> dict[str, Tensor]:
    """The tensors under their own names, where a wrapper (DataParallel's `module.`, Lightning's, …) put one before.

    Args:
        tensors: the state dict; names outside of the wrapper stay as they are.
        known: a name that the network itself gives.
    """
    wrapped = [name for name in tensors if name.endswith(f".{known}")]
    if known in tensors or len(wrapped) != 1:
        return tensors
    prefix = wrapped[0].removesuffix(known)
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}


def _load(content: bytes, file: Path) -> Any:
    """What torch.save wrote. torch.load looks at no checksum of a zip archive, and unpacks whatever it claims."""
    if zipfile.is_zipfile(io.BytesIO(content)):
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            unpacked = sum(entry.file_size for entry in archive.infolist())
            if unpacked > UNPACKED * len(content):
                raise CheckpointError(f"{file} is refused: its {len(content)} bytes unpack to {unpacked}")
            broken = archive.testzip()
        if broken:
            raise CheckpointError(f"{file} is damaged: the checksum of {broken} is wrong; download it again")
    return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
