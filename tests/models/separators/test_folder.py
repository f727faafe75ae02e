"""The separator folder: round trips, and an error for each kind of damage."""

import hashlib
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from sepscene.models.card import CARD_FILE, WEIGHTS_FILE, read_card
from sepscene.models.config import CheckpointError
from sepscene.models.separators.folder import load_separator, save_separator
from sepscene.models.separators.foreign import ConvTasNetConfig, ConvTasNetSeparator
from sepscene.models.separators.tdcnpp import TDCNpp
from sepscene.models.settings import TDCNppConfig

CONFIG = TDCNppConfig(coefficients=12, bottleneck=8, hidden=16, repeats=2, blocks=2, sample_rate=8000, sources=3)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_separator(TDCNpp(CONFIG), tmp_path / "ladder/S1", {"steps": 5000})
    return tmp_path / "ladder/S1"


def rewrite(folder: Path, **changes) -> None:
    """Update the checksum of changed weights, and change other fields of the card."""
    card = json.loads((folder / CARD_FILE).read_text())
    card["sha256"] = hashlib.sha256((folder / WEIGHTS_FILE).read_bytes()).hexdigest()
    (folder / CARD_FILE).write_text(json.dumps(card | changes))


def test_a_network_round_trips(folder):
    torch.manual_seed(1)
    network = TDCNpp(CONFIG)
    digest = save_separator(network, folder, {"steps": 7})
    loaded = load_separator(folder)
    wave_BT = torch.randn(2, 500)
    assert torch.equal(loaded(wave_BT), network(wave_BT))
    assert (loaded.sample_rate, loaded.sources, loaded.training) == (8000, 3, False)
    assert read_card(folder).digest == digest
    assert read_card(folder).metadata == {"steps": 7}
    assert sorted(path.name for path in folder.parent.iterdir()) == ["S1"]  # no temporary folder is left


def test_a_conv_tasnet_round_trips(tmp_path):
    config = ConvTasNetConfig(coefficients=8, bottleneck=4, hidden=8, blocks=2, repeats=1, sources=3)
    separator = ConvTasNetSeparator(config).eval()
    save_separator(separator, tmp_path / "c", {})
    wave_BT = torch.randn(2, 301)
    assert torch.equal(load_separator(tmp_path / "c")(wave_BT), separator(wave_BT))


def test_the_digest_depends_on_weights_and_sizes_but_not_metadata(tmp_path):
    network = TDCNpp(CONFIG)
    first = save_separator(network, tmp_path / "a", {"steps": 1})
    assert save_separator(network, tmp_path / "b", {"steps": 2}) == first
    other = TDCNpp(CONFIG.changed({"sample_rate": 16000}))
    other.load_state_dict(network.state_dict())
    assert save_separator(other, tmp_path / "c", {}) != first
    with torch.no_grad():
        network.mask[0, 0] += 1e-6
    assert save_separator(network, tmp_path / "d", {}) != first


def test_loading_does_not_change_the_random_state(folder):
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    load_separator(folder)
    assert torch.equal(torch.rand(1), expected)


@pytest.mark.parametrize("position", [0, 60, -1])
def test_a_flipped_byte_is_found(folder, position):
    content = bytearray((folder / WEIGHTS_FILE).read_bytes())
    content[position] ^= 1
    (folder / WEIGHTS_FILE).write_bytes(content)
    with pytest.raises(CheckpointError, match=r"model\.safetensors is damaged"):
        load_separator(folder)


def test_truncation_is_found(folder):
    content = (folder / WEIGHTS_FILE).read_bytes()
    (folder / WEIGHTS_FILE).write_bytes(content[:-100])
    with pytest.raises(CheckpointError, match=r"model\.safetensors is damaged"):
        load_separator(folder)
    rewrite(folder)
    with pytest.raises(CheckpointError, match=r"model\.safetensors is not a safetensors file"):
        load_separator(folder)


@pytest.mark.parametrize("name", [CARD_FILE, WEIGHTS_FILE])
def test_a_missing_file_is_named(folder, name):
    (folder / name).unlink()
    with pytest.raises(CheckpointError, match=f"{name} is missing"):
        load_separator(folder)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not valid JSON"),
        ("[]", "not the description"),
        ('{"architecture": "tdcnpp"}', "sha256"),
    ],
)
def test_a_broken_description_is_named(folder, text, message):
    (folder / CARD_FILE).write_text(text)
    with pytest.raises(CheckpointError, match=message):
        load_separator(folder)


def test_an_unknown_architecture_is_named(folder):
    rewrite(folder, architecture="unet")
    with pytest.raises(CheckpointError, match=r"config\.json.*\n?.*architecture"):
        load_separator(folder)


def test_weights_outside_of_the_folder_are_rejected(folder):
    rewrite(folder, weights="../S1/model.safetensors")
    with pytest.raises(CheckpointError, match="weights"):
        load_separator(folder)


def test_weights_of_other_sizes_are_named(folder):
    rewrite(folder, config=CONFIG.model_dump() | {"hidden": 17})
    with pytest.raises(CheckpointError, match=r"blocks\.0\.dense1\.weight has shape \(16, 8\), not \(17, 8\)"):
        load_separator(folder)
    rewrite(folder, config=CONFIG.model_dump() | {"consistency": "magsq"})
    with pytest.raises(CheckpointError, match="mix_weights is unknown"):
        load_separator(folder)
    rewrite(folder, config=CONFIG.model_dump() | {"kernel": 2})
    with pytest.raises(CheckpointError, match="odd"):
        load_separator(folder)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_found(folder, value):
    weights = load_file(folder / WEIGHTS_FILE)
    weights["blocks.1.depthwise.weight"][3, 1] = value
    save_file(weights, folder / WEIGHTS_FILE)
    rewrite(folder)
    with pytest.raises(CheckpointError, match=r"model\.safetensors: weight blocks\.1\.depthwise\.weight contains NaN"):
        load_separator(folder)


def test_a_diverged_network_is_not_saved(folder):
    before = (folder / CARD_FILE).read_bytes()
    network = TDCNpp(CONFIG)
    with torch.no_grad():
        network.mask[0, 0] = float("nan")
    with pytest.raises(CheckpointError, match="mask"):
        save_separator(network, folder, {})
    assert (folder / CARD_FILE).read_bytes() == before


def test_a_folder_of_something_else_is_not_replaced(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(CheckpointError, match=r"files that do not belong to a separator or an encoder \(thesis\.tex\)"):
        save_separator(TDCNpp(CONFIG), tmp_path, {})
    assert (tmp_path / "thesis.tex").exists()


def test_an_interrupted_save_leaves_the_earlier_checkpoint(folder, monkeypatch):
    expected = load_separator(folder).state_dict()

    def fails(*_):
        raise OSError("no space left on device")

    monkeypatch.setattr("sepscene.models.weights.replace_folder", fails)
    with pytest.raises(OSError, match="no space"):
        save_separator(TDCNpp(CONFIG), folder, {})
    assert [path.name for path in folder.parent.iterdir()] == ["S1"]
    assert all(torch.equal(value, expected[name]) for name, value in load_separator(folder).state_dict().items())


def test_other_modules_are_rejected(tmp_path):
    with pytest.raises(CheckpointError, match="Linear"):
        save_separator(nn.Linear(2, 2), tmp_path / "x", {})
