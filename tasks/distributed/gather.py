"""Gather the rows of all workers into one batch, with gradients: the basis of the global contrastive losses.

Every worker holds some rows, or none; the global batch is their concatenation in rank order. The backward pass sums
the gradients that all workers have for the global batch and returns to each worker the slice of its own rows, which
is the exact gradient. (Gathering without autograd and inserting the local rows gives a gradient that is wrong by a
few per cent, which is not visible in training curves.) Without a process group there is one worker, and gathering is
the identity.

All functions are collective: every worker, even one without rows, must call them in the same order.

Legend: n local rows, N global rows, D features.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def world_size() -> int:
    """Number of workers that share the global batch; 1 without a process group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """This worker's position in the global batch; 0 without a process group."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def gather_counts(local_rows: int, device: torch.device) -> list[int]:
    """Number of rows of each worker, in rank order. `device`: the one that the process group uses."""
    if world_size() == 1:
        return [local_rows]
    counts = [torch.zeros(1, dtype=torch.int64, device=device) for _ in range(world_size())]
    dist.all_gather(counts, torch.tensor([local_rows], device=device))
    return torch.cat(counts).tolist()


def gather_rows(local_nD: Tensor, counts: list[int] | None = None) -> Tensor:
    """The rows of all workers (N, ...), differentiable; the backward pass all-reduces and takes the local slice.

    Args:
        local_nD: this worker's rows; n can differ between workers and can be 0; the other axes must agree.
        counts: the result of `gather_counts`, if known, to save a collective call.
    """
    if world_size() == 1:
        return local_nD
    if counts is None:
        counts = gather_counts(local_nD.shape[0], local_nD.device)
    return _GatherRows.apply(local_nD, tuple(counts))


def gather_ids(local_ids: Tensor) -> list[int]:
    """The integers (n,) of all workers in rank order, e.g. the rows of the schedule in this global batch."""
    return gather_rows(local_ids.detach().to(torch.int64)).tolist()


def gather_texts(local: str, device: torch.device) -> list[str]:
    """One text from each worker, in rank order. Sent as tensors of bytes, so that nothing received is unpickled.

    Args:
        local: this worker's text; it can be empty.
        device: the one that the process group uses.
    """
    byte_n = torch.tensor(list(local.encode()), dtype=torch.uint8, device=device)
    counts = gather_counts(len(byte_n), device)
    if not any(counts):
        return [""] * len(counts)
    parts = gather_rows(byte_n, counts).split(counts)
    return [bytes(part.tolist()).decode() for part in parts]


def sum_over_workers(values: Tensor) -> Tensor:
    """The sum of a tensor over the workers, without a gradient: for metrics that are logged."""
    total = values.detach().clone()
    if world_size() > 1:
        dist.all_reduce(total)
    return total


class _GatherRows(torch.autograd.Function):
    """all_gather of rows in the forward pass, all_reduce and slice in the backward pass."""

    @staticmethod
    def forward(ctx: Any, local_nD: Tensor, counts: tuple[int, ...]) -> Tensor:
        ctx.start = sum(counts[: rank()])
        ctx.rows = counts[rank()]
        # gloo and nccl gather equal shapes only: pad to the largest worker.
        padded = local_nD.new_zeros(max(counts), *local_nD.shape[1:])
        padded[: ctx.rows] = local_nD
        parts = [torch.empty_like(padded) for _ in counts]
        dist.all_gather(parts, padded)
        return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        total_ND = gradients[0].contiguous().clone()
        dist.all_reduce(total_ND)
        return total_ND[ctx.start : ctx.start + ctx.rows], None
