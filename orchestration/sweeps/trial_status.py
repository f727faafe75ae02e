"""How the trials of a sweep or a reproduction stand, from their folders alone."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from sepscene.orchestration.records.results import RunResults, Setting
from sepscene.orchestration.records.run_folder import SweepFolder
from sepscene.orchestration.sweeps.trial import FAILED, FINISHED, STOPPED
from sepscene.orchestration.sweeps.trial_plan import Trial

Status = Literal["finished", "stopped early", "failed", "unfinished"]


@dataclass(frozen=True)
class Outcome:
    """How a trial stands: its results, or why there are none."""

    trial: Trial
    status: Status
    results: RunResults | None
    reason: str


def is_over(run_dir: Path) -> bool:
    """Whether there is nothing left to do for a trial."""
    return (run_dir / FINISHED).exists() or (run_dir / STOPPED).exists()


def outcomes(trials: list[Trial], folder: Path) -> list[Outcome]:
    """How each trial stands: the planned ones and those that Optuna chose."""
    planned = {trial.name for trial in trials}
    chosen = []
    for note in sorted(folder.glob("trials/*/trial.json")):
        facts = json.loads(note.read_text())
        if facts["name"] not in planned and facts["chosen"]:
            chosen.append(Trial(facts["name"], None, _settings(facts), facts["seed"]))
    return [_outcome(trial, SweepFolder(folder).trial(trial.name).path) for trial in [*trials, *chosen]]


def _outcome(trial: Trial, run_dir: Path) -> Outcome:
    if (run_dir / FINISHED).exists():
        return Outcome(trial, "finished", RunResults.load(run_dir), "")
    for name, status in ((STOPPED, "stopped early"), (FAILED, "failed")):
        if (run_dir / name).exists():
            return Outcome(trial, status, None, (run_dir / name).read_text())  # type: ignore[arg-type]
    return Outcome(trial, "unfinished", None, "")


def _settings(facts: dict[str, Any]) -> dict[str, Setting]:
    return {field: tuple(value) if isinstance(value, list) else value for field, value in facts["settings"].items()}
