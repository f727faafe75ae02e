"""The section `data` of an experiment: the data set and its splits for training and testing."""

import os
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from sepscene.augment.locations import local_path
from sepscene.models.config import Config

FOLDS = "folds"
"""Used instead of test splits: cross-validation over the training splits."""

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
"""The name of a split; folds can be given as numbers."""


class Data(Config):
    """The data set and its splits for training and testing."""

    format: DataFormat = Field(
        "scenes",
        description="how the manifest is read; `scenes` without `root` generates synthetic sound scenes in the run's "
        "folder",
    )
    root: str | None = Field(None, description="folder or URI of the data")
    train: tuple[Split, ...] = Field(
        ("train",), description="splits or folds for training; their labels are used to train probes only"
    )
    test: tuple[Split, ...] = Field(
        ("test",),
        description="splits or folds for testing; [folds]: cross-validation over the splits of `train`, which is usual "
        "for ESC-50",
    )
    scenes_train: int = Field(256, ge=1, description="synthetic scenes for training")
    scenes_test: int = Field(128, ge=1, description="synthetic scenes for testing")
    scenes_profile: Literal["single", "recurring"] = Field(
        "single",
        description="kind of the synthetic scenes. single: each event occurs once. recurring: events recur throughout "
        "the clip and levels vary, so that two crops share events and not only the background",
    )

    @property
    def by_folds(self) -> bool:
        """Whether encoders are evaluated by cross-validation over the splits of `train`."""
        return self.test == (FOLDS,)

    @property
    def is_generated(self) -> bool:
        """Whether the clips are synthetic scenes that Sepscene generates."""
        return self.format == "scenes" and self.root is None

    @property
    def description(self) -> str:
        """Format and root for reports; without the root for synthetic scenes."""
        return self.format if self.format == "scenes" else f"{self.format} {self.root}"

    @field_validator("root")
    @classmethod
    def _make_root_absolute(cls, root: str | None) -> str | None:
        """A run can be continued from another folder, and its workers have their own working folder."""
        if root is None or local_path(root) != root:
            return root
        return os.path.abspath(os.path.expanduser(root))

    @model_validator(mode="after")
    def _root_where_needed(self) -> "Data":
        if self.format != "scenes" and self.root is None:
            raise ValueError(f"data.root is missing: format {self.format!r} reads a folder or URI; set data.root")
        if self.by_folds and len(set(self.train)) < 2:
            raise ValueError(
                f"data.test is [{FOLDS}], but data.train has only one split: give at least two, e.g. "
                '["1","2","3","4","5"] for ESC-50'
            )
        return self
