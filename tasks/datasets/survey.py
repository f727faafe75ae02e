"""Files that a reader has left out, by reason: files found = files used + files skipped."""

from dataclasses import dataclass

NOT_UTF8 = "its name is not UTF-8: rename it"
_EXAMPLES = 5  # file names that a message lists


@dataclass(frozen=True)
class Skipped:
    """Files, or members of archives, that a reader has left out for one reason, with the names of the first few."""

    reason: str
    count: int
    examples: tuple[str, ...]

    def __str__(self) -> str:
        more = ", …" if self.count > len(self.examples) else ""
        return f"{self.count} ({self.reason}): {', '.join(self.examples)}{more}"


class LeftOut:
    """Counts what is left out while a data set is read."""

    def __init__(self) -> None:
        self._found: dict[str, Skipped] = {}

    def add(self, reason: str, name: str) -> None:
        """Count one more file or member."""
        self.merge(Skipped(reason, 1, (name,)))

    def merge(self, entry: Skipped) -> None:
        """Add the files that another count has for one reason."""
        known = self._found.get(entry.reason, Skipped(entry.reason, 0, ()))
        examples = (*known.examples, *entry.examples)[:_EXAMPLES]
        self._found[entry.reason] = Skipped(entry.reason, known.count + entry.count, examples)

    def count(self, reason: str) -> int:
        """How many were left out for this reason."""
        return self._found[reason].count if reason in self._found else 0

    def entries(self) -> tuple[Skipped, ...]:
        """All reasons, the most frequent first."""
        return tuple(sorted(self._found.values(), key=lambda entry: (-entry.count, entry.reason)))
