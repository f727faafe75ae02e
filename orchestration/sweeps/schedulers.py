"""How a sweep chooses and stops its trials, with the schedulers and searchers of Ray Tune.

All of them use `validation_knn_map`, which a trial reports during training. docs/sweeps.md says why they use neither
the training loss nor a test metric.
"""

import json
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray.tune
from ray.tune.schedulers import ASHAScheduler, TrialScheduler
from ray.tune.search import Searcher
from ray.tune.search.optuna import OptunaSearch
from ray.tune.search.sample import Domain

from sepscene.models.config import SepsceneError
from sepscene.orchestration.config import Experiment
from sepscene.orchestration.records.results import TrialFacts
from sepscene.orchestration.records.sweep_folder import SweepFolder
from sepscene.orchestration.sweeps.config import SweepConfig
from sepscene.orchestration.sweeps.search_space import Space, key_of, shown_setting
from sepscene.orchestration.sweeps.trial import METRIC, PERCENT, held_seconds
from sepscene.orchestration.sweeps.trial_plan import trial_name
from sepscene.orchestration.sweeps.trial_status import facts_of

_NEVER = 1000  # percent; above 100, so that ASHA does not stop a trial at its end, before it is evaluated
_CHECK_SECONDS = 5.0  # interval at which the budget is checked
_MAX_ATTEMPTS = 200  # after this many known settings in a row, Optuna is assumed to have no new one


@dataclass(frozen=True)
class Tuning:
    """Scheduler, searcher and stopper for Tune. By default, all trials run to their end."""

    scheduler: TrialScheduler | None = None
    searcher: "OptunaSettings | None" = None
    base: Experiment | None = None
    """The experiment that the settings of the searcher change."""
    samples: int = 1
    """Number of trials that the searcher may suggest."""
    stopper: ray.tune.Stopper | None = None


class BudgetStopper(ray.tune.Stopper):
    """Stops the whole sweep when its wall time or its GPU-hours are spent.

    The GPU-hours are computed from the folders of the trials and include those of earlier commands.
    """

    def __init__(self, config: SweepConfig, folder: Path, started: float) -> None:
        self.budget = config.budget
        self.folder = folder
        self.started = started
        self.checked = -math.inf
        self.spent = False

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """Never: single trials are not stopped."""
        return False

    def stop_all(self) -> bool:
        """Whether the budget is spent; Tune calls it often, so it is checked only every few seconds."""
        now = time.monotonic()
        if not self.spent and now - self.checked >= _CHECK_SECONDS:
            self.checked = now
            most = self.budget
            late = most.hours is not None and now - self.started >= most.hours * 3600
            self.spent = late or (most.gpu_hours is not None and self.gpu_hours() >= most.gpu_hours)
        return self.spent

    def gpu_hours(self) -> float:
        """GPU-hours of all trials so far."""
        runs = [(run, facts_of(run)) for run in SweepFolder(self.folder).runs()]
        return sum(facts.gpus * held_seconds(run.path) for run, facts in runs if facts) / 3600


def tuning_of(config: SweepConfig, space: Space, base: Experiment, folder: Path, started: float) -> Tuning:
    """The `Tuning` of a sweep, which continues from the trials in FOLDER.

    Args:
        started: start of the command (`time.monotonic()`).

    Raises:
        SepsceneError: when the sweep uses Optuna and it is not installed.
    """
    stopper = BudgetStopper(config, folder, started)
    scheduler: TrialScheduler | None = None
    if config.scheduler == "asha":
        scheduler = ASHAScheduler(
            time_attr=PERCENT,
            metric=METRIC,
            mode="max",
            max_t=_NEVER,
            grace_period=config.schedule.grace_percent,  # type: ignore[arg-type]  # Tune takes any number
            reduction_factor=config.schedule.keep_one_in,
        )
    if config.search != "optuna":
        return Tuning(scheduler, stopper=stopper)
    known = [(facts, run.is_over) for run in SweepFolder(folder).runs() if (facts := facts_of(run))]
    ended = [facts for facts, is_over in known if is_over]
    unfinished = [facts for facts, is_over in known if not is_over]
    searcher = OptunaSettings(space, ended, unfinished, base.seed)
    size = math.prod(math.inf if isinstance(values, Domain) else len(values) for values in space.values())
    samples = int(min(config.budget.trials or 1, size)) - len(ended)
    return Tuning(scheduler, searcher=searcher, base=base, samples=samples, stopper=stopper)


class OptunaSettings(OptunaSearch):
    """Optuna's TPE. Names each setting, suggests none twice, and starts with those of unfinished trials."""

    def __init__(self, space: Space, ended: list[TrialFacts], unfinished: list[TrialFacts], seed: int) -> None:
        try:
            import optuna
        except ImportError:
            raise SepsceneError("search: optuna requires Optuna: pip install 'sepscene[optuna]'") from None
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.space = space
        self.seed = seed
        self.names = {key_of(trial.chosen): trial.name for trial in [*ended, *unfinished]}
        self.suggested = {key_of(trial.chosen) for trial in ended}
        self.proposals: dict[str, str] = {}
        """Tune's trial id -> the id of the proposal in Optuna."""
        # Optuna chooses only among plain values, so the values of lists are encoded as JSON.
        domains = {
            field: values if isinstance(values, Domain) else ray.tune.choice(list(map(json.dumps, values)))
            for field, values in space.items()
        }

        def encoded(trial: TrialFacts) -> dict[str, Any]:
            chosen = trial.chosen.items()
            return {field: value if isinstance(space[field], Domain) else json.dumps(value) for field, value in chosen}

        super().__init__(
            self.convert_search_space(domains),
            metric=METRIC,
            mode="max",
            points_to_evaluate=list(map(encoded, unfinished)),
            seed=seed + len(ended) + len(unfinished),  # a continued sweep must not repeat its first draws
        )
        for trial in ended:
            if trial.metric is not None:
                self.add_evaluated_point(encoded(trial), trial.metric)

    def suggest(self, trial_id: str) -> dict[str, Any] | None:
        """A setting that was not suggested before, or `Searcher.FINISHED` when none is found."""
        for attempt in range(_MAX_ATTEMPTS):
            proposal = f"{trial_id}/{attempt}"
            found = super().suggest(proposal)
            assert found is not None
            settings = {
                field: found[field] if isinstance(values, Domain) else json.loads(found[field])
                for field, values in self.space.items()
            }
            if key_of(settings) not in self.suggested:
                self.suggested.add(key_of(settings))
                self.proposals[trial_id] = proposal
                name = self.names.setdefault(key_of(settings), self._next_name())
                return {"trial": {"name": name, "settings": settings, "shown": shown_setting(settings)}}
            super().on_trial_complete(proposal, error=True)
        return Searcher.FINISHED  # type: ignore[return-value]  # a string

    def _next_name(self) -> str:
        numbers = [int(name[1:].partition("-")[0]) for name in self.names.values()]
        return trial_name(max(numbers, default=-1) + 1, self.seed)

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Report a validation of a running trial to Optuna."""
        super().on_trial_result(self.proposals[trial_id], result)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Report the end of a trial to Optuna, with its last validation."""
        super().on_trial_complete(self.proposals[trial_id], result, error)
