"""From waveform to log-mel: the front-end of the paper and those of PANNs, as one small module.

Shapes: B clips, T samples, N frequencies, F mels, L frames.
"""

import math
from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torchaudio.functional import melscale_fbanks

from models.config import Config, SepsceneError


class FrontEndConfig(Config):
    """A log-mel front-end. The defaults are the preset `paper`.

    The paper's sources do not describe its front-end: 16 kHz, 64 bands, 25 ms and 10 ms are [open], ours. The
    other defaults are [open] too and follow the authors' lineage of AudioSet models: HTK bands from 125 to
    7500 Hz over magnitudes, and log(mel + 0.01). Sound far below that floor stays dark, which suits separated
    channels (what is left of a sound that went to the other channel) and hides 16-bit rounding.
    """

    sample_rate: int = Field(16_000, ge=1_000, description="Hz; the sound must have this rate")
    window_samples: int = Field(400, ge=2, description="length of the Hann window (25 ms) [open; ours]")
    fft_samples: int = Field(512, ge=2, description="length of the transform; the window sits in its middle")
    hop_samples: int = Field(160, ge=1, description="distance of frames (10 ms) [open; ours]")
    mel_bands: int = Field(64, ge=1, description="[open; ours]")
    lowest_hz: float = Field(125.0, ge=0, description="lower end of the lowest band [open; ours]")
    highest_hz: float = Field(7500.0, gt=0, description="upper end of the highest band [open; ours]")
    mel_scale: Literal["htk", "slaney"] = "htk"
    equal_area: bool = Field(False, description="bands of equal area (Slaney) instead of equal height")
    power: Literal[1, 2] = Field(1, description="1 sums magnitudes, 2 sums powers [open; ours]")
    compression: Literal["log_offset", "decibel"] = Field(
        "log_offset", description="ln(mel + floor), or 10 log10(max(mel, floor)) [open; ours]"
    )
    floor: float = Field(0.01, gt=0, description="see `compression` [open; ours]")
    framing: Literal["per_hop", "centred"] = Field(
        "per_hop",
        description="per_hop: frame l is centred on samples [l hop, (l + 1) hop), T // hop frames; "
        "centred: frame l is centred on sample l hop, 1 + T // hop frames. Both reflect the ends.",
    )

    @model_validator(mode="after")
    def _fits_the_rate(self) -> "FrontEndConfig":
        if self.highest_hz > self.sample_rate / 2:
            raise ValueError(
                f"highest_hz {self.highest_hz:g} is above half of sample_rate {self.sample_rate}: lower it"
            )
        if self.lowest_hz >= self.highest_hz:
            raise ValueError(f"lowest_hz {self.lowest_hz:g} is not below highest_hz {self.highest_hz:g}")
        if not self.hop_samples <= self.window_samples <= self.fft_samples:
            raise ValueError("hop_samples <= window_samples <= fft_samples must hold: all sound is looked at")
        if (self.fft_samples - self.hop_samples) % 2 and self.framing == "per_hop":
            raise ValueError("framing per_hop needs fft_samples - hop_samples to be even: change one by 1")
        return self

    @property
    def padding_samples(self) -> int:
        """Samples reflected at each end of the sound."""
        return (self.fft_samples - (self.hop_samples if self.framing == "per_hop" else 0)) // 2

    def frames(self, samples: int) -> int:
        """Number of frames that a sound of so many samples gives."""
        return (samples + 2 * self.padding_samples - self.fft_samples) // self.hop_samples + 1


def _panns(sample_rate: int, fft_samples: int, hop_samples: int, highest_hz: float) -> FrontEndConfig:
    """PANNs' settings (audioset_tagging_cnn): power in Slaney bands, decibels above 1e-10, centred frames."""
    return FrontEndConfig(
        sample_rate=sample_rate,
        window_samples=fft_samples,
        fft_samples=fft_samples,
        hop_samples=hop_samples,
        lowest_hz=50.0,
        highest_hz=highest_hz,
        mel_scale="slaney",
        equal_area=True,
        power=2,
        floor=1e-10,
        compression="decibel",
        framing="centred",
    )


FRONT_ENDS: dict[str, FrontEndConfig] = {
    "paper": FrontEndConfig(),
    "panns_16k": _panns(16_000, 512, 160, 8_000.0),
    "panns_32k": _panns(32_000, 1024, 320, 14_000.0),
}


_TINY = torch.finfo(torch.float32).tiny


class LogMel(nn.Module):
    """Log-mel spectrogram: wave_BT at `config.sample_rate`, full scale 1, to logmel_BLF.

    Always computed in float32, also under autocast: a power of 1e-10 has no place in half precision. The
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

    @property
    def sample_rate(self) -> int:
        """Hz of the sound that this front-end reads."""
        return self.config.sample_rate

    def forward(self, wave_BT: Tensor) -> Tensor:
        """wave_BT to logmel_BLF with L = `config.frames(T)`.

        Raises:
            SepsceneError: when the sound is too short for its ends to be reflected.
        """
        config = self.config
        if wave_BT.shape[-1] <= config.padding_samples:
            raise SepsceneError(
                f"the sound has {wave_BT.shape[-1]} samples, the front-end needs more than "
                f"{config.padding_samples}: pad it with zeros"
            )
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
            # Its abs() takes five times as long on a CPU. The clamp gives silence a gradient.
            power_BNL = torch.addcmul(spectrum_BNL.real.square(), spectrum_BNL.imag, spectrum_BNL.imag)
            linear_BNL = power_BNL if config.power == 2 else power_BNL.clamp(min=_TINY).sqrt()
            mel_BLF = linear_BNL.transpose(1, 2) @ self.bands_NF
            if config.compression == "decibel":
                return (10.0 / math.log(10.0)) * mel_BLF.clamp(min=config.floor).log()
            return (mel_BLF + config.floor).log()
