"""Errors from outside Sepscene (operating system, Ray, torch) as messages: what is wrong and how to fix it."""

import errno
import os

from sepscene.models.config import SepsceneError, first_line

_REMEDIES = {
    errno.EACCES: "choose another folder, or change its permissions",
    errno.EPERM: "choose another folder, or change its permissions",
    errno.EROFS: "choose another folder",
    errno.ENOSPC: "the disk is full; free some space and run the command again, with --resume for a run",
    errno.EDQUOT: "free some space, or choose another folder",
    errno.ENOTDIR: "a folder was expected, but there is a file; choose another folder, or remove the file",
    errno.EEXIST: "choose another name, or remove it",
    errno.EISDIR: "a file was expected, but there is a folder; give the path of a file",
    errno.ENOENT: "check the path",
    errno.ENAMETOOLONG: "choose a shorter path",
    errno.EMFILE: "too many files are open; raise the limit, e.g. `ulimit -n 65536`",
    errno.ENOMEM: "out of memory; close other programs, or lower the number of processes in resources.*",
}


def user_message(error: BaseException) -> str | None:
    """The message for the user; None for an error that only a programmer can fix, which keeps its traceback."""
    if isinstance(error, SepsceneError):
        return str(error)
    module = type(error).__module__.split(".")[0]
    if module == "ray" or (isinstance(error, ConnectionError) and "Ray" in str(error)):
        return _ray_message(error)
    if isinstance(error, UnicodeError):
        return f"{error}: a file name or a file's content is not UTF-8; rename the file, or set LC_ALL=C.UTF-8"
    if isinstance(error, OSError) and error.errno is not None:
        return _system_message(error)
    if isinstance(error, MemoryError):
        return _REMEDIES[errno.ENOMEM]
    if module == "torch" or "CUDA" in str(error):
        return f"{first_line(error)}\nThe device failed; `sepscene doctor` checks it, and `--device cpu` avoids it."
    return None


def _system_message(error: OSError) -> str:
    names = [os.fsdecode(name) for name in (error.filename, error.filename2) if isinstance(name, str | bytes)]
    reason = error.strerror or type(error).__name__
    remedy = _REMEDIES.get(error.errno or 0)
    return ": ".join([*names, reason]) + (f": {remedy}" if remedy else "")


def _ray_message(error: BaseException) -> str:
    cause = getattr(error, "cause", None)
    inner = user_message(cause) if isinstance(cause, Exception) else None
    message = inner or first_line(error)
    return f"Ray: {message}\n`sepscene doctor` checks the cluster. Completed work is kept: --resume continues a run."
