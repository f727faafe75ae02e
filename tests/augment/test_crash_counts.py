"""The crash quarantine, with processes that are really killed."""

import multiprocessing
import os
import signal
from pathlib import Path

import numpy as np
import pytest

from sepscene.augment.crash_counts import Columns, CrashCounts

DEADLY = "deadly.wav"


def block() -> Columns:
    """Three rows; the second one kills its process."""
    return {
        "row": np.array([5, 6, 7]),
        "uri": np.array(["a.wav", DEADLY, "b.wav"], object),
        "fault": np.array(["", "", ""], object),
    }


def process(columns: Columns) -> Columns:
    """Kill the process, as a crash in a native decoder does: no exception can be caught."""
    for uri, fault in zip(columns["uri"], columns["fault"], strict=True):
        if uri == DEADLY and not fault:
            os.kill(os.getpid(), signal.SIGKILL)
    return columns


def attempt(folder: Path, results) -> None:  # type: ignore[no-untyped-def]
    """One attempt of an actor."""
    results.put(CrashCounts(folder).guard("reader", process, block())["fault"].tolist())


@pytest.mark.slow
def test_a_clip_is_quarantined_after_two_crashes(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    codes = []
    for _ in range(4):
        actor = context.Process(target=attempt, args=(tmp_path, results))
        actor.start()
        actor.join(60)
        codes.append(actor.exitcode)
    assert codes == [-signal.SIGKILL] * 3 + [0]
    assert results.get(timeout=10) == ["", "crashed its reader process 2 times", ""]
    left = sorted(path.name for path in tmp_path.iterdir())
    assert len(left) == 2 and all("-clip-" in name for name in left)


def test_a_success_resets_the_crash_count(tmp_path: Path) -> None:
    """The process is killed from outside in each of two epochs, while it processes the clip alone."""

    class KilledFromOutside(BaseException):
        pass

    def killed(columns: Columns) -> Columns:
        raise KilledFromOutside

    crash_counts = CrashCounts(tmp_path)
    innocent = block() | {"uri": np.array(["a", "b", "c"], object)}
    for _ in range(2):
        for _ in range(2):  # the block, then its first clip alone
            with pytest.raises(KilledFromOutside):
                crash_counts.guard("reader", killed, innocent)
        assert crash_counts.guard("reader", process, innocent)["fault"].tolist() == ["", "", ""]
        assert list(tmp_path.iterdir()) == []


def test_a_harmless_block_leaves_no_marker(tmp_path: Path) -> None:
    innocent = block() | {"uri": np.array(["a", "b", "c"], object)}
    crash_counts = CrashCounts(tmp_path)
    for _ in range(3):
        assert crash_counts.guard("reader", process, innocent)["fault"].tolist() == ["", "", ""]
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "reader-rows-5-7-3").touch()  # an actor was killed from outside while it had the block
    assert crash_counts.guard("reader", process, innocent)["row"].tolist() == [5, 6, 7]
    assert list(tmp_path.iterdir()) == []
