"""What chooses settings and what ends a sweep, without a cluster."""

import json
import os
from pathlib import Path

import pytest

from orchestration.search import Range
from orchestration.sweep_config import make_sweep

pytestmark = pytest.mark.slow  # imports Ray


def test_optuna_is_told_what_is_known_and_tries_the_unfinished_first() -> None:
    from orchestration.schedulers import _domain, optuna_search

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
    from orchestration.schedulers import Spending

    config = make_sweep(
        experiment="demo", scale="small", over={"alpha": "0,1"}, budget={"gpu_hours": 2.0, "hours": 100.0}
    )
    begun = 1_700_000_000_000_000_000
    for trial, hours in (("a", [0.5, 0.25]), ("b", [1.0])):
        for start, held in enumerate(hours):
            mark = tmp_path / "trials" / trial / "held" / str(begun + start)
            mark.parent.mkdir(parents=True, exist_ok=True)
            mark.touch()
            end = begun + start + round(held * 3600e9)
            os.utime(mark, ns=(end, end))
    spending = Spending(config, tmp_path)
    assert spending.gpus == 1.0  # half a GPU for the trainer, two quarters for separation actors
    assert spending.gpu_hours() == pytest.approx(1.75, abs=1e-6)
    spending.looked = -100.0
    assert not spending()
    os.utime(mark, ns=(end + round(0.3 * 3600e9),) * 2)
    spending.looked = -100.0
    assert spending() and spending()


def test_what_tune_pickles_may_hold_a_terminal(tmp_path: Path) -> None:
    import ray.cloudpickle
    from rich.console import Console

    from orchestration.trials import _Ended

    console = Console()
    copy = ray.cloudpickle.loads(ray.cloudpickle.dumps(_Ended(tmp_path, lambda: console.print("ended"))))
    assert copy.folder == tmp_path
