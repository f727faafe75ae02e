"""What a Ray on this machine keeps in files, for this user alone: its sockets and logs, and its token."""

import os
import secrets
import stat
import tempfile
from contextlib import suppress
from pathlib import Path

from sepscene.models.config import SepsceneError


def private_temp_folder() -> str:
    """A folder that only this user can open, for a local Ray; RAY_TMPDIR where the user has set it.

    Ray's own choice, /tmp/ray, may be written by all users of the machine, who could replace its sockets.

    Raises:
        SepsceneError: when somebody else has made the folder, or has access to it.
    """
    if os.environ.get("RAY_TMPDIR"):
        return os.environ["RAY_TMPDIR"]
    folder = Path(tempfile.gettempdir()) / f"sepscene-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise SepsceneError(
            f"{folder} is not a folder of yours alone (chmod 700): remove it, or set RAY_TMPDIR to one that is"
        )
    return str(folder)


def make_token() -> None:
    """Make ~/.ray/auth_token for a Ray that asks for one, readable for this user alone from the start.

    Ray would make it itself, readable for everybody.
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
