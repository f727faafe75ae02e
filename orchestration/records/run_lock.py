"""A lock for a run's folder: only one process works in it at a time, and a deletion of the folder is detected.

The lock is a file with the holder's host, process id and start time, which the holder touches every few seconds. It is
stale, and can be taken over, if its process ran on this host and has ended, or if it was not touched for two minutes.

The lock is not written atomically, because a file that replaces another one would not show that it was there. It is
created with O_EXCL and then written, so it is empty for a moment; other processes wait for its content. It stays empty
if its process was killed in that moment, or if the disk was full, and can then be taken over, too.
"""

import contextlib
import fcntl
import logging
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import psutil
from pydantic import BaseModel, Field

from sepscene.models.config import SepsceneError
from sepscene.orchestration.records.files import read_typed
from sepscene.orchestration.records.run_folder import RunFolder
from sepscene.orchestration.repeating import repeat_in_background

logger = logging.getLogger("sepscene")

BEAT_SECONDS = 5.0
STALE_SECONDS = 120.0
"""Longer than typical pauses of a process or of a shared file system."""
WRITE_SECONDS = 0.5
"""Longer than a process takes to write its lock after creating it."""


class Holder(BaseModel):
    """The process that holds a lock."""

    host: str
    pid: int = Field(ge=1, lt=2**31)
    process_began: float
    since: str

    @classmethod
    def this_process(cls) -> "Holder":
        """The holder that describes this process."""
        since = datetime.now(UTC).isoformat(timespec="seconds")
        return cls(host=socket.gethostname(), pid=os.getpid(), process_began=_start_time(os.getpid()), since=since)

    def is_this_process(self) -> bool:
        """Whether an outer block of this process holds the lock."""
        return self.pid == os.getpid() and self.host == socket.gethostname() and not self.has_ended()

    def has_ended(self) -> bool:
        """Whether the process is known to have ended; always False for processes of other hosts."""
        return self.host == socket.gethostname() and self.process_began != _start_time(self.pid)


def _start_time(pid: int) -> float:
    """Unix time at which a process of this host started; 0 if there is no such process."""
    try:
        return psutil.Process(pid).create_time()
    except psutil.Error:
        return 0.0


@contextmanager
def locked(folder: RunFolder) -> Iterator[None]:
    """Hold the lock of a run's folder while the block runs; blocks of the same process can be nested.

    Raises:
        SepsceneError: if another process works in the folder; and at the end of the block, if the folder has been
            deleted.
    """
    if not _acquire(folder.lock):
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
        with repeat_in_background(beat, BEAT_SECONDS, "hold-lock"):
            yield
        beat()
    finally:
        folder.lock.unlink(missing_ok=True)
    if lost:
        raise SepsceneError(f"the run's folder {folder.path} was deleted while it ran: start the run again")


def check_free(folder: RunFolder) -> None:
    """Check that no other process works in a folder.

    Raises:
        SepsceneError: if one does; the message names it.
    """
    holder, age = _holder(folder.lock)
    if holder is None or holder.is_this_process() or holder.has_ended() or age > STALE_SECONDS:
        return
    raise SepsceneError(
        f"{folder.path} is in use by process {holder.pid} on {holder.host} since {holder.since}: wait for it or end "
        f"it; if it has ended, try again after {STALE_SECONDS:.0f} s, or delete {folder.lock}"
    )


def _acquire(lock: Path) -> bool:
    """Create the lock; False if an outer block of this process holds it."""
    while True:
        try:
            handle = os.open(lock, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
        except FileExistsError:
            holder, _ = _holder(lock)
            if holder is not None and holder.is_this_process():
                return False
            _remove_left_over(lock)
            continue
        with os.fdopen(handle, "w") as file:
            file.write(Holder.this_process().model_dump_json())
        return True


def _remove_left_over(lock: Path) -> None:
    """Remove the lock of a process that has ended, but never the one of a process that did so a moment before.

    Raises:
        SepsceneError: as `check_free`.
    """
    with contextlib.suppress(FileNotFoundError), lock.open("r+b" if os.access(lock, os.W_OK) else "rb") as file:
        with contextlib.suppress(OSError):  # some file systems have no flock
            fcntl.flock(file, fcntl.LOCK_EX)
        if os.path.samestat(os.fstat(file.fileno()), lock.stat()):
            check_free(RunFolder(lock.parent))
            logger.warning("%s is left over from a process that has ended; the run continues", lock)
            lock.unlink()


def _holder(lock: Path) -> tuple[Holder | None, float]:
    """The holder of a lock and the seconds since it was touched; (None, 0) if the file is missing or damaged."""
    deadline = time.monotonic() + WRITE_SECONDS
    while _is_empty(lock) and time.monotonic() < deadline:
        time.sleep(WRITE_SECONDS / 50)
    with contextlib.suppress(OSError, SepsceneError):
        return read_typed(lock, Holder), time.time() - lock.stat().st_mtime
    return None, 0.0


def _is_empty(lock: Path) -> bool:
    """Whether the lock exists without content; the file is opened because NFS caches sizes."""
    with contextlib.suppress(OSError), lock.open("rb") as file:
        return not file.read(1)
    return False
