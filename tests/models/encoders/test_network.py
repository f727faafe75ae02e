"""The interface of encoder networks, and custom encoders in bundles."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from sepscene.models.card import read_card
from sepscene.models.config import SepsceneError
from sepscene.models.custom import CustomEncoder
from sepscene.models.encoders import hear
from sepscene.models.encoders.encoder import Encoder, EncoderConfig, load_encoder, read_encoder_config, save_encoder
from sepscene.models.encoders.importer import export_panns
from sepscene.models.encoders.network import EncoderNetwork, build_network, check_network, settings_of, with_defaults
from sepscene.models.names import trust_code
from sepscene.models.settings import Cnn14Config, FrontEndConfig, PatchTransformerConfig
from tests.custom_code import write_package


@pytest.fixture
def mark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Custom encoders in the package netlab, which is not trusted. The file `mark` exists once it is imported."""
    return write_package(tmp_path, "netlab", monkeypatch)


def custom(name: str, **options: object) -> CustomEncoder:
    """A custom encoder whose code is trusted."""
    trust_code(f"netlab.nets:{name}")
    return CustomEncoder.model_validate({"use": f"netlab.nets:{name}", **options})


def small_transformer() -> PatchTransformerConfig:
    return PatchTransformerConfig(width=8, layers=1, heads=2, embedding_dim=5)


@pytest.mark.parametrize("which", ["cnn14", "patch-transformer", "MelNet", "WaveNet", "Fixed"])
def test_encoders_of_all_kinds_round_trip(mark: Path, tmp_path: Path, which: str) -> None:
    built_in = {
        "cnn14": Cnn14Config(widths=(2, 2, 2, 2, 2, 2), embedding_dim=5),
        "patch-transformer": small_transformer(),
    }
    trunk = built_in.get(which) or custom(which, size=3, embedding_dim=5)
    encoder = Encoder(EncoderConfig(trunk=trunk)).eval()
    assert isinstance(encoder.trunk, EncoderNetwork) and with_defaults(trunk) == encoder.config.trunk
    save_encoder(encoder, tmp_path / "bundle", {"title": "any"})
    again = load_encoder(tmp_path / "bundle")
    wave_BT = torch.randn(2, 40_000) / 10
    assert torch.equal(again(wave_BT), encoder(wave_BT)) and again.embedding_dim == 5
    assert again.config == encoder.config == read_encoder_config(tmp_path / "bundle")
    model = hear.load_model(str(tmp_path / "bundle"))
    embedded, times = hear.get_timestamp_embeddings(wave_BT, model)
    assert embedded.shape == (2, times.shape[1], model.timestamp_embedding_size)
    readme = (tmp_path / "bundle" / "README.md").read_text()
    assert encoder.config.trunk.description in readme and ("log-mel with" in readme) == (which != "WaveNet")
    if which != "cnn14":
        with pytest.raises(SepsceneError, match="only a CNN14 can be exported"):
            export_panns(encoder, tmp_path / "panns.pth")


def test_settings_with_an_alias_are_saved(mark: Path, tmp_path: Path) -> None:
    encoder = Encoder(EncoderConfig(trunk=custom("Aliased", units=3))).eval()
    save_encoder(encoder, tmp_path / "bundle", {})
    trunk: Any = load_encoder(tmp_path / "bundle").trunk
    assert trunk.config.size == 3 and encoder.config.trunk.options == {"units": 3, "embedding_dim": 6}


def test_tied_weights_and_complex_buffers_are_saved(mark: Path, tmp_path: Path) -> None:
    encoder = Encoder(EncoderConfig(trunk=custom("Tied"))).eval()
    save_encoder(encoder, tmp_path / "bundle", {})
    again = load_encoder(tmp_path / "bundle")
    wave_BT = torch.randn(2, 40_000) / 10
    assert torch.equal(again(wave_BT), encoder(wave_BT))
    trunk: Any = again.trunk
    assert trunk.again.weight is trunk.layers[0].weight, "still tied"
    trunk.phase[0] = torch.complex(torch.tensor(0.0), torch.tensor(float("nan")))
    with pytest.raises(SepsceneError, match="phase contains NaN"):
        save_encoder(again, tmp_path / "bundle", {})


def test_a_bundle_imports_nothing_without_trust(
    mark: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    save_encoder(Encoder(EncoderConfig(trunk=custom("MelNet"))), tmp_path / "bundle", {})
    card = read_card(tmp_path / "bundle")
    assert card.architecture == "own-encoder"
    assert card.metadata["code"] == {"use": "netlab.nets:MelNet", "package": "netlab", "version": "1.4"}
    monkeypatch.setenv("SEPSCENE_TRUSTED_CODE", "")
    for module in ("netlab", "netlab.nets"):
        monkeypatch.delitem(sys.modules, module)
    mark.unlink()
    with pytest.raises(SepsceneError, match=r"encoder netlab.nets:MelNet is code .* --trust-code"):
        load_encoder(tmp_path / "bundle")
    with pytest.raises(SepsceneError, match="is code that does not come with"):
        hear.load_model(str(tmp_path / "bundle"))
    assert not mark.exists()
    # A version of another length: Python reuses a compiled file if the source has the same size and changed less than
    # a second ago.
    (mark.parent / "__init__.py").write_text('__version__ = "2.0.0"\n')
    assert load_encoder(tmp_path / "bundle", trust_code=True).embedding_dim == 6 and mark.exists()
    assert "saved with version 1.4 of netlab, but version 2.0.0 is installed" in caplog.text


def test_bundles_of_cnn14_are_as_older_versions_wrote_them(tmp_path: Path) -> None:
    config = EncoderConfig(trunk=Cnn14Config(widths=(2, 2, 2, 2, 2, 2)))
    assert "use" not in json.loads(config.model_dump_json())["trunk"]
    assert EncoderConfig.model_validate(config.model_dump(mode="json")) == config


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("MelNet", {"size": 0}, r"encoder netlab.nets:MelNet: size: Input should be greater than or equal to 1"),
        (
            "MelNet",
            {"siez": 9},
            r"MelNet: siez: unknown field \(did you mean size\?\); known fields: size, embedding_dim",
        ),
        ("Wrong", {}, r"returns a tensor of shape \(2, 3\) for two patches, not finite numbers of shape \(2, 6\)"),
        ("NoSettings", {}, "needs a class attribute Config, a pydantic model"),
        ("NetConfig", {}, r"is not a subclass of torch\.nn\.Module"),
        ("Nothing", {}, "cannot be imported"),
    ],
)
def test_a_bad_encoder_is_reported_before_anything_starts(
    mark: Path, name: str, options: dict[str, object], message: str
) -> None:
    with pytest.raises(SepsceneError, match=message):
        check_network(custom(name, **options), FrontEndConfig(), 0.96)


def test_an_encoder_that_draws_random_numbers_causes_a_warning(mark: Path) -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    assert check_network(custom("MelNet"), FrontEndConfig(), 0.96) == ""
    assert "draws random numbers" in check_network(custom("Dropping"), FrontEndConfig(), 0.96)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_built_in_encoder_must_fit_the_front_end() -> None:
    with pytest.raises(SepsceneError, match="the encoder's mel_bands 64 differ"):
        check_network(small_transformer(), FrontEndConfig(mel_bands=32), 0.96)
    with pytest.raises(SepsceneError, match="has 10 frames, the encoder needs 16"):
        check_network(small_transformer(), FrontEndConfig(), 0.1)
    torch.manual_seed(0)
    assert settings_of(small_transformer()).embedding_dim == build_network(small_transformer()).config.embedding_dim
