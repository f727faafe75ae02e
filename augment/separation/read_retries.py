"""Retries of reads: a temporary error of a disk or server must not cost a clip.

A damaged clip stays damaged. But a clip that the system does not deliver, or whose folder is missing, can be available
a moment later, when a network share is mounted again or a server responds again. So it is retried with growing pauses.
A clip that still cannot be read gets a fault that begins with `TEMPORARY`: this command gives it up, and a later one
retries it. The same holds for missing permissions, except that there are no pauses.

Shapes: N rows of a block.
"""

import errno
import os
import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from sepscene.augment.locations import NO_SUCH_FILE, TEMPORARY, ClipError, local_path, split_member

PAUSES_SECONDS = (0.5, 1.0, 2.0, 4.0)
"""Pauses before each further attempt at the clips of a block."""

_LASTING = {errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.EINVAL}
"""Errors that do not disappear by waiting: a permission, a name or a folder must be changed first."""


class ReadRetries:
    """Reads the clips of a block, and retries those with temporary errors."""

    def __init__(self) -> None:
        self.given_up: set[str] = set()
        """Clips that this process has already retried; when they occur again, they are read only once."""

    def read(self, read: Callable[[int], None], wanted: Sequence[int], block: Mapping[str, np.ndarray]) -> np.ndarray:
        """Read the wanted rows of a block.

        Args:
            read: reads the row at a position of the block; raises `ClipError`.
            wanted: positions of the rows.
            block: a block with the column `uri`, and with `fault` if some rows already have a fault.

        Returns:
            The fault of each row, object (N,), empty if it was read.
        """
        fault_N = block["fault"].copy() if "fault" in block else np.array([""] * len(block["uri"]), object)
        left = list(wanted)
        for pause in (*PAUSES_SECONDS, None):
            retried = []
            for n in left:
                fault_N[n], retry = _attempt(read, n)
                if retry:
                    retried.append(n)
            left = retried
            if pause is None or all(block["uri"][n] in self.given_up for n in left):
                break
            time.sleep(pause)
        self.given_up |= {str(block["uri"][n]) for n in left}
        return fault_N


def _attempt(read: Callable[[int], None], n: int) -> tuple[str, bool]:
    """Read a row once, and return its fault and whether it must be retried."""
    try:
        read(n)
    except ClipError as error:
        if may_be_readable_later(error):
            return f"{TEMPORARY}: {error.cause}", error.refused not in _LASTING
        return error.cause, False
    return "", False


def may_be_readable_later(error: ClipError) -> bool:
    """Whether a clip may be readable later: the system refused it, or its folder is missing.

    A file that is missing in an existing folder is not expected to return.
    """
    if error.refused is not None:
        return True
    path = local_path(split_member(error.uri)[0])
    return error.cause == NO_SUCH_FILE and path is not None and not os.path.isdir(os.path.dirname(path) or ".")
