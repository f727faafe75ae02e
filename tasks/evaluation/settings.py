"""The settings of `tasks.evaluation.scores`, apart from it.

Every process of a cluster reads the configuration and few of them evaluate; scikit-learn takes a second to import.
"""

from pydantic import Field

from sepscene.models.config import Config


class ScoringSettings(Config):
    """How an encoder is evaluated. Runs that are compared must share these."""

    shallow_hidden: int = Field(default=512, ge=1, description="hidden units of the perceptron [open; ours]")
    shallow_epochs: int = Field(default=100, ge=1, description="most epochs of the perceptron [open; ours]")
    perceptrons: int = Field(
        default=5,
        ge=1,
        description="perceptrons, with seeds of their own, whose mean is the metric: the seed of a single one moved "
        "mAP by 0.012 on 256 test clips [measured; ours]",
    )
    qbe_clips: int = Field(default=100, ge=2, description="positive and negative clips a class (paper)")
    neighbours: int = Field(default=20, ge=1, description="of the nearest-neighbour probe [ours]")
    bootstrap: int = Field(default=1000, ge=0, description="resamples for the interval over clips; 0: none")
    seed: int = Field(default=0, ge=0, description="of the first perceptron, the choice of clips, the resamples")
