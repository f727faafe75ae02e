"""The settings of the networks, in a file without torch: every process of a cluster reads the configuration, but few
of them compute, and torch takes seconds to import.
"""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import Field, model_validator

from sepscene.models.config import Config

MAX_CHANNELS = 1 << 16
"""Sizes are bounded, far above those in use, because a network is built with the sizes of a card that can come from an
untrusted source.
"""

MAX_PEAK = 16.0
"""Float sound with a peak up to this value, in files and arrays, is treated as full scale 1 with overshoots, and is
clipped. A higher peak indicates 16-bit values that were not divided by 32768.
"""

CNN14_MIN_SIZE = 32
"""Fewest frames and fewest mel bands that CNN14 accepts: five poolings halve both."""

Reads = Literal["log-mel", "waveform"]
"""Input of an encoder: log-mel patches (B, L, F), or waveforms (B, T) of full scale 1."""

Precision = Literal["float32", "bfloat16"]
PrecisionChoice = Literal["auto", "float32", "bfloat16"]
"""The number format in which networks compute; `auto` selects the one that is fast on the device."""


class Cnn14Config(Config):
    """Sizes of CNN14. The defaults have 75,739,712 parameters, 75,477,440 before the layer to h [stated: "~75M"]."""

    use: Literal["cnn14"] = Field("cnn14", description="this encoder, the default")
    mel_bands: int = Field(64, ge=1, le=1024, description="bands of the log-mel, as in `front_end`; at least 32")
    widths: tuple[int, ...] = Field((64, 128, 256, 512, 1024, 2048), description="channels of the six blocks")
    embedding_dim: int = Field(128, ge=1, le=MAX_CHANNELS, description="size d of h; the paper has 128 and 1024")
    activation: Literal["none", "relu"] = Field(
        "none", description="after the bottleneck: none for a linear h [open]; relu as after PANNs' `fc1`"
    )
    classes: int | None = Field(
        None, ge=1, le=MAX_CHANNELS, description="outputs of PANNs' `fc_audioset` on h, if a PANNs file has one"
    )

    @model_validator(mode="after")
    def _six_blocks(self) -> Cnn14Config:
        if len(self.widths) != 6 or not 1 <= min(self.widths) <= max(self.widths) <= MAX_CHANNELS:
            raise ValueError(f"widths {self.widths} must be six numbers from 1 to {MAX_CHANNELS}, one per block")
        if self.mel_bands < CNN14_MIN_SIZE:
            raise ValueError(f"mel_bands {self.mel_bands} is below {CNN14_MIN_SIZE}: five poolings would leave none")
        return self

    @property
    def shortest_frames(self) -> int:
        """The fewest frames that the network accepts."""
        return CNN14_MIN_SIZE

    @property
    def description(self) -> str:
        """A description for cards and reports."""
        return f"CNN14 (widths {'-'.join(map(str, self.widths))})"

    @classmethod
    def tiny(cls, embedding_dim: int = 128) -> Cnn14Config:
        """The same network with narrow blocks, for two CPU cores: hundreds of steps per minute."""
        return cls(widths=(8, 16, 32, 64, 96, 128), embedding_dim=embedding_dim)


