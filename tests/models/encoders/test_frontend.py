"""Front-ends: frames, filters and log-mel, compared with librosa, torchaudio, PANNs' output and a slow loop."""

import json

import numpy as np
import pytest
import torch
import torchaudio
from pydantic import ValidationError

from sepscene.models.config import SepsceneError
from sepscene.models.encoders.frontend import FRONT_ENDS, LogMel
from sepscene.models.settings import FrontEndConfig
from tests.conftest import REPOSITORY


def _noise(samples: int, seed: int = 0) -> torch.Tensor:
    return 0.1 * torch.randn(2, samples, generator=torch.Generator().manual_seed(seed))


def test_a_patch_of_the_paper_has_exactly_96_frames() -> None:
    assert FrontEndConfig() == FRONT_ENDS["paper"]
    log_mel = LogMel(FrontEndConfig())
    assert log_mel(_noise(15_360)).shape == (2, 96, 64)
    assert log_mel(_noise(160_000)).shape == (2, 1000, 64)


@pytest.mark.parametrize("name", FRONT_ENDS)
@pytest.mark.parametrize("samples", [1024, 15_359, 15_360, 15_361, 32_000])
def test_the_number_of_frames_is_known_in_advance(name: str, samples: int) -> None:
    config = FRONT_ENDS[name]
    assert LogMel(config)(_noise(samples)).shape[1] == config.frames(samples)


@pytest.mark.parametrize("name", FRONT_ENDS)
def test_bands_equal_librosas(name: str) -> None:
    """librosa's values are stored in a file, because on a fresh machine librosa compiles for half a minute.

    They are `librosa.filters.mel` (0.11.0) in float64, with sr, n_fft, n_mels, fmin, fmax, htk and norm ("slaney" for
    equal areas) of the front-end.
    """
    with np.load(REPOSITORY / "tests" / "golden" / "librosa_bands.npz") as stored:
        expected = stored[name]
    np.testing.assert_allclose(LogMel(FRONT_ENDS[name]).bands_NF.numpy().T, expected, atol=2e-5 * expected.max())


@pytest.mark.parametrize("name", ["panns_16k", "panns_32k"])
def test_panns_presets_equal_torchaudio(name: str) -> None:
    config = FRONT_ENDS[name]
    wave_BT = _noise(config.sample_rate)
    mel_BFL = torchaudio.transforms.MelSpectrogram(
        sample_rate=config.sample_rate,
        n_fft=config.fft_samples,
        hop_length=config.hop_samples,
        f_min=config.lowest_hz,
        f_max=config.highest_hz,
        n_mels=config.mel_bands,
        norm="slaney",
        mel_scale="slaney",
    )(wave_BT)
    expected_BLF = 10 * mel_BFL.clamp(min=1e-10).log10().transpose(1, 2)
    torch.testing.assert_close(LogMel(config)(wave_BT), expected_BLF, atol=1e-3, rtol=0)


def test_panns_16k_equals_the_reference(shared_dir) -> None:
    vectors = np.load(shared_dir / "reference" / "cnn14_panns.npz")
    logmel_BLF = LogMel(FRONT_ENDS["panns_16k"])(torch.from_numpy(vectors["waveform"]))
    np.testing.assert_allclose(logmel_BLF.numpy(), vectors["logmel"], atol=2e-3, rtol=1e-5)


def test_the_papers_log_mel_equals_a_slow_loop_in_float64() -> None:
    config = FrontEndConfig()
    wave_BT = _noise(1600)
    padded = np.pad(wave_BT[0].double().numpy(), 176, mode="reflect")
    window = np.zeros(512)
    window[56:456] = np.sin(np.pi * np.arange(400) / 400) ** 2
    bands_NF = LogMel(config).bands_NF.double().numpy()
    for frame in range(10):
        magnitude_N = np.abs(np.fft.rfft(window * padded[frame * 160 : frame * 160 + 512]))
        expected_F = np.log(magnitude_N @ bands_NF + 0.01)
        np.testing.assert_allclose(LogMel(config)(wave_BT)[0, frame].numpy(), expected_F, atol=2e-5)


def test_a_frame_is_centred_on_its_hop() -> None:
    wave_BT = torch.zeros(1, 3200)
    wave_BT[0, 10 * 160 + 80] = 1.0
    assert LogMel(FrontEndConfig())(wave_BT).sum(dim=2).argmax() == 10


def test_autocast_changes_nothing() -> None:
    log_mel = LogMel(FRONT_ENDS["panns_16k"])
    wave_BT = _noise(16_000)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logmel_BLF = log_mel(wave_BT)
    assert logmel_BLF.dtype == torch.float32
    assert torch.equal(logmel_BLF, log_mel(wave_BT))


