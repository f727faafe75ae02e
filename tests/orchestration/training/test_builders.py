"""The networks of an experiment and their initial weights."""

import json
from pathlib import Path

import pytest
import torch

from sepscene.models.config import SepsceneError
from sepscene.models.encoders.encoder import Encoder, EncoderConfig, load_encoder, save_encoder
from sepscene.orchestration.config import Experiment
from sepscene.orchestration.training.builders import build_objective, check_start, encoder_of, start_from


@pytest.fixture
def bundle(nano: Experiment, tmp_path: Path) -> Path:
    """An encoder as `sepscene encoder import` writes it: with other weights and a classifier."""
    torch.manual_seed(7)
    trunk = nano.encoder.changed({"classes": 5})
    config = EncoderConfig(front_end=nano.front_end, trunk=trunk, patch_seconds=10.0)
    save_encoder(Encoder(config), tmp_path / "theirs", {})
    return tmp_path / "theirs"


def test_a_start_encoder_sets_the_trunk_but_not_the_heads(nano: Experiment, bundle: Path) -> None:
    fresh = build_objective(nano)
    started = build_objective(nano)
    start_from(started, bundle)
    theirs = load_encoder(bundle).trunk.state_dict()
    for name, weight in started.trunk.state_dict().items():
        assert torch.equal(weight, theirs[name]), name
    for name, weight in started.terms.state_dict().items():
        assert torch.equal(weight, fresh.terms.state_dict()[name]), name
    check_start(nano.changed({"training.start_encoder": str(bundle)}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"encoder.embedding_dim": 8}, r"encoder\.embedding_dim is 8, must be 16"),
        ({"front_end.hop_samples": 200}, r"front_end\.hop_samples is 200, must be 160"),
        ({"encoder.activation": "relu"}, r"encoder\.activation is 'relu', must be 'none'"),
    ],
)
def test_a_start_encoder_that_does_not_fit_is_refused(
    nano: Experiment, bundle: Path, changes: dict[str, object], message: str
) -> None:
    with pytest.raises(SepsceneError, match=message):
        check_start(nano.changed({"training.start_encoder": str(bundle), **changes}))


def test_a_damaged_or_missing_start_encoder_is_refused(nano: Experiment, bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(SepsceneError, match=r"nowhere.config\.json is missing or cannot be read"):
        check_start(nano.changed({"training.start_encoder": str(tmp_path / "nowhere")}))
    (bundle / "model.safetensors").write_bytes(b"torn")
    with pytest.raises(SepsceneError, match="damaged"):
        start_from(build_objective(nano), bundle)
    description = json.loads((bundle / "config.json").read_text())
    (bundle / "config.json").write_text(json.dumps({**description, "format": "other"}))
    with pytest.raises(SepsceneError, match=r"config\.json is not the description of .* format: Input should be 1"):
        check_start(nano.changed({"training.start_encoder": str(bundle)}))


def test_the_triplet_baseline_trains_its_loss(nano: Experiment) -> None:
    triplet = nano.changed({"objective.similarity": "triplet", "objective.alpha": 0})
    views = torch.randn(2, 6, 96, 64)
    losses = []
    for margin in (0.3, 0.7):
        result = build_objective(triplet.changed({"objective.triplet_margin": margin}))(*views)
        result.loss.backward()
        losses.append(result.loss.item())
    # At most 4, the largest squared distance on the unit sphere, and the margin.
    assert 0 < losses[0] < 4.3
    assert losses[0] < losses[1] <= losses[0] + 0.4 + 1e-6
    assert encoder_of(triplet, None).embedding_dim == 16