class PatchTransformerConfig(Config):
    """Sizes of the patch transformer. The defaults are AST's base model (Gong et al. 2021): 85 M parameters."""

    use: Literal["patch-transformer"] = Field("patch-transformer", description="this encoder")
    mel_bands: int = Field(64, ge=1, le=1024, description="bands of the log-mel, as in `front_end`")
    patch_frames: int = Field(16, ge=1, le=4096, description="frames per token")
    patch_bands: int = Field(16, ge=1, le=1024, description="mel bands per token; must divide mel_bands")
    width: int = Field(768, ge=4, le=MAX_CHANNELS, description="features per token; a multiple of 4 and of `heads`")
    layers: int = Field(12, ge=1, le=256, description="transformer layers")
    heads: int = Field(12, ge=1, le=1024, description="attention heads per layer")
    embedding_dim: int = Field(128, ge=1, le=MAX_CHANNELS, description="size d of h")

    @model_validator(mode="after")
    def _sizes_divide(self) -> PatchTransformerConfig:
        if self.mel_bands % self.patch_bands:
            raise ValueError(f"mel_bands {self.mel_bands} must be a multiple of patch_bands {self.patch_bands}")
        if self.width % self.heads or self.width % 4:
            raise ValueError(f"width {self.width} must be a multiple of 4 and of heads {self.heads}: change one")
        return self

    @property
    def shortest_frames(self) -> int:
        """The fewest frames that the network accepts."""
        return self.patch_frames

    @property
    def description(self) -> str:
        """A description for cards and reports."""
        return f"a patch transformer (width {self.width}, {self.layers} layers, {self.heads} heads)"

    @classmethod
    def tiny(cls, embedding_dim: int = 128) -> PatchTransformerConfig:
        """The same network for two CPU cores: 64 features, 3 layers, 4 heads."""
        return cls(width=64, layers=3, heads=4, embedding_dim=embedding_dim)

    @classmethod
    def small(cls, embedding_dim: int = 128) -> PatchTransformerConfig:
        """The same network for one GPU: 384 features, 6 layers, 6 heads."""
        return cls(width=384, layers=6, heads=6, embedding_dim=embedding_dim)


class FrontEndConfig(Config):
    """A log-mel front-end. The defaults are the preset `paper`.

    The paper and its sources do not describe the front-end: 16 kHz, 64 bands, 25 ms and 10 ms are [open]. The
    other defaults are [open] too and follow the authors' earlier AudioSet models: HTK bands from 125 to 7500 Hz over
    magnitudes, and log(mel + 0.01). Sound far below this floor has little effect, which suits separated channels (it
    hides the residue of sound that was assigned to the other channel) and hides 16-bit rounding.
    """

    sample_rate: int = Field(16_000, ge=1_000, le=1_000_000, description="Hz; the sound must have this rate")
    window_samples: int = Field(400, ge=2, description="length of the Hann window (25 ms) [open]")
    fft_samples: int = Field(512, ge=2, le=32_768, description="length of the FFT; the window is centred in it")
    hop_samples: int = Field(160, ge=1, description="distance between frames (10 ms) [open]")
    mel_bands: int = Field(64, ge=1, le=1024, description="number F of mel bands [open]")
    lowest_hz: float = Field(125.0, ge=0, description="lower end of the lowest band [open]")
    highest_hz: float = Field(7500.0, gt=0, description="upper end of the highest band [open]")
    mel_scale: Literal["htk", "slaney"] = Field(
        "htk", description="formula from Hz to mel: HTK's, or Slaney's, which is linear below 1000 Hz [open]"
    )
    equal_area: bool = Field(False, description="bands of equal area (Slaney) instead of equal height")
    power: Literal[1, 2] = Field(1, description="1 sums magnitudes, 2 sums powers [open]")
    compression: Literal["log_offset", "decibel"] = Field(
        "log_offset", description="ln(mel + floor), or 10 log10(max(mel, floor)) [open]"
    )
    floor: float = Field(0.01, gt=0, description="see `compression` [open]")
    level: Literal["kept", "patch"] = Field(
        "kept",
        description="kept: the level as recorded; patch: each patch is scaled to the same level before the floor is "
        "applied, so that the encoder cannot compare levels [open]",
    )
    framing: Literal["per_hop", "centred"] = Field(
        "per_hop",
        description="per_hop: frame l is centred on samples [l hop, (l + 1) hop), T // hop frames; "
        "centred: frame l is centred on sample l hop, 1 + T // hop frames. Both pad the ends by reflection.",
    )

    @model_validator(mode="after")
    def _fits_the_rate(self) -> FrontEndConfig:
        if self.highest_hz > self.sample_rate / 2:
            raise ValueError(
                f"highest_hz {self.highest_hz:g} is above half of sample_rate {self.sample_rate}: lower it"
            )
        if self.lowest_hz >= self.highest_hz:
            raise ValueError(f"lowest_hz {self.lowest_hz:g} is not below highest_hz {self.highest_hz:g}")
        if not self.hop_samples <= self.window_samples <= self.fft_samples:
            raise ValueError("hop_samples <= window_samples <= fft_samples must hold: the windows must cover all sound")
        if (self.fft_samples - self.hop_samples) % 2 and self.framing == "per_hop":
            raise ValueError("framing per_hop needs fft_samples - hop_samples to be even: change one by 1")
        return self

    @property
    def padding_samples(self) -> int:
        """Number of samples by which each end of the sound is padded, by reflection."""
        return (self.fft_samples - (self.hop_samples if self.framing == "per_hop" else 0)) // 2

    def frames(self, samples: int) -> int:
        """Number of frames of a sound of this many samples."""
        return (samples + 2 * self.padding_samples - self.fft_samples) // self.hop_samples + 1


