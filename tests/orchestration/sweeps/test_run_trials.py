"""Trials under Tune: what is over is not run again, what falls behind is stopped, what is spent ends the sweep.

The work of a trial is a script here, which writes validation figures as training does; all around it is real.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from sepscene.models.config import SepsceneError
from sepscene.orchestration.config import Experiment
from sepscene.orchestration.sweeps.config import SweepConfig, make_sweep
from sepscene.orchestration.sweeps.trial_plan import Trial, plan_trials

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("ray_of_our_own")]

CLIPS, STEPS = 32, 8  # nano's global batch of 16 and 4 epochs
CHEAP = {"resources.validation_cpus": 0.1, "resources.trainers": 1}
STEP_SECONDS = 1.0
"""Long enough for Tune's word to arrive before the next steps, also on a machine that has other things to do."""


def scripted(
    run_dir: Path, experiment: Experiment, uri: str, tags: dict[str, str], population: bool
) -> tuple[Any, dict[str, Any]]:
    """In the place of training: 8 steps whose validation figure grows with the temperature; -9 at alpha 9."""
    import os

    from sepscene.orchestration.records.checkpoints import (
        TrainingState,
        checkpoint_name,
        newest_sound,
        read_ledger,
        write_checkpoint,
    )
    from sepscene.orchestration.records.ledger import Ledger
    from sepscene.orchestration.records.metrics_log import append_metrics
    from sepscene.orchestration.records.results import EncoderResult, Figure, RunResults
    from sepscene.orchestration.sweeps import trial as trial_driver

    stage = run_dir / "checkpoints" / "pretrain-mix-chan"
    newest = newest_sound(stage)
    first = read_ledger(newest).rows if newest else 0
    append_metrics(run_dir / "metrics.jsonl", "pretrain-mix-chan", [{"event": f"starts at {first}"}])
    with trial_driver._validations_reported(run_dir, experiment, not population, CLIPS, population) as reported:
        for step in range(first + 1, STEPS + 1):
            time.sleep(experiment.training.clip_gradient_norm)
            write_checkpoint(stage / checkpoint_name(step), TrainingState(step, Ledger(step), {}))
            if experiment.objective.alpha == 9 and step == 4 and not first:
                os._exit(9)
            figure = experiment.objective.temperature * step
            record = {"step": step, "loss": 1.0, "validation_knn_map": figure}
            append_metrics(run_dir / "metrics.jsonl", "pretrain-mix-chan", [record])
    encoder = EncoderResult(name="mix-chan", figures={"shallow_map": Figure(value=figure)})
    results = RunResults(
        run_id=run_dir.name, experiment="x", scale="tiny", seed=0, started="", seconds=1, encoders=(encoder,)
    )
    results.save(run_dir)
    return results, reported


def scripted_trial(config: dict[str, Any], folder: str, tracking_uri: str, tags: dict[str, str]) -> None:
    """The real driver with the script in it; the replacement stays inside of the trial's process."""
    from sepscene.orchestration.sweeps import trial as trial_driver

    trial_driver._run = scripted
    trial_driver.POLL_SECONDS = 0.05
    trial_driver.run_trial(config, folder, tracking_uri, tags)


