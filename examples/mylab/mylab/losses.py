"""A loss term: uniformity of the representations on the sphere (after Wang & Isola 2020)."""

from collections.abc import Sequence

import torch
from pydantic import BaseModel, Field
from torch import Tensor
from torch.nn.functional import normalize

from sepscene.tasks.losses.terms import HeadSizes, Term


class SpreadConfig(BaseModel):
    """Settings of the term, in addition to its weight."""

    sharpness: float = Field(2.0, gt=0, description="how fast the loss falls with the squared distance")


class Spread(Term):
    """The mean of exp(-sharpness d^2) over all pairs of rows of the global batch."""

    Config = SpreadConfig

    def __init__(self, config: SpreadConfig, sizes: HeadSizes) -> None:
        super().__init__()
        self.config = config

    def share(
        self, h_1_nD: Tensor, h_2_nD: Tensor, local: Sequence[Tensor], gathered: Sequence[Tensor], start: int
    ) -> Tensor:
        """This worker's rows against all rows: the shares of all workers add up to the loss."""
        mine = normalize(torch.cat(list(local)).float(), dim=1)
        all_rows = normalize(torch.cat(list(gathered)).float(), dim=1)
        closeness = torch.exp(-self.config.sharpness * (2 - 2 * mine @ all_rows.T))
        return closeness.sum() / len(all_rows) ** 2
