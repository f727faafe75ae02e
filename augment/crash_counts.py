"""Crash counts: a clip that has crashed its process twice is put into crash quarantine.

A damaged file can crash a native decoder, and a clip can exhaust a device's memory. Then no exception is raised, and
the block is retried with the same outcome. So a marker file is written before a block is processed and removed
afterwards. A process that finds a marker from an earlier attempt processes the block clip by clip, with one marker per
clip. A clip with two markers is not processed again; the markers of a clip that succeeds are removed. All processes
share the folder of the markers.
"""

import contextlib
import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np

Columns = dict[str, np.ndarray]

MAX_CRASHES = 2
"""One crash can have another reason, e.g. a machine out of memory; Ray repeats a call four times."""


class CrashCounts:
    """Counts the crashes during each clip, with one marker file per crash in one folder."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)

    def guard(self, stage: str, process: Callable[[Columns], Columns], block: Columns) -> Columns:
        """Process a block; clip by clip if an earlier attempt at the same block crashed.

        Args:
            stage: name of the stage; each stage has its own markers.
            process: maps a block with column `fault` to a block of as many rows; it skips rows that have a fault.
            block: a block with the columns `row`, `uri` and `fault`.
        """
        marker = self.folder / f"{stage}-rows-{block['row'].min()}-{block['row'].max()}-{len(block['row'])}"
        if marker.exists():
            rows = [self._guard_row(stage, process, _rows(block, n)) for n in range(len(block["row"]))]
            done = {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}
        else:
            _write(marker)
            done = process(block)
        marker.unlink(missing_ok=True)
        return done

    def _guard_row(self, stage: str, process: Callable[[Columns], Columns], row: Columns) -> Columns:
        name = hashlib.sha256(str(row["uri"][0]).encode()).hexdigest()[:24]
        markers = [self.folder / f"{stage}-clip-{name}-{number}" for number in range(MAX_CRASHES)]
        unused = next((marker for marker in markers if not marker.exists()), None)
        if unused is None:
            row = row | {"fault": np.array([f"crashed its {stage} process {MAX_CRASHES} times"], object)}
            return process(row)
        _write(unused)
        done = process(row)
        for marker in markers:  # earlier ones too: those crashes had another cause
            marker.unlink(missing_ok=True)
        return done


def _write(marker: Path) -> None:
    with contextlib.suppress(OSError):  # a full disk must not stop the processing
        marker.touch()


def _rows(block: Columns, n: int) -> Columns:
    return {name: column[n : n + 1] for name, column in block.items()}
