"""The ledger: the exact set of schedule rows that a checkpoint's weights have consumed.

Rows are stored as disjoint half-open intervals, so a ledger of a hundred million consecutive rows is one interval. A
restart builds its stream from the complement, and a row that would be consumed twice is refused. So no row is lost or
trained on twice, even if processes are killed.

Shapes: N rows of the schedule.
"""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import BaseModel, Field

from sepscene.augment.locations import is_temporary
from sepscene.orchestration.records.files import read_typed

Row = Annotated[int, Field(ge=0)]


class _Fields(BaseModel):
    """The fields of a ledger file. Intervals are required: without them, no row would count as consumed."""

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
    """Clip URI -> why it could not be used. Its rows count as consumed."""
    untrained: int = 0
    """Number of consumed rows that were not trained on, because their clip could not be used."""
    unread: list[tuple[int, int]] = field(default_factory=list)
    """Intervals of the untrained rows whose clip may be readable later; see `without_unread_rows`."""

    def skip(self, row_N: np.ndarray, unread_N: np.ndarray) -> None:
        """Record consumed rows that were not trained on, and those of them that may be tried again."""
        self.untrained += len(row_N)
        self.unread = _merged([*self.unread, *_intervals(np.sort(unread_N))])

    def without_unread_rows(self) -> "Ledger":
        """A copy of the ledger in which the rows of `unread` count as not consumed, so that they are tried again."""
        if not self.unread:
            return self
        again = sum(end - start for start, end in self.unread)
        left = _without(self.intervals, self.unread)
        usable = {uri: why for uri, why in self.quarantined.items() if not is_temporary(why)}
        return Ledger(self.rows, left, usable, self.untrained - again)

    def consume(self, row_N: np.ndarray) -> None:
        """Add rows, in any order.

        Raises:
            ValueError: if a row is outside the schedule, appears twice, or was consumed before; no row is added then.
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
        """Number of repeated rows in overlapping intervals; 0 in every ledger that was written by this class."""
        reached = 0
        twice = 0
        for start, end in sorted(self.intervals):
            twice += max(0, min(end, reached) - start)
            reached = max(reached, end)
        return twice

    def remaining(self) -> list[tuple[int, int]]:
        """The complement: intervals of the rows not yet consumed, in order."""
        edges = [0, *(edge for interval in self.intervals for edge in interval), self.rows]
        return [(start, end) for start, end in zip(edges[::2], edges[1::2], strict=True) if start < end]

    def to_json(self) -> str:
        """The ledger as JSON, for a checkpoint."""
        return json.dumps(asdict(self))

    @classmethod
    def load(cls, path: Path) -> "Ledger":
        """Read a file that contains the output of `to_json`.

        Raises:
            FileNotFoundError: if it does not exist.
            SepsceneError: if it contains anything else.
        """
        return cls(**dict(read_typed(path, _Fields, "continue the run with --resume")))


def _intervals(row_N: np.ndarray) -> list[tuple[int, int]]:
    """Sorted rows as half-open intervals; a duplicate row starts a new interval."""
    if not len(row_N):
        return []
    breaks = np.flatnonzero(np.diff(row_N) != 1)
    starts = row_N[np.concatenate([[0], breaks + 1])]
    ends = row_N[np.concatenate([breaks, [len(row_N) - 1]])] + 1
    return list(zip(starts.tolist(), ends.tolist(), strict=True))


def _merged(intervals: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """The intervals in order, adjacent ones joined.

    Raises:
        ValueError: if two overlap.
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
    """Disjoint intervals without the removed ones, each of which is contained in one of them."""
    edges = sorted(edge for interval in [*intervals, *removed] for edge in interval)
    return [(start, end) for start, end in zip(edges[::2], edges[1::2], strict=True) if start < end]


def nth_rows(intervals: list[tuple[int, int]], index_N: np.ndarray, beyond: int) -> np.ndarray:
    """The rows at the given positions of the concatenated disjoint intervals; `beyond` for positions past their end."""
    if not intervals:
        return np.full(len(index_N), beyond, np.int64)
    start, end = np.array(intervals, np.int64).T
    before = np.concatenate([[0], np.cumsum(end - start)])
    which = np.searchsorted(before, index_N, side="right") - 1
    past = which >= len(start)
    which = np.minimum(which, len(start) - 1)
    return np.where(past, beyond, start[which] + index_N - before[which])
