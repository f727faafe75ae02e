"""Batch statistics over the global batch, on GPUs and on CPUs.

Why: with statistics of the local batch, both views of a pair, which are on the same worker, are normalised alike,
but differently from the negatives on other workers. From these statistics the network could recognise which rows are
from its own worker, and lower the contrastive loss without learning anything about sound. Here every worker normalises
with the mean and variance of all views on all workers, so the output for a row does not depend on which worker holds
it. (The tests move rows between workers and check that the representations do not change.)

torch.nn.SyncBatchNorm does this on GPUs only; `SynchronisedBatchNorm` does it with any process group.

Legend: B clips, C channels (x_BC can have further axes), W workers.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.modules.batchnorm import _BatchNorm

from sepscene.tasks.distributed.gather import gather_rows, world_size


def synchronise_batchnorm(module: nn.Module) -> nn.Module:
    """Make every BatchNorm in `module` use the statistics of the global batch.

    On CUDA each becomes torch's SyncBatchNorm, elsewhere `SynchronisedBatchNorm`. Parameters, buffers and the
    names in the state dict do not change. Call it after the module is moved to its device and before
    DistributedDataParallel wraps it. All workers must then run the module's forward and backward passes the same
    number of times; a worker without rows passes an empty batch.

    Returns:
        The module, changed in place (or its replacement, if it is itself a BatchNorm).
    """
    if any(parameter.is_cuda for parameter in module.parameters()):
        return nn.SyncBatchNorm.convert_sync_batchnorm(module)
    if isinstance(module, _BatchNorm):
        return SynchronisedBatchNorm.of(module)
    for name, child in module.named_children():
        setattr(module, name, synchronise_batchnorm(child))
    return module


class SynchronisedBatchNorm(_BatchNorm):
    """BatchNorm over axis 1 that trains with the statistics of the rows of all workers; their numbers can differ."""

    @classmethod
    def of(cls, norm: _BatchNorm) -> "SynchronisedBatchNorm":
        """The same layer, sharing parameters and buffers with `norm`."""
        new = cls(norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats)
        new._parameters = norm._parameters
        new._buffers = norm._buffers
        new.training = norm.training
        return new

    def forward(self, x_BC: Tensor) -> Tensor:
        """x_BC… to the same shape. Collective in training, if there is more than one worker."""
        if not self.training or world_size() == 1:
            return super().forward(x_BC)
        mean_C, variance_C, count = _global_statistics(x_BC.detach())
        if count == 0:
            return x_BC
        self._update_running(mean_C, variance_C, count)
        return _Normalise.apply(x_BC, self.weight, self.bias, mean_C, variance_C, count, self.eps)

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() < 2:
            raise ValueError(f"expected a batch with channels on axis 1, got shape {tuple(input.shape)}")

    @torch.no_grad()
    def _update_running(self, mean_C: Tensor, variance_C: Tensor, count: int) -> None:
        if not self.track_running_stats or self.running_mean is None or self.running_var is None:
            return
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        share = self.momentum if self.momentum is not None else 1 / int(self.num_batches_tracked)
        unbiased_C = variance_C * (count / max(1, count - 1))
        self.running_mean.lerp_(mean_C.to(self.running_mean.dtype), share)
        self.running_var.lerp_(unbiased_C.to(self.running_var.dtype), share)


@torch.no_grad()
def _global_statistics(x_BC: Tensor) -> tuple[Tensor, Tensor, int]:
    """Mean and biased variance of each channel over all workers, and the number of values per channel.

    The workers' means and sums of squared deviations are combined (Chan et al. 1979), which is more accurate than
    sums of squares. One collective call.
    """
    channels = x_BC.shape[1]
    local = x_BC.numel() // x_BC.shape[1]
    dtype = torch.float64 if x_BC.dtype == torch.float64 else torch.float32
    row = torch.zeros(1, 2 * channels + 1, dtype=dtype, device=x_BC.device)
    if local:
        mean_C, variance_C = torch.batch_norm_update_stats(x_BC.to(dtype), None, None, 0.0)
        row[0, :channels] = mean_C
        row[0, channels:-1] = variance_C * local
        row[0, -1] = local
    rows_W = gather_rows(row, [1] * world_size()).double()
    mean_WC = rows_W[:, :channels]
    deviation_WC = rows_W[:, channels:-1]
    count_W = rows_W[:, -1:]
    count = int(count_W.sum())
    mean_C = (count_W * mean_WC).sum(0) / max(1, count)
    deviation_C = (deviation_WC + count_W * (mean_WC - mean_C).square()).sum(0)
    return mean_C.to(dtype), (deviation_C / max(1, count)).to(dtype), count


class _Normalise(torch.autograd.Function):
    """(x - mean) / sqrt(variance + eps) * weight + bias; gradients also flow through the statistics."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        mean_C: Tensor,
        variance_C: Tensor,
        count: int,
        eps: float,
    ) -> Tensor:
        ctx.save_for_backward(x, weight, mean_C, variance_C)
        ctx.count = count
        ctx.eps = eps
        return torch.nn.functional.batch_norm(x, mean_C, variance_C, weight, bias, training=False, eps=eps)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean_C, variance_C = ctx.saved_tensors
        ones_C = torch.ones_like(mean_C)
        scale_C = (ones_C if weight is None else weight) * torch.rsqrt(variance_C + ctx.eps)
        # With fixed statistics torch's kernel gives the sums of dy * x_hat and of dy.
        d_weight, d_bias = _local_sums(gradients[0], x, mean_C, variance_C, ctx.eps)
        # Gathered instead of reduced: takes two thirds of the time over gloo.
        sums = gather_rows(torch.stack([d_weight, d_bias])[None], [1] * world_size()).sum(0)
        # dx = scale * (dy - mean(dy) - x_hat * mean(dy * x_hat)), as scale * dy + slope * x + offset: two passes.
        slope_C = -scale_C * sums[0] / ctx.count * torch.rsqrt(variance_C + ctx.eps)
        offset_C = -scale_C * sums[1] / ctx.count - slope_C * mean_C
        shape = (1, -1, *[1] * (x.dim() - 2))
        scale = scale_C.to(x.dtype).view(shape)
        slope = slope_C.to(x.dtype).view(shape)
        offset = offset_C.to(x.dtype).view(shape)
        dx = torch.addcmul(offset, x, slope).addcmul_(gradients[0], scale)
        # The parameters' gradients stay local: DistributedDataParallel averages them.
        affine = (None, None) if weight is None else (d_weight, d_bias)
        return dx, *affine, None, None, None, None


def _local_sums(dy: Tensor, x: Tensor, mean_C: Tensor, variance_C: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """The sums of dy * x_hat and of dy over this worker's rows."""
    if x.numel() == 0:
        return torch.zeros_like(mean_C), torch.zeros_like(mean_C)
    _, d_weight, d_bias = torch.ops.aten.native_batch_norm_backward(
        dy, x, torch.ones_like(mean_C), mean_C, variance_C, None, None, False, eps, [False, True, True]
    )
    return d_weight, d_bias
