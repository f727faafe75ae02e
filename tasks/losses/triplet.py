"""The triplet loss, the baseline of Jansen et al. 2018 (Table 5), over the global batch.

max(0, |a - p|^2 - |a - n|^2 + margin) on the unit sphere; anchor a is the mixture, positive p its channel,
negative n the channel of another row, chosen semi-hard: the nearest that is farther than the positive, or the
farthest of all if none is (as in common open implementations; the paper's slides do not specify it).

Legend: n local pairs, N global pairs, D features of z.
"""

import torch
from torch import Tensor
from torch.nn import functional

from sepscene.tasks.losses.nt_xent import unit_rows


def triplet_loss(
    z_1_nD: Tensor,
    z_2_nD: Tensor,
    global_2_ND: Tensor | None = None,
    start: int = 0,
    margin: float = 0.1,
) -> Tensor:
    """This worker's share: the sum over its anchors, divided by N. The shares of all workers sum to the global loss.

    Args:
        z_1_nD, z_2_nD: both views of the local pairs, not normalised; n can be 0.
        global_2_ND: the second views of all workers (`gather_rows`). None: the local ones, for a single worker.
        start: index of the first local pair in the global batch.
        margin: in squared distance on the unit sphere [open].

    Returns:
        Scalar; 0 for a global batch of fewer than two pairs, which has no negatives.
    """
    global_2_ND = z_2_nD if global_2_ND is None else global_2_ND
    total = global_2_ND.shape[0]
    anchor = unit_rows(z_1_nD)
    positive = unit_rows(z_2_nD)
    others = unit_rows(global_2_ND)
    if total < 2:
        return 0.0 * (anchor.sum() + positive.sum() + others.sum())
    to_positive_n = (anchor - positive).square().sum(1)
    to_others_nN = 2 - 2 * anchor @ others.T
    with torch.no_grad():
        negative_n = _semi_hard(to_positive_n, to_others_nN, start)
    to_negative_n = to_others_nN.gather(1, negative_n[:, None])[:, 0]
    return functional.relu(to_positive_n - to_negative_n + margin).sum() / total


def _semi_hard(to_positive_n: Tensor, to_others_nN: Tensor, start: int) -> Tensor:
    """Index of each anchor's negative."""
    rows = torch.arange(len(to_positive_n), device=to_positive_n.device)
    distance = to_others_nN.clone()
    distance[rows, start + rows] = float("nan")  # a row's own channel is not a negative
    farther = torch.where(distance > to_positive_n[:, None], distance, float("inf"))
    farthest = distance.nan_to_num(nan=float("-inf")).argmax(1)
    return torch.where(farther.isfinite().any(1), farther.argmin(1), farthest)
