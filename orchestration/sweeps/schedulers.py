"""How a sweep chooses, stops and changes its trials: Ray Tune's own schedulers and searchers, set up for our trials.

All of them act on `validation_knn_map`, the nearest-neighbour mAP on held-out training clips that a trial reports as it
trains. None acts on the training loss: it depends on the temperature, on alpha and on the batch, so that a trial with a
low loss may be the one that learns nothing. None acts on the test figures either, which would then be figures of the
choice and no longer of the method.
"""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import ray.tune
from ray.tune.schedulers import ASHAScheduler, PopulationBasedTraining, TrialScheduler
from ray.tune.search import Searcher
from ray.tune.search.optuna import OptunaSearch

from sepscene.models.config import SepsceneError
from sepscene.orchestration.sweeps.config import SweepConfig
from sepscene.orchestration.sweeps.search_space import Range, Space, grid_size, readable, setting_name
from sepscene.orchestration.sweeps.trial import FINISHED, METRIC, PERCENT, STOPPED, held_seconds

_NEVER = 1000.0  # percent: ASHA ends no trial for having reached its end, because it is judged after that
_LOOK_SECONDS = 5.0
_ASKED_AT_MOST = 200  # Optuna draws at random: who gets nothing new so often has all that it likes


@dataclass(frozen=True)
class Tuning:
    """What Tune is told beside the list of trials. By default it runs them all to their end."""

    scheduler: TrialScheduler | None = None
    replays: bool = False
    """Whether finished trials tell the scheduler their figures again when a sweep goes on."""
    searcher: Searcher | None = None
    space: dict[str, Any] | None = None
    samples: int = 1
    spent: Callable[[], bool] = lambda: False


class Budget(ray.tune.Stopper):
    """Stops the whole sweep when what it may spend is spent."""

    def __init__(self, spent: Callable[[], bool]) -> None:
        self.spent = spent

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """No trial is stopped for a result of its own."""
        return False

    def stop_all(self) -> bool:
        """Asked by Tune between its steps."""
        return self.spent()


class Spending:
    """Whether wall time or GPU-hours are spent; trials' folders say how long each has held its GPUs."""

    def __init__(self, config: SweepConfig, folder: Path, begun: float) -> None:
        self.budget, self.folder, self.begun = config.budget, folder, begun
        self.looked, self.over = 0.0, False

    def __call__(self) -> bool:
        """True from when either is spent."""
        now = time.monotonic()
        if not self.over and now - self.looked >= _LOOK_SECONDS:
            self.looked = now
            budget = self.budget
            self.over = (budget.hours is not None and now - self.begun >= budget.hours * 3600) or (
                budget.gpu_hours is not None and self.gpu_hours() >= budget.gpu_hours
            )
        return self.over

    def gpu_hours(self) -> float:
        """Of all trials so far, those of earlier commands included."""
        notes = self.folder.glob("trials/*/trial.json")
        return sum(json.loads(note.read_text())["gpus"] * held_seconds(note.parent) for note in notes) / 3600


def tuning_of(config: SweepConfig, space: Space, base: dict[str, Any], folder: Path, begun: float) -> Tuning:
    """Tune's part of a sweep.

    Args:
        config: the sweep.
        space: its checked space.
        base: the experiment that Optuna's settings change, as plain values.
        folder: of the sweep; what it holds is not suggested again.
        begun: when the command began, of `time.monotonic()`.
    """
    spent, schedule = Spending(config, folder, begun), config.schedule
    scheduler: TrialScheduler | None = None
    if config.scheduler == "asha":
        scheduler = ASHAScheduler(
            time_attr=PERCENT,
            metric=METRIC,
            mode="max",
            max_t=_NEVER,  # type: ignore[arg-type]  # any number will do
            grace_period=schedule.grace_percent,  # type: ignore[arg-type]
            reduction_factor=schedule.keep_one_in,
        )
    elif config.scheduler == "pbt":
        scheduler = PopulationBasedTraining(
            time_attr=PERCENT,
            metric=METRIC,
            mode="max",
            perturbation_interval=schedule.perturb_percent,
            burn_in_period=schedule.grace_percent,
            hyperparam_mutations={"settings": {field: _mutation(values) for field, values in space.items()}},
            custom_explore_fn=partial(_within, space),
            log_config=False,
            require_attrs=False,
        )
    if config.search != "optuna":
        return Tuning(scheduler, replays=config.scheduler == "asha", spent=spent)
    known = _known(folder)
    most = int(min(config.budget.trials or 1, grid_size(space)))
    domains = {"settings": {field: _domain(values) for field, values in space.items()}}
    return Tuning(
        scheduler,
        searcher=optuna_search(domains, known, base["seed"]),
        space={"trial": {"name": "", "experiment": base}},  # the settings come from the searcher
        samples=most - sum(figure is not None for _, figure in known),
        spent=spent,
    )


