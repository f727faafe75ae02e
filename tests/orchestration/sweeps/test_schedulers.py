"""The searcher and the stopper of a sweep, without a cluster."""

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

from sepscene.orchestration.records.results import TrialFacts
from sepscene.orchestration.sweeps.config import make_sweep

pytestmark = pytest.mark.slow  # imports Ray


def write_trial(
    folder: Path, name: str, chosen: dict[str, Any], metric: float | None = None, over: bool = False
) -> None:
    """Write the folder of a trial that Optuna chose."""
    run_dir = folder / "trials" / name
    run_dir.mkdir(parents=True)
    facts = TrialFacts(name=name, settings={}, seed=0, chosen=chosen, gpus=0.0, metric=metric)
    (run_dir / "trial.json").write_text(facts.model_dump_json())
    if over:
        (run_dir / "finished").touch()


def searcher(folder: Path, over: dict[str, str], trials: int = 40) -> Any:
    """The Optuna searcher of a sweep that is continued in this folder, and how many trials it may suggest."""
    from sepscene.orchestration.sweeps.schedulers import tuning_of

    fields = {"search": "optuna", "budget": {"trials": trials}, "changes": {"training.validation_every_steps": 60}}
    config = make_sweep(experiment="demo", over=over, **fields)
    base, space = config.checked()
    tuning = tuning_of(config, space, base, folder, 0.0)
    return tuning.searcher, tuning.samples


def test_optuna_continues_unfinished_trials_with_their_names(tmp_path: Path) -> None:
    over = {"temperature": "loguniform(0.01,1)", "combination": "S2,S2+N", "training.epochs": "randint(2,5)"}
    setting = {"objective.temperature": 0.1, "views.combination": ["S2", "N"], "training.epochs": 3}
    write_trial(tmp_path, "t000-s0", setting, metric=0.3, over=True)
    write_trial(tmp_path, "t001-s0", {**setting, "objective.temperature": 0.2}, metric=0.1)
    optuna, samples = searcher(tmp_path, over, trials=4)
    first = optuna.suggest("a")["trial"]
    assert samples == 3 and first["name"] == "t001-s0" and first["settings"]["objective.temperature"] == 0.2
    assert first["shown"]["views.combination"] == ("S2", "N")
    second = optuna.suggest("b")["trial"]
    assert second["name"] == "t002-s0" and 0.01 <= second["settings"]["objective.temperature"] <= 1
    assert second["settings"]["training.epochs"] in (2, 3, 4)
    assert second["settings"]["views.combination"] in (["S2"], ["S2", "N"])


def test_optuna_learns_from_the_trials_in_the_folder(tmp_path: Path) -> None:
    for n in range(40):  # the metric is best at a temperature of 0.1
        temperature = 10 ** (-2 + n / 20)
        write_trial(tmp_path, f"t{n:03d}-s0", {"objective.temperature": temperature}, -abs(n / 20 - 1), over=True)
    optuna, _ = searcher(tmp_path, {"temperature": "loguniform(0.01,1)"}, trials=80)
    suggested = [optuna.suggest(str(n))["trial"]["settings"]["objective.temperature"] for n in range(20)]
    near = sum(0.05 < value < 0.2 for value in suggested)
    assert near >= 12, f"a third of the decades, but {near} of 20 suggestions"


def test_gpu_hours_include_all_trials_of_all_commands(tmp_path: Path) -> None:
    from sepscene.orchestration.sweeps.schedulers import BudgetStopper

    config = make_sweep(
        experiment="demo", scale="small", over={"alpha": "0,1"}, budget={"gpu_hours": 2.0, "hours": 100.0}
    )
    begun = 1_700_000_000_000_000_000
    for trial, hours, gpus in (("a", [0.5, 0.25], 2.0), ("b", [1.0], 0.5)):
        for start, held in enumerate(hours):
            mark = tmp_path / "trials" / trial / "held" / str(begun + start)
            mark.parent.mkdir(parents=True, exist_ok=True)
            mark.touch()
            end = begun + start + round(held * 3600e9)
            os.utime(mark, ns=(end, end))
        facts = TrialFacts(name=trial, settings={}, seed=0, gpus=gpus)
        (mark.parents[1] / "trial.json").write_text(facts.model_dump_json())
    spending = BudgetStopper(config, tmp_path, time.monotonic())
    assert spending.gpu_hours() == pytest.approx(2 * 0.75 + 0.5 * 1.0, abs=1e-6)
    spending.checked = -100.0
    assert spending.stop_all()
    spending = BudgetStopper(config, tmp_path, time.monotonic())
    os.utime(mark, ns=(end - round(0.3 * 3600e9),) * 2)
    spending.checked = -100.0
    assert not spending.stop_all()
    os.utime(mark, ns=(end, end))
    spending.checked = -100.0
    assert spending.stop_all() and spending.stop_all()


def test_the_callback_can_be_pickled_although_it_uses_a_terminal(tmp_path: Path) -> None:
    import ray.cloudpickle
    from rich.console import Console

    from sepscene.orchestration.sweeps.run_trials import TrialEndCallback

    console = Console()

    def ended() -> None:
        console.print("ended")

    with pytest.raises(TypeError, match="pickle"):
        ray.cloudpickle.dumps(ended)
    copy = ray.cloudpickle.loads(ray.cloudpickle.dumps(TrialEndCallback(tmp_path, ended)))
    assert copy.folder == tmp_path


def test_wall_time_counts_from_the_start_of_the_command(tmp_path: Path) -> None:
    from sepscene.orchestration.sweeps.schedulers import BudgetStopper

    config = make_sweep(experiment="demo", over={"alpha": "0,1"}, budget={"hours": 1.0})
    assert BudgetStopper(config, tmp_path, time.monotonic() - 3601).stop_all()
    assert not BudgetStopper(config, tmp_path, time.monotonic() - 3500).stop_all()


def test_optuna_suggests_no_setting_twice_and_ends_when_all_are_suggested(tmp_path: Path) -> None:
    from ray.tune.search import Searcher

    write_trial(tmp_path, "t000-s0", {"views.combination": ["S2"], "objective.alpha": 0.0}, metric=0.3, over=True)
    optuna, samples = searcher(tmp_path, {"combination": "S2,N,S2+N", "alpha": "0,1"})
    assert samples == 5  # one of the six settings is known
    suggested = []
    for n in range(5):
        suggested.append(optuna.suggest(str(n))["trial"])
        result = {"validation_knn_map": 0.1, "training_iteration": 1}
        if n % 2:  # the others are still running when the next setting is suggested
            optuna.on_trial_result(str(n), result)
            optuna.on_trial_complete(str(n), result)
    assert [trial["name"] for trial in suggested] == [f"t{n:03d}-s0" for n in range(1, 6)]
    settings = [(trial["settings"]["views.combination"], trial["settings"]["objective.alpha"]) for trial in suggested]
    assert len({json.dumps(setting) for setting in settings}) == 5 and (["S2"], 0.0) not in settings
    assert optuna.suggest("5") == Searcher.FINISHED
