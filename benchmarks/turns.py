"""Two families of processes that have one machine in turns, so that both meet it in the same state."""

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import psutil

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
    over = threading.Event()

    def sides() -> tuple[list[psutil.Process], list[psutil.Process]]:
        ours = psutil.Process().children(recursive=True)
        these = [one for one in ours if one.pid in pids or {parent.pid for parent in one.parents()} & set(pids)]
        return [one for one in ours if one not in these], these

    def tell(processes: list[psutil.Process], number: signal.Signals) -> None:
        for process in processes:
            with suppress(psutil.Error):
                process.send_signal(number)

    def take_turns() -> None:
        turn = 0
        while not over.is_set():
            both = sides()
            tell(both[1 - turn], signal.SIGSTOP)
            tell(both[turn], signal.SIGCONT)
            begin = time.time()
            over.wait(TURN_SECONDS)
            spans[turn].append((begin, time.time()))
            turn = 1 - turn if both[1] else 0
        for processes in sides():
            tell(processes, signal.SIGCONT)

    thread = threading.Thread(target=take_turns, daemon=True)
    thread.start()
    try:
        yield spans
    finally:
        over.set()
        thread.join()
