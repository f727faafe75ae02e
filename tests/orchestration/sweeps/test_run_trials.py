"""Trials with Tune: finished trials are not run again, worse ones are stopped, a spent budget ends the sweep.

Instead of training, a trial runs `scripted`, which writes validation metrics as training does. Everything else is real.
"""

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import ray.cloudpickle
from rich.console import Console

from sepscene.orchestration.config import Experiment
from sepscene.orchestration.records.checkpoints import TrainingState, newest_intact, read_ledger, write_checkpoint
from sepscene.orchestration.records.ledger import Ledger
from sepscene.orchestration.records.metrics_log import append_metrics
from sepscene.orchestration.records.results import EncoderResult, Metric, RunResults, TrialFacts
from sepscene.orchestration.records.run_folder import RunFolder, checkpoint_name
from sepscene.orchestration.sweeps.config import make_sweep
from sepscene.orchestration.sweeps.run_trials import run_trials
from sepscene.orchestration.sweeps.schedulers import tuning_of
from sepscene.orchestration.sweeps.trial import note_steps
from sepscene.orchestration.sweeps.trial_plan import plan_trials
from sepscene.orchestration.sweeps.trial_status import Outcome, Pace, progress_line

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("local_ray")]

# nano's global batch of 16 and 4 epochs
CLIPS = 32
STEPS = 8
CHEAP = {"resources.validation_cpus": 0.1, "resources.trainers": 1}
STEP_SECONDS = 1.0
"""Long enough for Tune to stop a trial before its next steps, even on a busy machine."""


def scripted(run_dir: Path, experiment: Experiment, uri: str, tags: dict[str, str]) -> RunResults:
    """Instead of training: 8 steps with a metric proportional to the temperature; with alpha 9 its process exits."""
    stage = run_dir / "checkpoints" / "pretrain-mix-chan"
    newest = newest_intact(stage)
    first = read_ledger(newest).rows if newest else 0
    note_steps(run_dir, experiment, CLIPS)
    (run_dir / "tags.json").write_text(json.dumps(tags))
    append_metrics(RunFolder(run_dir).stage("pretrain-mix-chan"), [{"event": f"starts at {first}"}])
    for step in range(first + 1, STEPS + 1):
        time.sleep(experiment.training.clip_gradient_norm)
        write_checkpoint(stage / checkpoint_name(step), TrainingState(step, Ledger(step), {}))
        if experiment.objective.alpha == 9 and step == 4 and not first:
            os._exit(9)
        metric = experiment.objective.temperature * step
        record = {"step": step, "loss": 1.0, "validation_knn_map": metric}
        append_metrics(RunFolder(run_dir).stage("pretrain-mix-chan"), [record])
    encoder = EncoderResult(name="mix-chan", metrics={"shallow_map": Metric(value=metric)})
    results = RunResults(
        run_id=run_dir.name, experiment="x", scale="tiny", seed=0, started="", seconds=1, encoders=(encoder,)
    )
    results.save(run_dir)
    return results


@pytest.fixture
def run(nano: Experiment, tmp_path: Path) -> Any:
    """Run a sweep of scripted trials in tmp_path/sweep; returns name -> (status, settings)."""
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    nano.save(tmp_path / "nano.yaml")
    folder = tmp_path / "sweep"

    def go(pause: float, **fields: Any) -> dict[str, Any]:
        changes = {"training.clip_gradient_norm": pause, "training.validation_every_steps": 2, **CHEAP}
        config = make_sweep(experiment=str(tmp_path / "nano.yaml"), changes=changes, **fields)
        base, space = config.checked()
        planned = plan_trials(config, base, space)
        tuning = tuning_of(config, space, base, folder, time.monotonic())
        found = run_trials(planned, folder, "sqlite://", Console(quiet=True), lambda _: None, tuning, work=scripted)
        return {outcome.trial.name: (outcome.status, outcome.trial.settings) for outcome in found}

    return go


def starts(folder: Path) -> dict[str, list[str]]:
    """Trial -> the steps at which it was started."""
    found = {}
    for path in sorted(folder.glob("trials/*/metrics.jsonl")):
        events = [json.loads(line).get("event", "") for line in path.read_text().splitlines()]
        found[path.parent.name] = [event.removeprefix("starts at ") for event in events if event.startswith("starts")]
    return found


