"""The files of a local Ray that only this user can access: its sockets and logs, and its token."""

import os
import secrets
import stat
import tempfile
from contextlib import suppress
from pathlib import Path

from sepscene.models.config import SepsceneError


def private_temp_folder() -> str:
    """A temporary folder for a local Ray that only this user can access; RAY_TMPDIR if it is set.

    Ray's default, /tmp/ray, is writable for all users of the machine, who could replace its sockets.

    Raises:
        SepsceneError: if the folder belongs to another user, or other users have access to it.
    """
    if os.environ.get("RAY_TMPDIR"):
        return os.environ["RAY_TMPDIR"]
    folder = Path(tempfile.gettempdir()) / f"sepscene-{os.getuid()}"
    with suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise SepsceneError(
            f"{folder} is not a folder that only you can access (chmod 700): remove it, or set RAY_TMPDIR to one that "
            "is"
        )
    return str(folder)


def make_token() -> None:
    """Create ~/.ray/auth_token for a Ray that requires one, readable only for this user from the start.

    Ray itself would create it readable for all users.
    """
    if os.environ.get("RAY_AUTH_MODE") == "disabled" or os.environ.get("RAY_AUTH_TOKEN"):
        return
    path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
    path.parent.mkdir(parents=True, exist_ok=True)
    with suppress(FileExistsError):
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(secrets.token_hex(32))
    if path.stat().st_mode & 0o077:
        path.chmod(0o600)