class TDCNppConfig(Config):
    """Sizes and variants of a TDCN++. The defaults are the MixIT configuration of the reference at 16 kHz."""

    sample_rate: int = Field(16000, gt=0, le=1_000_000, description="hertz")
    sources: int = Field(2, ge=1, le=64, description="output channels M")
    basis: Literal["learned", "stft"] = Field("learned", description="linear + ReLU basis, or an STFT")
    window_samples: int = Field(40, ge=2, le=32_768, description="analysis window; 2.5 ms at 16 kHz")
    hop_samples: int = Field(20, ge=1, description="distance between frames")
    coefficients: int = Field(256, ge=1, le=MAX_CHANNELS, description="size of the basis; for an STFT, its bins")
    bottleneck: int = Field(256, ge=1, le=MAX_CHANNELS, description="width between blocks")
    hidden: int = Field(512, ge=1, le=MAX_CHANNELS, description="width inside a block")
    repeats: int = Field(4, ge=1, le=64, description="repeats of the dilations 1, 2, 4, …")
    blocks: int = Field(8, ge=1, le=16, description="blocks per repeat; block b has dilation 2**b")
    kernel: int = Field(3, ge=1, le=255, description="taps of the depthwise convolution over time")
    skip_residual: bool = Field(False, description="dense connections from earlier repeats to later ones")
    consistency: Literal["pred_source", "magsq", "uniform"] = Field(
        "pred_source", description="how the remainder is shared so that the sources sum to the mixture"
    )

    @model_validator(mode="before")
    @classmethod
    def _bins_of_the_stft(cls, values: Any) -> Any:
        if not isinstance(values, dict) or values.get("basis") != "stft" or "coefficients" in values:
            return values
        try:
            bins = stft_bins(int(values.get("window_samples", 40)))
        except (TypeError, ValueError, OverflowError):
            return values  # the field window_samples names the fault
        return values | {"coefficients": bins}

    @model_validator(mode="after")
    def _consistent_sizes(self) -> Self:
        if self.hop_samples > self.window_samples:
            raise ValueError(
                f"hop_samples {self.hop_samples} exceeds window_samples {self.window_samples}: "
                "samples between windows would be lost; set a hop of at most one window"
            )
        if self.kernel % 2 == 0:
            raise ValueError(f"kernel {self.kernel} has no centre tap: set an odd number, the reference has 3")
        bins = stft_bins(self.window_samples)
        if self.basis == "stft" and self.coefficients != bins:
            raise ValueError(
                f"an STFT with window_samples {self.window_samples} has {bins} bins, "
                f"not coefficients {self.coefficients}: leave coefficients out or set it to {bins}"
            )
        return self

    @classmethod
    def tiny(cls, **changes: Any) -> TDCNppConfig:
        """A smaller network for two CPU cores: only widths, repeats and coefficients are reduced."""
        sizes: dict[str, Any] = {"coefficients": 64, "bottleneck": 32, "hidden": 64, "repeats": 1}
        if changes.get("basis") == "stft":
            del sizes["coefficients"]
        return cls(**(sizes | changes))

    def frames(self, samples: int) -> int:
        """Number of frames L of a clip of this many samples."""
        covered = samples if self.basis == "stft" else samples - self.window_samples + self.hop_samples
        return max(1, -(-covered // self.hop_samples))


def stft_bins(window_samples: int) -> int:
    """Number of bins of the reference's STFT: its FFT length is the window length, rounded up to a power of two."""
    return 2 ** (window_samples - 1).bit_length() // 2 + 1


def whole_samples(seconds: float, sample_rate: float) -> int:
    """Samples of a window or hop, rounded separately as in the reference: a hop is not always half of a window."""
    return round(seconds * sample_rate)
