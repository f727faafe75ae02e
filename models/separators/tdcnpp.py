"""TDCN++: the separation network of MixIT, equal to the reference implementation up to rounding.

Source: google-research/sound-separation (models/neurips2020_mixit, models/train), described in the paper
"Unsupervised Sound Separation Using Mixture Invariant Training" (arXiv 2006.12701).

Shapes: B clips, S sources, T samples, L frames, C coefficients of the basis, W bottleneck, H hidden width.
Inside the network time is the last axis (`_BCL`), so that convolutions need no transposition.
This file is the plain implementation, for training and as the reference; `models.separators.fast_path` is the fast one.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sepscene.models.settings import TDCNppConfig

NORM_EPSILON = 1e-3  # Keras' default, which the reference uses everywhere


def pad_to_frames(wave_BT: Tensor, config: TDCNppConfig) -> Tensor:
    """Zero-pad the end so that the last frame is complete."""
    needed = (config.frames(wave_BT.shape[-1]) - 1) * config.hop_samples + config.window_samples
    return F.pad(wave_BT, (0, max(0, needed - wave_BT.shape[-1])))


def glorot(*shape: int) -> nn.Parameter:
    """A kernel with Glorot-uniform initialisation, as all kernels of the reference."""
    return nn.Parameter(nn.init.xavier_uniform_(torch.empty(shape)))


class LearnedBasis(nn.Module):
    """Linear analysis with ReLU, linear synthesis with overlap-add; no window function."""

    def __init__(self, config: TDCNppConfig):
        super().__init__()
        self.config = config
        self.analysis = glorot(config.coefficients, config.window_samples)
        self.synthesis = glorot(config.coefficients, config.window_samples)

    def analyse(self, wave_BT: Tensor) -> tuple[Tensor, Tensor]:
        """wave_BT -> (coefficients to be masked, features for the mask network), here identical (B, C, L)."""
        wave_BT = pad_to_frames(wave_BT, self.config)
        coefficient_BCL = F.conv1d(wave_BT[:, None], self.analysis[:, None], stride=self.config.hop_samples).relu()
        return coefficient_BCL, coefficient_BCL

    def synthesise(self, masked_BSCL: Tensor, samples: int) -> Tensor:
        """Coefficients (B, S, C, L) -> waves (B, S, T), cropped to `samples`."""
        weight = self.synthesis[:, None]
        wave = F.conv_transpose1d(masked_BSCL.flatten(0, 1), weight, stride=self.config.hop_samples)
        return wave[:, 0, :samples].unflatten(0, masked_BSCL.shape[:2])


class StftBasis(nn.Module):
    """STFT with a square-root Hann window; the mask network gets the layer-normalised magnitude.

    Frames start at sample 0 and only the end is padded, so that the synthesis fades in the first window of a clip, as
    in the reference. The mixture consistency restores the missing signal.
    """

    window: Tensor
    inverse_window: Tensor

    def __init__(self, config: TDCNppConfig):
        super().__init__()
        self.config = config
        self.fft_samples = 2 * (config.coefficients - 1)
        self.gamma = nn.Parameter(torch.ones(()))
        self.beta = nn.Parameter(torch.zeros(()))
        # On the CPU even if the network is built on the meta device to load a folder: on that device torch would import
        # its compiler for the window, which takes a second in every process that separates.
        cpu = torch.device("cpu")
        window = torch.hann_window(config.window_samples, periodic=True, dtype=torch.float64, device=cpu).sqrt()
        hop = config.hop_samples
        overlaps = -(-config.window_samples // hop)
        power = F.pad(window.square(), (0, overlaps * hop - config.window_samples)).view(overlaps, hop).sum(0)
        inverse = window / power.repeat(overlaps)[: config.window_samples]
        self.register_buffer("window", window.float(), persistent=False)
        self.register_buffer("inverse_window", inverse.float(), persistent=False)

    def analyse(self, wave_BT: Tensor) -> tuple[Tensor, Tensor]:
        """wave_BT -> (complex coefficients, normalised magnitudes), both (B, C, L)."""
        frame_BLT = pad_to_frames(wave_BT, self.config).unfold(-1, self.config.window_samples, self.config.hop_samples)
        coefficient_BLC = torch.fft.rfft(frame_BLT * self.window, n=self.fft_samples)
        magnitude_BLC = coefficient_BLC.abs()
        norm_BLC = F.layer_norm(magnitude_BLC, magnitude_BLC.shape[1:], eps=NORM_EPSILON)
        return coefficient_BLC.mT, (self.gamma * norm_BLC + self.beta).mT

    def synthesise(self, masked_BSCL: Tensor, samples: int) -> Tensor:
        """Complex coefficients (B, S, C, L) -> waves (B, S, T), cropped or zero-padded to `samples`."""
        window = self.config.window_samples
        hop = self.config.hop_samples
        frame_BSTL = torch.fft.irfft(masked_BSCL, n=self.fft_samples, dim=2)[:, :, :window]
        frame_BSTL = frame_BSTL * self.inverse_window[:, None]
        total = (masked_BSCL.shape[-1] - 1) * hop + window
        wave = F.fold(frame_BSTL.flatten(0, 1), (1, total), kernel_size=(1, window), stride=(1, hop))
        return wave[:, 0, 0, :samples].unflatten(0, masked_BSCL.shape[:2])


class ScaledDense(nn.Module):
    """a·(W·x + b) over the channel axis, with one learned scalar a."""

    def __init__(self, inputs: int, outputs: int, bias: bool, scale: float):
        super().__init__()
        self.weight = glorot(outputs, inputs)
        self.bias = nn.Parameter(torch.zeros(outputs)) if bias else None
        self.scale = nn.Parameter(torch.tensor(scale))

    def forward(self, x_BCL: Tensor) -> Tensor:
        return self.scale * F.conv1d(x_BCL, self.weight[:, :, None], self.bias)


class ActivationNorm(nn.Module):
    """PReLU with one slope, then normalisation over time per clip and channel, with scalar gamma and beta."""

    def __init__(self) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.full((1,), 0.1))
        self.gamma = nn.Parameter(torch.ones(1))
        self.beta = nn.Parameter(torch.zeros(1))

    def forward(self, x_BCL: Tensor) -> Tensor:
        frames = x_BCL.shape[-1]
        gamma_L = self.gamma.expand(frames)
        beta_L = self.beta.expand(frames)
        return F.layer_norm(F.prelu(x_BCL, self.slope), (frames,), gamma_L, beta_L, NORM_EPSILON)


class DepthwiseConvolution(nn.Module):
    """Dilated convolution over time with one filter per channel, zero-padded to keep the number of frames."""

    def __init__(self, channels: int, kernel: int, dilation: int):
        super().__init__()
        self.dilation = dilation
        # Keras computes the fans of a depthwise kernel over taps and channels: those of (channels, 1, taps).
        self.weight = nn.Parameter(glorot(channels, 1, kernel).detach()[:, 0])
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x_BCL: Tensor) -> Tensor:
        channels, taps = self.weight.shape
        padding = self.dilation * (taps // 2)
        weight = self.weight[:, None]
        return F.conv1d(x_BCL, weight, self.bias, padding=padding, dilation=self.dilation, groups=channels)


class Block(nn.Module):
    """Widen, activate and normalise, convolve over time, activate and normalise, narrow, add the input."""

    def __init__(self, config: TDCNppConfig, index: int):
        super().__init__()
        self.dense1 = ScaledDense(config.bottleneck, config.hidden, bias=False, scale=1.0)
        self.norm1 = ActivationNorm()
        self.depthwise = DepthwiseConvolution(config.hidden, config.kernel, 2 ** (index % config.blocks))
        self.norm2 = ActivationNorm()
        self.dense2 = ScaledDense(config.hidden, config.bottleneck, bias=False, scale=0.9**index)

    def forward(self, x_BWL: Tensor) -> Tensor:
        hidden_BHL = self.norm1(self.dense1(x_BWL))
        return x_BWL + self.dense2(self.norm2(self.depthwise(hidden_BHL)))


class TDCNpp(nn.Module):
    """The network: wave_BT -> separated_BST, whose sources sum to the mixture.

    A new network has the reference's initialisation: Glorot-uniform kernels, zero biases, PReLU slopes of 0.1, and a
    scale of 0.9**b in the second dense layer of block b. It is the processor N (0 steps) of the paper.
    """

    def __init__(self, config: TDCNppConfig):
        super().__init__()
        self.config = config
        self.sample_rate = config.sample_rate
        self.sources = config.sources
        self.basis = LearnedBasis(config) if config.basis == "learned" else StftBasis(config)
        self.initial = ScaledDense(config.coefficients, config.bottleneck, bias=True, scale=1.0)
        self.blocks = nn.ModuleList(Block(config, index) for index in range(config.repeats * config.blocks))
        starts = range(0, len(self.blocks), config.blocks) if config.skip_residual else ()
        width = config.bottleneck
        self.skips = nn.ModuleDict(
            {
                f"{source}_to_{target}": ScaledDense(width, width, bias=True, scale=1.0)
                for target in starts
                for source in starts
                if source < target
            }
        )
        self.mask = glorot(config.sources * config.coefficients, config.bottleneck)
        if config.consistency == "pred_source":
            self.mix_weights = glorot(config.sources, config.bottleneck)

    def forward(self, wave_BT: Tensor) -> Tensor:
        """Separate clips (B, T) into sources (B, S, T), same length, same sum."""
        coefficient_BCL, feature_BCL = self.basis.analyse(wave_BT)
        final_BWL = self.activations(feature_BCL)
        logit_BSCL = F.conv1d(final_BWL, self.mask[:, :, None]).unflatten(1, (self.sources, -1))
        masked_BSCL = logit_BSCL.sigmoid() * coefficient_BCL[:, None]
        separated_BST = self.basis.synthesise(masked_BSCL, wave_BT.shape[-1])
        return self.consistent(wave_BT, separated_BST, final_BWL.mean(-1))

    def activations(self, feature_BCL: Tensor) -> Tensor:
        """The mask network up to the last block: (B, C, L) -> (B, W, L)."""
        x_BWL = self.initial(feature_BCL)
        repeat_inputs: dict[int, Tensor] = {}
        for index, block in enumerate(self.blocks):
            if self.config.skip_residual and index % self.config.blocks == 0:
                for source, stored_BWL in repeat_inputs.items():
                    x_BWL = x_BWL + self.skips[f"{source}_to_{index}"](stored_BWL)
                repeat_inputs[index] = x_BWL
            x_BWL = block(x_BWL)
        return x_BWL

    def consistent(self, wave_BT: Tensor, separated_BST: Tensor, mean_BW: Tensor) -> Tensor:
        """Mixture consistency: add the difference between the mixture and the sum of the sources to the sources.

        `mean_BW` is the mean over time of the last block's output, from which `pred_source` predicts the weights.
        """
        missing_BT = wave_BT - separated_BST.sum(1)
        if self.config.consistency == "pred_source":
            weight_BS = F.linear(mean_BW, self.mix_weights).softmax(-1)
        elif self.config.consistency == "magsq":
            power_BS = separated_BST.square().mean(-1) + 1e-8
            weight_BS = power_BS / power_BS.sum(-1, keepdim=True)
        else:
            return separated_BST + missing_BT[:, None] / self.sources
        return separated_BST + weight_BS[:, :, None] * missing_BT[:, None]
