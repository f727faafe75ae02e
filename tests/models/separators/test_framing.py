"""TensorFlow checkpoints of any sample rate, compared with the definition in float64; assumed settings are recorded."""

import json

import numpy as np
import pytest
import torch

from sepscene.models.card import read_card
from sepscene.models.config import CheckpointError
from sepscene.models.separators.folder import load_separator
from sepscene.models.separators.importer import ImportHints, import_separator
from tests.models.separators.tensorflow_files import draw_variables, separate, write_bundle

PUBLISHED = [(8_000, 20, 10), (22_050, 55, 28), (32_000, 80, 40), (44_100, 110, 55), (48_000, 120, 60)]
"""Sample rate; window of 2.5 ms and hop of 1.25 ms, rounded separately."""


def imported(tmp_path, rate, window, hints):
    """Import a checkpoint with a window of this many samples; return the separator, its card and the variables."""
    variables = draw_variables(window=window, coefficients=7, blocks=4, sources=3)
    write_bundle(tmp_path / "model.ckpt-9", variables)
    import_separator(tmp_path / "model.ckpt-9", rate, tmp_path / "out", ImportHints(blocks=2, **hints))
    return load_separator(tmp_path / "out"), read_card(tmp_path / "out"), variables


def worst_difference(separator, variables, hop):
    """Largest relative difference from the definition, for clips that end with a frame and clips that do not."""
    worst = 0.0
    for samples in (600, 1_001):
        wave_T = np.random.default_rng(samples).normal(size=samples, scale=0.3).astype(np.float32)
        expected_ST = separate(variables, wave_T, hop, blocks_per_repeat=2)
        with torch.no_grad():
            found_ST = separator(torch.from_numpy(wave_T)[None])[0].numpy()
        worst = max(worst, float(np.abs(found_ST - expected_ST).max() / np.abs(expected_ST).max()))
    return worst


@pytest.mark.parametrize(("rate", "window", "hop"), PUBLISHED)
def test_the_published_window_determines_the_hop(tmp_path, rate, window, hop):
    separator, card, variables = imported(tmp_path, rate, window, {})
    assert (separator.config.window_samples, separator.config.hop_samples) == (window, hop)
    assert card.metadata["assumed"] == []
    assert worst_difference(separator, variables, hop) < 3e-6
    if hop != window // 2:
        assert worst_difference(separator, variables, window // 2) > 0.1


@pytest.mark.parametrize(
    ("rate", "window", "hop", "message"), [(22_050, 165, 83, "7.5 ms"), (16_000, 33, 16, "2.062 ms")]
)
def test_the_hop_of_another_window_is_assumed_and_recorded(tmp_path, rate, window, hop, message):
    separator, card, _ = imported(tmp_path, rate, window, {})
    assert separator.config.hop_samples == hop
    assert card.metadata["assumed"] == [f"hop_samples {hop} (half of the window's {message}, at {rate} Hz)"]
    separator, card, variables = imported(tmp_path, rate, window, {"hop_samples": 20})
    assert card.metadata["assumed"] == []
    assert worst_difference(separator, variables, 20) < 3e-6


def test_a_configuration_next_to_the_checkpoint_determines_the_hop(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"sample_rate": 22_050, "hparams": {"ws": 0.0025, "hs": 0.001}}))
    separator, card, variables = imported(tmp_path, 22_050, 55, {})
    assert separator.config.hop_samples == 22 and card.metadata["assumed"] == []
    assert worst_difference(separator, variables, 22) < 3e-6


def test_a_window_that_contradicts_the_weights_is_rejected(tmp_path):
    with pytest.raises(CheckpointError, match="learned window of 55 samples, not window_samples 40"):
        imported(tmp_path, 22_050, 55, {"window_samples": 40})
