"""What a sweep will run: its trials, planned and validated before anything starts, and without Ray."""

import contextlib
import json
from collections import Counter
from dataclasses import dataclass
from itertools import cycle, islice, product
from pathlib import Path
from typing import Any

from sepscene.models.config import SepsceneError
from sepscene.orchestration.config import Experiment
from sepscene.orchestration.records.results import Setting
from sepscene.orchestration.sweeps.config import FILE, SweepConfig, load_sweep
from sepscene.orchestration.sweeps.search_space import Range, Space, drawn, readable, setting_name, shown_setting


@dataclass(frozen=True)
class Trial:
    """One run of many.

    Attributes:
        name: of its folder.
        experiment: what it runs; None where Optuna chose it, which only its own driver knows.
        settings: what distinguishes it, for tables.
        seed: of its run.
        population: the settings that it starts with, when they may change while it runs.
    """

    name: str
    experiment: Experiment | None
    settings: dict[str, Setting]
    seed: int
    population: dict[str, Any] | None = None

    def for_tune(self) -> dict[str, Any]:
        """What its driver gets."""
        assert self.experiment is not None
        plain = {"name": self.name, "experiment": self.experiment.model_dump(mode="json"), "shown": self.settings}
        return plain if self.population is None else {**plain, "population": True, "starts": self.population}


def plan_trials(config: SweepConfig, base: Experiment, space: Space, folder: Path | None = None) -> list[Trial]:
    """The trials of a sweep, each validated before any is started; none where Optuna will choose them.

    Args:
        config: how settings are chosen.
        base: what they change.
        space: checked, as `SweepConfig.checked` returns it.
        folder: of the sweep; members of a population that it holds go on with the settings that they have there.

    Raises:
        SepsceneError: for a combination of values that the configuration refuses, or two that differ in nothing that
            the name of a folder can say.
    """
    if config.search == "optuna":
        return []
    if config.scheduler == "pbt":
        return _population(config, base, space, folder)
    trials = []
    for setting in _settings(config, base, space):
        for seed in range(base.seed, base.seed + config.seeds):
            name = f"{setting_name(setting)},seed={seed}"
            trials.append(Trial(name, base.changed({**setting, "seed": seed}), shown_setting(setting), seed))
    twice = [name for name, count in Counter(trial.name for trial in trials).items() if count > 1]
    if twice:
        raise SepsceneError(f"two trials would be called {twice[0]}: their values look alike in a name; rename one")
    return trials


def _settings(config: SweepConfig, base: Experiment, space: Space) -> list[dict[str, Any]]:
    most = config.budget.trials
    if config.search == "random":
        return drawn(space, most or 1, base.seed)
    lists = {field: values for field, values in space.items() if not isinstance(values, Range)}
    settings = [dict(zip(lists, values, strict=True)) for values in product(*lists.values())]
    if most is not None and most < len(settings):
        raise SepsceneError(
            f"the grid has {len(settings)} settings, more than budget.trials {most}: take --search random for so many "
            "of them by chance, or raise the budget"
        )
    return settings


def _population(config: SweepConfig, base: Experiment, space: Space, folder: Path | None) -> list[Trial]:
    """Members with the same seed, so that any can go on with another's weights.

    They start with different settings at random, again from the first where the space holds fewer than there are
    members; one that has started before goes on with what it had become.
    """
    size = config.budget.trials or 1
    members = []
    for n, drawn_setting in enumerate(islice(cycle(drawn(space, size, base.seed)), size)):
        name = f"member={n}"
        note = folder / "trials" / name / "trial.json" if folder else None
        setting = _become(note) if note and note.exists() else drawn_setting
        members.append(Trial(name, base.changed(setting), shown_setting(setting), base.seed, population=setting))
    return members


def _become(note: Path) -> dict[str, Any]:
    """The settings that a member of a population has been given last."""
    return {field: readable(value) for field, value in json.loads(note.read_text())["chosen"].items()}


def processors_of(base: Experiment, trials: list[Trial], space: Space) -> set[str]:
    """What any trial may need of the ladder."""
    tried = [trial.experiment for trial in trials if trial.experiment] or [base]
    names = {name for e in tried if e.views.separates for name in e.views.combination}
    combinations = space.get("views.combination", [])
    return names | {name for names in combinations if isinstance(combinations, list) for name in names}


def find_sweep(storage: Path, config: SweepConfig) -> Path:
    """The newest folder of the storage that holds this sweep.

    Raises:
        SepsceneError: when there is none.
    """
    for path in sorted(storage.glob(f"*/{FILE}"), key=lambda path: path.stat().st_mtime, reverse=True):
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
    acted = {
        "none": "",
        "asha": f"ASHA stopped trials by their validation k-NN mAP: from {schedule.grace_percent:g} % of the rows on, "
        f"at every {schedule.keep_one_in:g}-fold, the best one in {schedule.keep_one_in:g} went on.",
        "pbt": f"Population based training: every {schedule.perturb_percent:g} % of the rows, members in the last "
        "quarter by validation k-NN mAP took over the weights of one in the first and changed its settings; "
        "settings are those at the end.",
    }[config.scheduler]
    return f"{chosen} {acted}".strip()
