"""The formulae agree with operations counted one by one, without computing anything: on the meta device."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from sepscene.models.encoders.cnn14 import Cnn14
from sepscene.models.separators.tdcnpp import TDCNpp
from sepscene.models.settings import Cnn14Config, TDCNppConfig
from sepscene.orchestration.config import Objective
from sepscene.orchestration.training.flops import encoder_flops, separation_flops, step_flops


def counted(module: torch.nn.Module, shape: tuple[int, ...], backward: bool = False) -> int:
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        output = module(torch.empty(shape))
        if backward:
            output.sum().backward()
    return counter.get_total_flops()


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"sources": 4, "skip_residual": True, "repeats": 3},
        {"consistency": "uniform", "window_samples": 64, "hop_samples": 16},
        {"basis": "stft", "consistency": "magsq", "sources": 3},
    ],
)
@pytest.mark.parametrize("samples", [16_000, 12_345])
def test_separation(changes, samples):
    config = TDCNppConfig.tiny(**changes)
    with torch.device("meta"):
        separator = TDCNpp(config)
    assert separation_flops(config, samples) == counted(separator, (1, samples))


def test_the_networks_of_the_paper():
    """69 GMAC a clip of 10 s (paper.md), and CNN14's forward and backward, to the last operation."""
    with torch.device("meta"):
        separator, trunk = TDCNpp(TDCNppConfig()), Cnn14(Cnn14Config())
    assert separation_flops(TDCNppConfig(), 160_000) == counted(separator, (1, 160_000)) == 138_624_078_848
    forward = encoder_flops(Cnn14Config(), 96)
    assert 3 * forward == counted(trunk, (1, 96, 64), backward=True) == 3 * 3_857_973_248


@pytest.mark.parametrize("frames", [32, 96, 101])
def test_encoder(frames):
    config = Cnn14Config.tiny(embedding_dim=40)
    with torch.device("meta"):
        trunk = Cnn14(config)
    assert encoder_flops(config, frames) == counted(trunk, (1, frames, 64))


def test_a_step_is_mostly_the_encoder():
    """Per row: two views, forward and backward; the heads and all pairs of 4096 rows add 0.2 % at most."""
    encoder = 3 * 2 * encoder_flops(Cnn14Config(), 96)
    both = step_flops(Cnn14Config(), Objective(), 96, 4096) / 4096
    alone = step_flops(Cnn14Config(), Objective(alpha=0.0), 96, 4096) / 4096
    assert 1 < alone / encoder < both / encoder < 1.002
    pairs = 3 * 2 * (2 * 128 * 512 + 4096 * 512)
    assert both - alone == pairs
