"""Files and folders that are whole or absent, whatever dies while they are written."""

from __future__ import annotations

import os
import shutil
from pathlib import Path


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file that is either complete or not there, whatever dies in between."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    with partial.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


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
