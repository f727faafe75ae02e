"""Settings of augmentations, without importing torch."""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BeforeValidator, ConfigDict, Discriminator, Field, Tag, model_validator

from sepscene.augment.draws import SPECAUGMENT_UNIFORMS, VIEW_COLUMNS, Stream
from sepscene.models.config import Config, SepsceneError
from sepscene.models.custom import CustomPart, named_parts, tag_by_use
from sepscene.models.names import AUGMENTATIONS, resolve


@dataclass(frozen=True)
class Needs:
    """Inputs of an augmentation.

    Attributes:
        sound: "waveform" (full scale 1, before the log-mel is computed) or "log-mel".
        uniforms: number of random numbers per view, at least one.
        mixture: whether a waveform augmentation also reads the mixture of the clip at the time of the view.
    """

    sound: Literal["waveform", "log-mel"]
    uniforms: int
    mixture: bool = False


class ProbabilityPoint(Config):
    """The probability at one point of the run; it is interpolated linearly between points."""

    at: float = Field(ge=0, le=1, description="completed share of the run's rows: 0 is the start, 1 the end")
    probability: float = Field(ge=0, le=1, description="share of the views that are changed at this point")


class AugmentationSettings(Config):
    """Settings of all augmentations."""

    probability: float = Field(1.0, ge=0, le=1, description="share of the views that are changed; 0: off")
    curriculum: tuple[ProbabilityPoint, ...] = Field(
        (), description="the probability at points of the run, instead of `probability`"
    )

    @model_validator(mode="after")
    def _one_probability_in_order(self) -> Self:
        if self.curriculum and self.probability != 1:
            raise ValueError("probability and curriculum both set the probability: give only one")
        times = [point.at for point in self.curriculum]
        if any(later <= earlier for earlier, later in pairwise(times)):
            raise ValueError("curriculum must be in order: each `at` must be larger than the previous one")
        return self

    @property
    def points(self) -> tuple[tuple[float, float], ...]:
        """The curriculum as (completed share of the run, probability)."""
        return tuple((point.at, point.probability) for point in self.curriculum) or ((0.0, self.probability),)

    @property
    def used(self) -> bool:
        """Whether the probability is ever above 0."""
        return any(probability > 0 for _, probability in self.points)


class SpecAugment(AugmentationSettings):
    """SpecAugment; the default sizes are for a 96 x 64 patch [open]."""

    needs: ClassVar = Needs("log-mel", SPECAUGMENT_UNIFORMS)

    use: Literal["specaugment"] = Field("specaugment", description="this augmentation")
    time_mask_frames: int = Field(16, ge=0, description="longest time mask; there are two")
    frequency_mask_bands: int = Field(8, ge=0, description="widest frequency mask; there are two")
    warp_frames: int = Field(6, ge=0, description="largest shift of the warp's centre")


class GainSettings(AugmentationSettings):
    """A random gain per view."""

    needs: ClassVar = Needs("waveform", uniforms=1)

    use: Literal["gain"] = Field("gain", description="this augmentation")
    db: float = Field(10.0, gt=0, le=120, description="largest gain, up or down; uniform in decibels")


class MixBackSettings(AugmentationSettings):
    """Mixes the rest of the clip back into a separated channel, as from a weaker separator."""

    needs: ClassVar = Needs("waveform", uniforms=1, mixture=True)

    use: Literal["mix-back"] = Field("mix-back", description="this augmentation")
    lowest_db: float = Field(-30.0, ge=-120, le=0, description="lowest level of the leak; uniform in decibels")
    highest_db: float = Field(-6.0, ge=-120, le=0, description="highest level; at 0 dB the view is the mixture itself")

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.lowest_db > self.highest_db:
            raise ValueError(f"lowest_db {self.lowest_db:g} is above highest_db {self.highest_db:g}: swap them")
        return self


class CropResizeSettings(AugmentationSettings):
    """Stretches a random rectangle of the log-mel to its full size."""

    needs: ClassVar = Needs("log-mel", uniforms=4)

    use: Literal["crop-resize"] = Field("crop-resize", description="this augmentation")
    least_time: float = Field(0.6, gt=0, le=1, description="smallest share of the frames; uniform from there to 1")
    least_frequency: float = Field(0.6, gt=0, le=1, description="smallest share of the bands; uniform from there to 1")


class CustomAugmentation(CustomPart, AugmentationSettings):
    """A custom augmentation: `use`, and the fields of its own `Config`."""

    model_config = ConfigDict(extra="allow")  # the second base class forbids extra fields

    known = AUGMENTATIONS
    what = "augmentation"

    use: str = Field(
        description="package.module:Class, an `augment.augmentations.augmentation.Augmentation`; in Python, the class"
    )

    @property
    def needs(self) -> Needs:
        """The class attribute `needs` of the augmentation.

        Raises:
            SepsceneError: as `names.resolve`, or the attribute is missing or invalid.
        """
        needs = getattr(resolve(self.use, AUGMENTATIONS, "augmentation"), "needs", None)
        if not isinstance(needs, Needs) or needs.uniforms < 1 or (needs.mixture and needs.sound != "waveform"):
            raise SepsceneError(
                f'the augmentation {self.use} needs a class attribute `needs`, e.g. Needs("waveform", uniforms=1); '
                "uniforms must be at least 1, and only a waveform augmentation can read the mixture"
            )
        return needs


AugmentationChoice = Annotated[
    Annotated[SpecAugment, Tag("<specaugment>")]
    | Annotated[GainSettings, Tag("<gain>")]
    | Annotated[MixBackSettings, Tag("<mix-back>")]
    | Annotated[CropResizeSettings, Tag("<crop-resize>")]
    | Annotated[CustomAugmentation, Tag("<custom>")],
    Discriminator(tag_by_use(AUGMENTATIONS)),
]
"""One augmentation: `{use: …, probability: …, …}`."""

_RESERVED = {column.removesuffix("_u") for column in VIEW_COLUMNS}


def _named(given: Any) -> Any:
    return named_parts(given, AUGMENTATIONS, "augmentation", _RESERVED) if isinstance(given, dict) else given


Augmentations = Annotated[dict[str, AugmentationChoice], BeforeValidator(_named)]
"""A field of a configuration: augmentations by user-defined names, in the order in which they are applied."""


def streams_of(chosen: Mapping[str, AugmentationChoice]) -> tuple[Stream, ...]:
    """The draws of each augmentation.

    Raises:
        SepsceneError: as `CustomAugmentation.needs`.
    """
    return tuple(Stream(name, choice.needs.uniforms, choice.points) for name, choice in chosen.items())
