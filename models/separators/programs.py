"""Separators imported as programs: TorchScript and torch.export files that map wave_BT to separated_BST.

A program is external code and can be malicious. TorchScript can read and write files, and no list of operators makes it
safe, so a TorchScript program is loaded only if the user trusts this very file. An exported program is a zip archive of
JSON and tensors. Its loader would unpickle tensors, evaluate symbolic sizes and execute guards. Here nothing is
unpickled, guards are not executed, and all operators and expressions are checked against a list before the loader is
called (`program_audit`).

Shapes: B clips, S sources, T samples.
"""

from __future__ import annotations

import hashlib
import io
import logging
import os
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from sepscene.models.config import CheckpointError, Config, first_line
from sepscene.models.separators.program_audit import audited_archive
from sepscene.models.trust import PROGRAMS

_environment_lock = threading.Lock()


class ProgramConfig(Config):
    """Facts about a program that are not in its file."""

    sample_rate: int = Field(gt=0, le=1_000_000, description="hertz")
    sources: int = Field(ge=1, le=64)
    kind: Literal["torchscript", "exported"]

    @property
    def file_name(self) -> str:
        """Name of the program's file in a separator folder."""
        return "program.pt" if self.kind == "torchscript" else "program.pt2"


class ProgramSeparator(nn.Module):
    """An imported program as a separator: wave_BT -> separated_BST."""

    def __init__(self, config: ProgramConfig, content: bytes, program: nn.Module):
        super().__init__()
        self.config = config
        self.sample_rate = config.sample_rate
        self.sources = config.sources
        self.content = content
        self.program = program

    def train(self, mode: bool = True) -> ProgramSeparator:
        """Do nothing: a program keeps the mode in which it was saved."""
        return self

    def forward(self, wave_BT: Tensor) -> Tensor:
        """Separate clips (B, T) into sources (B, S, T)."""
        return self.program(wave_BT)


def read_program(content: bytes, kind: Literal["torchscript", "exported"], origin: Path) -> nn.Module:
    """Load the module from the content of a program's file. Errors name `origin`.

    Raises:
        CheckpointError: the content isn't such a program, it is TorchScript that the user doesn't trust, or an exported
            program does more than compute with tensors.
    """
    return _read_torchscript(content, origin) if kind == "torchscript" else _read_exported(content, origin)


def _read_torchscript(content: bytes, origin: Path) -> nn.Module:
    digest = hashlib.sha256(content).hexdigest()
    if digest not in PROGRAMS.entries():
        raise CheckpointError(
            f"{origin} is a TorchScript program (SHA-256 {digest[:12]}…): it can read and write files with your "
            "permissions. If you trust its author, import it with `sepscene separator import … --trust-code`; on "
            f"another machine, set {PROGRAMS.variable} to its whole SHA-256. A torch.export program (.pt2) needs no "
            "trust"
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            return torch.jit.load(io.BytesIO(content), map_location="cpu")
    except RuntimeError as error:
        raise CheckpointError(f"{origin} is not a TorchScript program: {first_line(error)}") from error


def _read_exported(content: bytes, origin: Path) -> nn.Module:
    audited = audited_archive(content, origin)
    try:
        with _never_unpickle(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            exported = torch.export.load(io.BytesIO(audited))
            return exported.module(check_guards=False)
    except Exception as error:  # torch's loader can raise any exception
        raise CheckpointError(f"{origin} can't be loaded by torch.export: {first_line(error)}") from error


@contextmanager
def _never_unpickle() -> Iterator[None]:
    """Forbid unpickling: torch.export.load calls torch.load with full unpickling, which this variable overrides."""
    name = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
    with _environment_lock:
        before = os.environ.get(name)
        logger = logging.getLogger("torch.export")
        level = logger.level
        os.environ[name] = "1"
        logger.setLevel(logging.ERROR)  # it logs errors that are raised here
        try:
            yield
        finally:
            logger.setLevel(level)
            os.environ.pop(name)
            if before is not None:
                os.environ[name] = before