def test_silence_and_full_scale_stay_finite_with_their_gradients() -> None:
    for config in FRONT_ENDS.values():
        wave_BT = torch.stack([torch.zeros(16_000), torch.ones(16_000)]).requires_grad_()
        logmel_BLF = LogMel(config)(wave_BT)
        logmel_BLF.sum().backward()
        assert torch.isfinite(logmel_BLF).all()
        assert wave_BT.grad is not None and torch.isfinite(wave_BT.grad).all()


def test_buffers_are_not_persisted_and_the_configuration_round_trips() -> None:
    assert LogMel(FrontEndConfig()).state_dict() == {}
    for config in FRONT_ENDS.values():
        assert FrontEndConfig.model_validate(json.loads(config.model_dump_json())) == config


def test_a_sound_too_short_to_reflect_is_named() -> None:
    with pytest.raises(SepsceneError, match=r"100 samples.*more than 176.*pad"):
        LogMel(FrontEndConfig())(_noise(100))


@pytest.mark.parametrize(
    ("change", "advice"),
    [
        ({"sample_rate": 8000}, "above half of sample_rate"),
        ({"lowest_hz": 7500.0}, "not below highest_hz"),
        ({"hop_samples": 401}, "hop_samples <= window_samples"),
        ({"fft_samples": 513}, "even"),
        ({"hop_seconds": 0.01}, "Extra inputs"),
    ],
)
def test_bad_front_ends_are_rejected_with_advice(change: dict, advice: str) -> None:
    with pytest.raises(ValidationError, match=advice):
        FrontEndConfig(**change)


@pytest.mark.parametrize("name", FRONT_ENDS)
def test_normalised_patches_do_not_depend_on_loudness(name: str) -> None:
    """Their level is that of white noise at −20 dBFS, before the floor; a slow loop gives the same result."""
    config = FRONT_ENDS[name].changed({"level": "patch"})
    wave_BT = _noise(32_000)
    logmel_BLF = LogMel(config)(wave_BT)
    torch.testing.assert_close(LogMel(config)(0.3 * wave_BT), logmel_BLF, atol=2e-4, rtol=0)
    assert not torch.allclose(LogMel(FRONT_ENDS[name])(0.3 * wave_BT), LogMel(FRONT_ENDS[name])(wave_BT), atol=0.1)
    ten = config.compression == "decibel"
    loudest_LF = LogMel(FRONT_ENDS[name])(0.1 * torch.randn(1, 320_000, generator=torch.Generator().manual_seed(1)))[0]
    level = float((10 ** (loudest_LF / 10) if ten else loudest_LF.exp() - config.floor).mean())  # of noise at −20 dBFS
    for patch, kept_LF in zip(logmel_BLF, LogMel(FRONT_ENDS[name])(wave_BT).double(), strict=True):
        mel_LF = 10 ** (kept_LF / 10) if ten else kept_LF.exp() - config.floor
        mel_LF = mel_LF * level / (sum(float(row.sum()) for row in mel_LF) / mel_LF.numel())
        expected_LF = 10 * mel_LF.clamp(min=config.floor).log10() if ten else (mel_LF + config.floor).log()
        torch.testing.assert_close(patch.double(), expected_LF, atol=0.02 * (4.3 if ten else 1), rtol=0)


@pytest.mark.parametrize("name", FRONT_ENDS)
def test_the_level_of_stored_patches_is_normalised_like_that_of_sound(name: str) -> None:
    kept = FRONT_ENDS[name]
    config = kept.changed({"level": "patch"})
    wave_BT = _noise(32_000)
    assert LogMel(kept).normalise_patches(LogMel(kept)(wave_BT)).equal(LogMel(kept)(wave_BT))
    stored_BLF = LogMel(config).normalise_patches(LogMel(kept)(wave_BT))
    torch.testing.assert_close(stored_BLF, LogMel(config)(wave_BT), atol=2e-3, rtol=0)


def test_the_gain_of_nearly_silent_patches_is_limited() -> None:
    config = FrontEndConfig(level="patch")
    assert LogMel(config)(torch.zeros(1, 15_360)).equal(LogMel(FrontEndConfig())(torch.zeros(1, 15_360)))
    rounding = LogMel(config)(1e-5 * torch.sign(_noise(15_360)))
    as_loud = LogMel(FrontEndConfig())(1e-3 * torch.sign(_noise(15_360)))
    torch.testing.assert_close(rounding, as_loud, atol=1e-4, rtol=0)  # the gain is 40 dB


def test_an_empty_batch_gives_an_empty_log_mel() -> None:
    """A worker has such a batch if its part of the last batch is only padding; MKL's FFT fails on it."""
    shape = LogMel(FrontEndConfig())(torch.zeros(0, 15_360)).shape
    assert shape == (0, *LogMel(FrontEndConfig())(torch.zeros(1, 15_360)).shape[1:])
