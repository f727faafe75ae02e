"""Two families of processes that have one machine in turns, so that both meet it in the same state."""

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import psutil

from sepscene.orchestration.repeating import again_and_again

TURN_SECONDS = 10

Spans = list[tuple[float, float]]
"""From when to when, in seconds of the day's clock."""


def seconds_in(spans: Spans, begin: float, end: float) -> float:
    """How much of the time between begin and end lies in the spans."""
    return sum(max(0.0, min(end, stop) - max(begin, start)) for start, stop in spans)


@contextmanager
def in_turns(pids: list[int]) -> Iterator[tuple[Spans, Spans]]:
    """While the block runs, these processes with their children, and all others of ours, are stopped in turns.

    Yields the spans in which the others, and in which these could run. When these have ended, the others go on alone.
    """
    spans: tuple[Spans, Spans] = ([], [])
    turn, begin = 1, time.time()

    def sides() -> tuple[list[psutil.Process], list[psutil.Process]]:
        these = [each for pid in pids for each in _running(pid)]
        return [child for child in psutil.Process().children(recursive=True) if child not in these], these

    def swap() -> None:
        nonlocal turn, begin
        both = sides()
        spans[turn].append((begin, time.time()))
        turn = 1 - turn if both[1] else 0
        _tell(both[1 - turn], signal.SIGSTOP)
        _tell(both[turn], signal.SIGCONT)
        begin = time.time()

    try:
        swap()
        with again_and_again(swap, TURN_SECONDS, "turns"):
            yield spans
        spans[turn].append((begin, time.time()))
    finally:
        for processes in sides():
            _tell(processes, signal.SIGCONT)


def _running(pid: int) -> list[psutil.Process]:
    """A process with its children; nothing once it has ended, also before its parent has asked for its exit code."""
    with suppress(psutil.Error):
        process = psutil.Process(pid)
        if process.status() != psutil.STATUS_ZOMBIE:
            return [process, *process.children(recursive=True)]
    return []


def _tell(processes: list[psutil.Process], number: signal.Signals) -> None:
    for process in processes:
        with suppress(psutil.Error):
            process.send_signal(number)
