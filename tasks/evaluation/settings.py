"""The settings of `tasks.evaluation.scores`.

They are in a separate file because every process of a cluster reads the configuration, but few evaluate, and importing
scikit-learn takes a second.
"""

from pydantic import Field

from sepscene.models.config import Config


class ScoringSettings(Config):
    """How an encoder is evaluated. Runs that are compared must have the same settings."""

    shallow_hidden: int = Field(default=512, ge=1, description="hidden units of the perceptron [open]")
    shallow_epochs: int = Field(default=100, ge=1, description="maximum epochs of the perceptron [open]")
    perceptrons: int = Field(
        default=5,
        ge=1,
        description="number of perceptrons with different seeds; the metric is their mean. With a single one, its seed "
        "changed mAP by 0.012 on 256 test clips [ours]",
    )
    qbe_clips: int = Field(
        default=100, ge=2, description="positive and negative clips per class in query by example (paper)"
    )
    neighbours: int = Field(default=20, ge=1, description="neighbours of the nearest-neighbour probe [ours]")
    bootstrap: int = Field(default=1000, ge=0, description="resamples for the intervals over clips; 0: no intervals")
    seed: int = Field(
        default=0, ge=0, description="seed of the first perceptron, of the choice of clips and of the resamples"
    )
