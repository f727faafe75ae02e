"""CNN14: sizes, initialisation, and equality with a slow implementation."""

import copy
import json
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn
from torch.nn import functional as F

from sepscene.models.config import SepsceneError
from sepscene.models.encoders.cnn14 import Cnn14, convolve
from sepscene.models.settings import Cnn14Config


def reference_state(reference: Path) -> dict[str, Tensor]:
    """The weights of cnn14_panns.npz, drawn as in the reference: the name of a tensor is its seed."""
    state = {}
    for key, shape in json.loads((reference / "cnn14_keys.json").read_text()).items():
        if key.startswith(("spectrogram_extractor", "logmel_extractor")) or key.endswith("num_batches_tracked"):
            continue
        draws = np.random.RandomState(zlib.crc32(key.encode()))
        if key.endswith("running_var"):
            value = 0.5 + draws.random_sample(shape)
        elif key.endswith(("running_mean", "bias")):
            value = 0.1 * draws.standard_normal(shape)
        elif ".bn" in key or key.startswith("bn0"):
            value = 1 + 0.1 * draws.standard_normal(shape)
        else:
            value = draws.standard_normal(shape) * np.sqrt(2 / np.prod(shape[1:]))
        state[key] = torch.from_numpy(value.astype(np.float32))
        if key.endswith("running_var"):
            state[key.replace("running_var", "num_batches_tracked")] = torch.tensor(0)
    return state


