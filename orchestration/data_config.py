"""The part of the configuration that says where clips come from, and which of them train and test."""

import os
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from sepscene.augment.locations import local_path
from sepscene.models.config import Config

FOLDS = "folds"
"""In the place of test splits: cross-validation over those of training."""

DataFormat = Literal[
    "scenes",
    "directory",
    "table",
    "esc50",
    "urbansound8k",
    "audioset",
    "fsd50k",
    "shards",
    "parquet",
    "folder",
    "huggingface",
    "clips",
]

Split = Annotated[str, Field(coerce_numbers_to_str=True)]
"""Folds may be given as numbers."""


class Data(Config):
    """Where the clips come from, and which of them are for what."""

    format: DataFormat = Field(
        "scenes",
        description="how the manifest is read; `scenes` generates synthetic sound scenes into the run's folder",
    )
    root: str | None = Field(None, description="folder or URI of the data; `scenes` without one are generated")
    train: tuple[Split, ...] = Field(
        ("train",), description="splits or folds for training; their labels train probes only"
    )
    test: tuple[Split, ...] = Field(
        ("test",),
        description="splits or folds for testing; [folds] alone is cross-validation over the splits of `train`, as "
        "ESC-50 asks",
    )
    scenes_train: int = Field(256, ge=1, description="synthetic scenes for training")
    scenes_test: int = Field(128, ge=1, description="synthetic scenes for testing")
    scenes_profile: Literal["single", "recurring"] = Field(
        "single",
        description="kind of the synthetic scenes: single, each event is heard once; recurring, events return through "
        "the whole clip and levels vary, so that two crops share what sounds and not the background alone",
    )

    @property
    def by_folds(self) -> bool:
        """Whether encoders are evaluated by cross-validation over the splits of `train`."""
        return self.test == (FOLDS,)

    @property
    def is_generated(self) -> bool:
        """Whether the clips are synthetic scenes that Sepscene makes."""
        return self.format == "scenes" and self.root is None

    @property
    def described(self) -> str:
        """Format and place, as reports name the data set; synthetic scenes lie where their run put them."""
        return self.format if self.format == "scenes" else f"{self.format} {self.root}"

    @field_validator("root")
    @classmethod
    def _root_is_kept_absolute(cls, root: str | None) -> str | None:
        """A run goes on from other folders, and its workers have a working folder of their own."""
        if root is None or local_path(root) != root:
            return root
        return os.path.abspath(os.path.expanduser(root))

    @model_validator(mode="after")
    def _root_where_needed(self) -> "Data":
        if self.format != "scenes" and self.root is None:
            raise ValueError(f"data.root is missing: format {self.format!r} reads from a folder or URI; set data.root")
        if self.by_folds and len(set(self.train)) < 2:
            raise ValueError(
                f"data.test is [{FOLDS}], but data.train names one split only: name at least two, e.g. "
                '["1","2","3","4","5"] for ESC-50'
            )
        return self
