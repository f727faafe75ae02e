"""The section `separator` of an experiment: the network, its training, and the checkpoints to keep."""

from typing import Literal

from pydantic import Field, model_validator

from sepscene.models.card import ProcessorName
from sepscene.models.config import Config
from sepscene.models.custom import SeparatorChoice
from sepscene.models.settings import TDCNppConfig


class Ladder(Config):
    """The separator's checkpoints: name -> training step (paper: N 0, F 500, S1 5k, S2 1.7M)."""

    steps: dict[ProcessorName, int] = Field(
        {"N": 0, "F": 500, "S1": 5_000, "S2": 1_700_000},
        description="processor name -> training step after which its weights are kept; 0: untrained [stated]",
    )

    @model_validator(mode="after")
    def _not_empty_not_negative(self) -> "Ladder":
        if not self.steps:
            raise ValueError("separator.ladder.steps is empty: give at least one checkpoint, e.g. {N: 0}")
        negative = [name for name, step in self.steps.items() if step < 0]
        if negative:
            raise ValueError(f"separator.ladder.steps of {', '.join(negative)} is negative: give 0 or more")
        return self


class Separator(Config):
    """The separator and its training with MixIT, or the folders of trained separators."""

    network: TDCNppConfig = TDCNppConfig()
    ladder: Ladder = Ladder()
    beside: dict[ProcessorName, TDCNppConfig] = Field(
        default_factory=dict,
        description="further untrained processors (like N) with other networks: name -> network",
    )
    checkpoints: dict[ProcessorName, SeparatorChoice] = Field(
        default_factory=dict,
        description="trained separators: processor name -> folder, or custom code (`package.module:Name` or `{use: …, "
        "its fields}`); then no separator is trained",
    )
    objective: Literal["mixit", "supervised"] = Field(
        "mixit",
        description="supervised: with the isolated sources of synthetic scenes, as an upper bound for MixIT",
    )
    batch_mixtures: int = Field(16, ge=1, description="mixtures of mixtures per step, over all workers [open]")
    segment_seconds: float = Field(10.0, gt=0, description="length of the training segment of each clip [open]")
    learning_rate: float = Field(1e-3, gt=0, description="Adam (paper 1e-3, released recipe 1e-4)")
    clip_gradient_norm: float = Field(5.0, gt=0, description="maximum norm of a step's gradient [open]")
