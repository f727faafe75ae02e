"""Operations of the networks, compared with the paper and with a slow sum."""

import pytest

from sepscene.models.encoders.network import settings_of
from sepscene.models.settings import Cnn14Config, TDCNppConfig
from sepscene.orchestration.config import Experiment
from sepscene.orchestration.presets import named_experiment
from sepscene.orchestration.training.flops import encoder_flops, separation_flops, step_flops


def test_the_networks_of_the_paper() -> None:
    """69 GMAC per clip of 10 s (paper.md), and CNN14's forward pass, exactly."""
    assert separation_flops(TDCNppConfig(), 160_000) == 138_624_078_848
    assert encoder_flops(named_experiment("demo", "paper")) == 3_857_973_248


@pytest.mark.parametrize(("frames", "mel_bands"), [(32, 64), (96, 64), (101, 64), (48, 32)])
def test_an_encoder_is_the_sum_of_its_layers(nano: Experiment, frames: int, mel_bands: int) -> None:
    """The last case is scale mini: one position is left before the last block, which once ended a run."""
    config = Cnn14Config.tiny(embedding_dim=40).changed({"mel_bands": mel_bands})
    total = 0
    inputs = 1
    rows = frames
    bands = config.mel_bands
    for number, channels in enumerate(config.widths, start=1):
        total += rows * bands * 9 * (inputs + channels) * channels
        inputs = channels
        if number < len(config.widths):
            rows = rows // 2
            bands = bands // 2
    experiment = nano.changed(
        {"encoder": config.model_dump(), "views.patch_seconds": frames / 100, "front_end.mel_bands": mel_bands}
    )
    assert encoder_flops(experiment) == 2 * (total + inputs * 40)


def test_a_step_is_mostly_the_encoder() -> None:
    """Per row: two views, forward and backward; the heads and all pairs of 4096 rows add 0.2 % at most."""
    paper = named_experiment("demo", "paper")
    encoder = 3 * 2 * encoder_flops(paper)
    both = step_flops(paper) / 4096
    alone = step_flops(paper.changed({"objective.alpha": 0})) / 4096
    assert 1 < alone / encoder < both / encoder < 1.002
    pairs = 3 * 2 * (2 * 128 * 512 + 4096 * 512)
    assert both - alone == pairs


def test_heads_and_losses_are_counted() -> None:
    """Each against its closed form; the triplet loss compares each anchor with one view of each pair."""
    for name, compared in {"table4/S2/simclr": 4, "table5/triplet": 1}.items():
        experiment = named_experiment(name, "tiny")
        objective = experiment.objective
        pairs = experiment.training.global_batch
        head = settings_of(experiment.encoder).embedding_dim * objective.head_hidden
        head += objective.head_hidden * objective.projection_dim
        forward = 2 * (2 * pairs * head + compared * pairs**2 * objective.projection_dim)
        assert step_flops(experiment) == 3 * (2 * pairs * encoder_flops(experiment) + forward)
