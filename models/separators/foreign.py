"""torchaudio's Conv-TasNet as a separator: wave_BT to separated_BST, with `sample_rate` and `sources`.

Shapes: B clips, S sources, T samples.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from torch import Tensor, nn
from torchaudio.models import ConvTasNet

from sepscene.models.config import Config
from sepscene.models.settings import MAX_CHANNELS


class ConvTasNetConfig(Config):
    """Sizes of a `torchaudio.models.ConvTasNet`. The defaults are those of its paper (arXiv 1809.07454)."""

    sample_rate: int = Field(16000, gt=0, le=1_000_000, description="hertz")
    sources: int = Field(2, ge=1, le=64)
    window_samples: int = Field(16, ge=2, le=32_768, description="encoder kernel; the hop is half of it")
    coefficients: int = Field(512, ge=1, le=MAX_CHANNELS)
    bottleneck: int = Field(128, ge=1, le=MAX_CHANNELS)
    hidden: int = Field(512, ge=1, le=MAX_CHANNELS)
    kernel: int = Field(3, ge=1, le=255)
    blocks: int = Field(8, ge=1, le=16, description="blocks per repeat; block b has dilation 2**b")
    repeats: int = Field(3, ge=1, le=64)
    mask_activation: Literal["sigmoid", "relu"] = "relu"


class ConvTasNetSeparator(nn.Module):
    """torchaudio's Conv-TasNet. Without mixture consistency, its sources need not sum to the mixture."""

    def __init__(self, config: ConvTasNetConfig):
        super().__init__()
        self.config = config
        self.sample_rate = config.sample_rate
        self.sources = config.sources
        self.network = ConvTasNet(
            num_sources=config.sources,
            enc_kernel_size=config.window_samples,
            enc_num_feats=config.coefficients,
            msk_kernel_size=config.kernel,
            msk_num_feats=config.bottleneck,
            msk_num_hidden_feats=config.hidden,
            msk_num_layers=config.blocks,
            msk_num_stacks=config.repeats,
            msk_activate=config.mask_activation,
        )

    def forward(self, wave_BT: Tensor) -> Tensor:
        """Separate clips (B, T) into sources (B, S, T)."""
        return self.network(wave_BT[:, None])
