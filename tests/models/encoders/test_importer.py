"""Import and export of PANNs' checkpoints: PANNs' output, round trips, and errors for bad files."""

import json
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from sepscene.models.card import read_card
from sepscene.models.config import SepsceneError
from sepscene.models.encoders.cnn14 import Cnn14
from sepscene.models.encoders.encoder import Encoder, EncoderConfig, load_encoder
from sepscene.models.encoders.frontend import FRONT_ENDS, LogMel
from sepscene.models.encoders.importer import export_panns, front_end_buffers, import_encoder
from sepscene.models.settings import Cnn14Config
from tests.models.encoders.test_cnn14 import reference_state


def _panns_state(front_end: str | None = "panns_16k") -> dict[str, Tensor]:
    """The state dict of a narrow CNN14, as PANNs' own classes would save it."""
    torch.manual_seed(0)
    state = Cnn14(Cnn14Config(widths=(2, 3, 4, 5, 6, 7), embedding_dim=7, classes=3)).state_dict()
    names = {"embedding": "fc1", "tags": "fc_audioset"}
    state = {names.get(name.split(".")[0], name.split(".")[0]) + name[name.index(".") :]: state[name] for name in state}
    return (front_end_buffers(FRONT_ENDS[front_end]) if front_end else {}) | state


def _saved(tmp_path: Path, state: object) -> Path:
    torch.save(state, tmp_path / "Cnn14.pth")
    return tmp_path / "Cnn14.pth"


@pytest.mark.slow
def test_a_published_file_gives_the_reference_output(shared_dir, tmp_path: Path) -> None:
    reference = shared_dir / "reference"
    vectors = np.load(reference / "cnn14_panns.npz")
    file = _saved(tmp_path, {"model": reference_state(reference)})
    import_encoder(file, "panns_16k", tmp_path / "bundle")
    encoder = load_encoder(tmp_path / "bundle")

    def close(found: Tensor, name: str, relative: float = 1e-4) -> None:
        np.testing.assert_allclose(found.numpy(), vectors[name], rtol=relative, atol=relative * vectors[name].max())

    with torch.inference_mode():
        close(encoder.trunk.pooled(torch.from_numpy(vectors["logmel"])), "pooled")
        close(encoder.trunk(torch.from_numpy(vectors["logmel"])), "embedding")
        h_BD = encoder(torch.from_numpy(vectors["waveform"]))
        close(h_BD, "embedding")
        close(encoder.trunk.clipwise(h_BD), "clipwise")
    assert encoder.embedding_dim == 2048


@pytest.mark.parametrize("front_end", ["panns_16k", "panns_32k"])
@pytest.mark.parametrize("with_buffers", [True, False])
@pytest.mark.parametrize("wrapped", [True, False])
def test_files_with_and_without_buffers_are_imported(
    tmp_path: Path, front_end: str, with_buffers: bool, wrapped: bool
) -> None:
    state = _panns_state(front_end if with_buffers else None)
    digest = import_encoder(_saved(tmp_path, {"model": state} if wrapped else state), front_end, tmp_path / "out")
    encoder = load_encoder(tmp_path / "out")
    assert (encoder.sample_rate, encoder.embedding_dim) == (FRONT_ENDS[front_end].sample_rate, 7)
    assert encoder.config.trunk.activation == "relu" and encoder.config.trunk.classes == 3
    assert torch.equal(encoder.trunk.embedding.weight, state["fc1.weight"])
    assert torch.equal(encoder.trunk.get_parameter("tags.weight"), state["fc_audioset.weight"])
    assert len(digest) == 64


@pytest.mark.parametrize(
    ("front_end", "trunk"),
    [
        ("paper", Cnn14Config(widths=(2, 3, 4, 5, 6, 7), embedding_dim=5)),
        ("panns_32k", Cnn14Config(widths=(2, 3, 4, 5, 6, 7), embedding_dim=5, activation="relu", classes=2)),
    ],
)
def test_an_exported_encoder_round_trips(tmp_path: Path, front_end: str, trunk: Cnn14Config) -> None:
    torch.manual_seed(0)
    encoder = Encoder(EncoderConfig(front_end=FRONT_ENDS[front_end], trunk=trunk)).eval()
    export_panns(encoder, tmp_path / "exported.pth")
    import_encoder(tmp_path / "exported.pth", front_end, tmp_path / "out")
    loaded = load_encoder(tmp_path / "out")
    wave_BT = 0.1 * torch.randn(1, 16_000)
    assert loaded.config == encoder.config
    assert torch.equal(loaded(wave_BT), encoder(wave_BT))
    with pytest.raises(SepsceneError, match=r"another front-end|was not trained with"):
        import_encoder(tmp_path / "exported.pth", "panns_16k", tmp_path / "other")


def test_exported_names_and_shapes_are_those_of_panns(tmp_path: Path, shared_dir) -> None:
    keys = json.loads((shared_dir / "reference" / "cnn14_keys.json").read_text())
    narrow = Cnn14Config(widths=(2, 3, 4, 5, 6, 7), embedding_dim=7, activation="relu", classes=3)
    export_panns(Encoder(EncoderConfig(front_end=FRONT_ENDS["panns_16k"], trunk=narrow)), tmp_path / "exported.pth")
    model = torch.load(tmp_path / "exported.pth", weights_only=True)["model"]
    assert model.keys() == keys.keys()
    for name in (name for name in keys if name.startswith(("spectrogram", "logmel", "bn0"))):
        assert list(model[name].shape) == keys[name]


