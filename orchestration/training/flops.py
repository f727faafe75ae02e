"""Counts the floating-point operations (FLOPs) of the networks, from their configurations.

`torch.utils.flop_counter` counts a multiplication and an addition as two operations. Convolutions and matrix products
are counted on the meta device, where nothing is computed. Norms, activations, Fourier transforms and mel filters are
not counted: they are less than two percent of the arithmetic, though much of the memory traffic. Torch is imported
inside the functions; the first count in a process takes two seconds of further imports.

Shapes: n pairs of the global batch, D features of h.
"""

from collections.abc import Callable
from functools import lru_cache, partial
from typing import TYPE_CHECKING

from sepscene.augment.views import patch_samples
from sepscene.models.names import TERMS
from sepscene.models.settings import TDCNppConfig
from sepscene.orchestration.config import Experiment

if TYPE_CHECKING:
    from torch import Tensor

    from sepscene.tasks.losses.terms import Term

BACKWARD = 2
"""The backward pass costs twice the forward pass: it computes the gradients of the inputs and of the weights."""


@lru_cache
def separation_flops(config: TDCNppConfig, samples: int) -> int:
    """Operations of a TDCN++ for one clip of `samples` samples; 139 GFLOP for the paper's 10 s at 16 kHz."""
    import torch

    from sepscene.models.separators.tdcnpp import TDCNpp

    with torch.device("meta"):
        network = TDCNpp(config)
        return _counted(lambda: network(torch.empty(1, samples)))


def encoder_flops(experiment: Experiment) -> int:
    """Operations of the encoder's forward pass for one patch; 3.9 GFLOP for the paper's CNN14."""
    import torch

    from sepscene.models.encoders.network import build_network, network_class

    encoder = experiment.encoder
    front_end = experiment.front_end
    samples = patch_samples(experiment.views, experiment.audio.sample_rate)
    waveform = network_class(encoder).reads == "waveform"
    shape = (1, samples) if waveform else (1, front_end.frames(samples), front_end.mel_bands)

    def count() -> int:
        # In training mode, BatchNorm rejects a single patch that was pooled to a single position.
        network = build_network(encoder).eval()
        return _counted(lambda: network(torch.empty(shape)))

    try:
        with torch.device("meta"):
            return count()
    except RuntimeError:  # custom code can depend on values, which the meta device does not have
        with torch.random.fork_rng(devices=[]):
            return count()


def step_flops(experiment: Experiment) -> int:
    """Operations of a step over the global batch: encoder, heads and all pairs, forward and backward pass.

    Raises:
        SepsceneError: as `models.encoders.network.settings_of`.
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
                # With gradients, the losses would compute those in the forward pass, and BACKWARD would count them too.
                built = build_term(name, term, sizes).requires_grad_(False)
                forward += _counted(partial(_compare_all, built, torch.empty(pairs, dim)))
        if term.use == "coincidence":
            # The head's second layer, per pair: a matrix times a vector, which the counter does not count.
            forward += 2 * pairs**2 * objective.head_hidden
    return (1 + BACKWARD) * forward


def _compare_all(term: "Term", h_nD: "Tensor") -> None:
    projected = term.project(h_nD, h_nD)
    term.share(h_nD, h_nD, projected, projected, 0)


def _counted(compute: Callable[[], object]) -> int:
    """Operations of a computation, forward only."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        compute()
    return counter.get_total_flops()
