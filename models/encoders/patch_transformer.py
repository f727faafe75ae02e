"""A transformer over patches of the log-mel, similar to AST and AudioMAE: the second built-in encoder.

The log-mel is normalised per mel band and cut into patches without overlap; each patch becomes a token. Fixed sine and
cosine position encodings (Vaswani et al. 2017, half of the features for time and half for frequency) allow input of any
length. The layers are torch's, with pre-norm; h is a linear map of the mean over all tokens.

Shapes: B crops of the log-mel, L frames, F mel bands, N tokens, W width, D embedding.
"""

import math

import torch
from torch import Tensor, nn

from sepscene.models.config import SepsceneError
from sepscene.models.settings import PatchTransformerConfig, Reads


class PatchTransformer(nn.Module):
    """The network: logmel_BLF to h_BD. No dropout, as in CNN14."""

    Config = PatchTransformerConfig
    reads: Reads = "log-mel"

    def __init__(self, config: PatchTransformerConfig) -> None:
        super().__init__()
        self.config = config
        size = (config.patch_frames, config.patch_bands)
        self.bn0 = nn.BatchNorm2d(config.mel_bands)
        self.tokens = nn.Conv2d(1, config.width, kernel_size=size, stride=size)
        layer = nn.TransformerEncoderLayer(
            config.width,
            config.heads,
            4 * config.width,
            dropout=0.0,
            activation="gelu",
            batch_first=True,
            norm_first=True,
        )
        norm = nn.LayerNorm(config.width)
        self.layers = nn.TransformerEncoder(layer, config.layers, norm, enable_nested_tensor=False)
        self.embedding = nn.Linear(config.width, config.embedding_dim)
        self._initialise()

    def _initialise(self) -> None:
        """Xavier-uniform matrices and zero biases. By default all layers would be copies of one, with equal weights."""
        for name, parameter in self.named_parameters():
            if parameter.ndim > 1:
                nn.init.xavier_uniform_(parameter.flatten(1) if parameter.ndim > 2 else parameter)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)

    def forward(self, logmel_BLF: Tensor) -> Tensor:
        """logmel_BLF to the representation h_BD. Frames after the last whole patch are ignored.

        Raises:
            SepsceneError: the number of mel bands is not the configured one, or there are too few frames for a patch.
        """
        frames, mels = logmel_BLF.shape[1:]
        if mels != self.config.mel_bands or frames < self.config.shortest_frames:
            raise SepsceneError(
                f"log-mel of {frames} frames and {mels} bands: this encoder needs at least "
                f"{self.config.shortest_frames} frames and exactly {self.config.mel_bands} bands; check "
                "front_end.mel_bands and the clip's length"
            )
        x_B1LF = self.bn0(logmel_BLF.transpose(1, 2)[..., None]).permute(0, 3, 2, 1)
        x_BWtf = self.tokens(x_B1LF)
        position_Wtf = positions(self.config.width, *x_BWtf.shape[2:]).to(x_BWtf)
        token_BNW = (x_BWtf + position_Wtf).flatten(2).transpose(1, 2)
        return self.embedding(self.layers(token_BNW).mean(dim=1))


def positions(width: int, times: int, bands: int) -> Tensor:
    """Sines and cosines (W, times, bands): the first half of the features encodes time, the second frequency."""
    half = width // 2
    rate = torch.exp(torch.arange(0, half, 2, dtype=torch.float64) * (-math.log(10_000.0) / half))

    def waves(count: int) -> Tensor:
        angle = rate[:, None] * torch.arange(count)
        return torch.stack((angle.sin(), angle.cos()), dim=1).flatten(0, 1)

    time_htb = waves(times)[:, :, None].expand(half, times, bands)
    band_htb = waves(bands)[:, None, :].expand(half, times, bands)
    return torch.cat((time_htb, band_htb))
