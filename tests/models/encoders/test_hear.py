"""The HEAR interface: the checks of its validator and more, on noise and on real sound."""

from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from scipy.signal import resample_poly
from torch import Tensor

from benchmarks.audioset_size import peak_mib, reset_peak
from sepscene.augment.audio import read_audio
from sepscene.models.config import SepsceneError
from sepscene.models.encoders import hear
from sepscene.models.encoders.encoder import Encoder, EncoderConfig, save_encoder
from sepscene.models.settings import FrontEndConfig
from sepscene.orchestration.evaluation.file_encoder import FileEncoder
from tests.models.encoders.test_encoder import SMALL, small_encoder


@pytest.fixture
def model(tmp_path: Path) -> Encoder:
    save_encoder(small_encoder(), tmp_path / "bundle", {})
    return hear.load_model(str(tmp_path / "bundle"))


def _assert_contract(audio_NT: Tensor, model: Encoder) -> None:
    """All requirements and warnings of HEAR's validator."""
    scenes = hear.get_scene_embeddings(audio_NT, model)
    assert scenes.shape == (len(audio_NT), model.scene_embedding_size)
    assert scenes.dtype == torch.float32 and torch.isfinite(scenes).all()

    embeddings, timestamps = hear.get_timestamp_embeddings(audio_NT, model)
    assert embeddings.dtype == torch.float32 and torch.isfinite(embeddings).all()
    assert embeddings.ndim == 3 and timestamps.ndim == 2
    assert embeddings.shape == (*timestamps.shape, model.timestamp_embedding_size)
    assert len(embeddings) == len(audio_NT)
    spacing = np.diff(timestamps.double().numpy(), axis=1)
    assert np.abs(spacing - spacing.mean()).max() <= 1
    assert spacing.max() <= 50
    end = 1000 * audio_NT.shape[1] / model.sample_rate
    assert timestamps.min() <= spacing.mean()
    assert end - 50 <= timestamps.max() <= end


def test_the_model_has_the_attributes_of_the_contract(model: Encoder) -> None:
    assert isinstance(model, torch.nn.Module) and not model.training
    assert model.sample_rate in (16_000, 22_050, 32_000, 44_100, 48_000)
    assert isinstance(model.scene_embedding_size, int) and isinstance(model.timestamp_embedding_size, int)


@pytest.mark.parametrize("seconds", [0.06, 1.07, 1.98])
def test_the_contract_holds_on_noise(model: Encoder, seconds: float) -> None:
    noise = torch.rand(2, int(seconds * model.sample_rate), generator=torch.Generator().manual_seed(0))
    _assert_contract(2 * noise - 1, model)


def test_the_contract_holds_on_real_sound(model: Encoder, shared_dir: Path) -> None:
    clips = sorted((shared_dir / "data" / "esc10" / "audio").glob("*.ogg"))[:3]
    waves = [resample_poly(soundfile.read(clip, dtype="float32")[0], 160, 441)[:24_000] for clip in clips]
    audio_NT = torch.from_numpy(np.stack(waves).astype(np.float32))
    _assert_contract(audio_NT, model)
    scenes = hear.get_scene_embeddings(audio_NT, model)
    assert (scenes[0] - scenes[1]).abs().max() > 0.05


def test_embeddings_are_centred_on_their_timestamps(model: Encoder) -> None:
    """The embedding at the time of a click must equal that of a window with the click in its middle."""
    audio_NT = torch.zeros(1, 48_000)
    audio_NT[0, 24_000] = 1.0
    embeddings, timestamps = hear.get_timestamp_embeddings(audio_NT, model)
    window_NT = torch.zeros(1, 15_360)
    window_NT[0, 7_680] = 1.0
    at = int((timestamps[0] == 1500).nonzero())
    expected = model(window_NT)[0]
    torch.testing.assert_close(embeddings[0, at], expected, atol=1e-5, rtol=1e-4)
    assert (embeddings[0, at + 1] - expected).abs().max() > 0.01


def test_timestamps_do_not_drift_if_the_step_is_not_a_whole_number_of_samples() -> None:
    config = FrontEndConfig(sample_rate=22_050)
    odd = Encoder(EncoderConfig(front_end=config, trunk=SMALL), small_encoder().trunk).eval()
    audio_NT = torch.zeros(1, 22_050 * 3 + 1_500)
    audio_NT[0, 22_050 * 3 + 1_103] = 1.0
    embeddings, timestamps = hear.get_timestamp_embeddings(audio_NT, odd)
    window_NT = torch.zeros(1, odd.patch_samples)
    window_NT[0, odd.patch_samples // 2] = 1.0
    at = int((timestamps[0] == 3_050).nonzero())
    torch.testing.assert_close(embeddings[0, at], odd(window_NT)[0], atol=1e-5, rtol=1e-4)


def test_embeddings_do_not_depend_on_the_batch(model: Encoder) -> None:
    audio_NT = 0.1 * torch.randn(2, 20_000, generator=torch.Generator().manual_seed(0))
    together, _ = hear.get_timestamp_embeddings(audio_NT, model)
    alone, _ = hear.get_timestamp_embeddings(audio_NT[1:2], model)
    torch.testing.assert_close(together[1:2], alone, atol=1e-6, rtol=1e-5)


def test_sound_beyond_full_scale_is_clipped_as_in_files(model: Encoder, tmp_path: Path) -> None:
    """The same samples in a float file, an array and HEAR give the same embedding; another scale is an error."""
    wave_T = (1.7 * np.sin(np.arange(2 * 15_360) / 9)).astype(np.float32)
    soundfile.write(tmp_path / "loud.wav", wave_T, 16_000, subtype="FLOAT")
    soundfile.write(tmp_path / "fast.wav", np.sign(np.sin(np.arange(44_100) / 20)), 44_100, subtype="FLOAT")
    limited_1T = torch.from_numpy(read_audio(str(tmp_path / "loud.wav"), 16_000))[None]
    assert limited_1T.abs().max() == 1 == np.abs(read_audio(str(tmp_path / "fast.wav"), 16_000)).max()
    loud_1T = torch.from_numpy(wave_T)[None]
    (of_file,) = FileEncoder(model).embed([str(tmp_path / "loud.wav")])
    for found_1D in (model(loud_1T), model(wave_T[None]), hear.get_scene_embeddings(loud_1T, model)):
        np.testing.assert_allclose(found_1D[0].numpy(), of_file.h_D, atol=1e-5, rtol=1e-4)
    assert (model.encode_patches(loud_1T) - model.encode_patches(limited_1T)).abs().max() > 1e-3
    for embed in (hear.get_scene_embeddings, hear.get_timestamp_embeddings):
        torch.testing.assert_close(embed(loud_1T, model)[0], embed(limited_1T, model)[0], atol=0, rtol=0)
        with pytest.raises(SepsceneError, match="reaches 51"):
            embed(30 * loud_1T, model)


def test_wrong_shapes_and_missing_weights_are_named(model: Encoder) -> None:
    with pytest.raises(SepsceneError, match=r"\(B, T\), clips by samples, not \(16000,\)"):
        hear.get_scene_embeddings(torch.zeros(16_000), model)
    with pytest.raises(SepsceneError, match="no default weights"):
        hear.load_model()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_twenty_minutes_fit_in_a_fraction_of_16_gb() -> None:
    model = small_encoder(shortest_seconds=0.32)
    audio_NT = 0.1 * torch.randn(1, 20 * 60 * 16_000)
    reset_peak()  # the peak of earlier tests would hide that of this one
    before = peak_mib()
    _assert_contract(audio_NT, model)
    assert peak_mib() - before < 1024
