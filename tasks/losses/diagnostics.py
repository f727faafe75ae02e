"""Diagnostics of pre-training, from tensors that a step has already computed, and a warning when h collapses.

Alignment and uniformity (Wang & Isola 2020), similarity of positives and negatives, accuracy and area under
the ROC curve of coincidence prediction, effective rank of h (Roy & Vetterli 2007). There are no collective
calls and no encoder passes, so any number of workers can compute them at any step.

Legend: n local pairs, N global pairs, D features of h, Z features of z, H hidden units of the
coincidence head.
"""

import torch
from torch import Tensor

from sepscene.models.encoders.heads import CoincidenceHead
from sepscene.tasks.losses.coincidence import split_first_layer
from sepscene.tasks.losses.joint import JointLoss
from sepscene.tasks.losses.nt_xent import unit_rows

MAX_ROWS = 512  # at most this many rows are used
COLLAPSED = 0.05  # share of the attainable effective rank below which h counts as collapsed [ours]
MIN_ROWS = 16  # the rank of fewer rows is meaningless


@torch.no_grad()
def diagnose(result: JointLoss, head: CoincidenceHead | None = None) -> dict[str, float]:
    """Metrics of one step by name; without a coincidence head its metrics are omitted.

    Returns:
        alignment: mean squared distance of positives on the unit sphere (0 best, 2 for negative pairs).
        uniformity: log mean exp(-2 d^2) over rows of one view (0 if all rows are equal; lower is more uniform).
        positive_similarity, negative_similarity: mean cosine of z.
        effective_rank: of the centred h of the local views, 1 to `attainable_rank` = min(D, rows - 1).
        coincidence_accuracy: balanced accuracy over positives and negatives; chance is 0.5.
        coincidence_auc: share of (positive, negative) pairs in the right order.

        Metrics that are undefined are omitted: most need at least two pairs.
    """
    metrics: dict[str, float] = {}
    z_1 = unit_rows(result.z_1_NZ[:MAX_ROWS])
    z_2 = unit_rows(result.z_2_NZ[:MAX_ROWS])
    if len(z_1) >= 2:
        metrics |= similarity_metrics(z_1, z_2)
    h_BD = torch.cat([result.h_1_nD[:MAX_ROWS], result.h_2_nD[:MAX_ROWS]])
    if len(h_BD) >= 2:
        metrics["effective_rank"] = effective_rank(h_BD)
        metrics["attainable_rank"] = float(min(h_BD.shape[1], len(h_BD) - 1))
    if head is not None and len(result.h_1_nD) >= 2:
        metrics |= coincidence_metrics(head, result.h_1_nD[:MAX_ROWS], result.h_2_nD[:MAX_ROWS])
    return metrics


def similarity_metrics(unit_1_NZ: Tensor, unit_2_NZ: Tensor) -> dict[str, float]:
    """Alignment, uniformity and mean cosines of two views on the unit sphere, N >= 2."""
    cosine_NN = unit_1_NZ @ unit_2_NZ.T
    positive = cosine_NN.diagonal()
    different = ~torch.eye(len(cosine_NN), dtype=torch.bool, device=cosine_NN.device)
    # |a - b|^2 = 2 - 2 cos, so exp(-2 |a - b|^2) = exp(4 cos - 4).
    spread = [(4 * (unit @ unit.T)[different] - 4).exp().mean().log() for unit in (unit_1_NZ, unit_2_NZ)]
    return {
        "alignment": float((unit_1_NZ - unit_2_NZ).square().sum(1).mean()),
        "uniformity": float(sum(spread)) / 2,
        "positive_similarity": float(positive.mean()),
        "negative_similarity": float(cosine_NN[different].mean()),
    }


def coincidence_metrics(head: CoincidenceHead, h_m_nD: Tensor, h_c_nD: Tensor) -> dict[str, float]:
    """Balanced accuracy and AUC (ties count half) over all n^2 pairs, n >= 2; memory n x H."""
    u_nH, v_nH = split_first_layer(head, h_m_nD, h_c_nD)
    logit_nn = torch.stack([(u_H + v_nH).relu_() @ head.last.weight[0] for u_H in u_nH]) + head.last.bias
    different = ~torch.eye(len(logit_nn), dtype=torch.bool, device=logit_nn.device)
    positive = logit_nn.diagonal().contiguous()
    negative = logit_nn[different].sort().values
    below = torch.searchsorted(negative, positive) + torch.searchsorted(negative, positive, right=True)
    return {
        "coincidence_accuracy": float(((positive > 0).double().mean() + (negative <= 0).double().mean()) / 2),
        "coincidence_auc": float(below.double().mean() / (2 * len(negative))),
    }


def effective_rank(h_BD: Tensor) -> float:
    """exp of the entropy of the normalised singular values of the centred rows: 1 for a line, D for a ball.

    Identical rows (complete collapse) give 0; rows that are not finite give nan.
    """
    centred = h_BD.double() - h_BD.double().mean(0)
    if not torch.isfinite(centred).all():
        return float("nan")
    values = torch.linalg.svdvals(centred)
    if values.max() <= 1e-7 * h_BD.double().norm().clamp_min(1e-30):
        return 0.0
    share = values / values.sum()
    return float(torch.special.entr(share).sum().exp())


def collapse_warning(metrics: dict[str, float]) -> str:
    """A warning for the user if the representation is collapsing; otherwise empty."""
    rank = metrics.get("effective_rank", 0.0)
    attainable = metrics.get("attainable_rank", 0.0)
    if attainable + 1 < MIN_ROWS or rank >= max(1.5, COLLAPSED * attainable):
        return ""
    return (
        f"the representation is collapsing: h has an effective rank of {rank:.1f}, out of {attainable:.0f}. "
        "Lower training.learning_rate, or raise training.global_batch or objective.temperature. Also listen to the "
        "views: the encoder learns nothing if all pairs sound alike"
    )
