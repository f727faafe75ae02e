"""Two groups of processes that use one machine in turns, so that both are measured under the same conditions."""

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import psutil

from sepscene.orchestration.repeating import repeat_in_background

TURN_SECONDS = 10

Spans = list[tuple[float, float]]
"""Start and end of each span, in seconds of `time.time()`."""


def seconds_in(spans: Spans, begin: float, end: float) -> float:
    """The part of the time between begin and end that is in the spans, in seconds."""
    return sum(max(0.0, min(end, stop) - max(begin, start)) for start, stop in spans)


@contextmanager
def in_turns(pids: list[int]) -> Iterator[tuple[Spans, Spans]]:
    """While the block runs, stop in turns these processes with their children, and all other children of this process.

    When these processes have ended, the others are no longer stopped.

    Yields:
        The spans in which the others were running, and those in which these processes were running.
    """
    spans: tuple[Spans, Spans] = ([], [])
    turn = 1
    begin = time.time()

    def sides() -> tuple[list[psutil.Process], list[psutil.Process]]:
        these = [each for pid in pids for each in _running(pid)]
        return [child for child in psutil.Process().children(recursive=True) if child not in these], these

    def swap() -> None:
        nonlocal turn, begin
        both = sides()
        spans[turn].append((begin, time.time()))
        turn = 1 - turn if both[1] else 0
        _send(both[1 - turn], signal.SIGSTOP)
        _send(both[turn], signal.SIGCONT)
        begin = time.time()

    try:
        swap()
        with repeat_in_background(swap, TURN_SECONDS, "turns"):
            yield spans
        spans[turn].append((begin, time.time()))
    finally:
        for processes in sides():
            _send(processes, signal.SIGCONT)


def _running(pid: int) -> list[psutil.Process]:
    """A process with its children; empty when it has ended, even if it is still a zombie."""
    with suppress(psutil.Error):
        process = psutil.Process(pid)
        if process.status() != psutil.STATUS_ZOMBIE:
            return [process, *process.children(recursive=True)]
    return []


def _send(processes: list[psutil.Process], number: signal.Signals) -> None:
    for process in processes:
        with suppress(psutil.Error):
            process.send_signal(number)