def _mutation(values: list[Any] | Range) -> Any:
    """PBT moves along a list, and multiplies what comes from a range."""
    return values if isinstance(values, list) else _domain(values)


def _within(space: Space, config: dict[str, Any]) -> dict[str, Any]:
    """PBT's new configuration with every setting inside of its range, which a multiplied value may have left."""
    settings = config["settings"]
    for field, values in space.items():
        if isinstance(values, Range):
            low, high = values.ends
            settings[field] = min(max(settings[field], low), high)
    return config


def _domain(values: list[Any] | Range) -> Any:
    """Tune's own form of a range or a choice; a choice goes as JSON, because Optuna chooses among plain values."""
    if isinstance(values, list):
        return ray.tune.choice([json.dumps(value) for value in values])
    if values.kind == "int":
        return ray.tune.randint(int(values.low), int(values.high) + 1)
    return (ray.tune.loguniform if values.kind == "log" else ray.tune.uniform)(values.low, values.high)


def optuna_search(domains: dict[str, Any], known: Sequence[tuple[dict[str, Any], float | None]], seed: int) -> Searcher:
    """Optuna's TPE, told what is known: settings with their figure, and those without one to try first.

    Raises:
        SepsceneError: when Optuna is not installed.
    """
    try:
        import optuna
    except ImportError:
        raise SepsceneError("search: optuna needs Optuna: pip install 'sepscene[optuna]'") from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    unfinished = [_flat(setting) for setting, figure in known if figure is None]
    searcher = Distinct(
        space=OptunaSearch.convert_search_space(domains),
        metric=METRIC,
        mode="max",
        points_to_evaluate=unfinished,
        seed=seed + len(known),  # going on must not repeat the first draws
    )
    for setting, figure in known:
        if figure is not None:
            searcher.add_evaluated_point(_flat(setting), figure)
            searcher.suggested.add(_named(setting))
    return searcher


class Distinct(OptunaSearch):
    """Optuna that suggests nothing twice: a setting is a folder, which two trials must not write into."""

    def __init__(self, **given: Any) -> None:
        super().__init__(**given)
        self.suggested: set[str] = set()

    def suggest(self, trial_id: str) -> dict[str, Any] | None:
        """A setting that was not suggested before; Tune's word for the end when none is found."""
        for tried in range(_ASKED_AT_MOST):
            proposal = f"{trial_id}/{tried}"
            found = super().suggest(proposal)
            if found is None:
                return None
            name = _named(found["settings"])
            if name not in self.suggested:
                self.suggested.add(name)
                self._ot_trials[trial_id] = self._ot_trials.pop(proposal)  # what comes out is told of the trial
                return found
            self.on_trial_complete(proposal, error=True)
        return Searcher.FINISHED  # type: ignore[return-value]  # a word in the place of a setting


def _named(chosen: dict[str, Any]) -> str:
    return setting_name({field: readable(value) for field, value in chosen.items()})


def _flat(setting: dict[str, Any]) -> dict[str, Any]:
    return {f"settings/{field}": value for field, value in setting.items()}


def _known(folder: Path) -> list[tuple[dict[str, Any], float | None]]:
    """What Optuna has chosen in this folder so far, with the figure of what has ended."""
    found = []
    for path in sorted(folder.glob("trials/*/trial.json"), key=lambda path: path.stat().st_mtime):
        trial = json.loads(path.read_text())
        ended = [(path.parent / name).exists() for name in (FINISHED, STOPPED)]
        found.append((trial["chosen"], trial.get("figure") if any(ended) else None))
    return found
