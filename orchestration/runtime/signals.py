"""Signals that end a run: a checkpoint is saved first, and a message explains how to continue."""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from sepscene.orchestration.records.run_folder import StageFolder
from sepscene.orchestration.runtime.run_processes import core_is_alive

GRACE_SECONDS = 100.0
"""How long a driver that must end waits for the requested checkpoint; jobs are killed after 120 s."""

END_SIGNALS = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)
"""Sent by `ray job stop`, Kubernetes and Slurm; by a terminal that is closed; by Ctrl-C."""


@contextmanager
def exit_on_signal() -> Iterator[None]:
    """While the block runs, SIGTERM and SIGHUP end this process like Ctrl-C, so that open contexts are closed first."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    with _handled((signal.SIGTERM, signal.SIGHUP), stop):
        yield


@contextmanager
def checkpoint_on_signal(folder: StageFolder) -> Iterator[None]:
    """While the block runs, a signal that ends this process first leads to a checkpoint, if the stage has begun.

    A second signal ends it without the checkpoint. So does the end of a local Ray, to whose processes some senders send
    the signal, too (`systemctl stop`). Only the main thread can handle signals; the driver of a Tune trial runs in
    another thread, so the trial continues from its last checkpoint.
    """
    received: list[int] = []

    def stop(number: int, frame: FrameType | None) -> None:
        received.append(number)
        if len(received) == 1 and folder.path.is_dir():
            _print(f"{signal.Signals(number).name}: saving a checkpoint; another signal exits without it")
            folder.wanted.touch()
            deadline = time.monotonic() + GRACE_SECONDS
            while folder.wanted.exists() and time.monotonic() < deadline and core_is_alive():
                time.sleep(0.1)
            saved = not folder.wanted.exists()
            _print(("the checkpoint is saved" if saved else "no checkpoint was saved") + "; continue with --resume")
        raise SystemExit(128 + number)

    with _handled(END_SIGNALS, stop):
        yield


def exit_immediately() -> None:
    """Exit with code 2, without the cleanup of Ray's library, which fails (SIGSEGV) if Ray has died."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(2)


@contextmanager
def _handled(numbers: tuple[signal.Signals, ...], handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Handle signals while the block runs, if this is the main thread; ignored signals (`nohup`) stay ignored."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in numbers}
    handled = [number for number in numbers if before[number] != signal.SIG_IGN]
    for number in handled:
        signal.signal(number, handler)
    try:
        yield
    finally:
        for number in handled:
            signal.signal(number, before[number])


def _print(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
