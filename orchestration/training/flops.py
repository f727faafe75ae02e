"""How many operations the networks cost, from their configurations alone.

`torch.utils.flop_counter` counts them on the meta device, where nothing is computed. One multiplication with one
addition counts as two operations (FLOPs). It counts convolutions and matrix products; norms, activations, Fourier
transforms and mel filters it does not: under two percent of the arithmetic, though much of the memory traffic. Torch is
imported where something is counted, since not everybody who asks for a plan's settings has to count.
"""

from collections.abc import Callable
from functools import lru_cache

from sepscene.models.settings import Cnn14Config, TDCNppConfig
from sepscene.orchestration.config import Objective

BACKWARD = 2
"""The backward pass costs twice the forward: a gradient for the inputs and one for the weights."""


@lru_cache
def separation_flops(config: TDCNppConfig, samples: int) -> int:
    """Operations of a TDCN++ for one clip of `samples` samples; 139 GFLOP for the paper's 10 s at 16 kHz."""
    import torch

    from sepscene.models.separators.tdcnpp import TDCNpp

    return _counted(lambda: TDCNpp(config)(torch.empty(1, samples)))


@lru_cache
def encoder_flops(config: Cnn14Config, frames: int) -> int:
    """Operations of CNN14 for one patch of `frames` log-mel frames, forward; 3.9 GFLOP for the paper's 96."""
    import torch

    from sepscene.models.encoders.cnn14 import Cnn14

    return _counted(lambda: Cnn14(config)(torch.empty(1, frames, config.mel_bands)))


@lru_cache
def step_flops(config: Cnn14Config, objective: Objective, frames: int, global_batch: int) -> int:
    """Operations of a step over the global batch: encoder, heads and all pairs, forward and backward."""
    import torch
    from torch import nn

    from sepscene.models.encoders.heads import SimilarityHead

    views, dim, hidden = 2 * global_batch, config.embedding_dim, objective.head_hidden

    def similarity() -> None:
        SimilarityHead(dim, hidden, objective.projection_dim)(torch.empty(views, dim))
        z_VZ = torch.empty(views, objective.projection_dim)
        z_VZ @ z_VZ.T  # every view with every other

    def coincidence() -> None:
        nn.Linear(dim, hidden)(torch.empty(views, dim))  # its first layer splits into a part for each view
        nn.Linear(hidden, 1)(torch.empty(global_batch, global_batch, hidden))

    forward = views * encoder_flops(config, frames) + _counted(similarity)
    return (1 + BACKWARD) * (forward + (_counted(coincidence) if objective.alpha > 0 else 0))


def _counted(compute: Callable[[], object]) -> int:
    """Operations of what is computed inside, on tensors without contents."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counter:
        compute()
    return counter.get_total_flops()
