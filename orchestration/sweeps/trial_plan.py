"""The plan of a sweep: its trials, checked before anything starts."""

import contextlib
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from ray.tune.search.sample import Domain

from sepscene.models.config import SepsceneError
from sepscene.orchestration.config import Experiment
from sepscene.orchestration.records.results import Setting
from sepscene.orchestration.records.sweep_folder import SweepFolder
from sepscene.orchestration.sweeps.config import SweepConfig, load_sweep
from sepscene.orchestration.sweeps.search_space import Space, draw_settings, shown_setting, single_changes


@dataclass(frozen=True)
class Trial:
    """One run of a sweep or reproduction.

    Attributes:
        name: name of its folder.
        settings: the settings that distinguish it from other trials, for tables.
    """

    name: str
    experiment: Experiment
    settings: dict[str, Setting]
    seed: int

    def for_tune(self) -> dict[str, Any]:
        """The parameters that Ray Tune passes to `run_trial`.

        The experiment is text: Tune evaluates a mapping with the single key `eval` as Python, wherever it is nested.
        """
        return {"name": self.name, "experiment": self.experiment.model_dump_json(), "shown": self.settings}


def trial_name(number: int, seed: int) -> str:
    """E.g. t003-s1: the fourth setting of a sweep, with seed 1; trial.json and the tables show the setting."""
    return f"t{number:03d}-s{seed}"


def plan_trials(config: SweepConfig, base: Experiment, space: Space) -> list[Trial]:
    """The trials of a sweep, all validated before the first one starts; empty for Optuna, which chooses them later.

    With a larger budget or more seeds, the same trials keep their names, and others are added.

    Raises:
        SepsceneError: when the configuration refuses a combination of values, or the budget is too small for the grid.
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
            f"the grid has {len(settings)} settings, more than budget.trials {most}: raise the budget, or use "
            "--search random to draw that many at random"
        )
    return settings


def possible_experiments(base: Experiment, trials: list[Trial], space: Space) -> list[Experiment]:
    """The experiments of the trials; for Optuna, which chooses them later, one with each value or end of a range."""
    if trials:
        return [trial.experiment for trial in trials]
    return [base.changed(setting) for settings in single_changes(space).values() for setting in settings]


def processors_of(experiments: list[Experiment]) -> set[str]:
    """The names of the processors that any of the experiments needs."""
    return {name for one in experiments if one.views.separates for name in one.views.combination}


def find_sweep(storage: Path, config: SweepConfig) -> Path:
    """The newest folder in the storage that contains this sweep.

    Raises:
        SepsceneError: when there is none.
    """
    files = [SweepFolder(folder).configuration for folder in storage.iterdir()] if storage.is_dir() else []
    newest_first = sorted(filter(Path.exists, files), key=lambda path: path.stat().st_mtime, reverse=True)
    for path in newest_first:
        with contextlib.suppress(SepsceneError):  # skips the unreadable files of other sweeps
            if load_sweep(path).identity() == config.identity():
                return path.parent
    raise SepsceneError(f"{storage} contains no sweep with these arguments: remove --resume, or give its --id")


def describe_tuning(config: SweepConfig) -> str:
    """How settings were chosen and trials stopped, for the report."""
    schedule = config.schedule
    chosen = {
        "grid": "",
        "random": "Settings were drawn at random.",
        "optuna": "Optuna (TPE) chose the settings by the validation k-NN mAP of earlier trials.",
    }[config.search]
    stopped = (
        f"ASHA stopped trials by their validation k-NN mAP: at {schedule.grace_percent:g} % of the rows, and whenever "
        f"their number had grown {schedule.keep_one_in:g}-fold, the best one in {schedule.keep_one_in:g} continued."
    )
    return f"{chosen} {stopped if config.scheduler == 'asha' else ''}".strip()
