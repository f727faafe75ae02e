"""TDCN++: sizes, initialisation and all variants, compared with slow and obvious formulas."""

import math

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from sepscene.models.separators.tdcnpp import ActivationNorm, DepthwiseConvolution, LearnedBasis, StftBasis, TDCNpp
from sepscene.models.settings import TDCNppConfig

TINY = {"coefficients": 12, "bottleneck": 8, "hidden": 16, "repeats": 2, "blocks": 3}


def count(config: TDCNppConfig) -> int:
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in TDCNpp(config).parameters())


def noise(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(5))


def test_parameter_counts_are_those_of_the_paper():
    assert count(TDCNppConfig()) == 8_672_257
    for sources in (3, 4, 8):
        assert count(TDCNppConfig(sources=sources)) == 8_672_257 + 65_792 * (sources - 2)


def receptive_field_samples(config: TDCNppConfig) -> int:
    """Mixture samples on which an output sample depends through convolutions (through the norms it depends on all)."""
    frames = (config.kernel - 1) * config.repeats * (2**config.blocks - 1)
    return frames * config.hop_samples + config.window_samples


def test_ten_seconds_have_7999_frames_and_the_receptive_field_is_2041():
    config = TDCNppConfig()
    assert config.frames(160_000) == 7999
    assert receptive_field_samples(config) == 2040 * 20 + 40


@pytest.mark.parametrize("basis", ["learned", "stft"])
@pytest.mark.parametrize("consistency", ["pred_source", "magsq", "uniform"])
@pytest.mark.parametrize("skip_residual", [False, True])
def test_sources_sum_to_the_mixture_at_any_length(basis, consistency, skip_residual):
    sizes = {k: v for k, v in TINY.items() if basis == "learned" or k != "coefficients"}
    frames = {} if basis == "learned" else {"window_samples": 64, "hop_samples": 16}
    config = TDCNppConfig(
        basis=basis,
        consistency=consistency,
        skip_residual=skip_residual,
        sources=3,
        sample_rate=22050,
        **sizes,
        **frames,
    )
    network = TDCNpp(config)
    for samples in (1, 41, 603):
        wave_BT = noise(2, samples)
        separated_BST = network(wave_BT)
        assert separated_BST.shape == (2, 3, samples)
        torch.testing.assert_close(separated_BST.sum(1), wave_BT, atol=2e-6, rtol=0)
    loss = separated_BST[:, 0].square().sum()  # the loss must not be the sum, whose gradient is zero
    loss.backward()
    unused = [name for name, parameter in network.named_parameters() if parameter.grad is None]
    assert unused == []


def test_initialisation_is_the_references():
    torch.manual_seed(0)
    network = TDCNpp(TDCNppConfig(skip_residual=True))
    fans = {"basis.analysis": (40, 256), "basis.synthesis": (256, 40), "initial.weight": (256, 256)}
    fans |= {"mask": (256, 512), "mix_weights": (256, 2), "skips.0_to_8.weight": (256, 256)}
    fans |= {"blocks.3.dense1.weight": (256, 512), "blocks.31.dense2.weight": (512, 256)}
    fans |= {"blocks.7.depthwise.weight": (3 * 512, 3)}
    values = {name: value.detach() for name, value in network.named_parameters()}
    for name, (fan_in, fan_out) in fans.items():
        limit = math.sqrt(6 / (fan_in + fan_out))
        value = values[name]
        assert value.abs().max() <= limit * (1 + 1e-6)
        # a uniform variable of n draws: mean within 5 standard errors, standard deviation within 6 %
        assert value.mean().abs() < 5 * limit / math.sqrt(3 * value.numel())
        assert value.std() == pytest.approx(limit / math.sqrt(3), rel=0.06)
    for index, block in enumerate(network.blocks):
        assert block.dense2.scale.item() == pytest.approx(0.9**index)
        assert block.dense1.scale.item() == 1.0
        assert block.norm1.slope.item() == block.norm2.slope.item() == pytest.approx(0.1)
        assert (block.norm1.gamma.item(), block.norm1.beta.item()) == (1.0, 0.0)
        assert block.depthwise.dilation == 2 ** (index % 8)
        assert not block.depthwise.bias.any()
    assert not network.initial.bias.any() and network.initial.scale.item() == 1.0
    assert sorted(network.skips) == ["0_to_16", "0_to_24", "0_to_8", "16_to_24", "8_to_16", "8_to_24"]


