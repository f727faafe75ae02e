"""A folder of weights that describes and proves itself: config.json holds the SHA-256 of the weights."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load as parse_safetensors
from safetensors.torch import save as dump_safetensors
from torch import Tensor

from sepscene.models.config import SepsceneError


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file that is either complete or not there, whatever dies in between."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    with partial.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def write_bundle(
    directory: Path, layout: str, description: dict[str, Any], tensors: dict[str, Tensor], readme: str
) -> str:
    """Write config.json, model.safetensors and README.md; return the SHA-256 of the weights.

    config.json is written last: a bundle that was cut short has a digest that does not fit.
    """
    directory.mkdir(parents=True, exist_ok=True)
    weights = dump_safetensors(tensors)
    digest = hashlib.sha256(weights).hexdigest()
    write_atomically(directory / "model.safetensors", weights)
    write_atomically(directory / "README.md", readme.encode())
    write_description(directory, {"format": layout, "sha256": digest, **description})
    return digest


def write_description(directory: Path, description: dict[str, Any]) -> None:
    """Write config.json of a bundle."""
    write_atomically(directory / "config.json", (json.dumps(description, indent=2) + "\n").encode())


def read_description(directory: Path, layout: str) -> dict[str, Any]:
    """What config.json of a bundle says.

    Raises:
        SepsceneError: when it is missing, is not JSON, or belongs to another format.
    """
    path = directory / "config.json"
    try:
        description = json.loads(path.read_bytes())
    except OSError:
        raise SepsceneError(f"{path} cannot be read: give the folder of a bundle, it holds config.json") from None
    except ValueError as error:
        raise SepsceneError(f"{path} is damaged, it is not JSON ({error}): copy the bundle again") from None
    found = description.get("format") if isinstance(description, dict) else None
    if found != layout:
        raise SepsceneError(f"{path} has format {found!r}, not {layout!r}: this is not such a bundle")
    return description


def read_weights(directory: Path, digest: str | None) -> dict[str, Tensor]:
    """The tensors of a bundle, checked against the digest.

    Raises:
        SepsceneError: when the file is missing, is not the one that config.json describes, or is no safetensors file.
    """
    path = directory / "model.safetensors"
    try:
        content = path.read_bytes()
    except OSError:
        raise SepsceneError(f"{path} cannot be read: the bundle is not complete, copy it again") from None
    if hashlib.sha256(content).hexdigest() != digest:
        raise SepsceneError(f"{path} is damaged: its SHA-256 is not the one in config.json; copy the bundle again")
    try:
        return parse_safetensors(content)
    except SafetensorError as error:
        raise SepsceneError(f"{path} is not a safetensors file ({error}): save the bundle again") from None


def explain_validation(error: ValidationError) -> str:
    """One clause a fault: dotted field and fault."""
    return "; ".join(
        f"{'.'.join(map(str, fault['loc'])) or 'config'}: {fault['msg'].removeprefix('Value error, ')}"
        for fault in error.errors()
    )
