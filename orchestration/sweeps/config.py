"""The configuration of a sweep, from a YAML file (docs/sweeps.md shows one) or the command line."""

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError, field_validator, model_validator
from ray.tune.search.sample import Domain

from sepscene.models.config import Config, SepsceneError
from sepscene.orchestration.config import Experiment, explain
from sepscene.orchestration.presets import resolve
from sepscene.orchestration.records.files import write_text_atomically
from sepscene.orchestration.records.sweep_folder import SweepFolder
from sepscene.orchestration.runtime.concurrency import gpus_of
from sepscene.orchestration.sweeps.search_space import SHORT_NAMES, Space, checked_space, parse_values
from sepscene.orchestration.yaml_files import as_yaml, is_yaml, read_yaml


class Budget(Config):
    """Limits of a sweep. Unfinished trials continue when the sweep is run again with a larger budget."""

    trials: int | None = Field(
        None, ge=1, description="number of settings to try, each with all seeds; none: the whole grid"
    )
    hours: float | None = Field(None, gt=0, description="wall time of this command")
    gpu_hours: float | None = Field(
        None, gt=0, description="GPUs times hours of all trials, including those of earlier commands"
    )


class Schedule(Config):
    """Settings of ASHA, which compares trials by `validation_knn_map`, never by the training loss."""

    grace_percent: float = Field(
        10, gt=0, le=100, description="percentage of its rows before which no trial is stopped"
    )
    keep_one_in: float = Field(3, gt=1, description="at each checkpoint of ASHA, one trial in this many continues")


class SweepConfig(Config):
    """A sweep: which fields are varied, how settings are chosen and trials stopped, and the budget."""

    experiment: str = Field(description="name of an experiment, or path of its YAML file")
    scale: Literal["tiny", "small", "paper"] | None = Field(None, description="scale of a named experiment; None: tiny")
    changes: dict[str, Any] = Field(default_factory=dict, description="dotted fields that are set for all trials")
    over: dict[str, Any] = Field(
        min_length=1, description="field -> list of values, or a range of Ray Tune, e.g. loguniform(0.05,0.5)"
    )
    search: Literal["grid", "random", "optuna"] = Field(
        "grid", description="all combinations, random ones, or those that Optuna chooses from the results so far"
    )
    scheduler: Literal["none", "asha"] = Field("none", description="asha stops trials that perform worse than others")
    seeds: int = Field(1, ge=1, description="number of runs of each setting")
    budget: Budget = Budget()
    schedule: Schedule = Schedule()

    @field_validator("over")
    @classmethod
    def _expand_short_names(cls, over: dict[str, Any]) -> dict[str, Any]:
        full = {SHORT_NAMES.get(name, name): values for name, values in over.items()}
        if len(full) < len(over):
            raise ValueError("a field is given twice, by its short and by its full name: remove one of them")
        return full

    @model_validator(mode="after")
    def _parts_fit(self) -> "SweepConfig":
        ranges = [name for name, values in self.space().items() if isinstance(values, Domain)]
        if self.search == "grid" and ranges:
            raise ValueError(f"{', '.join(ranges)}: a grid needs values, not a range; use search: random or optuna")
        if self.search != "grid" and self.budget.trials is None:
            raise ValueError("budget.trials is missing: set the number of settings to try")
        if self.seeds > 1 and self.search == "optuna":
            raise ValueError("Optuna uses one seed: set seeds to 1, and run the best settings again with several seeds")
        return self

    def space(self) -> Space:
        """The fields with their values or ranges.

        Raises:
            SepsceneError: when a range is not valid.
        """
        return {field: parse_values(field, values) for field, values in self.over.items()}

    def checked(self) -> tuple[Experiment, Space]:
        """The experiment that is varied, and the space with every value checked against the configuration.

        Raises:
            SepsceneError: when the experiment, a field or a value is not valid, the budget has GPU-hours but the
                trials use no GPUs, or ASHA or Optuna is used but the experiment does not validate.
        """
        base = resolve(self.experiment, self.scale, None).changed(self.changes)
        space = checked_space(base, self.space())
        if self.budget.gpu_hours is not None and not gpus_of(base):
            raise SepsceneError("budget.gpu_hours is set, but the trials use no GPU: set budget.hours instead")
        if (self.search == "optuna" or self.scheduler != "none") and not base.training.validation_every_steps:
            name = "Optuna" if self.search == "optuna" else self.scheduler.upper()
            raise SepsceneError(
                f"{name} uses the validation kNN mAP, but no trial computes it: set training.validation_every_steps "
                f"to a multiple of training.checkpoint_every_steps, e.g. {base.training.checkpoint_every_steps}"
            )
        return base, space

    def save(self, folder: Path) -> None:
        """Write it to FOLDER/sweep.yaml, and an experiment from a file next to it.

        Raises:
            SepsceneError: when the folder contains another sweep. A sweep with a larger budget is not another one.
        """
        files = SweepFolder(folder)
        if files.configuration.exists() and load_sweep(files.configuration).identity() != self.identity():
            raise SepsceneError(f"{folder} contains another sweep: choose another --id, or give the same arguments")
        saved = self
        if is_yaml(self.experiment):
            write_text_atomically(files.base, as_yaml(resolve(self.experiment, self.scale, None)))
            saved = self.changed({"experiment": files.base.name})
        write_text_atomically(files.configuration, as_yaml(saved))

    def identity(self) -> str:
        """A text that is equal for the same sweep: all its fields in their order, except the budget and the seeds."""
        experiment = resolve(self.experiment, self.scale, None)
        return experiment.digest() + self.model_dump_json(exclude={"experiment", "scale", "budget", "seeds"})


def make_sweep(**fields: Any) -> SweepConfig:
    """A sweep from the arguments of the command line.

    Raises:
        SepsceneError: when a field is not valid; names the field and how to fix it.
    """
    return _parse(fields, "the command line")


def load_sweep(path: Path) -> SweepConfig:
    """Read a sweep from a YAML file. The path of an experiment's YAML file is relative to the folder of this file.

    Raises:
        SepsceneError: when the file is missing, is not YAML, or is not a valid sweep.
    """
    tree = read_yaml(path, "a sweep")
    if isinstance(tree, dict) and is_yaml(str(tree.get("experiment", ""))):
        tree["experiment"] = str((path.parent / tree["experiment"]).resolve())
    return _parse(tree, str(path))


def _parse(tree: Any, source: str) -> SweepConfig:
    if isinstance(tree, dict) and isinstance(tree.get("schedule"), dict) and "perturb_percent" in tree["schedule"]:
        raise SepsceneError(
            f"{source} was written by an older version of Sepscene: run the sweep again in a new folder (--id)"
        )
    if isinstance(tree, dict) and tree.get("scheduler") == "pbt":
        raise SepsceneError(f"{source}: population based training was removed: use scheduler: asha, or search: optuna")
    try:
        return SweepConfig.model_validate(tree)
    except ValidationError as error:
        raise SepsceneError(f"bad sweep in {source}:\n{explain(error, SweepConfig)}") from None
