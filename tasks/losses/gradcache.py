"""Gradient accumulation that keeps the global batch of the contrastive losses (GradCache, Gao et al. 2021).

Adding up the losses of small batches is not the loss of the large one: each row would meet the negatives of
its own small batch only. Instead the encoder first runs over the chunks without a graph, the losses are taken
once over all representations, and the encoder runs again chunk by chunk with the gradients of the
representations in hand. It costs one more forward pass of the encoder and keeps the activations of one chunk
only. The gradient is exact.

BatchNorm is the one difference from a large batch: its statistics are those of a chunk (over all workers,
when synchronised), in both passes alike, because a layer's statistics over all chunks would need the
activations of all chunks. The running averages are updated in the first pass only. Dropout would draw anew in
the second pass and make the gradient wrong; the project's encoder has none.
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


def cut(views_BLF: Sequence[Tensor], chunk_rows: int, most_rows: int) -> list[tuple[Tensor, ...]]:
    """The views in chunks of `chunk_rows` rows: as many chunks as `most_rows` rows need, of which some may be empty.

    `most_rows` is the same on all workers, so they get equally many chunks however many rows each can use.
    """
    starts = range(0, most_rows, chunk_rows)
    return [tuple(view[start : start + chunk_rows] for view in views_BLF) for start in starts]


def accumulate(
    objective: JointObjective,
    chunks: Sequence[tuple[Tensor, ...]],
    *,
    weights: Mapping[str, float] | None = None,
    dtype: torch.dtype | None = None,
) -> JointLoss:
    """Add the gradient of the loss over all chunks of all workers to the parameters' `.grad`.

    Takes the place of forward and backward. Collective: all workers pass equally many chunks, of which some
    may have no rows.

    Args:
        objective: the bare module, not wrapped in DistributedDataParallel: gradients are averaged here, once.
        chunks: the views of each chunk, as the arguments of `JointObjective.forward`.
        weights: of the terms, as of `JointObjective.forward`.
        dtype: of autocast in the forward passes; none leaves them as they are. Each pass is a context of its own:
            autocast keeps the cast weights, and those of a pass without a graph lead to no gradient.

    Returns:
        The loss of the global batch; its `loss` is detached, the backward pass has been made.

    Raises:
        ValueError: without chunks.
    """
    if not chunks:
        raise ValueError("accumulate needs at least one chunk (it may have no rows)")
    device = chunks[0][0].device.type
    with torch.no_grad(), torch.autocast(device, dtype, enabled=dtype is not None):
        cached = [objective.encode(*chunk) for chunk in chunks]
    views = [torch.cat(parts).requires_grad_() for parts in zip(*cached, strict=True)]
    with torch.autocast(device, dtype, enabled=dtype is not None):
        result = objective.loss(*views, weights=weights)
    result.loss.backward()
    rows = [len(parts[0]) for parts in cached]
    slopes = [(torch.zeros_like(view) if view.grad is None else view.grad).split(rows) for view in views]
    with _running_averages_kept(objective):
        for chunk, slope in zip(chunks, zip(*slopes, strict=True), strict=True):
            with torch.autocast(device, dtype, enabled=dtype is not None):
                h = objective.encode(*chunk)
            torch.autograd.backward(h, slope)
    _average_gradients(objective)
    return replace(result, loss=result.loss.detach())


@contextmanager
def _running_averages_kept(module: nn.Module) -> Iterator[None]:
    """BatchNorm uses batch statistics as before, and leaves its running averages alone."""
    tracking = [m for m in module.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    for norm in tracking:
        norm.track_running_stats = False
    try:
        yield
    finally:
        for norm in tracking:
            norm.track_running_stats = True


def _average_gradients(module: nn.Module) -> None:
    """What DistributedDataParallel does in its hooks: the mean over workers; a missing gradient is 0."""
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
