"""Which programs the user trusts: TorchScript is code of its author, and no list of operators makes it harmless.

Trust belongs to the user, not to a folder: it is kept by the program's SHA-256 in the user's own configuration, so that
a folder or an experiment file of a stranger can't bring it along. Processes on other machines of a cluster take it from
an environment variable.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from sepscene.models.config import CheckpointError
from sepscene.models.files import write_atomically

VARIABLE = "SEPSCENE_TRUSTED_PROGRAMS"
"""Environment variable with digests, separated by commas."""

_DIGEST = re.compile("[0-9a-f]{64}")


def trust_file() -> Path:
    """The user's list of trusted programs, one SHA-256 a line."""
    folder = os.environ.get("XDG_CONFIG_HOME") or "~/.config"
    return Path(folder).expanduser() / "sepscene" / "trusted_programs"


def trusted_programs() -> set[str]:
    """Digests of all programs that the user trusts."""
    try:
        listed = trust_file().read_text(encoding="utf-8")
    except OSError:
        listed = ""
    return set(_DIGEST.findall(f"{listed}\n{os.environ.get(VARIABLE, '')}"))


def trust_program(digest: str) -> None:
    """Add a program to the user's list."""
    file = trust_file()
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    write_atomically(file, "".join(f"{known}\n" for known in sorted(trusted_programs() | {digest})).encode())


def require_trust(digest: str, origin: Path) -> None:
    """Refuse a program that the user doesn't trust.

    Raises:
        CheckpointError: says what trust means and how it is given.
    """
    if digest not in trusted_programs():
        raise CheckpointError(
            f"{origin} is a TorchScript program (SHA-256 {digest[:12]}…): it can read and write every file that you "
            "can. If you trust its author, import it yourself with `sepscene separator import … --trust-code`; on "
            f"another machine set {VARIABLE} to its whole SHA-256. A torch.export program (.pt2) needs no trust"
        )
