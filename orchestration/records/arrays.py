"""Arrays on disk whose space is reserved when they are created."""

import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib.format import open_memmap


def create_array(path: Path, shape: tuple[int, ...], dtype: Any) -> np.memmap:
    """Create a memory-mapped .npy file and reserve its space.

    Without the space, writing to the array on a full disk would kill the process with a bus error.

    Raises:
        OSError: when the disk does not have the space; no file remains.
    """
    try:
        array = open_memmap(path, "w+", dtype, shape)
        if hasattr(os, "posix_fallocate"):  # not on macOS
            file = os.open(path, os.O_RDWR)
            try:
                os.posix_fallocate(file, 0, path.stat().st_size)
            finally:
                os.close(file)
    except OSError:
        path.unlink(missing_ok=True)
        raise
    return array
