"""VICReg (Bardes, Ponce & LeCun 2022, eqs. 1 to 6) over the global batch: a similarity loss without negative pairs.

    invariance * mean (z_1 - z_2)^2
    + variance * mean over features of max(0, 1 - sqrt(var + 1e-4)), averaged over both views
    + covariance * sum of the squared off-diagonal covariances / D, summed over both views

Contrastive losses have few negative pairs in batches of 64; this loss needs none. Variances and covariances are
computed over the global batch, unbiased. The default weights 25, 25 and 1 are those of its authors; the paper of this
framework does not use VICReg.

Legend: n local pairs, N global pairs, D features of z.
"""

from collections.abc import Sequence

from torch import Tensor
from torch.nn import functional

from sepscene.tasks.losses.settings import VicregSettings

TINY_VARIANCE = 1e-4
"""Keeps the gradient of the square root finite if a feature is constant (the authors' value)."""


def vicreg(local: Sequence[Tensor], gathered: Sequence[Tensor], weights: VicregSettings) -> Tensor:
    """This worker's share of the loss: the shares of all workers sum to VICReg over the global batch.

    The terms over the global batch are divided in proportion to the number of local pairs: a worker without pairs
    contributes nothing, and the sum of all gradients is exact.

    Args:
        local: z_1_nD and z_2_nD, both views of the local pairs, not normalised; n can be 0.
        gathered: z_1_ND and z_2_ND, the views of all workers (`gather_rows`).
        weights: of the three terms.

    Returns:
        Scalar. With fewer than two global pairs there is no variance, and only the first term is computed.
    """
    total, features = gathered[0].shape
    share = weights.invariance * (local[0] - local[1]).square().sum() / max(1, total * features)
    if total < 2:
        return share + 0.0 * (gathered[0].sum() + gathered[1].sum())
    spread = _variance_term(gathered[0]) + _variance_term(gathered[1])
    redundancy = _covariance_term(gathered[0]) + _covariance_term(gathered[1])
    return share + len(local[0]) / total * (weights.variance / 2 * spread + weights.covariance * redundancy)


def _variance_term(z_ND: Tensor) -> Tensor:
    """Mean over the features of 1 - standard deviation, where positive."""
    return functional.relu(1 - (z_ND.var(dim=0) + TINY_VARIANCE).sqrt()).mean()


def _covariance_term(z_ND: Tensor) -> Tensor:
    """Sum of the squared covariances of different features, divided by their number D."""
    centred_ND = z_ND - z_ND.mean(dim=0)
    covariance_DD = centred_ND.T @ centred_ND / (len(z_ND) - 1)
    return (covariance_DD.square().sum() - covariance_DD.diagonal().square().sum()) / z_ND.shape[1]
