"""The patch transformer, compared with its description in float64."""

import math

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor
from torch.nn import functional as F

from sepscene.models.config import SepsceneError
from sepscene.models.encoders.patch_transformer import PatchTransformer, positions
from sepscene.models.settings import PatchTransformerConfig

NARROW = PatchTransformerConfig(mel_bands=8, patch_frames=4, patch_bands=4, width=8, layers=2, heads=2, embedding_dim=5)


def network(config: PatchTransformerConfig = NARROW) -> PatchTransformer:
    torch.manual_seed(0)
    return PatchTransformer(config).double().eval()


def plain_forward(net: PatchTransformer, logmel_BLF: Tensor) -> Tensor:
    """The network from its description, with patches by slicing and attention computed head by head."""
    config = net.config
    state = net.state_dict()

    def linear(x: Tensor, name: str, part: slice = slice(None)) -> Tensor:
        return x @ state[f"{name}weight"][part].flatten(1).T + state[f"{name}bias"][part]

    band = (state["bn0.weight"] / (state["bn0.running_var"] + 1e-5).sqrt(), state["bn0.bias"])
    x = (logmel_BLF - state["bn0.running_mean"]) * band[0] + band[1]
    times = x.shape[1] // config.patch_frames
    bands = config.mel_bands // config.patch_bands
    tokens = []
    for t in range(times):
        for f in range(bands):
            frames = slice(t * config.patch_frames, (t + 1) * config.patch_frames)
            patch = x[:, frames, f * config.patch_bands : (f + 1) * config.patch_bands].flatten(1)
            where = []
            for place in (t, f):
                for k in range(0, config.width // 2, 2):
                    angle = place * 10_000 ** (-k / (config.width // 2))
                    where += [math.sin(angle), math.cos(angle)]
            tokens.append(linear(patch, "tokens.") + torch.tensor(where, dtype=x.dtype))
    x = torch.stack(tokens, dim=1)
    for number in range(config.layers):
        name = f"layers.layers.{number}."
        width = config.width
        size = config.width // config.heads
        y = F.layer_norm(x, (width,), state[f"{name}norm1.weight"], state[f"{name}norm1.bias"])
        projected = y @ state[f"{name}self_attn.in_proj_weight"].T + state[f"{name}self_attn.in_proj_bias"]
        q, k, v = projected.split(width, dim=-1)
        heads = []
        for h in range(config.heads):
            part = slice(h * size, (h + 1) * size)
            weight = (q[..., part] @ k[..., part].transpose(1, 2) / math.sqrt(size)).softmax(dim=-1)
            heads.append(weight @ v[..., part])
        x = x + linear(torch.cat(heads, dim=-1), f"{name}self_attn.out_proj.")
        y = F.layer_norm(x, (width,), state[f"{name}norm2.weight"], state[f"{name}norm2.bias"])
        x = x + linear(F.gelu(linear(y, f"{name}linear1.")), f"{name}linear2.")
    x = F.layer_norm(x, (config.width,), state["layers.norm.weight"], state["layers.norm.bias"])
    return linear(x.mean(dim=1), "embedding.")


def test_equals_its_description() -> None:
    net = network()
    logmel_BLF = torch.randn(3, 12, 8, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(net(logmel_BLF), plain_forward(net, logmel_BLF), rtol=1e-10, atol=1e-12)


def test_training_and_evaluation_differ_only_in_batch_norm() -> None:
    net = network()
    logmel_BLF = torch.randn(3, 12, 8, dtype=torch.float64)
    with torch.no_grad():
        expected = net(logmel_BLF)
        net.train()
        net.bn0.eval()
        torch.testing.assert_close(net(logmel_BLF), expected, rtol=1e-10, atol=1e-12)


def test_layers_start_with_different_weights_that_depend_only_on_the_seed() -> None:
    first = network()
    again = network()
    state = first.state_dict()
    assert not torch.equal(state["layers.layers.0.linear1.weight"], state["layers.layers.1.linear1.weight"])
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in state.items())


def test_frames_after_the_last_whole_patch_are_ignored() -> None:
    net = network()
    logmel_BLF = torch.randn(2, 11, 8, dtype=torch.float64)
    with torch.no_grad():
        assert torch.equal(net(logmel_BLF), net(logmel_BLF[:, :8]))


def test_all_positions_differ() -> None:
    grid = positions(16, 6, 4).flatten(1).T
    assert (torch.cdist(grid, grid) + torch.eye(24)).min() > 0.1


@pytest.mark.parametrize("shape", [(1, 3, 8), (1, 12, 7)])
def test_a_log_mel_that_does_not_fit_is_rejected(shape: tuple[int, ...]) -> None:
    with pytest.raises(SepsceneError, match="at least 4 frames and exactly 8 bands"):
        network()(torch.zeros(shape, dtype=torch.float64))


@pytest.mark.parametrize("sizes", [{"patch_bands": 24}, {"heads": 5}, {"width": 6, "heads": 1}])
def test_sizes_that_do_not_divide_are_rejected(sizes: dict[str, int]) -> None:
    with pytest.raises(ValidationError, match="multiple"):
        PatchTransformerConfig(**sizes)


@pytest.mark.parametrize(
    ("config", "millions"),
    [(PatchTransformerConfig.tiny(), 0.176), (PatchTransformerConfig.small(), 10.8), (PatchTransformerConfig(), 85.4)],
)
def test_number_of_parameters(config: PatchTransformerConfig, millions: float) -> None:
    with torch.device("meta"):
        net = PatchTransformer(config)
    assert sum(p.numel() for p in net.parameters()) / 1e6 == pytest.approx(millions, rel=0.01)
