"""What trials leave in their folders, and what is made of it: without Ray's processes, and without training."""

import json
import os
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from sepscene.orchestration.config import Experiment
from sepscene.orchestration.records.results import EncoderResult, Figure, RunResults
from sepscene.orchestration.sweeps.config import make_sweep
from sepscene.orchestration.sweeps.trial_plan import Trial, plan_trials

pytestmark = pytest.mark.slow  # imports Ray and MLflow

RESULTS = RunResults(
    run_id="x",
    experiment="demo",
    scale="tiny",
    seed=0,
    started="",
    seconds=1.0,
    encoders=(EncoderResult(name="mix-chan", figures={"shallow_map": Figure(value=0.3125)}),),
)


def population(tmp_path: Path, over: dict[str, Any]) -> list[Trial]:
    """The members of a population of three as the folder has them."""
    changes = {"training.validation_every_steps": 60}
    config = make_sweep(experiment="demo", over=over, scheduler="pbt", budget={"trials": 3}, changes=changes)
    return plan_trials(config, *config.checked(), tmp_path)


@pytest.fixture
def driven(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Drive a trial without Tune; returns what would be trained: (experiment, tags of its run in MLflow)."""
    import ray.tune

    from sepscene.orchestration.sweeps import trial as trial_driver

    seen: list[tuple[Experiment, dict[str, str]]] = []

    def run(run_dir: Path, experiment: Experiment, uri: str, tags: dict[str, str], population: bool) -> Any:
        seen.append((experiment, tags))
        return RESULTS, {}

    def drive(config: dict[str, Any], tune_id: str = "0a1b2c") -> tuple[Experiment, dict[str, str]]:
        name = config["trial"]["name"]
        context = SimpleNamespace(get_trial_id=lambda: tune_id, get_trial_name=lambda: name)
        monkeypatch.setattr(ray.tune, "get_context", lambda: context)
        trial_driver.run_trial(config, str(tmp_path), "sqlite://", {"sweep_id": "s"})
        return seen[-1]

    monkeypatch.setattr(trial_driver, "_run", run)
    monkeypatch.setattr(ray.tune, "report", lambda *args, **kwargs: None)
    monkeypatch.setattr(ray.tune, "get_checkpoint", lambda: None)
    return drive


def test_a_member_of_a_population_goes_on_with_what_it_had_become(tmp_path: Path, driven: Any) -> None:
    over = {"temperature": "log(0.05,0.5)", "views.weights": [[3, 1], [1, 1], [1, 3]]}
    first = population(tmp_path, over)[0]
    assert first.population is not None
    became = {"objective.temperature": 0.2200001, "views.weights": [1.0, 3.0]}
    assert became != first.population
    experiment, tags = driven({"trial": first.for_tune(), "settings": became})  # as PBT changes it
    assert experiment.views.weights == (1.0, 3.0) and tags["sweep.objective.temperature"] == "0.22"
    (tmp_path / "trials" / "member=0" / "finished").unlink()  # its command was killed before

    again = population(tmp_path, over)
    assert again[0].population == {"objective.temperature": 0.22, "views.weights": [1.0, 3.0]}
    experiment, _ = driven({"trial": again[0].for_tune(), "settings": again[0].population})
    assert (experiment.objective.temperature, experiment.views.weights) == (0.22, (1.0, 3.0))
    noted = json.loads((tmp_path / "trials" / "member=0" / "trial.json").read_text())
    assert noted["settings"] == {"objective.temperature": 0.22, "views.weights": "1-3"}
    assert again[1:] == population(tmp_path / "elsewhere", over)[1:]  # who has not begun starts as planned


def test_a_population_is_as_large_as_it_was_asked_to_be(tmp_path: Path) -> None:
    members = population(tmp_path, {"views.weights": [[3, 1], [1, 3]]})
    assert [member.name for member in members] == ["member=0", "member=1", "member=2"]
    assert members[2].population == members[0].population != members[1].population


def test_what_a_member_hands_to_others_does_not_stay_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import ray.tune

    from sepscene.orchestration.records.checkpoints import TrainingState, checkpoint_name, write_checkpoint
    from sepscene.orchestration.records.ledger import Ledger
    from sepscene.orchestration.records.metrics_log import append_metrics
    from sepscene.orchestration.sweeps import trial as trial_driver

    handed: list[set[str]] = []

    def report(metrics: dict[str, Any], checkpoint: Any) -> None:
        handed.append({path.name for path in Path(checkpoint.path).iterdir()})

    monkeypatch.setattr(ray.tune, "report", report)
    run_dir, experiment = tmp_path / "member", make_sweep(experiment="demo", over={"alpha": [1]}).checked()[0]
    stage = run_dir / "checkpoints" / "pretrain-mix-chan"
    write_checkpoint(stage / checkpoint_name(3), TrainingState(3, Ledger(3), {}))
    append_metrics(run_dir / "metrics.jsonl", stage.name, [{"step": 3, trial_driver.METRIC: 0.5}])
    (run_dir / "handed-on" / checkpoint_name(1)).mkdir(parents=True)  # Tune ended the member while it handed that on
    before = set(run_dir.iterdir())
    with trial_driver._validations_reported(run_dir, experiment, True, 512, checkpoints=True):
        pass
    assert handed == [{"member", checkpoint_name(3)}]
    assert set(run_dir.iterdir()) == before - {run_dir / "handed-on"} | {run_dir / "trial.json"}


def test_a_combination_is_a_tag_as_people_write_it(driven: Any) -> None:
    config = make_sweep(experiment="demo", over={"combination": ["S2+N"], "alpha": [1]})
    (trial,) = plan_trials(config, *config.checked())
    _, tags = driven({"trial": trial.for_tune()})
    assert tags["sweep.views.combination"] == "S2+N" and tags["sweep.objective.alpha"] == "1.0"
    assert (tags["status"], tags["reason"]) == ("running", "")


def test_a_trial_that_dies_before_its_first_word_is_found_by_its_id(tmp_path: Path, driven: Any) -> None:
    """Optuna's trials have no name in Tune, only an id."""
    from sepscene.orchestration.sweeps.run_trials import _Ended
    from sepscene.orchestration.sweeps.trial_status import outcomes

    config = make_sweep(experiment="demo", over={"alpha": "0,1"})
    base, _ = config.checked()
    trial = {"name": "", "experiment": base.model_dump(mode="json")}
    driven({"trial": trial, "settings": {"objective.alpha": "1.0"}}, "0a1b2c_00001")
    (tmp_path / "trials" / "alpha=1.0,seed=0" / "finished").unlink()

    class OfTune:
        last_result: Any = None

        def __init__(self, trial_id: str) -> None:
            self.trial_id = trial_id

        def __str__(self) -> str:
            return self.trial_id

    told: list[bool] = []
    ended = _Ended(tmp_path, lambda: told.append(True))
    ended.on_trial_error(0, [], OfTune("0a1b2c_00009"))  # died before it had a folder
    assert outcomes([], tmp_path)[0].status == "unfinished"
    ended.on_trial_error(0, [], OfTune("0a1b2c_00001"))
    (outcome,) = outcomes([], tmp_path)
    assert (outcome.trial.name, outcome.status) == ("alpha=1.0,seed=0", "failed") and len(told) == 2
    assert "process of its driver died" in outcome.reason


def test_runs_of_trials_that_did_not_end_themselves_are_closed_in_mlflow(tmp_path: Path) -> None:
    from mlflow import MlflowClient

    from sepscene.orchestration.records.mlflow_mirror import Tracker
    from sepscene.orchestration.sweeps.run_trials import _close_runs
    from sepscene.orchestration.sweeps.trial_status import outcomes

    uri, trials, runs = f"sqlite:///{tmp_path}/mlflow.db", [], {}
    for name, word in (("died", "failure"), ("behind", "stopped"), ("waits", ""), ("done", "finished")):
        run_dir = tmp_path / "trials" / name
        run_dir.mkdir(parents=True)
        tracker = Tracker(uri, "sepscene", run_dir)
        tracker.start({"status": "running"}, {})
        tracker.start_stage("pretrain-mix-chan", {})
        runs[name] = [str(tracker.run_id(stage)) for stage in tracker.stages()]
        if word == "finished":
            RESULTS.save(run_dir)
            for stage in tracker.stages():
                tracker.finish(stage)
        if word:
            (run_dir / word).write_text(f"why it {name}")
        trials.append(Trial(name, None, {}, 0))
    _close_runs(outcomes(trials, tmp_path), tmp_path, uri)
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


def test_the_live_table_tells_who_runs_now_from_who_waits(tmp_path: Path) -> None:
    from sepscene.orchestration.sweeps.trial_status import outcomes
    from sepscene.orchestration.sweeps.trial_table import Pace, trial_table

    step = json.dumps({"stage": "pretrain-mix-chan", "step": 3, "rows": 192, "loss": 4.1})
    validated = json.dumps({"stage": "pretrain-mix-chan", "step": 3, "validation_knn_map": 0.31})
    trials = []
    for name, lines in (
        ("now", [step]),
        ("earlier", [step]),
        ("new", []),
        ("failed", [step]),
        ("done", [step, validated]),
    ):
        run_dir = tmp_path / "trials" / name
        (run_dir / "held").mkdir(parents=True)
        (run_dir / "metrics.jsonl").write_text("".join(f"{line}\n" for line in lines))
        trials.append(Trial(name, None, {}, 0))
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
        ("now", "running", "192", "4.100", "", ""),
        ("earlier", "waiting", "192", "4.100", "", ""),
        ("new", "waiting", "", "", "", ""),
        ("failed", "failed", "192", "4.100", "", ""),
        ("done", "finished", "192", "4.100", "0.310", "0.312"),
    ]
    Console(quiet=True).print(table)


def test_trials_are_made_narrow_where_more_fit_so(monkeypatch: pytest.MonkeyPatch) -> None:
    from sepscene.clusters.pools import Node
    from sepscene.orchestration.presets import SCALES
    from sepscene.orchestration.sweeps import run_trials as trials

    base, console = SCALES["tiny"]().changed({"store.mode": "prefill"}), Console(quiet=True, record=True)
    monkeypatch.setattr(trials, "cluster_nodes", lambda: [Node("laptop", 2)])
    narrow = trials.thrifty(base, console)
    assert (narrow.trainers, narrow.separation_actors) == (1, 1)
    assert trials.fitting_trials([base.model_copy(update={"resources": narrow})], [Node("laptop", 2)]) == 3
    monkeypatch.setattr(trials, "cluster_nodes", lambda: [Node("server", 256)])
    assert trials.thrifty(base, console) == base.resources
