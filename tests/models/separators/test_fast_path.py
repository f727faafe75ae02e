"""The fast path equals the plain forward."""

import pytest
import torch
from torch import Tensor

from sepscene.models.separators.fast_path import BatchedHidden, FastTDCNpp, fast_separator
from sepscene.models.separators.foreign import ConvTasNetConfig, ConvTasNetSeparator
from sepscene.models.separators.fused import FusedHidden
from sepscene.models.separators.tdcnpp import TDCNpp
from sepscene.models.settings import TDCNppConfig

TINY = {"coefficients": 24, "bottleneck": 16, "hidden": 32, "repeats": 2, "blocks": 5}


def network(**changes) -> TDCNpp:
    """A small network with all parameters changed from their initial values."""
    torch.manual_seed(0)
    separator = TDCNpp(TDCNppConfig(**(TINY | changes)))
    with torch.no_grad():
        for parameter in separator.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return separator


def noise(*shape: int) -> Tensor:
    return 0.2 * torch.randn(shape, generator=torch.Generator().manual_seed(7))


def snr_db(expected: Tensor, found: Tensor) -> float:
    return float(10 * torch.log10(expected.square().sum() / (expected - found).square().sum()))


@pytest.mark.parametrize("consistency", ["pred_source", "magsq", "uniform"])
@pytest.mark.parametrize("basis", ["learned", "stft"])
def test_float32_equals_the_plain_forward(basis, consistency):
    frames = {"basis": "stft", "window_samples": 64, "hop_samples": 16, "coefficients": 33} if basis == "stft" else {}
    plain = network(consistency=consistency, skip_residual=True, sources=3, **frames)
    fast = fast_separator(plain)
    wave_BT = noise(3, 4003)
    with torch.no_grad():
        assert snr_db(plain(wave_BT), fast(wave_BT)) > 100
    assert (fast.sample_rate, fast.sources) == (16000, 3)


@pytest.mark.parametrize("chunk_frames", [64, 100, 10_000])
@pytest.mark.parametrize("samples", [100, 601, 5000])
def test_chunks_and_edges_change_nothing(monkeypatch, chunk_frames, samples):
    """Dilations can be longer than a chunk or the clip, so that taps reach the padding from the middle of chunks."""
    monkeypatch.setattr("sepscene.models.separators.fused.CHUNK_BYTES", chunk_frames * 32 * 4)
    plain = network(blocks=8, kernel=5, window_samples=10, hop_samples=4)
    wave_BT = noise(1, samples)
    with torch.no_grad():
        assert snr_db(plain(wave_BT), fast_separator(plain)(wave_BT)) > 100


@pytest.fixture
def threads():
    """Set the number of torch's threads, which the fused passes also use, for one test."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_threads_change_nothing(threads, precision):
    """One thread convolves in place, several do not."""
    x_BLW = noise(1, 700, 16)
    weight_WH = noise(16, 33)
    taps_BKH = noise(1, 3, 33)
    outside_BKH = noise(1, 3, 33)
    bias_B1H = noise(1, 1, 33)
    found = []
    for count in (1, 2):
        threads(count)
        dtype = getattr(torch, precision)
        hidden = FusedHidden(700, 33, 64, dtype)
        sums = [hidden.widen(x_BLW.to(dtype), weight_WH.to(dtype), 0.1)]
        sums.append(hidden.convolve(taps_BKH, outside_BKH, bias_B1H, 64, -0.5))
        found.append([hidden.convolved_LH, *sums])
    for one, two in zip(*found, strict=True):
        assert torch.equal(one, two)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_fused_passes_equal_those_of_a_gpu(monkeypatch, precision):
    """The implementation for GPUs, run on a CPU, clip by clip and as a batch."""
    plain = network(blocks=7, kernel=5)
    wave_BT = noise(3, 2000)
    fused = fast_separator(plain, precision=precision)(wave_BT)
    monkeypatch.setattr(FastTDCNpp, "_hidden", lambda self, x_BLW: BatchedHidden())
    batched = fast_separator(plain, precision=precision)
    assert snr_db(batched(wave_BT), fused) > (100 if precision == "float32" else 30)
    assert snr_db(batched._separate(wave_BT), fused) > (100 if precision == "float32" else 30)


def test_bfloat16_stays_beyond_30_db():
    plain = network()
    wave_BT = noise(2, 8000)
    with torch.no_grad():
        fast = fast_separator(plain, precision="bfloat16")(wave_BT)
        assert snr_db(plain(wave_BT), fast) > 30
    assert fast.dtype == torch.float32
    torch.testing.assert_close(fast.sum(1), wave_BT, rtol=0, atol=1e-5)


def test_silent_quiet_and_constant_clips():
    """If the variance is near zero, means must be exact: a constant clip is the worst case for sums of squares."""
    plain = network()
    fast = fast_separator(plain)
    with torch.no_grad():
        assert torch.equal(fast(torch.zeros(1, 3000)), torch.zeros(1, 2, 3000))
        for wave_BT in (torch.full((1, 3000), 0.9), 1e-4 * noise(1, 3000), 0.5 + 1e-3 * noise(1, 3000)):
            assert snr_db(plain(wave_BT), fast(wave_BT)) > 60


def test_the_separator_itself_is_not_changed():
    plain = network()
    before = {name: value.clone() for name, value in plain.state_dict().items()}
    fast_separator(plain, precision="bfloat16")(noise(1, 500))
    assert all(torch.equal(value, before[name]) for name, value in plain.state_dict().items())
    assert all(parameter.requires_grad for parameter in plain.parameters())


def test_other_separators_run_unchanged():
    config = ConvTasNetConfig(coefficients=8, bottleneck=4, hidden=8, blocks=2, repeats=1)
    separator = ConvTasNetSeparator(config).eval()
    wave_BT = noise(2, 800)
    with torch.no_grad():
        assert torch.equal(fast_separator(separator)(wave_BT), separator(wave_BT))
        half = fast_separator(separator, precision="bfloat16")
        assert snr_db(separator(wave_BT), half(wave_BT)) > 30
    assert (half.sample_rate, half.sources) == (16000, 2)
