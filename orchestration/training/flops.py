"""How many operations the networks cost, from their configurations alone.

One multiplication with one addition counts as two operations (FLOPs). Convolutions and matrix products are
counted, as `torch.utils.flop_counter` does, and agree with it exactly; norms, activations, Fourier transforms
and mel filters are
not: under two percent of the arithmetic, though much of the memory traffic.
"""

from sepscene.models.settings import Cnn14Config, TDCNppConfig
from sepscene.orchestration.config import Objective

BACKWARD = 2
"""The backward pass costs twice the forward: a gradient for the inputs and one for the weights."""


def separation_flops(config: TDCNppConfig, samples: int) -> int:
    """Operations of a TDCN++ for one clip of `samples` samples; 139 GFLOP for the paper's 10 s at 16 kHz."""
    coefficients, width, hidden = config.coefficients, config.bottleneck, config.hidden
    basis = coefficients * config.window_samples if config.basis == "learned" else 0
    block = 2 * width * hidden + hidden * config.kernel
    skips = config.repeats * (config.repeats - 1) // 2 if config.skip_residual else 0
    per_frame = (
        (1 + config.sources) * basis
        + coefficients * width
        + config.repeats * config.blocks * block
        + skips * width * width
        + width * config.sources * coefficients
    )
    shares = config.sources * width if config.consistency == "pred_source" else 0
    return 2 * (config.frames(samples) * per_frame + shares)


def encoder_flops(config: Cnn14Config, frames: int) -> int:
    """Operations of CNN14 for one patch of `frames` log-mel frames, forward; 3.9 GFLOP for the paper's 96."""
    total, inputs, bands = 0, 1, config.mel_bands
    for number, channels in enumerate(config.widths, start=1):
        total += frames * bands * 9 * (inputs + channels) * channels
        inputs = channels
        if number < len(config.widths):
            frames, bands = frames // 2, bands // 2
    return 2 * (total + inputs * config.embedding_dim)


def step_flops(config: Cnn14Config, objective: Objective, frames: int, global_batch: int) -> int:
    """Operations of a step over the global batch: encoder, heads and all pairs, forward and backward."""
    views, dim, hidden = 2 * global_batch, config.embedding_dim, objective.head_hidden
    similarity = 2 * hidden * (dim + objective.projection_dim)
    all_similarities = 2 * views * views * objective.projection_dim
    forward = views * (encoder_flops(config, frames) + similarity) + all_similarities
    if objective.alpha > 0:
        forward += 2 * (views * dim * hidden + global_batch * global_batch * hidden)
    return (1 + BACKWARD) * forward
