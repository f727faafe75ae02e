"""The progress of a stage: a bar on a terminal, or lines at intervals in a log or a pipe.

The progress includes the most important metrics: the loss and its terms, the rate, the rank of the representation.
"""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

LINE_SECONDS = 30.0
"""Least time between two lines of a log."""
WHOLE_STAGE = math.inf
"""Seconds over which the rate is measured: the whole time since the first report, without the start of processes."""

_FORMATS = {
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
"""Metric -> its format, the most important first."""

BAR_COLUMNS = 70
"""Width of the bar, its numbers and its times on a terminal, in columns."""
LOG_COLUMNS = 120
"""Width of the metrics in a line of a log, in columns."""


@contextmanager
def progress(console: Console, title: str, total: float, start: float = 0.0) -> Iterator["Bar"]:
    """Show the progress of a stage during the block; it is complete when the block ends without an error.

    It runs from `start`, which is not 0 in a continued stage, to `total`.
    """
    if not console.is_terminal:
        lines = Lines(Progress(console=console, speed_estimate_period=WHOLE_STAGE, disable=True), title, total, start)
        yield lines
        lines.end()
        return
    columns = (
        TextColumn("{task.description:<23}"),
        BarColumn(bar_width=12),
        TextColumn("{task.completed:>6.0f}/{task.total:.0f}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[terms]}"),
    )
    with Progress(*columns, console=console, speed_estimate_period=WHOLE_STAGE) as live:
        bar = Bar(live, title, total, start)
        yield bar
        bar.update(total)


class Bar:
    """The bar of a terminal."""

    def __init__(self, live: Progress, title: str, total: float, start: float) -> None:
        self.live = live
        live.add_task(title, total=total, completed=round(start), terms="")
        self.task = live.tasks[0]

    def update(self, done: float | None = None, terms: str = "") -> None:
        """Show the progress and the metrics; omitted arguments leave these unchanged."""
        self.live.update(self.task.id, completed=done, terms=terms or self.task.fields["terms"])

    def event(self, text: str) -> None:
        """Print an event of the stage."""
        self.live.console.print(text, style="yellow", markup=False, soft_wrap=True)


class Lines(Bar):
    """The lines of a log: one at the start of the stage, one every `LINE_SECONDS`, one at the end."""

    def __init__(self, live: Progress, title: str, total: float, start: float) -> None:
        super().__init__(live, title, total, start)
        self._write()

    def update(self, done: float | None = None, terms: str = "") -> None:
        super().update(done, terms)
        if self.live.get_time() - self.written >= LINE_SECONDS:
            self._write()

    def event(self, text: str) -> None:
        self._print(f"{self.task.description}: {text}")

    def end(self) -> None:
        """Print the last line: the stage is complete."""
        super().update(self.task.total)
        self._write()

    def _write(self) -> None:
        task = self.task
        self.written = self.live.get_time()
        parts = [f"{task.description:<23}", f"{task.completed:>6.0f}/{task.total:.0f}", _clock(task.elapsed or 0)]
        if task.time_remaining:
            parts.append(f"{_clock(task.time_remaining)} left")
        self._print("  ".join([*parts, task.fields["terms"]]).rstrip())

    def _print(self, line: str) -> None:
        self.live.console.print(line, highlight=False, markup=False, soft_wrap=True)


def _clock(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))


class Terms:
    """The latest metrics of a stage as text, as many as fit into `width` columns."""

    def __init__(self, width: int) -> None:
        self.width = width
        self.latest = dict[str, float]()

    def update(self, record: Mapping[str, Any]) -> str:
        """Add a record of the metrics file, and return the text; metrics that it does not contain keep their value."""
        self.latest |= {name: float(record[name]) for name in _FORMATS if name in record}
        text = ""
        for name, form in _FORMATS.items():
            if name in self.latest:
                longer = f"{text}  {form.format(self.latest[name])}".strip()
                if text and len(longer) > self.width:
                    break
                text = longer
        return text
