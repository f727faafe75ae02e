"""The two heads on top of h, each an MLP with ReLU [stated]: similarity (h to z) and coincidence (a pair to a logit).

Shapes: B clips, N pairs, D embedding, Z size of z.
"""

import torch
from torch import Tensor, nn

from sepscene.models.encoders.cnn14 import initialise


class SimilarityHead(nn.Module):
    """h_BD to z_BZ: D → 512 → 128 [open: the sizes]. NT-Xent compares z; downstream tasks use h."""

    def __init__(self, in_dim: int, hidden: int = 512, out_dim: int = 128) -> None:
        super().__init__()
        self.first = nn.Linear(in_dim, hidden)
        self.last = nn.Linear(hidden, out_dim)
        initialise(self.first)
        initialise(self.last)

    def forward(self, h_BD: Tensor) -> Tensor:
        """h_BD to z_BZ, not normalised."""
        return self.last(nn.functional.relu(self.first(h_BD)))


class CoincidenceHead(nn.Module):
    """Predicts whether two representations come from the same scene: 2 D → 512 → 1 [open: the sizes].

    The input is the concatenation of the mixture's h and the channel's h, in this order.
    """

    def __init__(self, in_dim: int, hidden: int = 512) -> None:
        super().__init__()
        self.first = nn.Linear(2 * in_dim, hidden)
        self.last = nn.Linear(hidden, 1)
        initialise(self.first)
        initialise(self.last)

    def forward(self, h_m_ND: Tensor, h_c_ND: Tensor) -> Tensor:
        """Aligned pairs h_m_ND and h_c_ND to logit_N, whose sigmoid is the paper's g(h_m, h_c)."""
        return self.last(nn.functional.relu(self.first(torch.cat((h_m_ND, h_c_ND), dim=1)))).squeeze(1)
