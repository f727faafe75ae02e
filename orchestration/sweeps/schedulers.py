"""How a sweep chooses and stops its trials: Ray Tune's own schedulers and searchers, set up for our trials.

All of them act on `validation_knn_map`, the nearest-neighbour mAP on held-out training clips that a trial reports as it
trains. None acts on the training loss: it depends on the temperature, on alpha and on the batch, so that a trial with a
low loss may be the one that learns nothing. None acts on the test metrics either: they would then measure the choice
and no longer the method.
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

_NEVER = 1000  # percent: ASHA ends no trial for having reached its end, because it is evaluated after that
_LOOK_SECONDS = 5.0
_MOST_ATTEMPTS = 200  # Optuna draws at random: when this many draws are known, it has no new setting


@dataclass(frozen=True)
class Tuning:
    """What Tune gets beside the list of trials. By default it runs them all to their end."""

    scheduler: TrialScheduler | None = None
    searcher: Searcher | None = None
    base: Experiment | None = None
    """What the searcher's settings change."""
    samples: int = 1
    stopper: ray.tune.Stopper | None = None


class SpentBudget(ray.tune.Stopper):
    """Stops the whole sweep when its wall time or its GPU-hours are spent.

    The trials' folders say how long each has held its GPUs, in earlier commands as well.
    """

    def __init__(self, config: SweepConfig, folder: Path, begun: float) -> None:
        self.budget = config.budget
        self.folder = folder
        self.begun = begun
        self.looked = -math.inf
        self.spent = False

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """No trial is stopped for a result of its own."""
        return False

    def stop_all(self) -> bool:
        """Tune asks between its steps."""
        now = time.monotonic()
        if not self.spent and now - self.looked >= _LOOK_SECONDS:
            self.looked = now
            hours = self.budget.hours
            gpu_hours = self.budget.gpu_hours
            self.spent = hours is not None and now - self.begun >= hours * 3600
            self.spent |= gpu_hours is not None and self.gpu_hours() >= gpu_hours
        return self.spent

    def gpu_hours(self) -> float:
        """GPU-hours that all trials have held so far."""
        runs = [(run, facts_of(run)) for run in SweepFolder(self.folder).runs()]
        return sum(facts.gpus * held_seconds(run.path) for run, facts in runs if facts) / 3600


def tuning_of(config: SweepConfig, space: Space, base: Experiment, folder: Path, begun: float) -> Tuning:
    """Tune's part of a sweep whose command began at `begun` (`time.monotonic()`); it goes on from what FOLDER holds.

    Raises:
        SepsceneError: when Optuna is wanted and not installed.
    """
    stopper = SpentBudget(config, folder, begun)
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
    over = [facts for facts, is_over in known if is_over]
    searcher = NewSettings(space, over, [facts for facts, is_over in known if not is_over], base.seed)
    size = math.prod(math.inf if isinstance(values, Domain) else len(values) for values in space.values())
    samples = int(min(config.budget.trials or 1, size)) - len(over)
    return Tuning(scheduler, searcher=searcher, base=base, samples=samples, stopper=stopper)


class NewSettings(OptunaSearch):
    """Optuna's TPE. It suggests no setting twice, gives each a name, and tries the unfinished ones first."""

    def __init__(self, space: Space, over: list[TrialFacts], unfinished: list[TrialFacts], seed: int) -> None:
        try:
            import optuna
        except ImportError:
            raise SepsceneError("search: optuna needs Optuna: pip install 'sepscene[optuna]'") from None
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.space = space
        self.seed = seed
        self.names = {key_of(trial.chosen): trial.name for trial in [*over, *unfinished]}
        self.suggested = {key_of(trial.chosen) for trial in over}
        self.proposals: dict[str, str] = {}
        """Id of Tune's trial -> id of Optuna's proposal that it runs."""
        domains = {field: self._domain(values) for field, values in space.items()}
        super().__init__(
            self.convert_search_space(domains),
            metric=METRIC,
            mode="max",
            points_to_evaluate=[self._encoded(trial.chosen) for trial in unfinished],
            seed=seed + len(over) + len(unfinished),  # going on must not repeat the first draws
        )
        for trial in over:
            if trial.metric is not None:
                self.add_evaluated_point(self._encoded(trial.chosen), trial.metric)

    @staticmethod
    def _domain(values: list[Any] | Domain) -> Domain:
        """Optuna chooses among plain values, so that lists go to it as JSON."""
        return values if isinstance(values, Domain) else ray.tune.choice([json.dumps(value) for value in values])

    def _encoded(self, settings: dict[str, Any]) -> dict[str, Any]:
        return {
            field: value if isinstance(self.space[field], Domain) else json.dumps(value)
            for field, value in settings.items()
        }

    def _decoded(self, proposal: dict[str, Any]) -> dict[str, Any]:
        return {
            field: proposal[field] if isinstance(values, Domain) else json.loads(proposal[field])
            for field, values in self.space.items()
        }

    def suggest(self, trial_id: str) -> dict[str, Any] | None:
        """A setting that was not suggested before; Tune's word for the end when none is found."""
        for attempt in range(_MOST_ATTEMPTS):
            proposal = f"{trial_id}/{attempt}"
            found = super().suggest(proposal)
            assert found is not None
            settings = self._decoded(found)
            if key_of(settings) not in self.suggested:
                self.suggested.add(key_of(settings))
                self.proposals[trial_id] = proposal
                name = self.names.setdefault(key_of(settings), self._next_name())
                return {"trial": {"name": name, "settings": settings, "shown": shown_setting(settings)}}
            super().on_trial_complete(proposal, error=True)
        return Searcher.FINISHED  # type: ignore[return-value]  # a word in the place of a setting

    def _next_name(self) -> str:
        numbers = [int(name[1:].partition("-")[0]) for name in self.names.values()]
        return trial_name(max(numbers, default=-1) + 1, self.seed)

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """A trial that still runs has validated."""
        super().on_trial_result(self.proposals[trial_id], result)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """A trial has ended, with its last validation."""
        super().on_trial_complete(self.proposals[trial_id], result, error)
