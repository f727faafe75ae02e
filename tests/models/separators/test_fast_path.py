"""The fast path equals the plain forward; long clips equal whole ones where they can; seams don't show."""

import pytest
import torch
from torch import Tensor, nn

from sepscene.models.config import SepsceneError
from sepscene.models.separators.fast_path import BatchedHidden, FastTDCNpp, fast_separator
from sepscene.models.separators.foreign import ConvTasNetConfig, ConvTasNetSeparator
from sepscene.models.separators.fused import FusedHidden
from sepscene.models.separators.long_clips import LongClips, separate_long, separate_stream
from sepscene.models.separators.tdcnpp import TDCNpp
from sepscene.models.settings import TDCNppConfig

TINY = {"coefficients": 24, "bottleneck": 16, "hidden": 32, "repeats": 2, "blocks": 5}


def network(**changes) -> TDCNpp:
    """A small network whose every parameter is away from its start."""
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


@pytest.mark.parametrize("stretch_frames", [64, 100, 10_000])
@pytest.mark.parametrize("samples", [100, 601, 5000])
def test_stretches_and_edges_change_nothing(monkeypatch, stretch_frames, samples):
    """Dilations beyond a stretch, and beyond the whole clip, meet the padding in the middle of stretches."""
    monkeypatch.setattr("sepscene.models.separators.fused.STRETCH_BYTES", stretch_frames * 32 * 4)
    plain = network(blocks=8, kernel=5, window_samples=10, hop_samples=4)
    wave_BT = noise(1, samples)
    with torch.no_grad():
        assert snr_db(plain(wave_BT), fast_separator(plain)(wave_BT)) > 100


