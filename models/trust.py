"""Lists of trusted code: external code runs only if its import path, or the digest of its file, is on one of them.

The lists are stored in the user's configuration folder, so that a folder or an experiment file from another source
cannot grant trust to itself. Processes on other machines of a cluster read them from environment variables.
"""

import os
import re
from dataclasses import dataclass
from pathlib import Path

from sepscene.models.files import write_atomically


@dataclass(frozen=True)
class TrustList:
    """One list of trusted code.

    Attributes:
        file_name: file in the user's configuration folder; one entry per line.
        variable: environment variable with further entries, separated by commas.
        pattern: regular expression of an entry; anything else is ignored.
    """

    file_name: str
    variable: str
    pattern: str

    @property
    def file(self) -> Path:
        """Path of the file with the list."""
        folder = os.environ.get("XDG_CONFIG_HOME") or "~/.config"
        return Path(folder).expanduser() / "sepscene" / self.file_name

    def entries(self) -> set[str]:
        """All entries, of the file and of the environment variable."""
        return self._stored() | self._entries_in(os.environ.get(self.variable, ""))

    def remember(self, entry: str) -> None:
        """Trust an entry permanently: add it to the file."""
        self.file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_atomically(self.file, "".join(f"{known}\n" for known in sorted(self._stored() | {entry})).encode())

    def _stored(self) -> set[str]:
        try:
            return self._entries_in(self.file.read_text(encoding="utf-8", errors="replace"))
        except OSError:
            return set()

    def _entries_in(self, text: str) -> set[str]:
        return {word for word in re.split(r"[\s,]+", text) if re.fullmatch(self.pattern, word)}

    def grant(self, entry: str) -> None:
        """Trust an entry in this process and in the processes that it starts."""
        if entry not in self.entries():
            os.environ[self.variable] = ",".join(filter(None, (os.environ.get(self.variable), entry)))


PROGRAMS = TrustList("trusted_programs", "SEPSCENE_TRUSTED_PROGRAMS", "[0-9a-f]{64}")
"""TorchScript programs, identified by the SHA-256 of their file."""

CODE = TrustList("trusted_code", "SEPSCENE_TRUSTED_CODE", r"[^\W\d][\w.]*:[^\W\d][\w.]*")
"""Custom classes and functions, identified by their import path."""


def trust_variables() -> dict[str, str]:
    """Environment variables that pass this process's trust on to other processes; empty if nothing is trusted."""
    lists = {each.variable: ",".join(sorted(each.entries())) for each in (PROGRAMS, CODE)}
    return {variable: entries for variable, entries in lists.items() if entries}
