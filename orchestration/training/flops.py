"""How many operations the networks cost, from their configurations alone, by `torch.utils.flop_counter`.

One multiplication with one addition counts as two operations (FLOPs). Convolutions and matrix products are counted, on
the meta device, where nothing is computed; norms, activations, Fourier transforms and mel filters are not: under two
percent of the arithmetic, though much of the memory traffic. Torch is imported only where something is counted; the
first count takes a process two seconds of further imports.
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
"""The backward pass costs twice the forward: a gradient for the inputs and one for the weights."""


@lru_cache
def separation_flops(config: TDCNppConfig, samples: int) -> int:
    """Operations of a TDCN++ for one clip of `samples` samples; 139 GFLOP for the paper's 10 s at 16 kHz."""
    import torch

    from sepscene.models.separators.tdcnpp import TDCNpp

    with torch.device("meta"):
        return _counted(TDCNpp(config), (1, samples))


def encoder_flops(experiment: Experiment) -> int:
    """Operations of the encoder for one patch, forward; 3.9 GFLOP for the paper's CNN14.

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
        # In training mode a BatchNorm refuses one patch of which a single position is left.
        with torch.device("meta"):
            return _counted(build_network(encoder).eval(), shape)
    except RuntimeError:  # custom code may need to see numbers
        with torch.random.fork_rng(devices=[]):
            return _counted(build_network(encoder).eval(), shape)


def step_flops(experiment: Experiment) -> int:
    """Operations of a step over the global batch: encoder, heads and all pairs, forward and backward.

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
    for term in objective.used_terms.values():  # of custom terms nothing is known
        if term.use == "coincidence":
            # The head's first layer splits into a part for each view, its second sees all pairs.
            forward += _product(views, dim, hidden) + _product(global_batch**2, hidden, 1)
        elif term.use in TERMS:
            forward += _product(views, dim, hidden) + _product(views, hidden, projection)
            if term.use == "vicreg":  # compares features, the others all pairs
                forward += 2 * _product(projection, global_batch, projection)
            else:
                forward += _product(views, projection, views)
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
