"""How the trials of a sweep or a reproduction stand, from their folders alone."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from sepscene.orchestration.records.files import read_text, read_typed_or
from sepscene.orchestration.records.results import RunResults, TrialFacts
from sepscene.orchestration.records.run_folder import RunFolder
from sepscene.orchestration.records.sweep_folder import SweepFolder
from sepscene.orchestration.sweeps.trial_plan import Trial

Status = Literal["finished", "stopped early", "failed", "unfinished"]


@dataclass(frozen=True)
class Outcome:
    """How a trial stands: its results, or why there are none."""

    trial: Trial
    status: Status
    results: RunResults | None
    reason: str


def outcomes(trials: list[Trial], folder: Path) -> list[Outcome]:
    """How each trial stands: the planned ones and those that Optuna chose."""
    planned = {trial.name for trial in trials}
    chosen = []
    for run in SweepFolder(folder).runs():
        facts = facts_of(run)
        if facts and facts.name not in planned and facts.chosen:
            chosen.append(Trial(facts.name, None, facts.settings, facts.seed))
    return [_outcome(trial, SweepFolder(folder).trial(trial.name)) for trial in [*trials, *chosen]]


def facts_of(run: RunFolder) -> TrialFacts | None:
    """What a trial says about itself; None where its trial.json is missing or, with a warning, damaged."""
    return read_typed_or(run.trial, TrialFacts | None, None)  # type: ignore[arg-type]


def _outcome(trial: Trial, run: RunFolder) -> Outcome:
    if run.finished.exists():
        return Outcome(trial, "finished", RunResults.load(run.path), "")
    if run.stopped.exists():
        return Outcome(trial, "stopped early", None, read_text(run.stopped))
    if run.failure.exists():
        return Outcome(trial, "failed", None, read_text(run.failure))
    return Outcome(trial, "unfinished", None, "")
