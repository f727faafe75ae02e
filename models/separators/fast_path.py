"""Fast inference: computes the same function as TDCNpp's forward, without gradients.

The plain forward moves each activation through memory about a dozen times per block. Here channels are the last axis,
so that dense layers are plain matrix products. Scales and the affine part of the norms are folded into the weights of
the next layer, per clip, because the statistics of a norm are those of a clip. On a CPU the operations between the
matrix products are fused (fused.py). Two alternatives were rejected: torch.compile of the plain forward gains 7 % on a
CPU after minutes of compiling; compiling single passes saves as much as the fusion, but the guards of a hundred calls
per block cost it again. The GPU path gives the same results on a CPU and has not yet run on a GPU.

Shapes: B clips, S sources, T samples, L frames, C coefficients, W bottleneck width, H hidden width, K taps.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sepscene.models.separators.tdcnpp import (
    NORM_EPSILON,
    ActivationNorm,
    Block,
    LearnedBasis,
    ScaledDense,
    TDCNpp,
    pad_to_frames,
)
from sepscene.models.settings import Precision

if TYPE_CHECKING:
    from sepscene.models.separators.fused import FusedHidden

DECODER_FRAMES = 256
"""Frames whose masks are computed and applied in one step on a CPU, so that they stay in cache."""


def fast_separator(
    separator: nn.Module, device: str | torch.device = "cpu", precision: Precision = "float32"
) -> nn.Module:
    """A module that computes the same as `separator`, faster and without gradients.

    Args:
        separator: any separator of Sepscene; it is copied, not changed.
        device: device of the copy.
        precision: "float32" equals the plain forward up to rounding (SNR above 60 dB); "bfloat16" halves the memory
            traffic and uses the bfloat16 matrix units (SNR above 30 dB; input and output are float32).

    Returns:
        wave_BT -> separated_BST with `sample_rate` and `sources`. A TDCNpp is replaced by `FastTDCNpp`; any other
        separator runs unchanged, in bfloat16 under autocast.
    """
    separator = copy.deepcopy(separator).to(device).eval().requires_grad_(False)
    dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
    if isinstance(separator, TDCNpp):
        return FastTDCNpp(separator, dtype)
    return separator if dtype is torch.float32 else AutocastSeparator(separator, dtype)


class AutocastSeparator(nn.Module):
    """Any separator, with autocast: matrix products and convolutions run in `dtype`."""

    def __init__(self, separator: nn.Module, dtype: torch.dtype):
        super().__init__()
        self.separator = separator
        self.dtype = dtype
        self.sample_rate = separator.sample_rate
        self.sources = separator.sources

    @torch.inference_mode()
    def forward(self, wave_BT: Tensor) -> Tensor:
        """Separate clips (B, T) into sources (B, S, T), float32."""
        with torch.autocast(wave_BT.device.type, self.dtype):
            return self.separator(wave_BT).float()


class FastTDCNpp(nn.Module):
    """A TDCNpp for inference; clip by clip on a CPU, batched on a GPU."""

    mask: Tensor

    def __init__(self, network: TDCNpp, dtype: torch.dtype):
        super().__init__()
        self.sample_rate = network.sample_rate
        self.sources = network.sources
        self.config = network.config
        self.plain = network
        self.dtype = dtype
        self.initial = folded(network.initial, dtype)
        self.blocks = nn.ModuleList(FastBlock(cast(Block, block), dtype) for block in network.blocks)
        self.skips = nn.ModuleDict(
            {name: folded(cast(ScaledDense, dense), dtype) for name, dense in network.skips.items()}
        )
        self.register_buffer("mask", network.mask.T.contiguous().to(dtype))

    @torch.inference_mode()
    def forward(self, wave_BT: Tensor) -> Tensor:
        """Separate clips (B, T) into sources (B, S, T), float32."""
        together = len(wave_BT) if wave_BT.is_cuda else 1
        return torch.cat([self._separate(part) for part in wave_BT.split(together)])

    def _separate(self, wave_BT: Tensor) -> Tensor:
        coefficient_BLC, feature_BLC = self._analyse(wave_BT)
        x_BLW = self._activations(feature_BLC.to(self.dtype))
        mean_BW = x_BLW.mean(1, dtype=torch.float32)
        if isinstance(self.plain.basis, LearnedBasis):
            separated_BST = self._decode(x_BLW, coefficient_BLC, wave_BT.shape[-1])
        else:
            mask_BLSC = (x_BLW @ self.mask).float().sigmoid_().unflatten(-1, (self.sources, -1))
            masked_BSCL = (mask_BLSC * coefficient_BLC[:, :, None]).permute(0, 2, 3, 1)
            separated_BST = self.plain.basis.synthesise(masked_BSCL, wave_BT.shape[-1])
        return self.plain.consistent(wave_BT, separated_BST, mean_BW)

    def _analyse(self, wave_BT: Tensor) -> tuple[Tensor, Tensor]:
        basis = self.plain.basis
        config = self.config
        if not isinstance(basis, LearnedBasis):
            coefficient_BCL, feature_BCL = basis.analyse(wave_BT)
            return coefficient_BCL.mT, feature_BCL.mT
        frame_BLT = pad_to_frames(wave_BT, config).unfold(-1, config.window_samples, config.hop_samples)
        coefficient_BLC = (frame_BLT @ basis.analysis.T).relu_()
        return coefficient_BLC, coefficient_BLC

    def _activations(self, feature_BLC: Tensor) -> Tensor:
        """The mask network up to the last block, computed in place in one buffer (B, L, W)."""
        x_BLW = self.initial(feature_BLC)
        hidden = self._hidden(x_BLW)
        repeat_inputs: dict[int, Tensor] = {}
        for index, block in enumerate(self.blocks):
            if self.config.skip_residual and index % self.config.blocks == 0:
                for source, stored_BLW in repeat_inputs.items():
                    x_BLW += self.skips[f"{source}_to_{index}"](stored_BLW)
                repeat_inputs[index] = x_BLW.clone()
            block(x_BLW, hidden)
        return x_BLW

    def _hidden(self, x_BLW: Tensor) -> FusedHidden | BatchedHidden:
        if x_BLW.device.type != "cpu":
            return BatchedHidden()
        # Importing Numba takes a third of a second, and most processes never separate.
        from sepscene.models.separators.fused import FusedHidden

        reach = self.config.kernel // 2 * 2 ** (self.config.blocks - 1)
        return FusedHidden(x_BLW.shape[1], self.config.hidden, reach, self.dtype)

    def _decode(self, x_BLW: Tensor, coefficient_BLC: Tensor, samples: int) -> Tensor:
        """Mask the coefficients of a learned basis, and overlap-add the frames of each source."""
        window = self.config.window_samples
        hop = self.config.hop_samples
        sources = self.sources
        clips, frames, _ = x_BLW.shape
        parts = -(-window // hop)
        wave_BSLh = x_BLW.new_zeros(clips, sources, frames + parts - 1, hop, dtype=torch.float32)
        chunk = frames if x_BLW.is_cuda else DECODER_FRAMES
        for start in range(0, frames, chunk):
            span = slice(start, start + chunk)
            mask_BLSC = (x_BLW[:, span] @ self.mask).float().sigmoid_().unflatten(-1, (sources, -1))
            mask_BLSC *= coefficient_BLC[:, span, None]
            frame_BSLT = (mask_BLSC @ self.plain.basis.synthesis).transpose(1, 2)
            stop = start + frame_BSLT.shape[2]
            for part in range(parts):
                piece = frame_BSLT[..., part * hop : (part + 1) * hop]
                wave_BSLh[:, :, start + part : stop + part, : piece.shape[-1]] += piece
        return wave_BSLh.flatten(2)[..., :samples]


def folded(dense: ScaledDense, dtype: torch.dtype) -> nn.Linear:
    """a·(W·x + b) with a folded into W and b."""
    outputs, inputs = dense.weight.shape
    linear = nn.Linear(inputs, outputs, bias=dense.bias is not None, device="meta")
    linear.weight = nn.Parameter((dense.scale * dense.weight).to(dtype), requires_grad=False)
    if dense.bias is not None:
        linear.bias = nn.Parameter((dense.scale * dense.bias).to(dtype), requires_grad=False)
    return linear


class FastBlock(nn.Module):
    """A block of the mask network that adds its output to its input in place."""

    widen_WH: Tensor
    taps_KH: Tensor
    bias_H: Tensor
    narrow_HW: Tensor

    def __init__(self, block: Block, dtype: torch.dtype):
        super().__init__()
        self.dilation = block.depthwise.dilation
        self.norm1 = FoldedNorm(block.norm1)
        self.norm2 = FoldedNorm(block.norm2)
        self.register_buffer("widen_WH", (block.dense1.scale * block.dense1.weight).T.contiguous().to(dtype))
        self.register_buffer("taps_KH", block.depthwise.weight.T.contiguous())
        self.register_buffer("bias_H", block.depthwise.bias.detach())
        self.register_buffer("narrow_HW", (block.dense2.scale * block.dense2.weight).T.contiguous())

    def forward(self, x_BLW: Tensor, hidden: FusedHidden | BatchedHidden) -> None:
        """Change `x_BLW` in place; `hidden` stores the activations in between."""
        frames = x_BLW.shape[1]
        sums_2B1H = hidden.widen(x_BLW, self.widen_WH, self.norm1.slope)
        scale_B1H, shift_B1H = self.norm1.affine(sums_2B1H, frames)
        # Padding follows the norm: outside of the clip a tap reads 0, without the norm's shift. The bias includes the
        # shift for all taps, so it is subtracted again for the taps outside.
        outside_BKH = self.taps_KH * shift_B1H
        bias_B1H = self.bias_H + outside_BKH.sum(1, keepdim=True)
        sums_2B1H = hidden.convolve(self.taps_KH * scale_B1H, outside_BKH, bias_B1H, self.dilation, self.norm2.slope)
        scale_B1H, shift_B1H = self.norm2.affine(sums_2B1H, frames)
        narrow_BHW = (self.narrow_HW * scale_B1H.mT).to(x_BLW.dtype)
        hidden.narrow(x_BLW, narrow_BHW, (shift_B1H @ self.narrow_HW).to(x_BLW.dtype))


class BatchedHidden:
    """The hidden activations of a batch on a GPU; FusedHidden is the equivalent for one clip on a CPU."""

    hidden_BLH: Tensor

    def widen(self, x_BLW: Tensor, weight_WH: Tensor, slope: float) -> Tensor:
        """h = PReLU(x·W). Returns the sums of h and of h² over time (2, B, 1, H), float32."""
        self.hidden_BLH = F.leaky_relu_(x_BLW @ weight_WH, slope)
        return self._sums()

    def convolve(self, taps_BKH: Tensor, outside_BKH: Tensor, bias_B1H: Tensor, dilation: int, slope: float) -> Tensor:
        """h = PReLU(depthwise convolution of h). Returns the same sums as `widen`.

        `outside_BKH` is subtracted from the output for each tap outside of the clip.
        """
        x_BLH = self.hidden_BLH
        dtype = self.hidden_BLH.dtype
        taps_BKH = taps_BKH.to(dtype)
        outside_BKH = outside_BKH.to(dtype)
        bias_B1H = bias_B1H.to(dtype)
        frames = x_BLH.shape[1]
        taps = taps_BKH.shape[1]
        out_BLH = bias_B1H.expand_as(x_BLH).clone()
        for tap in range(taps):
            offset = (tap - taps // 2) * dilation
            low = min(max(0, -offset), frames)
            high = max(min(frames, frames - offset), 0)
            if low < high:
                out_BLH[:, low:high].addcmul_(x_BLH[:, low + offset : high + offset], taps_BKH[:, tap, None])
            out_BLH[:, :low] -= outside_BKH[:, tap, None]
            out_BLH[:, high:] -= outside_BKH[:, tap, None]
        self.hidden_BLH = F.leaky_relu_(out_BLH, slope)
        return self._sums()

    def narrow(self, x_BLW: Tensor, weight_BHW: Tensor, bias_B1W: Tensor) -> None:
        """x += h·W + bias, in place."""
        x_BLW.baddbmm_(self.hidden_BLH, weight_BHW).add_(bias_B1W)

    def _sums(self) -> Tensor:
        sum_B1H = self.hidden_BLH.sum(1, keepdim=True, dtype=torch.float32)
        square_B1H = self.hidden_BLH.square().sum(1, keepdim=True, dtype=torch.float32)
        return torch.stack([sum_B1H, square_B1H])


class FoldedNorm:
    """The parameters of an ActivationNorm, to be folded into neighbouring layers."""

    def __init__(self, norm: ActivationNorm):
        self.slope = float(norm.slope)
        self.gamma = float(norm.gamma)
        self.beta = float(norm.beta)

    def affine(self, sums_2B1H: Tensor, frames: int) -> tuple[Tensor, Tensor]:
        """Scale and shift, float32 (B, 1, H), that normalise activations with these sums."""
        mean, square = sums_2B1H.double() / frames
        variance = (square - mean * mean).clamp_min(0.0)
        scale = self.gamma * (variance + NORM_EPSILON).rsqrt()
        return scale.float(), (self.beta - mean * scale).float()