@pytest.fixture
def threads():
    """Sets torch's threads, which the fused passes share, for one test."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_threads_change_nothing(threads, precision):
    """One thread convolves in place, several do not."""
    x_BLW, weight_WH = noise(1, 700, 16), noise(16, 33)
    taps_BKH, lost_BKH, bias_B1H = noise(1, 3, 33), noise(1, 3, 33), noise(1, 1, 33)
    found = []
    for count in (1, 2):
        threads(count)
        dtype = getattr(torch, precision)
        hidden = FusedHidden(700, 33, 64, dtype)
        sums = [hidden.widen(x_BLW.to(dtype), weight_WH.to(dtype), 0.1)]
        sums.append(hidden.convolve(taps_BKH, lost_BKH, bias_B1H, 64, -0.5))
        found.append([hidden.convolved_LH, *sums])
    for one, two in zip(*found, strict=True):
        assert torch.equal(one, two)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_fused_passes_equal_those_of_a_gpu(monkeypatch, precision):
    """The formulation for GPUs, here on a CPU, clip by clip and all at once."""
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
    """Where variances vanish, means must be exact: a constant clip is the worst case of sums of squares."""
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


def test_other_separators_run_as_they_are():
    config = ConvTasNetConfig(coefficients=8, bottleneck=4, hidden=8, blocks=2, repeats=1)
    separator = ConvTasNetSeparator(config).eval()
    wave_BT = noise(2, 800)
    with torch.no_grad():
        assert torch.equal(fast_separator(separator)(wave_BT), separator(wave_BT))
        half = fast_separator(separator, precision="bfloat16")
        assert snr_db(separator(wave_BT), half(wave_BT)) > 30
    assert (half.sample_rate, half.sources) == (16000, 2)


class Bands(nn.Module):
    """Splits at a fixed frequency, with a reach of 801 samples; remembers the longest clip that it saw."""

    sample_rate, sources = 1000, 2

    def __init__(self, swap: bool = False) -> None:
        super().__init__()
        self.calls, self.longest, self.swap = 0, 0, swap

    def forward(self, wave_BT: Tensor) -> Tensor:
        self.longest = max(self.longest, wave_BT.shape[1])
        taps = torch.hann_window(801, periodic=False)
        low_BT = torch.conv1d(wave_BT[:, None], (taps / taps.sum())[None, None], padding=400)[:, 0]
        self.calls += 1
        pair = [low_BT, wave_BT - low_BT]
        return torch.stack(pair[::-1] if self.swap and self.calls % 2 else pair, 1)


CUT = LongClips(window_seconds=4, fade_seconds=0.3, receptive_seconds=0.801)


def test_windows_of_a_local_separator_equal_the_whole_clip():
    """Both sides of a seam see their whole reach, so a separator without statistics shows no seam at all."""
    wave_T = noise(31_007)
    whole_ST = Bands()(wave_T[None])[0]
    torch.testing.assert_close(separate_long(Bands(), wave_T, CUT), whole_ST, rtol=0, atol=1e-6)


def test_windows_too_close_would_show():
    """The test above can fail: half of the reach is not enough."""
    narrow = CUT.model_copy(update={"receptive_seconds": 0.2, "fade_seconds": 0.01})
    wave_T = noise(31_007)
    whole_ST = Bands()(wave_T[None])[0]
    assert (separate_long(Bands(), wave_T, narrow) - whole_ST).abs().max() > 1e-3


def test_sources_keep_their_order_across_windows():
    wave_T = noise(31_007)
    separated_ST = separate_long(Bands(swap=True), wave_T, CUT)
    torch.testing.assert_close(separated_ST, Bands()(wave_T[None])[0].flip(0), rtol=0, atol=1e-6)


@pytest.mark.parametrize("block", [1, 700, 5000, 100_000])
def test_blocks_of_a_stream_change_nothing_and_memory_is_bounded(block):
    wave_T = noise(15_000) if block == 1 else noise(60_000)
    separator = Bands()
    pieces = list(separate_stream(separator, wave_T.split(block), CUT))
    assert separator.longest <= 6000
    assert max(piece.shape[1] for piece in pieces) <= 6000
    torch.testing.assert_close(torch.cat(pieces, 1), separate_long(Bands(), wave_T, CUT), rtol=0, atol=0)


def test_seams_of_a_tdcnpp_are_no_worse_than_the_rest():
    """Windows are normed by their own statistics: they differ from the whole clip, but evenly, with no jump."""
    separator = network(sample_rate=2000, repeats=1, blocks=3)
    cut = LongClips(window_seconds=4, fade_seconds=0.5)
    wave_T = noise(40_000)
    with torch.no_grad():
        whole_ST = separator(wave_T[None])[0]
    long_ST = separate_long(separator, wave_T, cut)
    assert snr_db(whole_ST, long_ST) > 20
    torch.testing.assert_close(long_ST.sum(0), wave_T, rtol=0, atol=2e-6)
    reach = separator.config.receptive_field_samples
    margin = -(-reach // 2)
    step = 8000 - 2 * margin - 1000
    at_seam = torch.zeros(40_000, dtype=torch.bool)
    for start in range(step, 40_000 - 12_000 + step, step):
        at_seam[start + margin : start + margin + 1000] = True
    error_T = (long_ST - whole_ST).square().sum(0)
    assert error_T[at_seam].mean() < 1.2 * error_T[~at_seam].mean()
    step_error_T = (long_ST - whole_ST).diff(dim=1).abs().amax(0)
    assert step_error_T[at_seam[1:]].max() < 1.2 * step_error_T[~at_seam[1:]].max()


def test_short_clips_are_separated_whole():
    separator = network()
    wave_T = noise(9000)
    with torch.no_grad():
        assert torch.equal(separate_long(separator, wave_T), separator(wave_T[None])[0])
    assert list(separate_stream(separator, [])) == []


def test_windows_within_the_receptive_field_are_refused():
    with pytest.raises(SepsceneError, match=r"window_seconds 4 is too short.*at least 6\.11 s"):
        separate_long(network(repeats=4, blocks=8), noise(9000), LongClips(window_seconds=4))
