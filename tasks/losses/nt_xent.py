"""NT-Xent (SimCLR) over the global batch, without keeping the matrix of similarities.

For a positive pair (i, j) of the 2N views: -log(exp(s_ij / tau) / sum over v != i of exp(s_iv / tau)), s the
cosine; the mean over all 2N views (docs/paper.md, "Losses").

Each worker compares its own views with all views, block by block. The gradient of a block is computed together with
its loss, so nothing of size n x N is kept and nothing is computed twice.

Legend: n local pairs, N global pairs, D features of z, b rows of a block.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

# Size of the logits of one block: about the cache of a CPU; large enough to keep a GPU busy.
BLOCK_BYTES = {"cpu": 4 * 2**20, "cuda": 256 * 2**20}


def nt_xent(
    z_1_nD: Tensor,
    z_2_nD: Tensor,
    global_1_ND: Tensor | None = None,
    global_2_ND: Tensor | None = None,
    start: int = 0,
    temperature: float | Tensor = 0.2,
    block_bytes: int | None = None,
) -> Tensor:
    """This worker's share of the loss: the shares of all workers sum to NT-Xent over the global batch.

    Args:
        z_1_nD, z_2_nD: both views of the local pairs, not normalised; n can be 0.
        global_1_ND, global_2_ND: the views of all workers (`gather_rows`). None: the local ones, for a single
            worker.
        start: index of the first local pair in the global batch.
        temperature: tau > 0; a tensor gets a gradient.
        block_bytes: memory for the logits of a block.

    Returns:
        Scalar: sum over the 2n local views, divided by 2N; 0 for an empty batch.
    """
    global_1_ND = z_1_nD if global_1_ND is None else global_1_ND
    global_2_ND = z_2_nD if global_2_ND is None else global_2_ND
    n = z_1_nD.shape[0]
    total = global_1_ND.shape[0]
    rows = unit_rows(torch.cat([z_1_nD, z_2_nD]))
    columns = unit_rows(torch.cat([global_1_ND, global_2_ND]))
    local = torch.arange(start, start + n, device=rows.device)
    itself = torch.cat([local, local + total])
    positive = torch.cat([local + total, local])
    scale = torch.as_tensor(1 / temperature, dtype=rows.dtype, device=rows.device)
    block_bytes = block_bytes or BLOCK_BYTES.get(rows.device.type, BLOCK_BYTES["cuda"])
    block = max(1, block_bytes // max(1, columns.shape[0] * rows.element_size()))
    return _cross_entropies(rows, columns, scale, itself, positive, block) / max(1, 2 * total)


def unit_rows(z_ND: Tensor) -> Tensor:
    """Rows scaled to length 1. A row of zeros stays zero and gets no gradient.

    If all hidden units of a head are inactive for a row, then z = 0, which has no direction. The usual division by
    a tiny epsilon would give it a gradient of 1e12.
    """
    length_N1 = z_ND.norm(dim=-1, keepdim=True)
    return torch.where(length_N1 > 1e-8, z_ND / length_N1.clamp_min(1e-8), 0)


class ScalarLoss(torch.autograd.Function):
    """A scalar whose gradients were computed together with it, so that the backward pass only scales them."""

    @staticmethod
    def forward(ctx: Any, loss: Tensor, gradients: Sequence[Tensor], *inputs: Tensor) -> Tensor:
        ctx.save_for_backward(*gradients)
        return loss.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """The gradients of the inputs."""
        return None, None, *(gradients[0] * saved for saved in ctx.saved_tensors)


def need_gradients(*inputs: Tensor) -> bool:
    """Whether any of these inputs of a loss needs a gradient."""
    return torch.is_grad_enabled() and any(each.requires_grad for each in inputs)


def _cross_entropies(
    rows: Tensor, columns: Tensor, scale: Tensor, itself: Tensor, positive: Tensor, block: int
) -> Tensor:
    """sum_i of logsumexp over v != itself_i of scale * <row_i, column_v>, minus the positive's logit."""
    needed = need_gradients(rows, columns, scale)
    loss = rows.new_zeros(())
    d_rows = torch.zeros_like(rows)
    d_columns = torch.zeros_like(columns)
    d_scale = torch.zeros_like(scale)
    with torch.no_grad():
        for b in (slice(i, i + block) for i in range(0, rows.shape[0], block)):
            logits = rows[b] @ columns.T
            logits.mul_(scale).scatter_(1, itself[b, None], float("-inf"))
            normaliser = logits.logsumexp(1, keepdim=True)
            loss += (normaliser - logits.gather(1, positive[b, None])).sum()
            if not needed:
                continue
            # d loss / d logits = softmax - one-hot of the positive, in place.
            slope = logits.sub_(normaliser).exp_()
            slope.scatter_add_(1, positive[b, None], -torch.ones_like(normaliser))
            pull = slope @ columns
            d_scale += (pull * rows[b]).sum()
            d_rows[b] = pull.mul_(scale)
            d_columns.addmm_(slope.T, rows[b] * scale)
    return ScalarLoss.apply(loss, (d_rows, d_columns, d_scale), rows, columns, scale)
