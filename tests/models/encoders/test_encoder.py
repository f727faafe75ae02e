"""The encoder and its bundle: patches, round trips, the card, and errors for bad bundles."""

import copy
import hashlib
import json
import os
from functools import cache
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file, save_file

from sepscene.models.card import read_card
from sepscene.models.config import SepsceneError
from sepscene.models.encoders.encoder import Encoder, EncoderConfig, load_encoder, save_encoder, update_card
from sepscene.models.encoders.frontend import FRONT_ENDS
from sepscene.models.settings import Cnn14Config

SMALL = Cnn14Config(widths=(2, 3, 4, 5, 6, 7), embedding_dim=5)


def small_encoder(front_end: str = "paper", **changes) -> Encoder:
    """An encoder with a few hundred weights, and batch norm statistics from noise of -80 to 0 dB."""
    return copy.deepcopy(_small_encoder(front_end, tuple(changes.items())))


@cache
def _small_encoder(front_end: str, changes: tuple[tuple[str, float], ...]) -> Encoder:
    torch.manual_seed(0)
    encoder = Encoder(EncoderConfig(front_end=FRONT_ENDS[front_end], trunk=SMALL, **dict(changes)))
    norms = [module for module in encoder.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 1.0  # the batch below sets the statistics
    with torch.no_grad():
        encoder(torch.logspace(-4, 0, 8)[:, None] * torch.randn(8, encoder.shortest_samples))
    for norm in norms:
        norm.momentum = 0.1
    return encoder.eval()


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    save_encoder(small_encoder(), tmp_path / "bundle", {})
    return tmp_path / "bundle"


@torch.inference_mode()
def test_a_clip_is_the_mean_over_its_patches() -> None:
    encoder = small_encoder()
    wave_BT = 0.1 * torch.randn(1, 40_000)
    starts = (0, 15_360, 40_000 - 15_360)
    expected = torch.stack(
        [encoder.trunk(encoder.front_end(wave_BT[:, start : start + 15_360])) for start in starts]
    ).mean(0)
    torch.testing.assert_close(encoder(wave_BT), expected, atol=1e-6, rtol=1e-5)


@torch.inference_mode()
@pytest.mark.parametrize("samples", [1, 177, 15_359])
def test_a_shorter_clip_is_padded_with_silence(samples: int) -> None:
    encoder = small_encoder()
    wave_BT = 0.1 * torch.randn(1, samples)
    padded_BT = torch.cat((wave_BT, torch.zeros(1, 15_360 - samples)), dim=1)
    torch.testing.assert_close(encoder(wave_BT), encoder.trunk(encoder.front_end(padded_BT)))


@torch.inference_mode()
def test_whole_patches_do_not_overlap_and_a_short_clip_is_one_patch() -> None:
    assert small_encoder().patches(torch.zeros(1, 2 * 15_360)).shape == (1, 2, 15_360)
    whole = small_encoder("panns_16k", patch_seconds=10.0, shortest_seconds=0.96)
    wave_BT = 0.1 * torch.randn(1, 20_000)
    torch.testing.assert_close(whole(wave_BT), whole.trunk(whole.front_end(wave_BT)))


@torch.inference_mode()
def test_splitting_the_patches_changes_nothing(monkeypatch) -> None:
    monkeypatch.setattr("sepscene.models.encoders.encoder.MAX_BATCH_SECONDS", 2)
    encoder = small_encoder()
    patches_BT = 0.1 * torch.randn(5, 15_360)
    whole = encoder.trunk(encoder.front_end(patches_BT))
    torch.testing.assert_close(encoder.encode_patches(patches_BT), whole, atol=1e-6, rtol=1e-5)


def test_training_computes_the_batch_norm_over_the_whole_batch(monkeypatch) -> None:
    monkeypatch.setattr("sepscene.models.encoders.encoder.MAX_BATCH_SECONDS", 2)
    encoder = small_encoder().train()
    patches_BT = 0.1 * torch.randn(5, 15_360)
    mean = encoder.front_end(patches_BT).mean(dim=(0, 1))
    before = encoder.trunk.get_buffer("bn0.running_mean").clone()
    encoder(patches_BT)
    torch.testing.assert_close(encoder.trunk.bn0.running_mean, 0.9 * before + 0.1 * mean)


def test_a_bundle_round_trips(tmp_path: Path) -> None:
    encoder = small_encoder("panns_32k", patch_seconds=2.0, shortest_seconds=0.5)
    digest = save_encoder(encoder, tmp_path, {"license": "CC-BY-4.0"})
    loaded = load_encoder(tmp_path)
    wave_BT = 0.1 * torch.randn(1, 70_000)
    assert loaded.config == encoder.config
    assert (loaded.sample_rate, loaded.embedding_dim, loaded.training) == (32_000, 5, False)
    assert torch.equal(loaded(wave_BT), encoder(wave_BT))
    assert digest == hashlib.sha256((tmp_path / "model.safetensors").read_bytes()).hexdigest()
    assert save_encoder(loaded, tmp_path / "again", {}) == digest
    assert sorted(path.name for path in (tmp_path / "again").iterdir()) == [
        "README.md",
        "config.json",
        "model.safetensors",
    ]


def test_the_card_lists_known_and_missing_facts(tmp_path: Path) -> None:
    card = {
        "data": "320 clips of ESC-10",
        "combination": ["S2", "N"],
        "metrics": {"shallow_map": {"value": 0.31, "low": 0.3, "high": 0.32}, "qbe_map": {"value": 0.5}},
        "versions": {"torch": "2.11"},
        "license": "Apache-2.0",
    }
    save_encoder(small_encoder(), tmp_path, card)
    text = (tmp_path / "README.md").read_text()
    for line in (
        "license: Apache-2.0",
        "- data: 320 clips of ESC-10",
        "- combination: S2, N",
        "- losses: not recorded",
        "| shallow_map | 0.3100 | 0.3000 to 0.3200 |",
        "| qbe_map | 0.5000 | not recorded |",
        "- torch: 2.11",
    ):
        assert line in text.splitlines()
    assert json.loads((tmp_path / "config.json").read_text())["metadata"] == card


def test_metrics_are_added_to_the_card_later(bundle: Path) -> None:
    save_encoder(small_encoder(), bundle, {"data": "noise", "steps": 7})
    weights = (bundle / "model.safetensors").read_bytes()
    update_card(bundle, {"metrics": {"shallow_map": {"value": 0.31, "low": 0.3, "high": 0.32}}, "steps": 8})
    text = (bundle / "README.md").read_text().splitlines()
    assert {"- data: noise", "- steps: 8", "| shallow_map | 0.3100 | 0.3000 to 0.3200 |"} <= set(text)
    assert (bundle / "model.safetensors").read_bytes() == weights
    assert load_encoder(bundle).config == small_encoder().config


def _truncate(bundle: Path) -> None:
    weights = bundle / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])


