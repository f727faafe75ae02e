"""The settings of the networks, apart from them: every process of a cluster reads the configuration, few of
them compute, and torch takes seconds to import.
"""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import Field, model_validator

from sepscene.models.config import Config

MOST_CHANNELS = 1 << 16
"""Bounds of sizes are far above what anybody trains. They are there because a card may be a stranger's, and a network
of its sizes is built."""

LOUDEST = 16.0
"""Peak of float sound, in files and arrays, up to which it is taken for sound of full scale 1 that overshoots, and is
limited to it. Beyond lie 16-bit values that nobody divided by 32768."""

SHORTEST = 32
"""Frames, and bands, under which five halvings leave nothing."""

Reads = Literal["log-mel", "waveform"]
"""What an encoder takes: log-mel patches (B, L, F), or waveforms (B, T) of full scale 1."""

Precision = Literal["float32", "bfloat16"]
PrecisionChoice = Literal["auto", "float32", "bfloat16"]
"""The number format that networks compute in; `auto` takes what the device does well."""


class Cnn14Config(Config):
    """Sizes of CNN14. The defaults have 75,739,712 parameters, 75,477,440 in the trunk [stated: "~75M"]."""

    use: Literal["cnn14"] = Field("cnn14", description="this encoder, the default")
    mel_bands: int = Field(64, ge=1, le=1024)
    widths: tuple[int, ...] = Field((64, 128, 256, 512, 1024, 2048), description="channels of the six blocks")
    embedding_dim: int = Field(128, ge=1, le=MOST_CHANNELS, description="size d of h; the paper has 128 and 1024")
    activation: Literal["none", "relu"] = Field(
        "none", description="after the bottleneck: none, a linear h [open; ours]; relu for PANNs' own `fc1`"
    )
    classes: int | None = Field(
        None, ge=1, le=MOST_CHANNELS, description="outputs of PANNs' `fc_audioset` on h, where a PANNs file has one"
    )

    @model_validator(mode="after")
    def _six_blocks(self) -> Cnn14Config:
        if len(self.widths) != 6 or not 1 <= min(self.widths) <= max(self.widths) <= MOST_CHANNELS:
            raise ValueError(f"widths {self.widths} must be six numbers from 1 to {MOST_CHANNELS}, one for each block")
        if self.mel_bands < SHORTEST:
            raise ValueError(f"mel_bands {self.mel_bands} is below {SHORTEST}: five poolings would leave none")
        return self

    @property
    def shortest_frames(self) -> int:
        """The fewest frames that the network can read."""
        return SHORTEST

    @property
    def described(self) -> str:
        """In words, for cards and reports."""
        return f"CNN14 (widths {'-'.join(map(str, self.widths))})"

    @classmethod
    def tiny(cls, embedding_dim: int = 128) -> Cnn14Config:
        """The same network with narrow blocks, for two CPU cores: hundreds of steps a minute."""
        return cls(widths=(8, 16, 32, 64, 96, 128), embedding_dim=embedding_dim)


