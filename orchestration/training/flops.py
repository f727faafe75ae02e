"""Counts the floating-point operations (FLOPs) of the networks, from their configurations.

`torch.utils.flop_counter` counts a multiplication and an addition as two operations. Convolutions and matrix products
are counted on the meta device, where nothing is computed. Norms, activations, Fourier transforms and mel filters are
not counted: they are less than two percent of the arithmetic, though much of the memory traffic. Torch is imported
inside the functions; the first count in a process takes two seconds of further imports.

Shapes: n pairs of the global batch, D features of h.
"""

from functools import lru_cache
from typing import TYPE_CHECKING

from sepscene.augment.views import patch_samples
from sepscene.models.names import TERMS
from sepscene.models.settings import TDCNppConfig
from sepscene.orchestration.config import Experiment

if TYPE_CHECKING:
    from torch import nn

    from sepscene.tasks.losses.terms import Term

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
    import torch

    from sepscene.models.encoders.network import settings_of
    from sepscene.tasks.losses.terms import HeadSizes, build_term

    objective = experiment.objective
    pairs = experiment.training.global_batch
    dim = settings_of(experiment.encoder).embedding_dim
    sizes = HeadSizes(dim, objective.head_hidden, objective.projection_dim)
    forward = 2 * pairs * encoder_flops(experiment)
    for name, term in objective.used_terms.items():
        if term.use in TERMS:  # the cost of custom terms is unknown and not counted
            with torch.device("meta"):
                forward += _term_flops(build_term(name, term, sizes), pairs, dim)
        if term.use == "coincidence":
            # The head's second layer, per pair: a matrix times a vector, which the counter does not count.
            forward += 2 * pairs**2 * objective.head_hidden
    return (1 + BACKWARD) * forward


def _term_flops(term: "Term", pairs: int, dim: int) -> int:
    """Operations of a term's head and its comparison of all pairs, forward only."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    # With gradients, the losses would compute those in the forward pass, and BACKWARD would count them again.
    term.requires_grad_(False)
    h_1_nD = torch.empty(pairs, dim)
    h_2_nD = torch.empty(pairs, dim)
    with FlopCounterMode(display=False) as counter:
        projected = term.project(h_1_nD, h_2_nD)
        term.share(h_1_nD, h_2_nD, projected, projected, 0)
    return counter.get_total_flops()


def _counted(network: "nn.Module", shape: tuple[int, ...]) -> int:
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(torch.empty(shape))
    return counter.get_total_flops()