def _flip_one_bit(bundle: Path) -> None:
    content = bytearray((bundle / "model.safetensors").read_bytes())
    content[-5] ^= 1
    (bundle / "model.safetensors").write_bytes(content)


def _update_checksum(bundle: Path, **changes) -> None:
    """Update the checksum of changed weights, and change other fields of the card."""
    config = json.loads((bundle / "config.json").read_text())
    config["sha256"] = hashlib.sha256((bundle / "model.safetensors").read_bytes()).hexdigest()
    (bundle / "config.json").write_text(json.dumps(config | changes))


def _spoil(bundle: Path) -> None:
    tensors = load_file(bundle / "model.safetensors")
    tensors["embedding.bias"][0] = float("nan")
    save_file(tensors, bundle / "model.safetensors")
    _update_checksum(bundle)


def _not_safetensors(bundle: Path) -> None:
    (bundle / "model.safetensors").write_bytes(b"\x80\x04not a safetensors file")
    _update_checksum(bundle)


def _other_architecture(bundle: Path) -> None:
    config = small_encoder().config.model_dump(mode="json")
    config["trunk"]["widths"] = [2, 3, 4, 5, 6, 8]
    _update_checksum(bundle, config=config)


def _other_layout(bundle: Path) -> None:
    _update_checksum(bundle, format="sepscene-separator-1")


def _cut_config(bundle: Path) -> None:
    (bundle / "config.json").write_text((bundle / "config.json").read_text()[:80])


