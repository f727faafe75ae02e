"""CNN14 of PANNs (Kong et al. 2020), with a bottleneck to the representation h, under PANNs' parameter names.

Shapes: B clips, C channels, L frames, F mels, D embedding, P positions, K values
around a position, R = B P rows.
"""

import torch
from torch import Tensor, nn

from sepscene.models.config import SepsceneError
from sepscene.models.settings import CNN14_MIN_SIZE, Cnn14Config, Reads

MAX_POSITIONS = 24
MIN_CHANNEL_PAIRS = 512 * 1024
"""Limits within which a convolution is computed as a matrix product."""
CHANNELS_LAST_BLOCKS = (1, 2, 3)
CHANNELS_LAST_MIN_WIDTH = 64
"""Blocks in channels-last memory format, and the width of the first block from which it is used. On a CPU a training
step of the full-size network takes 8 % less time: oneDNN's convolutions over many positions are faster in this format
(docs/scaling.md, Encoder).
"""


def initialise(layer: nn.Conv2d | nn.Linear) -> None:
    """Xavier-uniform weight, zero bias, as in PANNs."""
    nn.init.xavier_uniform_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


def convolve(layer: nn.Conv2d, x_BCLF: Tensor) -> Tensor:
    """A 3×3 convolution with padding 1, computed as one matrix product where that is faster.

    On a CPU, oneDNN's convolutions are as fast as matrix products, except for many channels and few positions (for a
    patch, 6×4 in the fifth block and 3×2 in the last). In the last block they reach a fifth of that speed, and in
    bfloat16 a thirtieth (docs/scaling.md, Encoder).
    """
    positions = x_BCLF.shape[2] * x_BCLF.shape[3]
    slow = positions <= MAX_POSITIONS and layer.in_channels * layer.out_channels >= MIN_CHANNEL_PAIRS
    if x_BCLF.device.type != "cpu" or x_BCLF.dtype == torch.float64 or not slow:
        return layer(x_BCLF)
    neighbours_BKP = nn.functional.unfold(x_BCLF, kernel_size=3, padding=1)
    rows_RK = neighbours_BKP.transpose(1, 2).flatten(0, 1)
    out_RC = rows_RK @ layer.weight.flatten(1).T
    return out_RC.unflatten(0, (len(x_BCLF), -1)).transpose(1, 2).unflatten(2, x_BCLF.shape[2:])


class ConvBlock(nn.Module):
    """(3×3 convolution without bias, batch norm, ReLU) twice; then optional 2×2 average pooling."""

    def __init__(self, channels_in: int, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels, kernel_size=3, padding=1, bias=False)
        self.conv2 = nn.Conv2d(channels, channels, kernel_size=3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.bn2 = nn.BatchNorm2d(channels)
        initialise(self.conv1)
        initialise(self.conv2)

    def forward(self, x_BCLF: Tensor, pool: bool) -> Tensor:
        """(B, C_in, L, F) to (B, C, L, F), or to (B, C, L // 2, F // 2) when pooled."""
        if self.conv2.weight.is_contiguous():
            x_BCLF = x_BCLF.contiguous()  # the previous block may be in channels-last format
        x_BCLF = nn.functional.relu_(self.bn1(convolve(self.conv1, x_BCLF)))
        x_BCLF = nn.functional.relu_(self.bn2(convolve(self.conv2, x_BCLF)))
        return nn.functional.avg_pool2d(x_BCLF, 2) if pool else x_BCLF


class Cnn14(nn.Module):
    """The network: logmel_BLF to h_BD. No dropout [open]."""

    Config = Cnn14Config
    reads: Reads = "log-mel"

    def __init__(self, config: Cnn14Config) -> None:
        super().__init__()
        self.config = config
        self.bn0 = nn.BatchNorm2d(config.mel_bands)
        inputs = (1, *config.widths[:-1])
        for number, (channels_in, channels) in enumerate(zip(inputs, config.widths, strict=True), start=1):
            block = ConvBlock(channels_in, channels)
            if config.widths[0] >= CHANNELS_LAST_MIN_WIDTH and number in CHANNELS_LAST_BLOCKS:
                block.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
            self.add_module(f"conv_block{number}", block)
        self.embedding = nn.Linear(config.widths[-1], config.embedding_dim)
        initialise(self.embedding)
        self.tags = nn.Linear(config.embedding_dim, config.classes) if config.classes else None
        if self.tags is not None:
            initialise(self.tags)

    def forward(self, logmel_BLF: Tensor) -> Tensor:
        """logmel_BLF, at least 32 frames, to the representation h_BD (before any head)."""
        h_BD = self.embedding(self.pooled(logmel_BLF))
        return nn.functional.relu(h_BD) if self.config.activation == "relu" else h_BD

    def pooled(self, logmel_BLF: Tensor) -> Tensor:
        """logmel_BLF to the input of the layer to h (B, widths[-1]): mean over mels, then max plus mean over frames.

        Raises:
            SepsceneError: the number of mel bands is not the configured one, or there are fewer than 32 frames.
        """
        frames, mels = logmel_BLF.shape[1:]
        if mels != self.config.mel_bands or frames < CNN14_MIN_SIZE:
            raise SepsceneError(
                f"log-mel of {frames} frames and {mels} bands: CNN14 needs at least {CNN14_MIN_SIZE} frames and "
                f"exactly {self.config.mel_bands} bands; check front_end.mel_bands and the clip's length"
            )
        x_BCLF = self.bn0(logmel_BLF.transpose(1, 2)[..., None]).permute(0, 3, 2, 1)
        for number in range(1, 7):
            x_BCLF = getattr(self, f"conv_block{number}")(x_BCLF, pool=number < 6)
        x_BCL = x_BCLF.mean(dim=3)
        return x_BCL.amax(dim=2) + x_BCL.mean(dim=2)

    def clipwise(self, h_BD: Tensor) -> Tensor:
        """h_BD to the probability of each class (B, classes), as PANNs' `clipwise_output`.

        Raises:
            SepsceneError: the network was not imported with its classifier.
        """
        if self.tags is None:
            raise SepsceneError("this CNN14 has no classifier: import a PANNs file that contains `fc_audioset`")
        return torch.sigmoid(self.tags(h_BD))