def test_activation_norm_against_its_formula():
    layer = ActivationNorm()
    with torch.no_grad():
        layer.slope.fill_(0.3)
        layer.gamma.fill_(1.7)
        layer.beta.fill_(-0.2)
    x_BCL = noise(2, 5, 50) + 0.3
    y_BCL = torch.where(x_BCL > 0, x_BCL, 0.3 * x_BCL).double()
    mean = y_BCL.mean(-1, keepdim=True)
    variance = y_BCL.var(-1, correction=0, keepdim=True)
    expected = 1.7 * (y_BCL - mean) / (variance + 1e-3).sqrt() - 0.2
    torch.testing.assert_close(layer(x_BCL).double(), expected, atol=1e-5, rtol=0)


def test_depthwise_convolution_against_loops():
    layer = DepthwiseConvolution(channels=3, kernel=3, dilation=4)
    x_BCL = noise(1, 3, 11)
    expected = torch.zeros(1, 3, 11)
    for channel in range(3):
        for frame in range(11):
            for tap in range(3):
                source = frame + (tap - 1) * 4
                if 0 <= source < 11:
                    expected[0, channel, frame] += layer.weight[channel, tap] * x_BCL[0, channel, source]
    torch.testing.assert_close(layer(x_BCL), expected, atol=1e-6, rtol=0)


def test_learned_basis_against_loops():
    config = TDCNppConfig(**TINY, window_samples=10, hop_samples=4)
    basis = LearnedBasis(config)
    wave_BT = noise(1, 31)
    coefficient_BCL, _ = basis.analyse(wave_BT)
    frames = math.ceil((31 - 10) / 4) + 1
    padded = torch.nn.functional.pad(wave_BT[0], (0, 10))
    expected = torch.stack([(basis.analysis @ padded[4 * i : 4 * i + 10]).relu() for i in range(frames)], 1)
    torch.testing.assert_close(coefficient_BCL[0], expected, atol=1e-6, rtol=0)
    wave = torch.zeros(4 * (frames - 1) + 10)
    for i in range(frames):
        wave[4 * i : 4 * i + 10] += expected[:, i] @ basis.synthesis
    torch.testing.assert_close(basis.synthesise(coefficient_BCL[:, None], 31)[0, 0], wave[:31], atol=1e-6, rtol=0)


def test_stft_basis_reconstructs_the_wave_after_its_first_window():
    config = TDCNppConfig(basis="stft", window_samples=48, hop_samples=12, bottleneck=8, hidden=8, repeats=1, blocks=1)
    assert config.coefficients == 33  # the FFT is the next power of two
    basis = StftBasis(config)
    wave_BT = noise(2, 500)
    coefficient_BCL, feature_BCL = basis.analyse(wave_BT)
    assert coefficient_BCL.shape == (2, 33, math.ceil(500 / 12))
    torch.testing.assert_close(
        basis.synthesise(coefficient_BCL[:, None], 500)[:, 0, 48:], wave_BT[:, 48:], atol=1e-5, rtol=0
    )
    assert feature_BCL.mean((1, 2)).abs().max() < 1e-4


def test_the_receptive_field_follows_from_the_configuration():
    """Without norms, an output sample depends on exactly this many mixture samples."""
    config = TDCNppConfig(**TINY, consistency="uniform")
    network = TDCNpp(config).double()
    for block in network.blocks:
        block.norm1 = block.norm2 = nn.Identity()
    samples = receptive_field_samples(config) + 400
    wave_BT = noise(1, samples).double().requires_grad_()
    _, feature_BCL = network.basis.analyse(wave_BT)
    final_BWL = network.activations(feature_BCL)
    (gradient,) = torch.autograd.grad(final_BWL[0, :, final_BWL.shape[-1] // 2].sum(), wave_BT)
    touched = gradient[0].nonzero()
    assert touched.max() - touched.min() + 1 == receptive_field_samples(config)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hop_samples": 41}, "hop_samples 41"),
        ({"basis": "stft", "window_samples": 512, "coefficients": 256}, "257 bins"),
        ({"kernel": 4}, "odd"),
        ({"widths": 3}, "widths"),
        ({"basis": "stft", "window_samples": None}, "window_samples"),
        ({"basis": "stft", "window_samples": float("inf")}, "window_samples"),
    ],
)
def test_wrong_configurations_say_how_to_fix_them(changes, message):
    with pytest.raises(ValidationError, match=message):
        TDCNppConfig(**changes)
