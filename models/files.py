"""Files and folders that are whole or absent, whatever dies while they are written; untrusted JSON and ZIP."""

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
"""What `zipfile` raises for archives that are damaged, encrypted, packed in another way, or larger than memory."""


def parse_json(text: str | bytes) -> Any:
    """What a JSON text holds.

    Raises:
        ValueError: not JSON, not UTF-8, nested too deeply, or half of a surrogate pair (`\\ud800`), which no table can
            hold.
    """
    try:
        value = json.loads(text)
        if isinstance(text, bytes) or "\\u" in text:
            json.dumps(value, ensure_ascii=False).encode()
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    return value


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file that is either complete or not there, whatever dies in between; a failed try leaves nothing."""
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


def replace_folder(fresh: Path, target: Path) -> None:
    """Make everything in `fresh` durable, then put it in the place of `target`."""
    for path in (*fresh.iterdir(), fresh):
        _synchronise(path)
    if target.exists():
        old = fresh.with_name(f"{fresh.name}-replaced")
        target.rename(old)
        fresh.rename(target)
        shutil.rmtree(old)
    else:
        fresh.rename(target)
    _synchronise(target.parent)


def _synchronise(path: Path) -> None:
    """Wait until a file or folder is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)
