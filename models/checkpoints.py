"""What checkpoint folders need: one kind of error, checks of weights, folders that are whole or absent."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import torch
from torch import nn

from sepscene.models.config import CheckpointError


def check_finite(separator: nn.Module, origin: Path) -> None:
    """Raise CheckpointError when a weight of the module is NaN or infinite; `origin` is named."""
    for name, tensor in separator.state_dict().items():
        if not torch.isfinite(tensor).all():
            raise CheckpointError(
                f"{origin}: weight {name} holds NaN or infinite values: the training diverged before this "
                "checkpoint was written; use an earlier one"
            )


def load_weights(module: nn.Module, weights: dict[str, torch.Tensor], origin: Path) -> None:
    """Fill a module with exactly the named tensors; every name or shape that differs is an error.

    Raises:
        CheckpointError: names the missing, unknown or misshapen weights of `origin`.
    """
    expected = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    problems = [f"{name} is missing" for name in expected if name not in weights]
    problems += [f"{name} is unknown" for name in weights if name not in expected]
    problems += [
        f"{name} has shape {tuple(weights[name].shape)}, not {shape}"
        for name, shape in expected.items()
        if name in weights and tuple(weights[name].shape) != shape
    ]
    if problems:
        shown = "; ".join(problems[:8]) + (f"; and {len(problems) - 8} more" if len(problems) > 8 else "")
        raise CheckpointError(f"{origin} doesn't fit a {type(module).__name__} of the configured sizes: {shown}")
    module.load_state_dict(weights)


def replace_folder(fresh: Path, target: Path) -> None:
    """Make everything in `fresh` durable, then put it in the place of `target`."""
    for path in (*fresh.iterdir(), fresh):
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)
    if target.exists():
        old = fresh.with_name(f"{fresh.name}-replaced")
        target.rename(old)
        fresh.rename(target)
        shutil.rmtree(old)
    else:
        fresh.rename(target)
    descriptor = os.open(target.parent, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)
