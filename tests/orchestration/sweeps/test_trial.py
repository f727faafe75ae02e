"""The folders of trials and how they are read, without Ray processes and without training."""

import io
import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from sepscene.orchestration.config import Experiment
from sepscene.orchestration.records.results import EncoderResult, Metric, RunResults, TrialFacts

pytestmark = pytest.mark.slow  # imports Ray and MLflow

RESULTS = RunResults(
    run_id="x",
    experiment="demo",
    scale="tiny",
    seed=0,
    started="",
    seconds=1.0,
    encoders=(EncoderResult(name="mix-chan", metrics={"shallow_map": Metric(value=0.3125)}),),
)


def test_the_mlflow_runs_of_unfinished_trials_are_closed(tmp_path: Path) -> None:
    from mlflow import MlflowClient

    from sepscene.orchestration.records.mlflow_mirror import Tracker
    from sepscene.orchestration.sweeps.run_trials import close_runs
    from sepscene.orchestration.sweeps.trial_status import outcomes

    uri = f"sqlite:///{tmp_path}/mlflow.db"
    trials = []
    runs = {}
    for name, word in (("died", "failure"), ("behind", "stopped"), ("waits", ""), ("done", "finished")):
        run_dir = tmp_path / "trials" / name
        run_dir.mkdir(parents=True)
        tracker = Tracker(uri, "sepscene", run_dir)
        tracker.start("", {"status": "running"}, {})
        tracker.start("pretrain-mix-chan", {}, {})
        tracker.send()
        runs[name] = [str(tracker.run_id(stage)) for stage in tracker.stages()]
        if word == "finished":
            RESULTS.save(run_dir)
            for stage in reversed(tracker.stages()):
                tracker.finish(stage)
        if word:
            (run_dir / word).write_text(f"why it {name}")
        trials.append(TrialFacts(name=name, settings={}, seed=0, gpus=0))
    close_runs(outcomes(trials, tmp_path), tmp_path, uri)
    client = MlflowClient(tracking_uri=uri)
    found = {name: [client.get_run(run) for run in ids] for name, ids in runs.items()}
    assert {name: {run.info.status for run in of_trial} for name, of_trial in found.items()} == {
        "died": {"FAILED"},
        "behind": {"KILLED"},
        "waits": {"KILLED"},
        "done": {"FINISHED"},
    }
    tags = {
        name: (of_trial[0].data.tags["status"], of_trial[0].data.tags.get("reason")) for name, of_trial in found.items()
    }
    assert tags["died"] == ("failed", "why it died") and tags["behind"] == ("stopped early", "why it behind")
    assert tags["waits"] == ("unfinished", "") and tags["done"][1] is None


def test_the_live_table_shows_which_trials_run_and_which_wait(tmp_path: Path) -> None:
    from sepscene.orchestration.sweeps.trial_status import Pace, outcomes, trial_table

    step = json.dumps({"stage": "pretrain-mix-chan", "step": 3, "rows": 192, "loss": 4.1})
    damaged = json.dumps({"stage": "pretrain-mix-chan", "seconds": 1.0, "step": 3, "loss": "x"})
    validated = json.dumps({"stage": "pretrain-mix-chan", "step": 3, "validation_knn_map": 0.31})
    trials = []
    for name, lines in (
        ("now", [step]),
        ("earlier", [step]),
        ("new", []),
        ("damaged", [damaged]),
        ("failed", [step]),
        ("done", [step, validated]),
    ):
        run_dir = tmp_path / "trials" / name
        (run_dir / "held").mkdir(parents=True)
        (run_dir / "metrics.jsonl").write_text("".join(f"{line}\n" for line in lines))
        trials.append(TrialFacts(name=name, settings={"objective.temperature": 0.25}, seed=0, gpus=0))
    for name, age in (("now", 1), ("earlier", 3600)):
        mark = tmp_path / "trials" / name / "held" / "1"
        mark.touch()
        os.utime(mark, (time.time() - age,) * 2)
    (tmp_path / "trials" / "failed" / "failure").write_text("ValueError")
    RESULTS.save(tmp_path / "trials" / "done")
    (tmp_path / "trials" / "done" / "finished").touch()
    table = trial_table(trials, tmp_path, Pace(outcomes(trials, tmp_path)))
    rows = list(zip(*(list(column.cells) for column in table.columns), strict=True))
    assert rows == [
        ("now", "τ 0.25", "running", "192", "4.100", "", ""),
        ("earlier", "τ 0.25", "waiting", "192", "4.100", "", ""),
        ("new", "τ 0.25", "waiting", "", "", "", ""),
        ("damaged", "τ 0.25", "waiting", "", "", "", ""),
        ("failed", "τ 0.25", "failed", "192", "4.100", "", ""),
        ("done", "τ 0.25", "finished", "192", "4.100", "0.310", "0.312"),
    ]
    Console(quiet=True).print(table)


