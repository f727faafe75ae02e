"""What a sweep will run: its trials, planned and checked before anything starts."""

import contextlib
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

from ray.tune.search.sample import Domain

from sepscene.models.config import SepsceneError
from sepscene.orchestration.config import Experiment
from sepscene.orchestration.records.results import Setting
from sepscene.orchestration.records.sweep_folder import SweepFolder
from sepscene.orchestration.sweeps.config import SweepConfig, load_sweep
from sepscene.orchestration.sweeps.search_space import Space, draw_settings, shown_setting


@dataclass(frozen=True)
class Trial:
    """One run of many, by the name of its folder.

    Attributes:
        experiment: what it runs; None for one that Optuna chose, which only its folder knows.
        settings: what distinguishes it, for tables.
    """

    name: str
    experiment: Experiment | None
    settings: dict[str, Setting] = field(default_factory=dict)
    seed: int = 0

    def for_tune(self) -> dict[str, Any]:
        """What Ray Tune hands to the driver of the trial: plain values only."""
        assert self.experiment is not None
        return {"name": self.name, "experiment": self.experiment.model_dump(mode="json"), "shown": self.settings}


def trial_name(number: int, seed: int) -> str:
    """t003-s1: the fourth setting of a sweep with seed 1; trial.json and the tables say what the setting is."""
    return f"t{number:03d}-s{seed}"


def plan_trials(config: SweepConfig, base: Experiment, space: Space) -> list[Trial]:
    """The trials of a sweep, each validated before any is started; none where Optuna will choose them.

    `base` and `space` are those of `SweepConfig.checked`. A larger budget or more seeds give the same trials under the
    same names, and further ones.

    Raises:
        SepsceneError: for a combination of values that the configuration refuses.
    """
    if config.search == "optuna":
        return []
    return [
        Trial(trial_name(number, seed), base.changed({**setting, "seed": seed}), shown_setting(setting), seed)
        for number, setting in enumerate(_settings(config, base, space))
        for seed in range(base.seed, base.seed + config.seeds)
    ]


def _settings(config: SweepConfig, base: Experiment, space: Space) -> list[dict[str, Any]]:
    most = config.budget.trials
    if config.search == "random":
        return draw_settings(space, most or 1, base.seed)
    lists = {field: values for field, values in space.items() if not isinstance(values, Domain)}
    settings = [dict(zip(lists, values, strict=True)) for values in product(*lists.values())]
    if most is not None and most < len(settings):
        raise SepsceneError(
            f"the grid has {len(settings)} settings, more than budget.trials {most}: raise the budget, or take "
            "--search random to draw that many at random"
        )
    return settings


def processors_of(base: Experiment, trials: list[Trial], space: Space) -> set[str]:
    """The processors of the ladder that any trial may need."""
    tried = [trial.experiment for trial in trials if trial.experiment] or [base]
    names = {name for e in tried if e.views.separates for name in e.views.combination}
    combinations = space.get("views.combination", [])
    return names | {name for names in combinations for name in names} if isinstance(combinations, list) else names


def find_sweep(storage: Path, config: SweepConfig) -> Path:
    """The newest folder of the storage that holds this sweep.

    Raises:
        SepsceneError: when there is none.
    """
    files = [SweepFolder(folder).configuration for folder in storage.iterdir()] if storage.is_dir() else []
    newest_first = sorted(filter(Path.exists, files), key=lambda path: path.stat().st_mtime, reverse=True)
    for path in newest_first:
        with contextlib.suppress(SepsceneError):  # another sweep's file that cannot be read is not this sweep
            if load_sweep(path).same_as() == config.same_as():
                return path.parent
    raise SepsceneError(f"{storage} holds no sweep with these arguments; leave --resume away, or name it with --id")


def in_words(config: SweepConfig) -> str:
    """What the report says of how settings were chosen and trials stopped."""
    schedule = config.schedule
    chosen = {
        "grid": "",
        "random": "Settings were drawn at random.",
        "optuna": "Optuna (TPE) chose the settings by the validation k-NN mAP of the trials before.",
    }[config.search]
    stopped = (
        f"ASHA stopped trials by their validation k-NN mAP: from {schedule.grace_percent:g} % of the rows on, "
        f"at every {schedule.keep_one_in:g}-fold, the best one in {schedule.keep_one_in:g} went on."
    )
    return f"{chosen} {stopped if config.scheduler == 'asha' else ''}".strip()
