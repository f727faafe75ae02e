"""The progress of a stage: a bar that moves on a terminal; in a log or a pipe a line now and then.

Beside it stand a few words: the loss and its terms, the pace, and whether the representation is well.
"""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

LINE_SECONDS = 30.0
"""Between two lines of a log."""
SAME_REPORT_SECONDS = 1.0
"""Steps that come so close together are shown by one report."""
UNKNOWN = "-:--:--"

_SAID = {
    "loss": "loss {:.2f}",
    "mixit_loss": "loss {:.2f}",
    "supervised_loss": "loss {:.2f}",
    "examples_per_second": "{:.0f}/s",
    "waiting_share": "waiting {:.0%}",
    "separation/busy": "separation {:.0%}",
    "readers/busy": "readers {:.0%}",
    "similarity": "sim {:.2f}",
    "coincidence": "coin {:.2f}",
    "validation_knn_map": "val mAP {:.3f}",
    "effective_rank": "rank {:.0f}",
    "mfu": "MFU {:.0%}",
}
"""Metric -> how it is said, the most telling first."""

BESIDE_THE_BAR = 70
"""Columns of a terminal that the bar, its numbers and its times take."""


@contextmanager
def progress(console: Console, title: str, total: float, start: float = 0.0) -> Iterator["Bar | Lines"]:
    """Show a stage's progress for as long as the block runs, and that it is complete when the block ends well.

    It goes from `start`, which is not 0 in a stage that is continued, to `total`.
    """
    if not console.is_terminal:
        lines = Lines(console, title, total, start)
        yield lines
        lines.end()
        return
    columns = (
        TextColumn("{task.description:<23}"),
        BarColumn(bar_width=12),
        TextColumn("{task.completed:>6.0f}/{task.total:.0f}"),
        TimeElapsedColumn(),
        TextColumn("{task.fields[left]}", style="progress.remaining"),
        TextColumn("{task.fields[terms]}"),
    )
    with Progress(*columns, console=console) as live:
        bar = Bar(live, title, total, start)
        yield bar
        bar.update(total)


class _Estimate:
    """The time that is left, by the pace since the first report: before it processes start, which is no pace."""

    def __init__(self, total: float) -> None:
        self.total = total
        self.first: tuple[float, float] | None = None
        """When the first report came, and how far it was."""

    def left(self, done: float) -> str:
        """In words, e.g. "0:04:10"; empty while nobody knows. To be called at each report."""
        now = time.monotonic()
        if done > 0 and (self.first is None or now - self.first[0] < SAME_REPORT_SECONDS):
            self.first = (now if self.first is None else self.first[0], done)
        if self.first is None or done <= self.first[1] or done >= self.total:
            return ""
        return _clock((now - self.first[0]) * (self.total - done) / (done - self.first[1]))


class Bar:
    """The bar of a terminal."""

    def __init__(self, live: Progress, title: str, total: float, start: float) -> None:
        self.live = live
        self.estimate = _Estimate(total)
        self.task = live.add_task(title, total=total, completed=round(start), terms="", left=UNKNOWN)

    def update(self, done: float | None = None, terms: str = "") -> None:
        """How far the stage is, and a few metrics in words; what is not given stays."""
        if done is not None:
            self.live.update(self.task, completed=done, left=self.estimate.left(done) or UNKNOWN)
        if terms:
            self.live.update(self.task, terms=terms)

    def event(self, text: str) -> None:
        """Something that happened on the way."""
        self.live.console.print(text, style="yellow", markup=False, soft_wrap=True)


class Lines:
    """The lines of a log: one when the stage begins, one every `LINE_SECONDS`, one at its end."""

    def __init__(self, console: Console, title: str, total: float, start: float) -> None:
        self.console = console
        self.title = title
        self.total = total
        self.estimate = _Estimate(total)
        self.started = self.written = time.monotonic()
        self.done = start
        self.terms = ""
        self.left = ""
        self._write()

    def update(self, done: float | None = None, terms: str = "") -> None:
        """As `Bar.update`."""
        if done is not None:
            self.done = done
            self.left = self.estimate.left(done)
        self.terms = terms or self.terms
        if time.monotonic() - self.written >= LINE_SECONDS:
            self._write()

    def event(self, text: str) -> None:
        """As `Bar.event`."""
        self.console.print(f"{self.title}: {text}", highlight=False, markup=False, soft_wrap=True)

    def end(self) -> None:
        """Print the last line: the stage is complete."""
        self.done = self.total
        self.left = ""
        self._write()

    def _write(self) -> None:
        self.written = time.monotonic()
        spent = self.written - self.started
        parts = [f"{self.title:<23}", f"{self.done:>6.0f}/{self.total:.0f}", _clock(spent)]
        parts += [f"{self.left} left"] if self.left else []
        self.console.print("  ".join([*parts, self.terms]).rstrip(), highlight=False, markup=False, soft_wrap=True)


def _clock(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))


class Terms:
    """The latest metrics of a stage in words, as many as fit."""

    def __init__(self, width: int) -> None:
        self.width = width
        self.latest = dict[str, float]()

    def update(self, record: Mapping[str, Any]) -> str:
        """Take in a record of the metrics file; what it does not mention stays as it was."""
        self.latest |= {name: float(record[name]) for name in _SAID if name in record}
        words = ""
        for name, form in _SAID.items():
            if name in self.latest:
                longer = f"{words}  {form.format(self.latest[name])}".strip()
                if words and len(longer) > self.width:
                    break
                words = longer
        return words
