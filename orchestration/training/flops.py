"""Counts the floating-point operations (FLOPs) of the networks, from their configurations.

`torch.utils.flop_counter` counts a multiplication and an addition as two operations. Convolutions and matrix products
are counted on the meta device, where nothing is computed. Norms, activations, Fourier transforms and mel filters are
not counted: they are less than two percent of the arithmetic, though much of the memory traffic. Torch is imported
inside the functions; the first count in a process takes two seconds of further imports.
"""

from functools import lru_cache
from typing import TYPE_CHECKING

from sepscene.augment.views import patch_samples
from sepscene.models.names import TERMS
from sepscene.models.settings import TDCNppConfig
from sepscene.orchestration.config import Experiment

if TYPE_CHECKING:
    from torch import nn

BACKWARD = 2
"""The backward pass costs twice the forward pass: it computes the gradients of the inputs and of the weights."""


@lru_cache
def separation_flops(config: TDCNppConfig, samples: int) -> int:
    """Operations of a TDCN++ for one clip of `samples` samples; 139 GFLOP for the paper's 10 s at 16 kHz."""
    import torch

    from sepscene.models.separators.tdcnpp import TDCNpp

    with torch.device("meta"):
        return _counted(TDCNpp(config), (1, samples))


def encoder_flops(experiment: Experiment) -> int:
    """Operations of the encoder's forward pass for one patch; 3.9 GFLOP for the paper's CNN14.

    Raises:
        SepsceneError: as `models.encoders.network.settings_of`.
    """
    import torch

    from sepscene.models.encoders.network import build_network, network_class

    encoder = experiment.encoder
    front_end = experiment.front_end
    samples = patch_samples(experiment.views, experiment.audio.sample_rate)
    waveform = network_class(encoder).reads == "waveform"
    shape = (1, samples) if waveform else (1, front_end.frames(samples), front_end.mel_bands)
    try:
        # In training mode, BatchNorm rejects a single patch that was pooled to a single position.
        with torch.device("meta"):
            return _counted(build_network(encoder).eval(), shape)
    except RuntimeError:  # custom code can depend on values, which the meta device does not have
        with torch.random.fork_rng(devices=[]):
            return _counted(build_network(encoder).eval(), shape)


def step_flops(experiment: Experiment) -> int:
    """Operations of a step over the global batch: encoder, heads and all pairs, forward and backward pass.

    Raises:
        SepsceneError: as `encoder_flops`.
    """
    from sepscene.models.encoders.network import settings_of

    objective = experiment.objective
    global_batch = experiment.training.global_batch
    views = 2 * global_batch
    dim = settings_of(experiment.encoder).embedding_dim
    hidden = objective.head_hidden
    projection = objective.projection_dim
    forward = views * encoder_flops(experiment)
    for term in objective.used_terms.values():  # the cost of custom terms is unknown and not counted
        if term.use == "coincidence":
            # The head's first layer is computed per view, its second layer per pair.
            forward += _matmul_flops(views, dim, hidden) + _matmul_flops(global_batch**2, hidden, 1)
        elif term.use in TERMS:
            forward += _matmul_flops(views, dim, hidden) + _matmul_flops(views, hidden, projection)
            if term.use == "vicreg":  # compares features; the other terms compare all pairs
                forward += 2 * _matmul_flops(projection, global_batch, projection)
            else:
                forward += _matmul_flops(views, projection, views)
    return (1 + BACKWARD) * forward


def _counted(network: "nn.Module", shape: tuple[int, ...]) -> int:
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(torch.empty(shape))
    return counter.get_total_flops()


def _matmul_flops(rows: int, inner: int, columns: int) -> int:
    return 2 * rows * inner * columns
