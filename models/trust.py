"""Lists of what the user trusts: code runs only where its name, or the digest of its file, is on one of them.

Trust belongs to the user, not to a folder: it is kept in the user's own configuration, so that a folder or an
experiment file of a stranger can't bring it along. Processes on other machines of a cluster take it from an environment
variable.
"""

import os
import re
from dataclasses import dataclass
from pathlib import Path

from sepscene.models.files import write_atomically


@dataclass(frozen=True)
class TrustList:
    """One list of the user's.

    Attributes:
        file_name: in the user's configuration folder; one entry a line.
        variable: environment variable with entries, separated by commas.
        pattern: what an entry looks like; anything else is passed over.
    """

    file_name: str
    variable: str
    pattern: str

    @property
    def file(self) -> Path:
        """Where the list is kept."""
        folder = os.environ.get("XDG_CONFIG_HOME") or "~/.config"
        return Path(folder).expanduser() / "sepscene" / self.file_name

    def entries(self) -> set[str]:
        """All that the user trusts, by the file and the variable."""
        try:
            listed = self.file.read_text(encoding="utf-8")
        except OSError:
            listed = ""
        words = re.split(r"[\s,]+", f"{listed}\n{os.environ.get(self.variable, '')}")
        return {word for word in words if re.fullmatch(self.pattern, word)}

    def remember(self, entry: str) -> None:
        """Trust for good: write the user's list."""
        self.file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_atomically(self.file, "".join(f"{known}\n" for known in sorted(self.entries() | {entry})).encode())

    def grant(self, entry: str) -> None:
        """Trust in this process and in those that it starts."""
        if entry not in self.entries():
            os.environ[self.variable] = ",".join(filter(None, (os.environ.get(self.variable), entry)))


PROGRAMS = TrustList("trusted_programs", "SEPSCENE_TRUSTED_PROGRAMS", "[0-9a-f]{64}")
"""TorchScript programs, by the SHA-256 of their file."""

CODE = TrustList("trusted_code", "SEPSCENE_TRUSTED_CODE", r"[^\W\d][\w.]*:[^\W\d][\w.]*")
"""Classes and functions that a configuration or a bundle names, by their import path."""


def trust_variables() -> dict[str, str]:
    """The environment that gives other processes the trust of this one; empty where there is none."""
    lists = {each.variable: ",".join(sorted(each.entries())) for each in (PROGRAMS, CODE)}
    return {variable: entries for variable, entries in lists.items() if entries}