def _plain_forward(state: dict[str, Tensor], logmel_BLF: Tensor) -> Tensor:
    """CNN14 in float64 from its description, with explicit normalisation and convolution as a sum of shifts."""
    state = {name: tensor.double() for name, tensor in state.items()}

    def norm(x_BCLF: Tensor, name: str) -> Tensor:
        def column(key: str) -> Tensor:
            return state[f"{name}.{key}"][:, None, None]

        scaled = (x_BCLF - column("running_mean")) / (column("running_var") + 1e-5).sqrt()
        return scaled * column("weight") + column("bias")

    def convolve(x_BCLF: Tensor, weight: Tensor) -> Tensor:
        frames, mels = x_BCLF.shape[2:]
        padded = F.pad(x_BCLF, (1, 1, 1, 1))
        shifted = [
            torch.einsum("bclf,oc->bolf", padded[:, :, i : i + frames, j : j + mels], weight[:, :, i, j])
            for i in range(3)
            for j in range(3)
        ]
        return torch.stack(shifted).sum(0)

    x_BCLF = norm(logmel_BLF.double().permute(0, 2, 1)[..., None], "bn0").permute(0, 3, 2, 1)
    for block in range(1, 7):
        for layer in (1, 2):
            weight = state[f"conv_block{block}.conv{layer}.weight"]
            x_BCLF = norm(convolve(x_BCLF, weight), f"conv_block{block}.bn{layer}").clamp(min=0)
        if block < 6:
            frames, mels = (size // 2 for size in x_BCLF.shape[2:])
            cut = x_BCLF[:, :, : 2 * frames, : 2 * mels]
            x_BCLF = cut.unflatten(3, (mels, 2)).mean(4).unflatten(2, (frames, 2)).mean(3)
    x_BCL = x_BCLF.mean(3)
    return (x_BCL.max(2).values + x_BCL.mean(2)) @ state["embedding.weight"].T + state["embedding.bias"]


def _perturbed(config: Cnn14Config) -> Cnn14:
    torch.manual_seed(0)
    network = Cnn14(config)
    for name, tensor in network.state_dict().items():
        if "bn" in name and tensor.is_floating_point():
            tensor.add_(0.2 * torch.rand_like(tensor))
    return network.eval()


@pytest.mark.parametrize("frames", [32, 96, 101])
def test_equals_its_description(frames: int) -> None:
    network = _perturbed(Cnn14Config(widths=(2, 3, 4, 5, 6, 7), embedding_dim=5))
    logmel_BLF = torch.randn(2, frames, 64)
    with torch.inference_mode():
        h_BD = network(logmel_BLF)
    torch.testing.assert_close(h_BD.double(), _plain_forward(network.state_dict(), logmel_BLF), atol=1e-5, rtol=1e-5)


def test_parameter_counts_are_the_papers() -> None:
    with torch.device("meta"):
        network = Cnn14(Cnn14Config())
        wide = Cnn14(Cnn14Config(embedding_dim=1024))
    total = sum(parameter.numel() for parameter in network.parameters())
    bottleneck = sum(parameter.numel() for parameter in network.embedding.parameters())
    assert (total, total - bottleneck) == (75_739_712, 75_477_440)
    assert sum(p.numel() for p in wide.parameters()) == 75_477_440 + 2049 * 1024


def test_names_and_shapes_are_those_of_panns(shared_dir) -> None:
    keys = json.loads((shared_dir / "reference" / "cnn14_keys.json").read_text())
    with torch.device("meta"):
        state = Cnn14(Cnn14Config()).state_dict()
    trunk = {key: shape for key, shape in keys.items() if not key.startswith(("spec", "logmel", "fc"))}
    assert {name: list(t.shape) for name, t in state.items() if not name.startswith("embedding")} == trunk


def test_initialisation_is_xavier_uniform_with_zero_biases() -> None:
    torch.manual_seed(0)
    network = Cnn14(Cnn14Config(widths=(64, 64, 64, 64, 64, 64), embedding_dim=64))
    weight = network.get_parameter("conv_block2.conv1.weight").detach()
    bound = (6 / (9 * 64 + 9 * 64)) ** 0.5
    assert weight.abs().max() <= bound
    assert weight.std() == pytest.approx(bound / 3**0.5, rel=0.01)
    assert network.embedding.bias.abs().max() == 0
    assert network.embedding.weight.abs().max() <= (6 / 128) ** 0.5


def test_tiny_only_narrows() -> None:
    tiny = Cnn14Config.tiny(embedding_dim=32)
    assert tiny == Cnn14Config(widths=tiny.widths, embedding_dim=32)
    assert len(tiny.widths) == 6 and max(tiny.widths) <= 128


def test_channels_last_and_bf16_agree_with_float32() -> None:
    network = _perturbed(Cnn14Config.tiny())
    logmel_BLF = torch.randn(2, 96, 64)
    with torch.inference_mode():
        expected = network(logmel_BLF)
        network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        torch.testing.assert_close(network(logmel_BLF), expected, atol=1e-5, rtol=1e-4)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            half = network(logmel_BLF).float()
    assert (half - expected).norm() < 0.03 * expected.norm()


@pytest.mark.parametrize("shape", [(1, 31, 64), (1, 96, 65)])
def test_log_mels_that_do_not_fit_are_named(shape: tuple[int, ...]) -> None:
    with pytest.raises(SepsceneError, match=r"at least 32 frames and exactly 64 bands"):
        Cnn14(Cnn14Config.tiny())(torch.zeros(shape))


@pytest.mark.parametrize(("change", "advice"), [({"widths": (1, 2, 3)}, "six"), ({"mel_bands": 16}, "below 32")])
def test_bad_sizes_are_rejected(change: dict, advice: str) -> None:
    with pytest.raises(ValidationError, match=advice):
        Cnn14Config(**change)


def test_a_network_without_classifier_says_so() -> None:
    with pytest.raises(SepsceneError, match="no classifier"):
        Cnn14(Cnn14Config.tiny()).clipwise(torch.zeros(1, 128))


@pytest.mark.parametrize("contiguous", [True, False])
def test_few_positions_are_convolved_correctly(monkeypatch, contiguous: bool) -> None:
    """Values and both gradients against the convolution in float64; a small layer uses the matrix product, too."""
    monkeypatch.setattr("sepscene.models.encoders.cnn14.MIN_CHANNEL_PAIRS", 1)
    torch.manual_seed(0)
    layer = nn.Conv2d(20, 30, 3, padding=1, bias=False)
    x_BCLF = torch.randn(4, 20, 3, 2)
    if not contiguous:
        x_BCLF = x_BCLF.to(memory_format=torch.channels_last)
    exact = copy.deepcopy(layer).double()
    inputs = x_BCLF.requires_grad_(), x_BCLF.detach().double().requires_grad_()
    found = convolve(layer, inputs[0])
    expected = exact(inputs[1])
    assert type(found.grad_fn) is not type(layer(inputs[0]).grad_fn)
    gradient = torch.randn(expected.shape, dtype=torch.float64)
    found.backward(gradient.float())
    expected.backward(gradient)
    torch.testing.assert_close(found.double(), expected, atol=1e-5, rtol=1e-5)
    for leaf, exact_leaf in zip((inputs[0], layer.weight), (inputs[1], exact.weight), strict=True):
        assert leaf.grad is not None
        torch.testing.assert_close(leaf.grad.double(), exact_leaf.grad, atol=1e-5, rtol=1e-5)
