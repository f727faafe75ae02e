"""The terms of an objective: which losses, their weights and settings. Separate from the losses, which import torch."""

from typing import Annotated, Literal

from pydantic import ConfigDict, Discriminator, Field, Tag

from sepscene.models.config import Config
from sepscene.models.custom import CustomPart, tag_by_use
from sepscene.models.names import TERMS


class TermSettings(Config):
    """Settings that every term has."""

    weight: float = Field(1.0, ge=0, description="weight of the term in the sum; a term with weight 0 is left out")
    warmup_steps: int = Field(0, ge=0, description="steps over which the weight grows from 0 to its value")

    def weight_at(self, step: int) -> float:
        """The weight at step 0, 1, …"""
        return self.weight * min(1.0, (step + 1) / max(1, self.warmup_steps))

    @property
    def description(self) -> str:
        """The loss and its settings in words, for cards and reports."""
        raise NotImplementedError


class NtXentSettings(TermSettings):
    """NT-Xent over the global batch (SimCLR), the paper's similarity loss."""

    use: Literal["nt-xent"] = Field("nt-xent", description="this term")
    temperature: float = Field(0.2, gt=0, description="tau [open]")
    learn_temperature: bool = Field(False, description="learn tau, from 0.01 to 1, starting at `temperature`")

    @property
    def description(self) -> str:
        return f"NT-Xent (tau {self.temperature:g}{', learned' if self.learn_temperature else ''})"


class TripletSettings(TermSettings):
    """The triplet loss of Jansen et al. 2018, a baseline."""

    use: Literal["triplet"] = Field("triplet", description="this term")
    margin: float = Field(0.1, gt=0, description="squared distance on the unit sphere [open]")

    @property
    def description(self) -> str:
        return f"triplet ({self.margin:g})"


class VicregSettings(TermSettings):
    """VICReg (Bardes et al. 2022), a similarity loss without negative pairs; its weights are the authors'."""

    use: Literal["vicreg"] = Field("vicreg", description="this term")
    invariance: float = Field(25.0, ge=0, description="weight of the mean squared distance of the pairs")
    variance: float = Field(25.0, ge=0, description="weight of how far the features' standard deviations are below 1")
    covariance: float = Field(1.0, ge=0, description="weight of the squared covariances")

    @property
    def description(self) -> str:
        return f"VICReg ({self.invariance:g}, {self.variance:g}, {self.covariance:g})"


class CoincidenceSettings(TermSettings):
    """Coincidence prediction, the paper's second task."""

    use: Literal["coincidence"] = Field("coincidence", description="this term")

    @property
    def description(self) -> str:
        return "coincidence"


class CustomTerm(CustomPart, TermSettings):
    """A custom term: the import path of its class, and the fields of its `Config`."""

    model_config = ConfigDict(extra="allow")  # overrides the other base class, which forbids them

    known = TERMS
    what = "loss term"

    use: str = Field(description="package.module:Class, a `tasks.losses.terms.Term`; from Python the class itself")

    @property
    def description(self) -> str:
        return self.use


TermChoice = Annotated[
    Annotated[NtXentSettings, Tag("<nt-xent>")]
    | Annotated[TripletSettings, Tag("<triplet>")]
    | Annotated[VicregSettings, Tag("<vicreg>")]
    | Annotated[CoincidenceSettings, Tag("<coincidence>")]
    | Annotated[CustomTerm, Tag("<custom>")],
    Discriminator(tag_by_use(TERMS)),
]
"""One term: `{use: …, weight: …, …}`."""
