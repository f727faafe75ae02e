"""Gradient accumulation that keeps the global batch of the contrastive losses (GradCache, Gao et al. 2021).

The losses of small batches do not sum to the loss of the large batch: each row would be compared only with the
negatives of its own small batch. Instead, the encoder first runs over the chunks without a graph. The loss is then
computed once over all representations. Finally the encoder runs again, chunk by chunk, and the gradients of the
representations are propagated through it. This costs one additional forward pass of the encoder and keeps the
activations of only one chunk. The gradient is exact.

BatchNorm is the only difference from a large batch: in both passes its statistics are those of a chunk (over all
workers, if synchronised), because statistics over all chunks would need the activations of all chunks. The running
averages are updated in the first pass only. Dropout would draw a new mask in the second pass, which would make the
gradient wrong; this project's encoder has no dropout.

Shapes: B views, L frames, F mel bands.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from sepscene.tasks.distributed.gather import world_size
from sepscene.tasks.losses.joint import JointLoss, JointObjective


def split_into_chunks(views_BLF: Sequence[Tensor], chunk_rows: int, max_rows: int) -> list[tuple[Tensor, ...]]:
    """Split the views into chunks of `chunk_rows` rows: as many chunks as `max_rows` rows need; some can be empty.

    `max_rows` is the same on all workers, so all get the same number of chunks, even if they have fewer rows.
    """
    starts = range(0, max_rows, chunk_rows)
    return [tuple(view[start : start + chunk_rows] for view in views_BLF) for start in starts]


def accumulate(
    objective: JointObjective,
    chunks: Sequence[tuple[Tensor, ...]],
    *,
    weights: Mapping[str, float] | None = None,
    dtype: torch.dtype | None = None,
) -> JointLoss:
    """Add the gradient of the loss over all chunks of all workers to the parameters' `.grad`.

    Replaces the forward and the backward pass. Collective: all workers must pass the same number of chunks; chunks can
    be empty.

    Args:
        objective: the module itself, not wrapped in DistributedDataParallel: gradients are averaged here, once.
        chunks: the views of each chunk, as the arguments of `JointObjective.forward`.
        weights: of the terms, as in `JointObjective.forward`.
        dtype: of autocast in the forward passes; None: no autocast. Each pass has its own autocast context, because
            autocast caches the cast weights, and weights cached without a graph would get no gradient.

    Returns:
        The loss of the global batch. Its `loss` is detached: the backward pass has already run.

    Raises:
        ValueError: there are no chunks.
    """
    if not chunks:
        raise ValueError("accumulate needs at least one chunk (it can be empty)")
    device = chunks[0][0].device.type
    with torch.no_grad(), torch.autocast(device, dtype, enabled=dtype is not None):
        cached = [objective.encode(*chunk) for chunk in chunks]
    views = [torch.cat(parts).requires_grad_() for parts in zip(*cached, strict=True)]
    with torch.autocast(device, dtype, enabled=dtype is not None):
        result = objective.loss(*views, weights=weights)
    result.loss.backward()
    rows = [len(parts[0]) for parts in cached]
    gradients = [(torch.zeros_like(view) if view.grad is None else view.grad).split(rows) for view in views]
    with _running_averages_frozen(objective):
        for chunk, gradient in zip(chunks, zip(*gradients, strict=True), strict=True):
            with torch.autocast(device, dtype, enabled=dtype is not None):
                h = objective.encode(*chunk)
            torch.autograd.backward(h, gradient)
    _average_gradients(objective)
    return replace(result, loss=result.loss.detach())


@contextmanager
def _running_averages_frozen(module: nn.Module) -> Iterator[None]:
    """BatchNorm uses batch statistics as before, but does not update its running averages."""
    tracking = [m for m in module.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    for norm in tracking:
        norm.track_running_stats = False
    try:
        yield
    finally:
        for norm in tracking:
            norm.track_running_stats = True


def _average_gradients(module: nn.Module) -> None:
    """Average the gradients over the workers, as DistributedDataParallel does; a missing gradient counts as 0."""
    if world_size() == 1:
        return
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    for work in [dist.all_reduce(parameter.grad, async_op=True) for parameter in parameters]:
        work.wait()
    for parameter in parameters:
        parameter.grad.div_(world_size())  # type: ignore[union-attr]
