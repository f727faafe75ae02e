"""How many operations the networks cost, from their configurations alone, by `torch.utils.flop_counter`.

One multiplication with one addition counts as two operations (FLOPs). Convolutions and matrix products are counted, on
the meta device, where nothing is computed; norms, activations, Fourier transforms and mel filters are not: under two
percent of the arithmetic, though much of the memory traffic. Torch is imported only where something is counted; the
first count takes a process two seconds of further imports.
"""

from functools import lru_cache
from typing import TYPE_CHECKING

from sepscene.models.settings import Cnn14Config, TDCNppConfig
from sepscene.orchestration.config import Objective

if TYPE_CHECKING:
    from torch import nn

BACKWARD = 2
"""The backward pass costs twice the forward: a gradient for the inputs and one for the weights."""


@lru_cache
def separation_flops(config: TDCNppConfig, samples: int) -> int:
    """Operations of a TDCN++ for one clip of `samples` samples; 139 GFLOP for the paper's 10 s at 16 kHz."""
    import torch

    from sepscene.models.separators.tdcnpp import TDCNpp

    with torch.device("meta"):
        return _counted(TDCNpp(config), (1, samples))


@lru_cache
def encoder_flops(config: Cnn14Config, frames: int) -> int:
    """Operations of CNN14 for one patch of `frames` log-mel frames, forward; 3.9 GFLOP for the paper's 96."""
    import torch

    from sepscene.models.encoders.cnn14 import Cnn14

    with torch.device("meta"):
        # In training mode a BatchNorm refuses one patch of which a single position is left.
        return _counted(Cnn14(config).eval(), (1, frames, config.mel_bands))


def step_flops(config: Cnn14Config, objective: Objective, frames: int, global_batch: int) -> int:
    """Operations of a step over the global batch: encoder, heads and all pairs, forward and backward."""
    views, dim, hidden = 2 * global_batch, config.embedding_dim, objective.head_hidden
    projection = objective.projection_dim
    forward = views * encoder_flops(config, frames)
    forward += _product(views, dim, hidden) + _product(views, hidden, projection)
    forward += _product(views, projection, views)  # all cosines
    if objective.alpha > 0:  # the head's first layer splits into a part for each view, its second sees all pairs
        forward += _product(views, dim, hidden) + _product(global_batch**2, hidden, 1)
    return (1 + BACKWARD) * forward


def _counted(network: "nn.Module", shape: tuple[int, ...]) -> int:
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(torch.empty(shape))
    return counter.get_total_flops()


def _product(rows: int, inner: int, columns: int) -> int:
    """Operations of a matrix product."""
    return 2 * rows * inner * columns