def test_the_exported_buffers_compute_the_front_end() -> None:
    """PANNs applies its buffers as convolutions; the log-mel must be the same."""
    config = FRONT_ENDS["panns_16k"]
    wave_BT = 0.1 * torch.randn(2, 16_000)
    buffers = front_end_buffers(config)
    padded = torch.nn.functional.pad(wave_BT[:, None], (256, 256), mode="reflect")
    real, imaginary = (
        torch.nn.functional.conv1d(padded, buffers[f"spectrogram_extractor.stft.conv_{part}.weight"], stride=160)
        for part in ("real", "imag")
    )
    mel_BLF = (real**2 + imaginary**2).transpose(1, 2) @ buffers["logmel_extractor.melW"]
    torch.testing.assert_close(10 * mel_BLF.log10(), LogMel(config)(wave_BT), atol=2e-3, rtol=0)


class _Trap:
    """Creates a folder when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self):
        return os.mkdir, (str(self.target),)


def _without(name: str) -> dict[str, Tensor]:
    state = _panns_state()
    del state[name]
    return state


@pytest.mark.parametrize(
    ("checkpoint", "front_end", "message"),
    [
        ({"model": _panns_state("panns_32k")}, "panns_16k", "was trained with panns_32k, use that"),
        (
            {"model": _panns_state("panns_16k")},
            "panns_32k",
            r"not trained.*\(32000 Hz\).*panns_16k, use that",
        ),
        ({"model": _panns_state()}, "panns_8k", "no front-end preset 'panns_8k' .*known names: paper"),
        (
            {"model": _without("conv_block6.conv1.weight")},
            "panns_16k",
            "not a CNN14: conv_block6.conv1.weight is missing",
        ),
        (
            {"model": _without("conv_block2.bn1.bias")},
            "panns_16k",
            "conv_block2.bn1.bias is missing",
        ),
        ({"model": _panns_state() | {"att.weight": torch.zeros(1)}}, "panns_16k", "att.weight is unknown"),
        (
            {"model": _panns_state() | {"fc1.bias": torch.zeros(3)}},
            "panns_16k",
            r"embedding.bias has shape \(3,\), not \(7,\)",
        ),
        (
            {"model": _panns_state() | {"fc1.bias": torch.full((7,), torch.nan)}},
            "panns_16k",
            "embedding.bias contains NaN",
        ),
        (
            {"model": _panns_state() | {"bn0.weight": torch.tensor(1.0)}},
            "panns_16k",
            "not a CNN14: a weight that gives its sizes has no axes",
        ),
        ({"model": 3}, "panns_16k", "contains a dict without a state dict"),
        ([1, 2], "panns_16k", "contains a list"),
    ],
)
def test_an_error_names_the_file_and_the_fault(
    tmp_path: Path, checkpoint: object, front_end: str, message: str
) -> None:
    file = _saved(tmp_path, checkpoint)
    with pytest.raises(SepsceneError, match=message):
        import_encoder(file, front_end, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "model.module.", "net."])
@pytest.mark.parametrize("container", ["model", "state_dict"])
def test_the_prefix_of_a_wrapper_is_removed(tmp_path: Path, prefix: str, container: str) -> None:
    state = _panns_state()
    file = _saved(tmp_path, {container: {prefix + name: tensor for name, tensor in state.items()}})
    wrapped = import_encoder(file, "panns_16k", tmp_path / "wrapped")
    assert wrapped == import_encoder(_saved(tmp_path, state), "panns_16k", tmp_path / "bare")


def test_assumed_settings_are_in_the_card(tmp_path: Path) -> None:
    import_encoder(_saved(tmp_path, _panns_state(None)), "panns_32k", tmp_path / "out")
    assumed = read_card(tmp_path / "out").metadata["assumed"]
    assert [clause.split(" (")[0] for clause in assumed] == [
        "front_end panns_32k",
        "patch_seconds 10",
        "shortest_seconds 0.96",
    ]


def test_a_file_that_claims_more_than_it_contains_is_rejected(tmp_path: Path) -> None:
    state = _panns_state() | {"fc1.weight": torch.zeros(1).expand(100_000, 100_000)}
    with pytest.raises(SepsceneError, match="claims tensors of"):
        import_encoder(_saved(tmp_path, state), "panns_16k", tmp_path / "out")


def test_malicious_pickles_are_not_executed(tmp_path: Path) -> None:
    file = _saved(tmp_path, {"model": _panns_state(), "sampler": _Trap(tmp_path / "boom")})
    with pytest.raises(SepsceneError, match="are not unpickled, for safety"):
        import_encoder(file, "panns_16k", tmp_path / "out")
    (tmp_path / "old.pth").write_bytes(pickle.dumps(_Trap(tmp_path / "boom"), protocol=2))
    with pytest.raises(SepsceneError, match="are not unpickled, for safety"):
        import_encoder(tmp_path / "old.pth", "panns_16k", tmp_path / "out")
    assert not (tmp_path / "boom").exists()


def test_damaged_files_are_named(tmp_path: Path) -> None:
    content = _saved(tmp_path, {"model": _panns_state()}).read_bytes()
    flipped = bytearray(content)
    flipped[len(content) // 3] ^= 0xFF
    for name, damaged in {
        "empty.pth": b"",
        "text.pth": b"<html>404 Not Found</html>",
        "cut.pth": content[: len(content) // 2],
        "one_byte_short.pth": content[:-1],
        "flipped_bits.pth": bytes(flipped),
    }.items():
        (tmp_path / name).write_bytes(damaged)
        with pytest.raises(SepsceneError, match=rf"{name}.*download it again"):
            import_encoder(tmp_path / name, "panns_16k", tmp_path / "out")
    with pytest.raises(SepsceneError, match="cannot be read"):
        import_encoder(tmp_path / "none.pth", "panns_16k", tmp_path / "out")
