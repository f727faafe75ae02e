"""Operations of the networks, against what the paper and a slow sum say."""

import pytest

from sepscene.models.settings import Cnn14Config, TDCNppConfig
from sepscene.orchestration.config import Objective
from sepscene.orchestration.training.flops import encoder_flops, separation_flops, step_flops


def test_the_networks_of_the_paper() -> None:
    """69 GMAC a clip of 10 s (paper.md), and CNN14's forward pass, to the last operation."""
    assert separation_flops(TDCNppConfig(), 160_000) == 138_624_078_848
    assert encoder_flops(Cnn14Config(), 96) == 3_857_973_248


@pytest.mark.parametrize(("frames", "mel_bands"), [(32, 64), (96, 64), (101, 64), (48, 32)])
def test_an_encoder_is_the_sum_of_its_layers(frames: int, mel_bands: int) -> None:
    """The last is scale mini's: one position is left before the last block, which ended a run of it."""
    config = Cnn14Config.tiny(embedding_dim=40, mel_bands=mel_bands)
    total, inputs, rows, bands = 0, 1, frames, config.mel_bands
    for number, channels in enumerate(config.widths, start=1):
        total += rows * bands * 9 * (inputs + channels) * channels
        inputs = channels
        if number < len(config.widths):
            rows, bands = rows // 2, bands // 2
    assert encoder_flops(config, frames) == 2 * (total + inputs * 40)


def test_a_step_is_mostly_the_encoder() -> None:
    """Per row: two views, forward and backward; the heads and all pairs of 4096 rows add 0.2 % at most."""
    encoder = 3 * 2 * encoder_flops(Cnn14Config(), 96)
    both = step_flops(Cnn14Config(), Objective(), 96, 4096) / 4096
    alone = step_flops(Cnn14Config(), Objective(alpha=0.0), 96, 4096) / 4096
    assert 1 < alone / encoder < both / encoder < 1.002
    pairs = 3 * 2 * (2 * 128 * 512 + 4096 * 512)
    assert both - alone == pairs