@pytest.fixture
def run(nano: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Run a sweep of scripted trials in tmp_path/sweep; returns name -> (status, settings)."""
    import ray.cloudpickle
    from rich.console import Console

    from sepscene.orchestration.sweeps import run_trials as trials
    from sepscene.orchestration.sweeps.schedulers import tuning_of

    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    monkeypatch.setattr(trials, "run_trial", scripted_trial)
    nano.save(tmp_path / "nano.yaml")
    folder = tmp_path / "sweep"

    def go(pause: float, **fields: Any) -> dict[str, Any]:
        config: SweepConfig = make_sweep(
            experiment=str(tmp_path / "nano.yaml"),
            changes={"training.clip_gradient_norm": pause, "training.validation_every_steps": 2, **CHEAP},
            **fields,
        )
        base, space = config.checked()
        planned = plan_trials(config, base, space, folder)
        tuning = tuning_of(config, space, base.model_dump(mode="json"), folder, time.monotonic())
        found = trials.run_trials(planned, folder, "sqlite://", Console(quiet=True), lambda _: None, tuning)
        return {outcome.trial.name: (outcome.status, outcome.trial.settings) for outcome in found}

    return go


def starts(folder: Path) -> dict[str, list[str]]:
    """Trial -> the steps it has started at."""
    found = {}
    for path in sorted(folder.glob("trials/*/metrics.jsonl")):
        events = [json.loads(line).get("event", "") for line in path.read_text().splitlines()]
        found[path.parent.name] = [event.removeprefix("starts at ") for event in events if event.startswith("starts")]
    return found


def test_a_failed_trial_stops_no_other_and_going_on_repeats_nothing(run: Any, tmp_path: Path) -> None:
    over = {"alpha": [1, 9], "temperature": [0.1]}
    first = run(0.01, over=over)
    assert [status for status, _ in first.values()] == ["finished", "failed"]
    again = run(0.01, over=over)
    assert [status for status, _ in again.values()] == ["finished", "finished"]
    assert starts(tmp_path / "sweep") == {
        "alpha=1.0,temperature=0.1,seed=0": ["0"],  # once and for all
        "alpha=9.0,temperature=0.1,seed=0": ["0", "4"],  # from its own newest checkpoint
    }


def test_asha_stops_what_falls_behind_and_remembers_it_from_the_folders(run: Any, tmp_path: Path) -> None:
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
    assert again["temperature=0.1,seed=0"][0] == "stopped early"  # against figures of the first command
    assert starts(tmp_path / "sweep") == {**before, "temperature=0.1,seed=0": ["0"]}


def test_a_population_takes_over_weights_and_ledger_of_the_better(run: Any, tmp_path: Path) -> None:
    found = run(
        STEP_SECONDS,
        over={"temperature": "log(0.01,1)"},
        scheduler="pbt",
        budget={"trials": 3},
        schedule={"grace_percent": 20, "perturb_percent": 25},
    )
    assert {status for status, _ in found.values()} == {"finished"}
    text = "".join(path.read_text() for path in tmp_path.glob("sweep/trials/*/metrics.jsonl"))
    assert "goes on from member=" in text
    assert any(start != "0" for each in starts(tmp_path / "sweep").values() for start in each)


def test_a_population_that_does_not_fit_is_refused(run: Any) -> None:
    fields = {"over": {"temperature": "log(0.01,1)"}, "scheduler": "pbt", "budget": {"trials": 12}}
    with pytest.raises(SepsceneError, match=r"of its 12 members [1-9] fit into this cluster at once"):
        run(0.01, **fields)


def test_a_spent_budget_leaves_trials_unfinished_and_they_go_on(run: Any, tmp_path: Path) -> None:
    over = {"temperature": [0.1, 0.2]}
    first = run(4.0, over=over, budget={"hours": 15 / 3600})
    assert {status for status, _ in first.values()} == {"unfinished"}
    assert {status for status, _ in run(0.01, over=over).values()} == {"finished"}


@pytest.mark.faults_long
def test_optuna_goes_on_from_what_the_folder_holds(run: Any, tmp_path: Path) -> None:
    fields = {"over": {"temperature": "log(0.01,1)", "combination": ["S2", "S2+N"]}, "search": "optuna"}
    first = run(0.01, **fields, budget={"trials": 2})
    assert [status for status, _ in first.values()] == ["finished"] * 2
    more = run(0.01, **fields, budget={"trials": 4})
    assert len(more) == 4 and set(first) < set(more)
    assert all(settings["views.combination"] in [("S2",), ("S2", "N")] for _, settings in more.values())
    assert all(steps == ["0"] for steps in starts(tmp_path / "sweep").values())


def test_a_log_is_told_how_far_the_trials_are() -> None:
    from sepscene.orchestration.sweeps.trial_status import Outcome
    from sepscene.orchestration.sweeps.trial_table import Pace, standing

    trial = Trial("a", None, {}, 0)
    assert standing([Outcome(trial, "unfinished", None, "")] * 2) == "none of 2 trials has ended"
    found = [Outcome(trial, status, None, "") for status in ("finished", "failed", "finished", "unfinished")]
    assert standing(found) == "3 of 4 trials have ended: 2 finished, 1 failed"
    pace = Pace(found[:1] + found[3:] * 3)
    pace.begun -= 600
    assert pace.left(found[:1] + found[3:] * 3) == ""  # none since the command began
    assert pace.left(found) == ", about 5 min left"  # two in ten minutes, one to go


def test_the_most_demanding_trial_decides_how_many_run_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    from sepscene.clusters.pools import Node
    from sepscene.orchestration.presets import named_experiment
    from sepscene.orchestration.sweeps import run_trials as trials
    from sepscene.orchestration.sweeps.schedulers import Tuning

    monkeypatch.setattr(trials, "cluster_nodes", lambda: [Node("laptop", 2)])
    narrow = {"resources.trainers": 1, "resources.separation_actors": 1}
    rows = ("table2/mix-mix", "table2/mix-chan")
    mixed = [Trial(row, named_experiment(row, "tiny").changed(narrow), {}, 0) for row in rows]
    assert trials._at_once(mixed[:1], Tuning()) == 3
    assert trials._at_once(mixed, Tuning()) == trials._at_once(mixed[1:], Tuning()) == 2