class PatchTransformerConfig(Config):
    """Sizes of the patch transformer. The defaults are AST's base model (Gong et al. 2021): 85 M parameters."""

    use: Literal["patch-transformer"] = Field("patch-transformer", description="this encoder")
    mel_bands: int = Field(64, ge=1, le=1024)
    patch_frames: int = Field(16, ge=1, le=4096, description="frames of a token")
    patch_bands: int = Field(16, ge=1, le=1024, description="mel bands of a token; mel_bands must be a multiple of it")
    width: int = Field(768, ge=4, le=MOST_CHANNELS, description="features of a token; a multiple of 4 and of `heads`")
    layers: int = Field(12, ge=1, le=256)
    heads: int = Field(12, ge=1, le=1024, description="attention heads of a layer")
    embedding_dim: int = Field(128, ge=1, le=MOST_CHANNELS, description="size d of h")

    @model_validator(mode="after")
    def _sizes_divide(self) -> PatchTransformerConfig:
        if self.mel_bands % self.patch_bands:
            raise ValueError(f"mel_bands {self.mel_bands} is no multiple of patch_bands {self.patch_bands}: change one")
        if self.width % self.heads or self.width % 4:
            raise ValueError(f"width {self.width} must be a multiple of 4 and of heads {self.heads}: change one")
        return self

    @property
    def shortest_frames(self) -> int:
        """The fewest frames that the network can read."""
        return self.patch_frames

    @property
    def described(self) -> str:
        """In words, for cards and reports."""
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

    The paper's sources do not describe its front-end: 16 kHz, 64 bands, 25 ms and 10 ms are [open], ours. The
    other defaults are [open] too and follow the authors' lineage of AudioSet models: HTK bands from 125 to
    7500 Hz over magnitudes, and log(mel + 0.01). Sound far below that floor stays dark, which suits separated
    channels (what is left of a sound that went to the other channel) and hides 16-bit rounding.
    """

    sample_rate: int = Field(16_000, ge=1_000, le=1_000_000, description="Hz; the sound must have this rate")
    window_samples: int = Field(400, ge=2, description="length of the Hann window (25 ms) [open; ours]")
    fft_samples: int = Field(512, ge=2, le=32_768, description="length of the transform; the window sits in its middle")
    hop_samples: int = Field(160, ge=1, description="distance of frames (10 ms) [open; ours]")
    mel_bands: int = Field(64, ge=1, le=1024, description="[open; ours]")
    lowest_hz: float = Field(125.0, ge=0, description="lower end of the lowest band [open; ours]")
    highest_hz: float = Field(7500.0, gt=0, description="upper end of the highest band [open; ours]")
    mel_scale: Literal["htk", "slaney"] = "htk"
    equal_area: bool = Field(False, description="bands of equal area (Slaney) instead of equal height")
    power: Literal[1, 2] = Field(1, description="1 sums magnitudes, 2 sums powers [open; ours]")
    compression: Literal["log_offset", "decibel"] = Field(
        "log_offset", description="ln(mel + floor), or 10 log10(max(mel, floor)) [open; ours]"
    )
    floor: float = Field(0.01, gt=0, description="see `compression` [open; ours]")
    level: Literal["kept", "patch"] = Field(
        "kept",
        description="kept: loud and soft sound differ, as recorded; patch: each patch is brought to one level, before "
        "the floor, so that the encoder cannot compare levels [open; ours]",
    )
    framing: Literal["per_hop", "centred"] = Field(
        "per_hop",
        description="per_hop: frame l is centred on samples [l hop, (l + 1) hop), T // hop frames; "
        "centred: frame l is centred on sample l hop, 1 + T // hop frames. Both reflect the ends.",
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
            raise ValueError("hop_samples <= window_samples <= fft_samples must hold: all sound is looked at")
        if (self.fft_samples - self.hop_samples) % 2 and self.framing == "per_hop":
            raise ValueError("framing per_hop needs fft_samples - hop_samples to be even: change one by 1")
        return self

    @property
    def padding_samples(self) -> int:
        """Samples reflected at each end of the sound."""
        return (self.fft_samples - (self.hop_samples if self.framing == "per_hop" else 0)) // 2

    def frames(self, samples: int) -> int:
        """Number of frames that a sound of this many samples gives."""
        return (samples + 2 * self.padding_samples - self.fft_samples) // self.hop_samples + 1


class TDCNppConfig(Config):
    """Sizes and variants of a TDCN++. The defaults are the MixIT configuration of the reference at 16 kHz."""

    sample_rate: int = Field(16000, gt=0, le=1_000_000, description="hertz")
    sources: int = Field(2, ge=1, le=64, description="output channels M")
    basis: Literal["learned", "stft"] = Field("learned", description="linear + ReLU basis, or an STFT")
    window_samples: int = Field(40, ge=2, le=32_768, description="analysis window; 2.5 ms at 16 kHz")
    hop_samples: int = Field(20, ge=1, description="distance between frames")
    coefficients: int = Field(256, ge=1, le=MOST_CHANNELS, description="size of the basis; of an STFT its bins")
    bottleneck: int = Field(256, ge=1, le=MOST_CHANNELS, description="width between blocks")
    hidden: int = Field(512, ge=1, le=MOST_CHANNELS, description="width inside a block")
    repeats: int = Field(4, ge=1, le=64, description="how often the dilations 1, 2, 4, … are run through")
    blocks: int = Field(8, ge=1, le=16, description="blocks per repeat; block b has dilation 2**b")
    kernel: int = Field(3, ge=1, le=255, description="taps of the depthwise convolution over time")
    skip_residual: bool = Field(False, description="dense connections from earlier repeats to later ones")
    consistency: Literal["pred_source", "magsq", "uniform"] = Field(
        "pred_source", description="how the remainder is shared so that the sources sum to the mixture"
    )

    @model_validator(mode="before")
    @classmethod
    def _bins_of_the_stft(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("basis") == "stft" and "coefficients" not in values:
            return values | {"coefficients": stft_bins(int(values.get("window_samples", 40)))}
        return values

    @model_validator(mode="after")
    def _consistent_sizes(self) -> Self:
        if self.hop_samples > self.window_samples:
            raise ValueError(
                f"hop_samples {self.hop_samples} exceeds window_samples {self.window_samples}: "
                "samples between windows would be lost; use a hop of at most one window"
            )
        if self.kernel % 2 == 0:
            raise ValueError(f"kernel {self.kernel} has no centre tap: use an odd number, the reference has 3")
        bins = stft_bins(self.window_samples)
        if self.basis == "stft" and self.coefficients != bins:
            raise ValueError(
                f"an STFT with window_samples {self.window_samples} has {bins} bins, "
                f"not coefficients {self.coefficients}: leave coefficients out or set it to {bins}"
            )
        return self

    @classmethod
    def tiny(cls, **changes: Any) -> TDCNppConfig:
        """The same network in small, for two CPU cores: only widths, repeats and coefficients are scaled."""
        sizes: dict[str, Any] = {"coefficients": 64, "bottleneck": 32, "hidden": 64, "repeats": 1}
        if changes.get("basis") == "stft":
            del sizes["coefficients"]
        return cls(**(sizes | changes))

    def frames(self, samples: int) -> int:
        """Number of frames L that the basis makes of a clip of `samples` samples."""
        covered = samples if self.basis == "stft" else samples - self.window_samples + self.hop_samples
        return max(1, -(-covered // self.hop_samples))


def stft_bins(window_samples: int) -> int:
    """Bins of the STFT of the reference: its FFT length is the next power of two that holds the window."""
    return 2 ** (window_samples - 1).bit_length() // 2 + 1


def whole_samples(seconds: float, sample_rate: float) -> int:
    """Samples of a window or hop. Each is rounded by itself, as the reference does: a hop is not half of a window."""
    return round(seconds * sample_rate)
