"""What chooses settings and what ends a sweep, without a cluster."""

import json
import os
import random
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sepscene.orchestration.sweeps.config import make_sweep
from sepscene.orchestration.sweeps.search_space import Range

pytestmark = pytest.mark.slow  # imports Ray


def test_optuna_is_told_what_is_known_and_tries_the_unfinished_first() -> None:
    from sepscene.orchestration.sweeps.schedulers import _domain, optuna_search

    domains = {
        "settings": {
            "objective.temperature": _domain(Range(kind="log", low=0.01, high=1)),
            "views.combination": _domain([["S2"], ["S2", "N"]]),
            "training.epochs": _domain(Range(kind="int", low=2, high=4)),
        }
    }
    setting = {"objective.temperature": 0.1, "views.combination": '["S2", "N"]', "training.epochs": 3}
    better = {**setting, "objective.temperature": 0.2}
    searcher = optuna_search(domains, [(setting, 0.3), (better, None)], seed=0)
    assert searcher.suggest("a") == {"settings": better}
    other = searcher.suggest("b")["settings"]
    assert 0.01 <= other["objective.temperature"] <= 1 and other["training.epochs"] in (2, 3, 4)
    assert json.loads(other["views.combination"]) in (["S2"], ["S2", "N"])


def test_gpu_hours_are_the_time_that_trials_held_their_gpus_over_all_commands(tmp_path: Path) -> None:
    from sepscene.orchestration.sweeps.schedulers import Spending

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
        (mark.parents[1] / "trial.json").write_text(json.dumps({"gpus": gpus}))
    spending = Spending(config, tmp_path, time.monotonic())
    assert spending.gpu_hours() == pytest.approx(2 * 0.75 + 0.5 * 1.0, abs=1e-6)
    spending.looked = -100.0
    assert spending()
    spending = Spending(config, tmp_path, time.monotonic())
    os.utime(mark, ns=(end - round(0.3 * 3600e9),) * 2)
    spending.looked = -100.0
    assert not spending()
    os.utime(mark, ns=(end, end))
    spending.looked = -100.0
    assert spending() and spending()


def test_what_tune_pickles_may_hold_a_terminal(tmp_path: Path) -> None:
    import ray.cloudpickle
    from rich.console import Console

    from sepscene.orchestration.sweeps.run_trials import _Ended

    console = Console()
    copy = ray.cloudpickle.loads(ray.cloudpickle.dumps(_Ended(tmp_path, lambda: console.print("ended"))))
    assert copy.folder == tmp_path


def test_wall_time_counts_from_the_beginning_of_the_command(tmp_path: Path) -> None:
    from sepscene.orchestration.sweeps.schedulers import Spending

    config = make_sweep(experiment="demo", over={"alpha": "0,1"}, budget={"hours": 1.0})
    assert Spending(config, tmp_path, time.monotonic() - 3601)()
    assert not Spending(config, tmp_path, time.monotonic() - 3500)()


def test_optuna_suggests_no_setting_twice_and_ends_with_a_space_of_lists(tmp_path: Path) -> None:
    """Two trials of one setting would write into one folder."""
    from ray.tune.search import Searcher

    from sepscene.orchestration.sweeps.schedulers import tuning_of
    from sepscene.orchestration.sweeps.search_space import readable, setting_name

    over = {"combination": "S2,N,S2+N", "alpha": "0,1"}
    validates = {"training.validation_every_steps": 60}
    fields = {"over": over, "search": "optuna", "budget": {"trials": 40}, "changes": validates}
    config = make_sweep(experiment="demo", **fields)
    base, space = config.checked()
    done = tmp_path / "trials" / "combination=S2,alpha=0.0,seed=0"
    done.mkdir(parents=True)
    chosen = {"views.combination": '["S2"]', "objective.alpha": "0.0"}
    (done / "trial.json").write_text(json.dumps({"chosen": chosen, "figure": 0.3}))
    (done / "finished").touch()
    tuning = tuning_of(config, space, base.model_dump(mode="json"), tmp_path, 0.0)
    assert tuning.samples == 5 and tuning.searcher is not None  # six settings there are, one is known
    names = set()
    for n in range(5):
        suggested = tuning.searcher.suggest(str(n))
        assert isinstance(suggested, dict)
        names.add(setting_name({field: readable(value) for field, value in suggested["settings"].items()}))
        if n % 2:  # some are still running when the next is asked for
            tuning.searcher.on_trial_complete(str(n), {"validation_knn_map": 0.1, "training_iteration": 1})
    assert len(names) == 5 and "combination=S2,alpha=0.0" not in names
    assert tuning.searcher.suggest("more") == Searcher.FINISHED


def test_a_population_moves_the_or_rules_weights_and_keeps_to_its_ranges(tmp_path: Path) -> None:
    from sepscene.orchestration.sweeps.schedulers import tuning_of

    weights = [[3, 1], [1, 1], [1, 3]]
    config = make_sweep(
        experiment="demo",
        over={"views.weights": weights, "temperature": "log(0.05,0.5)"},
        scheduler="pbt",
        budget={"trials": 4},
        changes={"training.validation_every_steps": 60},
    )
    base, space = config.checked()
    population: Any = tuning_of(config, space, base.model_dump(mode="json"), tmp_path, 0.0).scheduler
    random.seed(0)
    settings = {"views.weights": [1, 1], "objective.temperature": 0.45}
    better = SimpleNamespace(config={"trial": {"name": "member=1"}, "settings": settings})
    changed = [population._get_new_config(None, better)[0]["settings"] for _ in range(50)]
    assert {tuple(setting["views.weights"]) for setting in changed} == {(3.0, 1.0), (1.0, 1.0), (1.0, 3.0)}
    temperatures = [setting["objective.temperature"] for setting in changed]
    assert min(temperatures) >= 0.05 and max(temperatures) == 0.5  # 0.45 times 1.2 is more
    assert settings["objective.temperature"] == 0.45
