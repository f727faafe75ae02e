"""The front-end: waveform to log-mel, with presets for the paper and for PANNs.

Shapes: B clips, T samples, N frequencies, F mels, L frames.
"""

import math

import torch
from torch import Tensor, nn
from torchaudio.functional import melscale_fbanks

from sepscene.models.config import SepsceneError
from sepscene.models.settings import FrontEndConfig

_PANNS = FrontEndConfig(
    window_samples=512,
    lowest_hz=50.0,
    highest_hz=8_000.0,
    mel_scale="slaney",
    equal_area=True,
    power=2,
    floor=1e-10,
    compression="decibel",
    framing="centred",
)
"""The front-end of PANNs (audioset_tagging_cnn): power in Slaney bands, decibels above 1e-10, centred frames."""

_PANNS_32K = {
    "sample_rate": 32_000,
    "window_samples": 1024,
    "fft_samples": 1024,
    "hop_samples": 320,
    "highest_hz": 14e3,
}

FRONT_ENDS = {"paper": FrontEndConfig(), "panns_16k": _PANNS, "panns_32k": _PANNS.changed(_PANNS_32K)}

_TINY = torch.finfo(torch.float32).tiny

_DECIBELS = 10.0 / math.log(10.0)

LEVEL = 0.1
"""With `level` "patch", each patch is scaled to the level of white noise with this RMS, −20 dBFS."""

MAX_GAIN = 100.0
"""With `level` "patch", the largest gain, 40 dB: softer sound is mostly the rounding noise of 16-bit samples."""


class LogMel(nn.Module):
    """Log-mel spectrogram: wave_BT at `config.sample_rate`, full scale 1, to logmel_BLF.

    Always computed in float32, also under autocast, because a power of 1e-10 is too small for half precision. The
    window and the bands follow from the configuration, so they are not part of the state dict.
    """

    window: Tensor
    bands_NF: Tensor

    def __init__(self, config: FrontEndConfig) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("window", torch.hann_window(config.window_samples), persistent=False)
        bands_NF = melscale_fbanks(
            n_freqs=config.fft_samples // 2 + 1,
            f_min=config.lowest_hz,
            f_max=config.highest_hz,
            n_mels=config.mel_bands,
            sample_rate=config.sample_rate,
            norm="slaney" if config.equal_area else None,
            mel_scale=config.mel_scale,
        )
        self.register_buffer("bands_NF", bands_NF, persistent=False)
        spectrum = (LEVEL**2 * float(self.window.square().sum())) ** (config.power / 2)
        rayleigh = math.sqrt(math.pi) / 2 if config.power == 1 else 1.0  # the mean magnitude of noise of power 1
        self._level = spectrum * rayleigh * float(bands_NF.sum(dim=0).mean())
        self._max_gain = MAX_GAIN**config.power

    def forward(self, wave_BT: Tensor) -> Tensor:
        """wave_BT to logmel_BLF with L = `config.frames(T)`.

        Raises:
            SepsceneError: the sound is too short to be padded by reflection.
        """
        config = self.config
        if wave_BT.shape[-1] <= config.padding_samples:
            raise SepsceneError(
                f"the sound has {wave_BT.shape[-1]} samples, the front-end needs more than "
                f"{config.padding_samples}: pad it with zeros"
            )
        if not len(wave_BT):  # a worker without usable rows; MKL's FFT fails on an empty batch
            return wave_BT.new_zeros(0, config.frames(wave_BT.shape[-1]), config.mel_bands, dtype=torch.float32)
        with torch.autocast(wave_BT.device.type, enabled=False):
            padded_BT = nn.functional.pad(
                wave_BT.float()[:, None], (config.padding_samples, config.padding_samples), mode="reflect"
            )[:, 0]
            spectrum_BNL = torch.stft(
                padded_BT,
                n_fft=config.fft_samples,
                hop_length=config.hop_samples,
                win_length=config.window_samples,
                window=self.window,
                center=False,
                return_complex=True,
            )
            # abs() takes five times as long on a CPU. The clamp keeps the gradient of silence finite.
            power_BNL = torch.addcmul(spectrum_BNL.real.square(), spectrum_BNL.imag, spectrum_BNL.imag)
            linear_BNL = power_BNL if config.power == 2 else power_BNL.clamp(min=_TINY).sqrt()
            mel_BLF = linear_BNL.transpose(1, 2) @ self.bands_NF
            return self._compress(self._normalise_level(mel_BLF) if config.level == "patch" else mel_BLF)

    def normalise_patches(self, logmel_BLF: Tensor) -> Tensor:
        """Apply the setting `level` to patches of log-mels that were computed with `level` "kept".

        A store contains log-mels with their original level; the level of a patch is normalised after it is cropped.
        Sound below the floor is lost.
        """
        if self.config.level == "kept":
            return logmel_BLF
        if self.config.compression == "decibel":
            return self._compress(self._normalise_level((logmel_BLF / _DECIBELS).exp()))
        return self._compress(self._normalise_level((logmel_BLF.exp() - self.config.floor).clamp(min=0)))

    def _normalise_level(self, mel_BLF: Tensor) -> Tensor:
        """Scale each patch by the mean over its frames and bands; digital silence is not changed."""
        mean_B11 = mel_BLF.mean(dim=(1, 2), keepdim=True)
        return mel_BLF * (self._level / mean_B11.clamp(min=_TINY)).clamp(max=self._max_gain)

    def _compress(self, mel_BLF: Tensor) -> Tensor:
        if self.config.compression == "decibel":
            return _DECIBELS * mel_BLF.clamp(min=self.config.floor).log()
        return (mel_BLF + self.config.floor).log()
