"""One process at a time works in a run's folder: a lock that says who, and that notices when the folder is deleted.

The lock is a file with host, process and time. A process that holds it touches it every few seconds. It is stale, and
taken over, when its process on this host is gone, or when it was not touched for two minutes.
"""

import contextlib
import logging
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import psutil
from pydantic import BaseModel

from sepscene.models.config import SepsceneError
from sepscene.orchestration.records.files import read_typed
from sepscene.orchestration.records.run_folder import RunFolder
from sepscene.orchestration.repeating import again_and_again

logger = logging.getLogger("sepscene")

BEAT_SECONDS = 5.0
STALE_SECONDS = 120.0
"""Longer than a process is stopped or a shared file system hangs without harm."""


class Holder(BaseModel):
    """The process that holds a lock."""

    host: str
    pid: int
    process_began: float
    since: str

    @classmethod
    def this_process(cls) -> "Holder":
        """The holder that this process is."""
        since = datetime.now(UTC).isoformat(timespec="seconds")
        return cls(host=socket.gethostname(), pid=os.getpid(), process_began=_began(os.getpid()), since=since)

    def is_this_process(self) -> bool:
        """Whether an outer block of this process holds the lock."""
        return self.pid == os.getpid() and self.host == socket.gethostname() and not self.is_gone()

    def is_gone(self) -> bool:
        """Whether the process is known to have ended; of other hosts nothing is known."""
        return self.host == socket.gethostname() and self.process_began != _began(self.pid)


def _began(pid: int) -> float:
    try:
        return psutil.Process(pid).create_time()
    except psutil.Error:
        return 0.0


@contextmanager
def locked(folder: RunFolder) -> Iterator[None]:
    """Hold the lock of a run's folder while the block runs; an inner block of the same process needs none.

    Raises:
        SepsceneError: when another process works in the folder; and at the end of the block, when the folder was
            deleted meanwhile.
    """
    if not _take(folder.lock):
        yield
        return
    lost = False

    def beat() -> None:
        nonlocal lost
        try:
            os.utime(folder.lock)
        except FileNotFoundError:
            if not lost:
                logger.error("the run's folder %s was deleted while it runs", folder.path)
            lost = True
        except OSError as error:
            logger.warning("%s cannot be written (%s)", folder.lock, error)

    try:
        with again_and_again(beat, BEAT_SECONDS, "hold-lock"):
            yield
        beat()
    finally:
        folder.lock.unlink(missing_ok=True)
    if lost:
        raise SepsceneError(f"the run's folder {folder.path} was deleted while it ran: start the run again")


def check_free(folder: RunFolder) -> None:
    """Refuse a folder in which another process works.

    Raises:
        SepsceneError: names the process.
    """
    holder, age = _holder(folder.lock)
    if holder is None or holder.is_this_process() or holder.is_gone() or age > STALE_SECONDS:
        return
    raise SepsceneError(
        f"{folder.path} is in use by process {holder.pid} on {holder.host} since {holder.since}: wait for it or end "
        f"it; if it is gone, go on after {STALE_SECONDS:.0f} s, or delete {folder.lock}"
    )


def _take(lock: Path) -> bool:
    """Make the lock; False where an outer block of this process has it."""
    while True:
        try:
            handle = os.open(lock, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
        except FileExistsError:
            holder, _ = _holder(lock)
            if holder is not None and holder.is_this_process():
                return False
            check_free(RunFolder(lock.parent))
            logger.warning("%s is left over from a process that has ended; the run goes on", lock)
            lock.unlink(missing_ok=True)
            continue
        with os.fdopen(handle, "w") as file:
            file.write(Holder.this_process().model_dump_json())
        return True


def _holder(lock: Path) -> tuple[Holder | None, float]:
    """Who holds a lock, and the seconds since it was touched; nobody where the file is missing or damaged."""
    with contextlib.suppress(OSError, SepsceneError):
        return read_typed(lock, Holder), time.time() - lock.stat().st_mtime
    return None, 0.0
