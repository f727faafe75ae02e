"""Separators imported as programs: TorchScript and torch.export files that map wave_BT to separated_BST.

A program is somebody else's code, so it is read with care. TorchScript can call torch's operators only. An
exported program is a zip of JSON and tensors whose loader would unpickle tensors, evaluate symbolic sizes and
execute guards; here nothing is unpickled, guards are left out, and every operator and expression must be on a
list before the loader sees it.

Shapes: B clips, S sources, T samples.
"""

from __future__ import annotations

import io
import json
import logging
import os
import re
import threading
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from sepscene.models.config import CheckpointError, Config

_OPERATORS = re.compile(
    r"torch\.ops\.(aten|prims)\.(?!from_file)\w+\.\w+"
    r"|_operator\.(add|sub|mul|truediv|floordiv|mod|neg|pow|getitem|eq|ne|lt|le|gt|ge|and_|or_)"
    r"|torch\.(sym_(int|float|max|min|not|ite)|_sym_sqrt)|math\.(ceil|floor|trunc)"
)
_WORDS = re.compile(
    r"[su]\d+|Symbol|Integer|Rational|Float|Add|Mul|Pow|Mod|PythonMod|FloorDiv|CleanDiv|CeilDiv|CeilToInt|FloorToInt"
    r"|TruncToInt|ToFloat|IntTrueDiv|FloatTrueDiv|Max|Min|Abs|Where|Identity|Eq|Ne|Lt|Le|Gt|Ge|And|Or|Not"
    r"|Equality|Unequality|StrictLessThan|LessThan|StrictGreaterThan|GreaterThan"
    r"|positive|nonnegative|integer|precision|True|False|true|false"
)
_NAMES = re.compile(r"[\w.]*")
_environment = threading.Lock()


class ProgramConfig(Config):
    """What a program doesn't say about itself."""

    sample_rate: int = Field(gt=0, description="hertz")
    sources: int = Field(ge=1)
    kind: Literal["torchscript", "exported"]

    @property
    def file_name(self) -> str:
        """Name of the program's file in a separator folder."""
        return "program.pt" if self.kind == "torchscript" else "program.pt2"


class ProgramSeparator(nn.Module):
    """An imported program behind the contract of every separator: wave_BT -> separated_BST."""

    def __init__(self, config: ProgramConfig, content: bytes, program: nn.Module):
        super().__init__()
        self.config = config
        self.sample_rate = config.sample_rate
        self.sources = config.sources
        self.content = content
        self.program = program

    @classmethod
    def load(cls, path: Path, config: ProgramConfig) -> ProgramSeparator:
        """Read a program's file; errors as `read_program`."""
        content = path.read_bytes()
        return cls(config, content, read_program(content, config.kind, path))

    def train(self, mode: bool = True) -> ProgramSeparator:
        """Change nothing: a program keeps the mode in which it was saved."""
        return self

    def forward(self, wave_BT: Tensor) -> Tensor:
        """Separate clips (B, T) into sources (B, S, T)."""
        return self.program(wave_BT)


def read_program(content: bytes, kind: Literal["torchscript", "exported"], origin: Path) -> nn.Module:
    """The module of a program's file; `origin` is named in errors.

    Raises:
        CheckpointError: the file can't be read as such a program, or does more than compute with tensors.
    """
    return _read_torchscript(content, origin) if kind == "torchscript" else _read_exported(content, origin)


def _read_torchscript(content: bytes, origin: Path) -> nn.Module:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            return torch.jit.load(io.BytesIO(content), map_location="cpu")
    except RuntimeError as error:
        raise CheckpointError(f"{origin} is not a TorchScript program: {_first_line(error)}") from error


def _read_exported(content: bytes, origin: Path) -> nn.Module:
    _audit(content, origin)
    try:
        with _never_unpickle(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            exported = torch.export.load(io.BytesIO(content))
            return exported.module(check_guards=False)
    except Exception as error:  # the loader of torch raises whatever it stumbles over
        raise CheckpointError(f"{origin} can't be loaded by torch.export: {_first_line(error)}") from error


@contextmanager
def _never_unpickle() -> Iterator[None]:
    """torch.export.load asks torch.load for full unpickling; this switch of torch overrules it."""
    name = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
    with _environment:
        before = os.environ.get(name)
        logger = logging.getLogger("torch.export")
        level = logger.level
        os.environ[name] = "1"
        logger.setLevel(logging.ERROR)  # it logs what we raise
        try:
            yield
        finally:
            logger.setLevel(level)
            os.environ.pop(name)
            if before is not None:
                os.environ[name] = before


def _audit(content: bytes, origin: Path) -> None:
    """Refuse an exported program that holds anything but tensors and calls of torch's own operators."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            names = archive.namelist()
            models = [name for name in names if re.search(r"/models/[^/]*\.json$", name)]
            graphs = [json.loads(archive.read(name)) for name in models]
    except (zipfile.BadZipFile, ValueError, KeyError) as error:
        raise CheckpointError(f"{origin} is not a torch.export program: {_first_line(error)}") from error
    if not graphs:
        raise CheckpointError(f"{origin} holds no program in the format of torch.export.save; save it again")
    for name in names:
        if "/aotinductor/" in name or "custom_obj" in name:
            raise CheckpointError(f"{origin} holds compiled code or custom objects ({name}): export it without")
    for graph in graphs:
        _audit_strings(graph, origin)


def _audit_strings(node: Any, origin: Path, key: str = "") -> None:
    if isinstance(node, dict):
        for name, value in node.items():
            if name not in ("metadata", "guards_code"):  # notes for the reader; code that is never run here
                _audit_strings(value, origin, name)
    elif isinstance(node, list):
        for value in node:
            _audit_strings(value, origin, key)
    elif isinstance(node, str) and not _allowed(key, node):
        raise CheckpointError(f"{origin} is refused: its {key} {node[:120]!r} is not plain tensor computation")


def _allowed(key: str, text: str) -> bool:
    if key == "target":
        return _OPERATORS.fullmatch(text) is not None
    if key == "expr_str":
        words = re.findall(r"[A-Za-z_]\w*", text)
        return re.fullmatch(r"[\w\s(),.'=<>&|~+*/-]*", text) is not None and all(map(_WORDS.fullmatch, words))
    if key in (
        "name",
        "fqn",
        "forward_arg_names",
        "arg_name",
        "parameter_name",
        "buffer_name",
        "tensor_name",
    ):
        return _NAMES.fullmatch(text) is not None
    return "\n" not in text


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
