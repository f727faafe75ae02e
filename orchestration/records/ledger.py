"""The ledger: exactly which rows of the schedule a checkpoint's weights have consumed.

Rows are kept as disjoint half-open intervals, so a ledger of a hundred million rows in order is one interval. A restart
builds its stream from the complement; a row that would be consumed twice is refused. That is how nothing is trained on
twice and nothing is lost, whatever dies.
"""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import BaseModel, Field

from sepscene.augment.locations import PASSING
from sepscene.orchestration.records.files import read_typed

Row = Annotated[int, Field(ge=0)]


class _Fields(BaseModel):
    """What a file must hold: a ledger without its intervals would say that nothing was consumed."""

    rows: Row
    intervals: list[tuple[Row, Row]]
    quarantined: dict[str, str]
    untrained: Row = 0
    unread: list[tuple[Row, Row]] = []


@dataclass
class Ledger:
    """Rows consumed out of 0 … rows−1, and the clips that could not be used."""

    rows: int
    intervals: list[tuple[int, int]] = field(default_factory=list)
    quarantined: dict[str, str] = field(default_factory=dict)
    """Clip URI -> why it could not be used. Its rows count as consumed: there is nothing else to do with them."""
    untrained: int = 0
    """Of the consumed rows, those that no weight has learned from, because their clip could not be used."""
    unread: list[tuple[int, int]] = field(default_factory=list)
    """Of these, the rows whose clip may be readable later, as intervals; see `try_again`."""

    def skip(self, row_N: np.ndarray, unread_N: np.ndarray) -> None:
        """Note consumed rows that nothing was learned from, and which of them may be tried again."""
        self.untrained += len(row_N)
        self.unread = _merged([*self.unread, *_intervals(np.sort(unread_N))])

    def try_again(self) -> "Ledger":
        """The ledger as it was before the rows were met whose clips could not be read at the time."""
        if not self.unread:
            return self
        again = sum(end - start for start, end in self.unread)
        left = _without(self.intervals, self.unread)
        usable = {uri: why for uri, why in self.quarantined.items() if not why.startswith(PASSING)}
        return Ledger(self.rows, left, usable, self.untrained - again)

    def consume(self, row_N: np.ndarray) -> None:
        """Enter rows, in any order.

        Raises:
            ValueError: when a row is outside the schedule, appears twice, or was consumed before; nothing is entered.
        """
        row_N = np.sort(np.asarray(row_N, np.int64))
        if not len(row_N):
            return
        if row_N[0] < 0 or row_N[-1] >= self.rows:
            raise ValueError(f"rows {row_N[0]} … {row_N[-1]} are not all inside the schedule's 0 … {self.rows - 1}")
        self.intervals = _merged([*self.intervals, *_intervals(row_N)])

    @property
    def consumed(self) -> int:
        """Number of rows consumed."""
        return sum(end - start for start, end in self.intervals)

    @property
    def twice(self) -> int:
        """How often a row stands in a second interval: never, unless somebody wrote the ledger without `consume`."""
        reached = 0
        twice = 0
        for start, end in sorted(self.intervals):
            twice += max(0, min(end, reached) - start)
            reached = max(reached, end)
        return twice

    def remaining(self) -> list[tuple[int, int]]:
        """The complement: intervals of rows still to come, in order."""
        edges = [0, *(edge for interval in self.intervals for edge in interval), self.rows]
        return [(start, end) for start, end in zip(edges[::2], edges[1::2], strict=True) if start < end]

    def to_json(self) -> str:
        """The ledger as JSON, for a checkpoint."""
        return json.dumps(asdict(self))

    @classmethod
    def load(cls, path: Path) -> "Ledger":
        """Read a file that holds what `to_json` wrote.

        Raises:
            FileNotFoundError: when there is none.
            SepsceneError: when it holds anything else.
        """
        return cls(**dict(read_typed(path, _Fields, "continue the run with --resume")))


def _intervals(row_N: np.ndarray) -> list[tuple[int, int]]:
    """Sorted rows as half-open intervals; a row that comes twice begins an interval of its own."""
    if not len(row_N):
        return []
    breaks = np.flatnonzero(np.diff(row_N) != 1)
    starts = row_N[np.concatenate([[0], breaks + 1])]
    ends = row_N[np.concatenate([breaks, [len(row_N) - 1]])] + 1
    return list(zip(starts.tolist(), ends.tolist(), strict=True))


def _merged(intervals: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Disjoint intervals in order, neighbours joined.

    Raises:
        ValueError: when two overlap.
    """
    merged: list[tuple[int, int]] = []
    for start, end in sorted(intervals):
        if merged and start < merged[-1][1]:
            raise ValueError(f"row {start} is consumed twice")
        if merged and start == merged[-1][1]:
            merged[-1] = (merged[-1][0], end)
        else:
            merged.append((start, end))
    return merged


def _without(intervals: list[tuple[int, int]], removed: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """The parts of disjoint intervals that lie in none of the removed ones, which lie inside of them."""
    edges = sorted(edge for interval in [*intervals, *removed] for edge in interval)
    return [(start, end) for start, end in zip(edges[::2], edges[1::2], strict=True) if start < end]


def nth_rows(intervals: list[tuple[int, int]], index_N: np.ndarray, beyond: int) -> np.ndarray:
    """The rows at the given positions of a list of disjoint intervals; `beyond` for positions past their end."""
    if not intervals:
        return np.full(len(index_N), beyond, np.int64)
    start, end = np.array(intervals, np.int64).T
    before = np.concatenate([[0], np.cumsum(end - start)])
    which = np.searchsorted(before, index_N, side="right") - 1
    past = which >= len(start)
    which = np.minimum(which, len(start) - 1)
    return np.where(past, beyond, start[which] + index_N - before[which])
