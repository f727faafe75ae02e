"""The progress of a stage: a bar that moves on a terminal; in a log or a pipe a line now and then."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

LINE_SECONDS = 30.0
"""Between two lines of a log."""


class Told(Protocol):
    """What a stage may say while it runs."""

    def update(self, done: float | None = None, terms: str = "") -> None:
        """How far it is, and a few figures in words; what is not given stays."""

    def event(self, text: str) -> None:
        """Something that happened on the way."""


@contextmanager
def progress(console: Console, title: str, total: float) -> Iterator[Told]:
    """Show a stage's progress for as long as the block runs, and that it is complete when the block ends well."""
    told: Told
    if not console.is_terminal:
        told = _Lines(console, title, total)
        yield told
        told.end()
        return
    columns = (
        TextColumn("{task.description:<23}"),
        BarColumn(bar_width=12),
        TextColumn("{task.completed:>6.0f}/{task.total:.0f}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[terms]}"),
    )
    with Progress(*columns, console=console) as bar:
        told = _Bar(bar, title, total)
        yield told
        told.update(total)


class _Bar:
    """The bar of a terminal."""

    def __init__(self, bar: Progress, title: str, total: float) -> None:
        self.bar = bar
        self.task = bar.add_task(title, total=total, terms="")

    def update(self, done: float | None = None, terms: str = "") -> None:
        self.bar.update(self.task, completed=done)
        if terms:
            self.bar.update(self.task, terms=terms)

    def event(self, text: str) -> None:
        self.bar.console.print(f"[yellow]{text}[/yellow]")


class _Lines:
    """The lines of a log: one when the stage begins, one every `LINE_SECONDS`, one at its end."""

    def __init__(self, console: Console, title: str, total: float) -> None:
        self.console, self.title, self.total = console, title, total
        self.started = self.written = time.monotonic()
        self.done, self.terms = 0.0, ""
        self._write()

    def update(self, done: float | None = None, terms: str = "") -> None:
        self.done = self.done if done is None else done
        self.terms = terms or self.terms
        if time.monotonic() - self.written >= LINE_SECONDS:
            self._write()

    def event(self, text: str) -> None:
        self.console.print(f"{self.title}: {text}", highlight=False, markup=False, soft_wrap=True)

    def end(self) -> None:
        """The last line."""
        self.done = self.total
        self._write()

    def _write(self) -> None:
        self.written = time.monotonic()
        spent = self.written - self.started
        left = spent * (self.total - self.done) / self.done if 0 < self.done < self.total else 0.0
        parts = [f"{self.title:<23}", f"{self.done:>6.0f}/{self.total:.0f}", _clock(spent)]
        parts += [f"{_clock(left)} left"] if left else []
        self.console.print("  ".join([*parts, self.terms]).rstrip(), highlight=False, markup=False, soft_wrap=True)


def _clock(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))
