"""Signals that end a run: they lead to a checkpoint first, and to a sentence that says how to go on."""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from sepscene.orchestration.records.run_folder import StageFolder

GRACE_SECONDS = 100.0
"""How long a driver that must end waits for the checkpoint it asked for; jobs are killed after 120 s."""

ENDING = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)
"""What `ray job stop`, Kubernetes and Slurm send first; a terminal that is closed; Ctrl-C."""


@contextmanager
def exit_on_signal() -> Iterator[None]:
    """While the block runs, SIGTERM and SIGHUP end this process as Ctrl-C does: what was begun is closed first."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    with _handled((signal.SIGTERM, signal.SIGHUP), stop):
        yield


@contextmanager
def checkpoint_on_signal(folder: StageFolder) -> Iterator[None]:
    """While the block runs, a signal that ends this process leads to a checkpoint before it exits.

    A second signal ends it at once. Only the main thread can listen; a Tune trial's driver is none, and falls back to
    its last checkpoint.
    """
    received: list[int] = []

    def stop(number: int, frame: FrameType | None) -> None:
        received.append(number)
        if len(received) == 1:
            _say(f"{signal.Signals(number).name}: saving a checkpoint; another signal ends at once")
            folder.wanted.touch()
            deadline = time.monotonic() + GRACE_SECONDS
            while folder.wanted.exists() and time.monotonic() < deadline:
                time.sleep(0.1)
            saved = not folder.wanted.exists()
            _say(("the checkpoint is saved" if saved else "no checkpoint could be saved") + "; go on with --resume")
        raise SystemExit(128 + number)

    with _handled(ENDING, stop):
        yield


def end_at_once() -> None:
    """End this process with code 2, before Ray's library tidies up in it: that fails (SIGSEGV) where Ray has died."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(2)


@contextmanager
def _handled(numbers: tuple[signal.Signals, ...], handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Signals go to a handler, where this is the main thread; those that are ignored (`nohup`) stay ignored."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in numbers}
    heard = [number for number in numbers if before[number] != signal.SIG_IGN]
    for number in heard:
        signal.signal(number, handler)
    try:
        yield
    finally:
        for number in heard:
            signal.signal(number, before[number])


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
