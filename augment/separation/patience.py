"""Reading again what a disk or a server did not give: a passing error must not cost a clip.

A clip that is broken is broken for good. One that the system does not give, or whose folder is gone, may be there a
second later: a network share that is mounted again, a server that answers again. So it is tried again, with growing
pauses. What is still not there then is given up for this run's present command, and its cause begins with `PASSING`, so
that a later one tries again. A permission that is missing is not waited for, but a later command tries again, too.
"""

import errno
import os
import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from sepscene.augment.locations import NO_SUCH_FILE, PASSING, ClipError, local_path, split_member

PAUSES_SECONDS = (0.5, 1.0, 2.0, 4.0)
"""Before each further try of the clips of one block."""

_STAYS = {errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.EINVAL}
"""Errors that no waiting ends: somebody must change a permission, a name or a folder first."""


class Patience:
    """Reads the clips of a block, some of them several times."""

    def __init__(self) -> None:
        self.given_up: set[str] = set()
        """Clips that this process has tried often enough; they are tried once more each time they come."""

    def read(self, read: Callable[[int], None], wanted: Sequence[int], block: Mapping[str, np.ndarray]) -> np.ndarray:
        """Read the wanted rows of a block.

        Args:
            read: reads one row, by its place in the block; raises `ClipError`.
            wanted: places of the rows.
            block: with column `uri`, and `fault` where some rows have one already.

        Returns:
            object (N,): each row's fault; empty where it was read.
        """
        fault_N = block["fault"].copy() if "fault" in block else np.array([""] * len(block["uri"]), object)
        left = self._tried(read, wanted, fault_N, block)
        for pause in PAUSES_SECONDS:
            if all(block["uri"][n] in self.given_up for n in left):
                break
            time.sleep(pause)
            left = self._tried(read, left, fault_N, block)
        self.given_up |= {str(block["uri"][n]) for n in left}
        return fault_N

    def _tried(
        self, read: Callable[[int], None], places: Sequence[int], fault_N: np.ndarray, block: Mapping[str, np.ndarray]
    ) -> list[int]:
        """Try rows once; returns those whose error may pass."""
        left = []
        for n in places:
            try:
                read(n)
                fault_N[n] = ""
            except ClipError as error:
                fault_N[n] = error.cause
                if is_not_the_clips(error):
                    fault_N[n] = f"{PASSING}: {error.cause}"
                    if error.refused not in _STAYS:
                        left.append(n)
        return left


def is_not_the_clips(error: ClipError) -> bool:
    """Whether a clip may be readable later: the system refused it, or the folder or archive that holds it is gone.

    A file that is missing from a folder that is there will not come back by waiting.
    """
    if error.refused is not None:
        return True
    place = local_path(split_member(error.uri)[0])
    return error.cause == NO_SUCH_FILE and place is not None and not os.path.isdir(os.path.dirname(place) or ".")
