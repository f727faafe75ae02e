"""Crash counts: a clip that kills its process twice is put in quarantine instead of killing it again and again.

A damaged file can crash a native decoder, and a clip can exhaust a device's memory: then nobody is left to catch an
exception, and the block is simply tried again. So a marker is written before a block is processed and removed after it.
A process that finds the marker of an earlier try goes through the block clip by clip, with a marker for each clip. A
clip with two markers of its own is not processed a third time; one that was processed has none any more. The markers
are files in a folder that all processes share.
"""

import contextlib
import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np

Columns = dict[str, np.ndarray]

MOST_CRASHES = 2


class CrashCounts:
    """How often each clip was at hand when a process died: a marker file for each time, in one folder."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)

    def guard(self, stage: str, process: Callable[[Columns], Columns], block: Columns) -> Columns:
        """Process a block; clip by clip where an earlier try of the same block did not come back.

        Args:
            stage: name of the stage; its markers are apart from those of other stages.
            process: maps a block with column `fault` to a block of as many rows; it leaves rows with a fault alone.
            block: with columns `row`, `uri` and `fault`.
        """
        marker = self.folder / f"{stage}-rows-{block['row'].min()}-{block['row'].max()}-{len(block['row'])}"
        if marker.exists():
            rows = [self._guard_row(stage, process, _rows(block, n)) for n in range(len(block["row"]))]
            done = {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}
        else:
            _leave(marker)
            done = process(block)
        marker.unlink(missing_ok=True)
        return done

    def _guard_row(self, stage: str, process: Callable[[Columns], Columns], row: Columns) -> Columns:
        name = hashlib.sha256(str(row["uri"][0]).encode()).hexdigest()[:24]
        crash_counts = [self.folder / f"{stage}-clip-{name}-{count}" for count in range(MOST_CRASHES)]
        free = next((count for count in crash_counts if not count.exists()), None)
        if free is None:
            row = row | {"fault": np.array([f"killed its {stage} process {MOST_CRASHES} times"], object)}
            return process(row)
        _leave(free)
        done = process(row)
        for count in crash_counts:  # an earlier one too: something else had killed that process
            count.unlink(missing_ok=True)
        return done


def _leave(marker: Path) -> None:
    with contextlib.suppress(OSError):  # a disk that is full must not end what it only watches over
        marker.touch()


def _rows(block: Columns, n: int) -> Columns:
    return {name: column[n : n + 1] for name, column in block.items()}
