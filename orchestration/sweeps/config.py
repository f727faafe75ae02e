"""A sweep as a file: what is varied, how settings are chosen, what stops it. The command line makes the same.

```yaml
experiment: demo            # a named experiment, or the YAML file of one beside this file
scale: tiny
changes: {training.epochs: 20}
over:
  combination: [S2, N, S2+N]
  temperature: log(0.05, 0.5)
  alpha: [0, 1]
search: random
scheduler: asha
seeds: 1
budget: {trials: 16, hours: 8}
```
"""

from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field, ValidationError, field_validator, model_validator

from sepscene.models.config import Config, SepsceneError
from sepscene.orchestration.config import Experiment, explain
from sepscene.orchestration.presets import resolve
from sepscene.orchestration.runtime.concurrency import gpus_of
from sepscene.orchestration.sweeps.search_space import SHORT_NAMES, Range, Space, checked_space, parse_values

FILE = "sweep.yaml"
"""Where a sweep's folder keeps its configuration."""

PBT_PARTS = ("objective.temperature", "objective.alpha", "training.learning_rate", "training.weight_decay")
PBT_PREFIXES = ("specaugment.", "views.silence_db", "views.tp_delta_seconds", "views.weights", "views.combination")


class Budget(Config):
    """What a sweep may spend. Whatever it has not finished by then goes on when it is run again with more."""

    trials: int | None = Field(
        None, ge=1, description="settings to try, each with all seeds; none tries the whole grid"
    )
    hours: float | None = Field(None, gt=0, description="wall time of this command")
    gpu_hours: float | None = Field(None, gt=0, description="GPUs times hours of all trials, earlier commands included")


class Schedule(Config):
    """How ASHA and PBT act on trials; both look at `validation_knn_map`, never at the training loss."""

    grace_percent: float = Field(10, gt=0, le=100, description="no trial is stopped or changed before this much of it")
    keep_one_in: float = Field(3, gt=1, description="ASHA: the share that goes on at each rung")
    perturb_percent: float = Field(20, gt=0, le=100, description="PBT: how much of a trial lies between two changes")