@pytest.mark.parametrize(
    ("experiment", "over", "expected"),
    [
        ("table2/mix-mix", {"views.pair": ["mix-mix", "mix-chan"]}, {"S2"}),
        ("table2/mix-mix", {"alpha": [0.5, 1.0]}, set()),
        ("table4/N/simclr", {"separator.checkpoints": [{"N": "one", "S2": "one"}, {"N": "two", "S2": "two"}]}, set()),
        ("table4/N/simclr", {"combination": ["S2", "S2+F"], "pair": ["mix-mix", "mix-chan"]}, {"S2", "F"}),
    ],
)
def test_the_separators_that_trials_share_are_made_once(
    experiment: str, over: dict[str, Any], expected: set[str]
) -> None:
    from sepscene.orchestration.sweeps.config import make_sweep
    from sepscene.orchestration.sweeps.sweep import _processors
    from sepscene.orchestration.sweeps.trial_plan import possible_experiments

    changes = {"training.validation_every_steps": 60, "objective.alpha": 1.0}
    config = make_sweep(experiment=experiment, over=over, search="optuna", budget={"trials": 4}, changes=changes)
    base, space = config.checked()
    assert _processors(base, [], space) == expected
    possible = possible_experiments(base, [], space)
    assert {one.views.pair for one in possible} == set(space.get("views.pair", [base.views.pair]))


def test_validations_are_reported_as_soon_as_the_number_of_steps_is_known(
    nano: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A trial that starts again has earlier validations, but a damaged trial.json has lost the number of steps."""
    from sepscene.orchestration.sweeps import trial

    reported: list[dict[str, Any]] = []
    monkeypatch.setattr("ray.tune.report", reported.append)
    (tmp_path / "trial.json").write_text('{"name": "t0')
    record = {"stage": "pretrain-mix-chan", "seconds": 1.0, "step": 4, trial.METRIC: 0.25}
    (tmp_path / "metrics.jsonl").write_text(json.dumps(record) + "\n")
    with trial._report_validations(tmp_path) as last:
        pass
    assert not reported and trial.METRIC not in last
    trial.note_steps(tmp_path, nano, 32)  # 4 epochs in steps of 16
    with trial._report_validations(tmp_path) as last:
        pass
    assert reported == [{"name": tmp_path.name, trial.METRIC: 0.25, trial.PERCENT: 50.0}] and last == reported[0]


def test_trials_use_fewer_resources_when_more_then_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    from sepscene.clusters.pools import Node
    from sepscene.orchestration.presets import SCALES
    from sepscene.orchestration.runtime.concurrency import fitting_trials
    from sepscene.orchestration.sweeps import run_trials as trials

    base = SCALES["tiny"]().changed({"store.mode": "prefill"})
    console = Console(quiet=True, record=True)
    monkeypatch.setattr(trials, "cluster_nodes", lambda: [Node("laptop", 2)])
    narrow = trials.narrow_resources(base, console)
    assert (narrow.trainers, narrow.separation_actors) == (1, 1)
    asked = base.changed({"resources": narrow.model_dump(mode="json")})
    assert fitting_trials([asked], [Node("laptop", 2)]) == 3
    monkeypatch.setattr(trials, "cluster_nodes", lambda: [Node("server", 256)])
    assert trials.narrow_resources(base, console) == base.resources


@pytest.mark.parametrize(
    ("given", "again"),
    [
        ("sepscene sweep demo --over alpha=0,1", "sweep demo --over alpha=0,1 --id mine"),
        ("sepscene sweep mine.yaml --resume", "sweep mine.yaml --resume"),
        ("sepscene reproduce table2 --id mine", "reproduce table2 --id mine"),
        ("study.py --fast", "sweep STORAGE/mine/sweep.yaml --storage STORAGE --id mine"),
    ],
)
def test_an_interrupted_sweep_prints_how_to_continue_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: str, again: str
) -> None:
    from sepscene.orchestration.sweeps.run_trials import parent_run

    monkeypatch.setattr("sys.argv", given.split())
    out = io.StringIO()
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    with pytest.raises(KeyboardInterrupt), parent_run(uri, tmp_path / "mine", {}, {}, Console(file=out, width=200)):
        raise KeyboardInterrupt
    again = again.replace("STORAGE", str(tmp_path))
    assert out.getvalue() == f"stopped; all completed work is kept. Continue with\nsepscene {again}\n"
