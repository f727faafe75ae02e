"""Coincidence prediction over all pairs of the global batch, in memory linear in N.

(1/N) sum_i -log g(h_m^i, h_c^i) + 1/(N(N-1)) sum over i != j of -log(1 - g(h_m^i, h_c^j)), with g the sigmoid
of the coincidence head's logit (docs/paper.md, "Losses"). Positives and negatives are averaged separately.

Two steps keep the memory linear. The head's first layer applied to a concatenation is a sum,
W [a; b] = W_a a + W_b b, so it is computed for N rows and N columns instead of N^2 pairs. The rest,
relu(u_i + v_j) . w + c for each pair, is computed in tiles. The gradient of a tile is computed together with its
loss, so nothing of size N^2 is kept and nothing is computed twice.

Legend: n local rows, N global rows, D features of h, H hidden units of the head, i x j one tile.
"""

import torch
from torch import Tensor
from torch.nn import functional

from sepscene.models.encoders.heads import CoincidenceHead
from sepscene.tasks.losses.nt_xent import ScalarLoss, need_gradients

# Size of the hidden activations of one tile: fits the cache of a CPU; large enough to keep a GPU busy.
TILE_BYTES = {"cpu": 2 * 2**20, "cuda": 256 * 2**20}


def coincidence_loss(
    head: CoincidenceHead,
    h_m_nD: Tensor,
    h_c_nD: Tensor,
    global_c_ND: Tensor | None = None,
    start: int = 0,
    tile_bytes: int | None = None,
) -> Tensor:
    """This worker's share of the loss: its h_m against the h_c of all workers. All shares sum to the loss.

    Args:
        h_m_nD: the mixtures of the local pairs; n can be 0.
        h_c_nD: the channels of the local pairs.
        global_c_ND: the channels of all workers (`gather_rows`). None: the local ones, for a single worker.
        start: index of the first local pair in the global batch.
        tile_bytes: memory for the hidden activations of one tile.

    Returns:
        Scalar. With one global pair there are no negatives and their term is 0. An empty batch gives 0.
    """
    global_c_ND = h_c_nD if global_c_ND is None else global_c_ND
    total = global_c_ND.shape[0]
    tile = tile_bytes or TILE_BYTES.get(h_m_nD.device.type, TILE_BYTES["cuda"])
    u_nH, v_NH = split_first_layer(head, h_m_nD, global_c_ND)
    weights = (1 / max(1, total), 1 / max(1, total * (total - 1)))
    return _pair_loss(u_nH, v_NH, head.last.weight[0], head.last.bias, start, weights, tile)


def split_first_layer(head: CoincidenceHead, h_m_nD: Tensor, h_c_ND: Tensor) -> tuple[Tensor, Tensor]:
    """u_nH = W_a h_m and v_NH = W_b h_c + bias: relu(u_i + v_j) is the hidden layer of the pair (i, j)."""
    weight_a, weight_b = head.first.weight.split(h_m_nD.shape[1], dim=1)
    return functional.linear(h_m_nD, weight_a), functional.linear(h_c_ND, weight_b, head.first.bias)


def _pair_loss(
    u: Tensor, v: Tensor, w: Tensor, c: Tensor, start: int, weights: tuple[float, float], tile: int
) -> Tensor:
    """Weighted sum of softplus(-logit) over the positives and softplus(logit) over the negatives of the rows u.

    logit_ij = relu(u_i + v_j) . w + c; the positive of row i is column start + i.
    """
    gradients = [torch.zeros_like(x) for x in (u, v, w, c)]
    needed = need_gradients(u, v, w, c)
    loss = u.new_zeros(())
    side = max(1, int((tile / (u.shape[1] * u.element_size())) ** 0.5))
    with torch.no_grad():
        for i in range(0, u.shape[0], side):
            rows = slice(i, i + side)
            for j in range(0, v.shape[0], side):
                columns = slice(j, j + side)
                d_tile = (gradients[0][rows], gradients[1][columns], *gradients[2:]) if needed else None
                loss += _tile_loss(u[rows], v[columns], w, c, start + i - j, weights, d_tile)
    return ScalarLoss.apply(loss, gradients, u, v, w, c)


def _tile_loss(
    u: Tensor,
    v: Tensor,
    w: Tensor,
    c: Tensor,
    shift: int,
    weights: tuple[float, float],
    gradients: tuple[Tensor, ...] | None,
) -> Tensor:
    """The loss of a tile whose positives are on the diagonal `shift`; adds its gradients to those of u, v, w and c."""
    hidden = (u[:, None] + v[None]).relu_()
    logit = hidden @ w + c
    weight = torch.full_like(logit, weights[1])
    sign = torch.ones_like(logit)  # 1 for negatives, -1 for positives
    if -logit.shape[0] < shift < logit.shape[1]:
        weight.diagonal(shift).fill_(weights[0])
        sign.diagonal(shift).fill_(-1)
    loss = (weight * functional.softplus(sign * logit)).sum()
    if gradients is None:
        return loss
    slope = weight * sign * torch.sigmoid(sign * logit)
    d_u, d_v, d_w, d_c = gradients
    d_w += slope.flatten() @ hidden.flatten(0, 1)
    d_c += slope.sum()
    passing = hidden.sign_()  # the derivative of relu, computed in place
    d_u += torch.bmm(slope[:, None], passing)[:, 0] * w
    d_v += torch.bmm(slope.T[:, None], passing.transpose(0, 1))[:, 0] * w
    return loss
