"""The status of the trials of a sweep or reproduction, read from their folders: as data, a live table and a line."""

import math
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rich.markup import escape
from rich.table import Table

from sepscene.orchestration.records.files import parse_records, read_last_lines, read_text, read_typed_or
from sepscene.orchestration.records.results import RunResults, TrialFacts
from sepscene.orchestration.records.run_folder import RunFolder
from sepscene.orchestration.records.sweep_folder import SweepFolder
from sepscene.orchestration.reports.sweep_report import describe_setting
from sepscene.orchestration.sweeps.trial import METRIC, is_held
from sepscene.orchestration.sweeps.trial_plan import Trial

_TAIL_BYTES = 16_384  # read from the end of a metrics file: enough for its last records

Status = Literal["finished", "stopped early", "failed", "unfinished"]


@dataclass(frozen=True)
class Outcome:
    """The status of a trial, with its results or the reason why there are none."""

    trial: Trial | TrialFacts
    """Only trial.json has the facts of a trial that Optuna chose."""
    status: Status
    results: RunResults | None
    reason: str


def outcomes(trials: list[Trial], folder: Path) -> list[Outcome]:
    """The outcome of each trial: the planned ones, and those that Optuna chose."""
    files = SweepFolder(folder)
    chosen = [facts for facts in map(facts_of, files.runs()) if facts and facts.chosen]
    known: list[Trial | TrialFacts] = [*trials, *chosen]
    return [_outcome(trial, files.trial(trial.name)) for trial in known]


def facts_of(run: RunFolder) -> TrialFacts | None:
    """The content of trial.json; None if it is missing, or damaged (with a warning)."""
    return read_typed_or(run.trial, TrialFacts | None, None)  # type: ignore[arg-type]


def _outcome(trial: Trial | TrialFacts, run: RunFolder) -> Outcome:
    if run.finished.exists():
        return Outcome(trial, "finished", RunResults.load(run.path), "")
    if run.stopped.exists():
        return Outcome(trial, "stopped early", None, read_text(run.stopped))
    if run.failure.exists():
        return Outcome(trial, "failed", None, read_text(run.failure))
    return Outcome(trial, "unfinished", None, "")


class Pace:
    """Estimates the remaining time from the rate at which trials have ended since the command started."""

    def __init__(self, found: list[Outcome]) -> None:
        self.started = time.monotonic()
        self.ended_before = _count_ended(found)

    def time_left(self, found: list[Outcome]) -> str:
        """E.g. ", about 12 min left"; empty before the first trial has ended, and after the last."""
        ended_in_all = _count_ended(found)
        ended = ended_in_all - self.ended_before
        waiting = len(found) - ended_in_all
        if ended < 1 or not waiting:
            return ""
        return f", about {max(1, round((time.monotonic() - self.started) / ended * waiting / 60))} min left"


def _count_ended(found: list[Outcome]) -> int:
    return sum(outcome.status != "unfinished" for outcome in found)


def progress_line(found: list[Outcome]) -> str:
    """The progress in one line, e.g. "3 of 18 trials have ended: 2 finished, 1 failed"."""
    counts = Counter(outcome.status for outcome in found)
    details = ", ".join(f"{count} {status}" for status, count in counts.items() if status != "unfinished")
    if not details:
        return f"none of {len(found)} trials has ended"
    return f"{_count_ended(found)} of {len(found)} trials have ended: {details}"


def trial_table(trials: list[Trial], folder: Path, pace: Pace) -> Table:
    """A table of the trials with their status and newest metrics."""
    found = outcomes(trials, folder)
    table = Table(title=folder.name + pace.time_left(found))
    for column in ("trial", "setting", "state"):
        table.add_column(column)
    for column in ("rows", "loss", "kNN mAP", "mAP"):
        table.add_column(column, justify="right", no_wrap=True)
    for outcome in found:
        run = SweepFolder(folder).trial(outcome.trial.name)
        state: str = outcome.status
        if state == "unfinished":
            state = "running" if is_held(run.path) else "waiting"
        newest = dict[str, float | str]()
        for record in parse_records(read_last_lines(run.metrics, _TAIL_BYTES), run.metrics):
            newest |= record
        metric = outcome.results.encoders[0].metrics["shallow_map"].value if outcome.results else math.nan
        table.add_row(
            escape(outcome.trial.name),
            escape(describe_setting(outcome.trial.settings)),
            state,
            _number(newest.get("rows"), ".0f"),
            _number(newest.get("loss"), ".3f"),
            _number(newest.get(METRIC), ".3f"),
            "" if math.isnan(metric) else _number(metric, ".3f"),
        )
    return table


def _number(value: float | str | None, form: str) -> str:
    """The formatted number; empty if it is missing, or not a number because the file is damaged."""
    return format(value, form) if isinstance(value, int | float) else ""
