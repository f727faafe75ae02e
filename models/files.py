"""Atomic writes of files and folders, even if the process is killed meanwhile; reading untrusted JSON and ZIP."""

from __future__ import annotations

import json
import lzma
import os
import shutil
import struct
import zipfile
import zlib
from pathlib import Path
from typing import Any

BAD_ZIP = (
    *(zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error, EOFError, OSError, ValueError, KeyError),
    *(NotImplementedError, RuntimeError, MemoryError),
)
"""Exceptions of `zipfile` for archives that are damaged, encrypted, larger than memory, or compressed by an unsupported
method.
"""


def parse_json(text: str | bytes) -> Any:
    """The value of a JSON text.

    Raises:
        ValueError: the text is not JSON, not UTF-8, nested too deeply, or contains half of a surrogate pair
            (`\\ud800`), which no table can store.
    """
    try:
        value = json.loads(text)
        if isinstance(text, bytes) or "\\u" in text:
            json.dumps(value, ensure_ascii=False).encode()
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    return value


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file that is either complete or absent, even if the process is killed; a failed write leaves no file."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def replace_file(fresh: Path, target: Path) -> None:
    """Flush a file that a library has written to disk, then move it to `target`, replacing what is there."""
    _fsync(fresh)
    fresh.replace(target)


def replace_folder(fresh: Path, target: Path) -> None:
    """Flush everything in `fresh` to disk, then move it to `target`, replacing what is there."""
    for path in (*fresh.iterdir(), fresh):
        _fsync(path)
    if target.exists():
        old = fresh.with_name(f"{fresh.name}-replaced")
        target.rename(old)
        fresh.rename(target)
        shutil.rmtree(old)
    else:
        fresh.rename(target)
    _fsync(target.parent)


def _fsync(path: Path) -> None:
    """Wait until a file or folder is on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
