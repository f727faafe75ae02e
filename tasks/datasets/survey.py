"""Files that a reader has left out, by reason: files found = files used + files skipped."""

from collections import Counter, defaultdict
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
        self._counts = Counter[str]()
        self._names = defaultdict[str, list[str]](list)

    def add(self, reason: str, name: str) -> None:
        """Count one more file or member."""
        self._counts[reason] += 1
        if self._counts[reason] <= _EXAMPLES:
            self._names[reason].append(name)

    def merge(self, entry: Skipped) -> None:
        """Add the files that another count has for one reason."""
        self._counts[entry.reason] += entry.count
        self._names[entry.reason] += entry.examples

    def count(self, reason: str) -> int:
        """How many were left out for this reason."""
        return self._counts[reason]

    def entries(self) -> tuple[Skipped, ...]:
        """All reasons, the most frequent first."""
        found = [Skipped(reason, count, tuple(self._names[reason])) for reason, count in self._counts.items()]
        return tuple(sorted(found, key=lambda entry: (-entry.count, entry.reason)))