def _unknown_field(bundle: Path) -> None:
    config = small_encoder().config.model_dump(mode="json")
    _update_checksum(bundle, config=config | {"front_end": {"sample_rate": 8000}})


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_truncate, r"model\.safetensors is damaged.*SHA-256"),
        (_flip_one_bit, r"model\.safetensors is damaged.*SHA-256"),
        (_spoil, r"embedding\.bias contains NaN or infinite.*earlier one"),
        (_not_safetensors, "not a safetensors file"),
        (_other_architecture, r"doesn't fit a Cnn14.*conv_block6.*has shape \(7,.*not \(8,"),
        (
            lambda bundle: _update_checksum(bundle, sha256=None),
            r"config\.json.*sha256: Input should be a valid string",
        ),
        (_other_layout, "format: Input should be 1"),
        (_cut_config, r"config\.json is damaged.*not valid JSON"),
        (_unknown_field, r"does not define an encoder.*highest_hz 7500 is above half of sample_rate 8000"),
        (lambda bundle: (bundle / "model.safetensors").unlink(), "not complete"),
        (lambda bundle: (bundle / "config.json").unlink(), "give the folder of a separator or an encoder"),
    ],
)
def test_an_error_names_the_bad_bundle_and_the_fault(bundle: Path, damage, message: str) -> None:
    damage(bundle)
    with pytest.raises(SepsceneError, match=message) as caught:
        load_encoder(bundle)
    assert str(bundle) in str(caught.value)


def test_a_bundle_of_version_0_2_is_read(bundle: Path) -> None:
    card = json.loads((bundle / "config.json").read_text())
    old = {
        "format": "sepscene-encoder-1",
        "sha256": card["sha256"],
        "config": card["config"],
        "card": {"data": "noise"},
    }
    (bundle / "config.json").write_text(json.dumps(old))
    assert load_encoder(bundle).config == small_encoder().config
    update_card(bundle, {"steps": 8})
    assert read_card(bundle).metadata == {"data": "noise", "steps": 8}


def test_sizes_of_a_card_are_checked_before_anything_is_built(bundle: Path) -> None:
    config = small_encoder().config.model_dump(mode="json")
    for sizes, message in (
        ({"widths": [2, 3, 4, 5, 60_000, 60_000]}, r"has shape .*not \(60000, 5, 3, 3\)"),
        ({"widths": [2, 3, 4, 5, 6, 10**9]}, "from 1 to 65536"),
        ({"embedding_dim": 10**12}, "less than or equal"),
    ):
        _update_checksum(bundle, config=config | {"trunk": config["trunk"] | sizes})
        with pytest.raises(SepsceneError, match=message):
            load_encoder(bundle)
    (bundle / "config.json").write_text(" " * (1 << 20) + "{}")
    with pytest.raises(SepsceneError, match="has more than"):
        load_encoder(bundle)


def test_inference_builds_no_graph_and_training_does(bundle: Path) -> None:
    encoder = load_encoder(bundle)
    wave_BT = 0.1 * torch.randn(2, 16_000)
    assert not encoder(wave_BT).requires_grad
    assert encoder.train()(wave_BT).requires_grad


def test_nan_weights_are_not_saved(tmp_path: Path) -> None:
    encoder = small_encoder()
    encoder.trunk.embedding.weight.data[0, 0] = float("inf")
    with pytest.raises(SepsceneError, match=r"embedding\.weight"):
        save_encoder(encoder, tmp_path / "bundle", {})
    assert not (tmp_path / "bundle").exists()


@pytest.mark.parametrize(
    ("change", "advice"),
    [
        ({"trunk": Cnn14Config(mel_bands=128)}, "front_end.mel_bands 64 and the encoder's mel_bands 128 differ"),
        ({"patch_seconds": 0.5}, "shortest_seconds is longer than patch_seconds"),
        ({"patch_seconds": 0.3, "shortest_seconds": 0.3}, "30 frames, the encoder needs 32: lengthen"),
    ],
)
def test_parts_that_do_not_fit_are_rejected(change: dict, advice: str) -> None:
    with pytest.raises(ValidationError, match=advice):
        EncoderConfig(**change)


def test_clips_of_a_wrong_shape_are_rejected() -> None:
    with pytest.raises(SepsceneError, match=r"\(B, T\), clips by samples, not \(15360,\)"):
        small_encoder()(torch.zeros(15_360))


@pytest.mark.slow
def test_a_bundle_is_downloaded_from_mlflow(bundle: Path, tmp_path: Path, monkeypatch) -> None:
    import mlflow

    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    mlflow.set_tracking_uri(os.environ["MLFLOW_TRACKING_URI"])
    experiment = mlflow.create_experiment("bundles", artifact_location=str(tmp_path / "artifacts"))
    with mlflow.start_run(experiment_id=experiment) as run:
        mlflow.log_artifacts(str(bundle), "encoder")
    wave_BT = 0.1 * torch.randn(1, 16_000)
    fetched = load_encoder(f"runs:/{run.info.run_id}/encoder")
    assert torch.equal(fetched(wave_BT), load_encoder(bundle)(wave_BT))
    with pytest.raises(SepsceneError, match="cannot be downloaded"):
        load_encoder("runs:/0123456789abcdef/encoder")
