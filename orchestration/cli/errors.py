"""Errors from outside Sepscene (the system, Ray, torch) as one message that says what is wrong and how to fix it."""

import errno
import os

from sepscene.models.config import SepsceneError, first_line

_REMEDIES = {
    errno.EACCES: "this user may not write or read there; choose another folder, or change its permissions",
    errno.EPERM: "this user may not do that there; choose another folder, or change its permissions",
    errno.EROFS: "that file system is read-only; choose another folder",
    errno.ENOSPC: "the disk is full; free some space and run the command again, with --resume for a run",
    errno.EDQUOT: "the quota of this user is used up; free some space, or choose another folder",
    errno.ENOTDIR: "a file is where a folder is needed; choose another folder, or remove the file",
    errno.EEXIST: "something else has that name; choose another name, or remove it",
    errno.EISDIR: "a folder is where a file is needed; give the path of a file",
    errno.ENOENT: "check the path",
    errno.ENAMETOOLONG: "choose a shorter path",
    errno.EMFILE: "too many files are open; raise the limit, e.g. `ulimit -n 65536`",
    errno.ENOMEM: "the memory is full; close other programs, or lower the number of processes in resources.*",
}


def in_words(error: BaseException) -> str | None:
    """What to tell the user; None for an error that only a programmer can fix, which keeps its traceback."""
    if isinstance(error, SepsceneError):
        return str(error)
    module = type(error).__module__.split(".")[0]
    if module == "ray" or (isinstance(error, ConnectionError) and "Ray" in str(error)):
        return _of_ray(error)
    if isinstance(error, UnicodeError):
        return f"{error}: a name or a file is not UTF-8 text; rename the file, or set LC_ALL=C.UTF-8"
    if isinstance(error, OSError) and error.errno is not None:
        return _of_the_system(error)
    if isinstance(error, MemoryError):
        return _REMEDIES[errno.ENOMEM]
    if module == "torch" or "CUDA" in str(error):
        return f"{first_line(error)}\nThe device failed; `sepscene doctor` checks it, and `--device cpu` avoids it."
    return None


def _of_the_system(error: OSError) -> str:
    names = [os.fsdecode(name) for name in (error.filename, error.filename2) if isinstance(name, str | bytes)]
    reason = error.strerror or type(error).__name__
    remedy = _REMEDIES.get(error.errno or 0)
    return ": ".join([*names, reason]) + (f": {remedy}" if remedy else "")


def _of_ray(error: BaseException) -> str:
    cause = getattr(error, "cause", None)
    inner = in_words(cause) if isinstance(cause, Exception) else None
    said = inner or first_line(error)
    return f"Ray: {said}\n`sepscene doctor` checks the cluster; what a run has done is kept, continue it with --resume."