class SweepConfig(Config):
    """One sweep in full."""

    experiment: str = Field(description="name of an experiment, or path of its YAML file")
    scale: Literal["tiny", "small", "paper"] = "tiny"
    changes: dict[str, Any] = Field(default_factory=dict, description="dotted fields set for all trials")
    over: dict[str, Any] = Field(
        min_length=1, description="field -> list of values, or a range: log(0.05,0.5), uniform(0,1), int(2,8)"
    )
    search: Literal["grid", "random", "optuna"] = Field(
        "grid", description="all combinations; some at random; or chosen by Optuna from what came out so far"
    )
    scheduler: Literal["none", "asha", "pbt"] = Field(
        "none", description="asha stops trials that fall behind; pbt lets them take over from better ones"
    )
    seeds: int = Field(1, ge=1, description="runs of each setting")
    budget: Budget = Budget()
    schedule: Schedule = Schedule()

    @field_validator("over")
    @classmethod
    def _full_names(cls, over: dict[str, Any]) -> dict[str, Any]:
        full = {SHORT_NAMES.get(name, name): values for name, values in over.items()}
        if len(full) < len(over):
            raise ValueError("a field is given twice, by its short and by its full name")
        return full

    @model_validator(mode="after")
    def _parts_fit(self) -> "SweepConfig":
        ranges = [name for name, values in self.space().items() if isinstance(values, Range)]
        if self.search == "grid" and self.scheduler != "pbt" and ranges:
            raise ValueError(f"{', '.join(ranges)}: a grid needs values, not a range; use search: random or optuna")
        if (self.search != "grid" or self.scheduler == "pbt") and self.budget.trials is None:
            raise ValueError("budget.trials is missing: say how many settings to try")
        if self.seeds > 1 and (self.search == "optuna" or self.scheduler == "pbt"):
            raise ValueError("Optuna and PBT go by one seed; run the best settings again over several seeds")
        if self.scheduler == "pbt":
            self._check_pbt()
        return self

    def _check_pbt(self) -> None:
        if self.search == "optuna":
            raise ValueError("PBT chooses settings itself: use search: random")
        fixed = [name for name in self.over if name not in PBT_PARTS and not name.startswith(PBT_PREFIXES)]
        if fixed:
            raise ValueError(
                f"PBT changes settings in the middle of a run, which {', '.join(fixed)} cannot be; it may change "
                f"{', '.join((*PBT_PARTS, *PBT_PREFIXES))}"
            )

    def space(self) -> Space:
        """The fields with their values or ranges.

        Raises:
            SepsceneError: for a range that cannot be.
        """
        return {field: parse_values(field, values) for field, values in self.over.items()}

    def base(self) -> Experiment:
        """What is varied; its own values of the swept fields are not used.

        Raises:
            SepsceneError: for an unknown experiment or field.
        """
        experiment = resolve(self.experiment, self.scale, None)
        return experiment.changed(self.changes) if self.changes else experiment

    def checked(self) -> tuple[Experiment, Space]:
        """The base and the space, every value held against the configuration.

        Raises:
            SepsceneError: for a bad field or value, a budget of GPU-hours for trials without GPUs, or a scheduler or
                searcher without a validation to go by.
        """
        base = self.base()
        space = checked_space(base, self.space())
        alphas = space.get("objective.alpha")
        if self.scheduler == "pbt" and alphas and 0 in (alphas.ends if isinstance(alphas, Range) else alphas):
            raise SepsceneError("PBT cannot change objective.alpha from or to 0, which has no coincidence head")
        if self.budget.gpu_hours is not None and not gpus_of(base):
            raise SepsceneError("budget.gpu_hours is set, but the trials use no GPU: set budget.hours instead")
        if (self.search == "optuna" or self.scheduler != "none") and not base.training.validation_every_steps:
            name = "Optuna" if self.search == "optuna" else self.scheduler.upper()
            raise SepsceneError(
                f"{name} goes by the validation kNN mAP, but no trial validates: set training.validation_every_steps "
                f"to a multiple of training.checkpoint_every_steps, e.g. {base.training.checkpoint_every_steps}"
            )
        return base, space

    def save(self, folder: Path) -> None:
        """Keep it in FOLDER/sweep.yaml.

        Raises:
            SepsceneError: when the folder holds another sweep. A larger budget is the same sweep.
        """
        path = folder / FILE
        if path.exists() and load_sweep(path).same_as() != self.same_as():
            raise SepsceneError(f"{folder} holds another sweep; choose another --id, or give the same arguments")
        folder.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        partial.write_text(yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False))
        partial.replace(path)

    def same_as(self) -> str:
        """What makes it this sweep: all but what it may spend and how many seeds; the fields in their order."""
        return self.model_dump_json(exclude={"budget", "seeds"})


def make_sweep(**fields: Any) -> SweepConfig:
    """A sweep from its fields, as the command line gives them.

    Raises:
        SepsceneError: says which field is wrong and how to mend it.
    """
    return _parse(fields, "the command line")


def load_sweep(path: Path) -> SweepConfig:
    """Read a sweep from a YAML file; an experiment's YAML file is looked for beside it.

    Raises:
        SepsceneError: when the file is missing, is not YAML, or holds a bad sweep.
    """
    try:
        tree = yaml.safe_load(path.read_text())
    except FileNotFoundError:
        raise SepsceneError(f"{path} does not exist: give the path of a sweep's YAML file") from None
    except yaml.YAMLError as error:
        raise SepsceneError(f"{path} is not YAML: {error}") from None
    if isinstance(tree, dict) and str(tree.get("experiment", "")).endswith((".yaml", ".yml")):
        tree["experiment"] = str((path.parent / tree["experiment"]).resolve())
    return _parse(tree, str(path))


def _parse(tree: Any, source: str) -> SweepConfig:
    try:
        return SweepConfig.model_validate(tree)
    except ValidationError as error:
        raise SepsceneError(f"bad sweep in {source}:\n{explain(error)}") from None
