"""Calls a function at regular intervals while a block of code runs."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def repeat_in_background(action: Callable[[], None], seconds: float, name: str) -> Iterator[None]:
    """Call `action` every `seconds` in a thread called `name` while the block runs, but never after it."""
    stop = threading.Event()

    def repeat() -> None:
        while not stop.wait(seconds):
            action()

    thread = threading.Thread(target=repeat, name=name, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