def test_a_failed_trial_stops_no_other_and_continuing_repeats_nothing(run: Any, tmp_path: Path) -> None:
    over = {"alpha": [1, 9], "temperature": [0.1]}
    first = run(0.01, over=over)
    assert [status for status, _ in first.values()] == ["finished", "failed"]
    died = tmp_path / "sweep" / "trials" / "t001-s0"
    assert "its driver process died" in (died / "failure").read_text()
    tags = json.loads((died / "tags.json").read_text())
    assert tags["sweep.objective.alpha"] == "9.0" and tags["status"] == "running"
    shown = sorted(path.name for path in (tmp_path / "sweep" / "tune").glob("*/*") if path.is_dir())
    assert shown == ["t000-s0", "t001-s0"]  # without their settings
    again = run(0.01, over=over)
    assert [status for status, _ in again.values()] == ["finished", "finished"]
    assert starts(tmp_path / "sweep") == {
        "t000-s0": ["0"],  # not started again
        "t001-s0": ["0", "4"],  # from its own newest checkpoint
    }


def test_asha_stops_worse_trials_and_is_restored_from_the_folders(run: Any, tmp_path: Path) -> None:
    fields = {
        "over": {"temperature": [0.5, 0.4, 0.3, 0.2]},
        "scheduler": "asha",
        "schedule": {"grace_percent": 20, "keep_one_in": 2},
    }
    first = run(STEP_SECONDS, **fields)
    statuses = [status for status, _ in first.values()]
    assert statuses[0] == "finished" and statuses.count("stopped early") >= 1 and "failed" not in statuses
    stopped = next(name for name, (status, _) in first.items() if status == "stopped early")
    reason = (tmp_path / "sweep" / "trials" / stopped / "stopped").read_text()
    assert "% of its rows, with a validation kNN mAP of " in reason
    before = starts(tmp_path / "sweep")
    fields["over"] = {"temperature": [0.5, 0.4, 0.3, 0.2, 0.1]}
    again = run(STEP_SECONDS, **fields)
    assert again["t004-s0"][0] == "stopped early"  # compared with trials of the first command
    assert starts(tmp_path / "sweep") == {**before, "t004-s0": ["0"]}


def test_a_spent_budget_leaves_trials_unfinished_and_they_can_continue(run: Any, tmp_path: Path) -> None:
    over = {"temperature": [0.1, 0.2]}
    first = run(4.0, over=over, budget={"hours": 15 / 3600})
    assert {status for status, _ in first.values()} == {"unfinished"}
    assert {status for status, _ in run(0.01, over=over).values()} == {"finished"}


@pytest.mark.faults_long
def test_optuna_continues_from_the_trials_in_the_folder(run: Any, tmp_path: Path) -> None:
    fields = {"over": {"temperature": "loguniform(0.01,1)", "combination": ["S2", "S2+N"]}, "search": "optuna"}
    first = run(0.01, **fields, budget={"trials": 2})
    assert [status for status, _ in first.values()] == ["finished"] * 2
    more = run(0.01, **fields, budget={"trials": 4})
    assert len(more) == 4 and set(first) < set(more)
    assert all(settings["views.combination"] in [("S2",), ("S2", "N")] for _, settings in more.values())
    assert all(steps == ["0"] for steps in starts(tmp_path / "sweep").values())


def test_the_progress_is_shown_in_one_line() -> None:
    trial = TrialFacts(name="a", settings={}, seed=0, gpus=0)
    assert progress_line([Outcome(trial, "unfinished", None, "")] * 2) == "none of 2 trials has ended"
    found = [Outcome(trial, status, None, "") for status in ("finished", "failed", "finished", "unfinished")]
    assert progress_line(found) == "3 of 4 trials have ended: 2 finished, 1 failed"
    pace = Pace(found[:1] + found[3:] * 3)
    pace.started -= 600
    assert pace.time_left(found[:1] + found[3:] * 3) == ""  # none since the command started
    assert pace.time_left(found) == ", about 5 min left"  # two in ten minutes, one left
