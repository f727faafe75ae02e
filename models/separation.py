"""The fast path of a separator: the same function as TDCNpp's forward, for inference only.

The plain forward carries each activation through memory about a dozen times per block. Here channels are the
last axis, so that dense layers are plain matrix products; scales and the affine part of the norms are folded
into the weights of the next layer (per clip: a norm's statistics are the clip's own); sums and squares are
taken while the activations are still in cache; and everything is written in place, a stretch of frames at a
time. What is left in float32 on one thread is 70 % matrix products at 95 % of what the core can do. Tried and
left: torch.compile of the plain forward gains 7 % on a CPU after minutes of compiling; compiled stretches fuse
their passes, and lose it again to the guards of a hundred calls per block. The GPU path has been written but not
yet run on one.

Shapes: B clips, S sources, T samples, L frames, C coefficients, W bottleneck width, H hidden width, K taps.
"""

from __future__ import annotations

import copy
from typing import Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._C._nn import leaky_relu

from models.tdcnpp import (
    NORM_EPSILON,
    ActivationNorm,
    Block,
    LearnedBasis,
    ScaledDense,
    TDCNpp,
    pad_to_frames,
)

Precision = Literal["float32", "bfloat16"]

STRETCH_BYTES = 1 << 19
"""Hidden activations of a stretch of frames, per thread of a CPU: two of them and the weights fit an L2 cache."""


def fast_separator(
    separator: nn.Module, device: str | torch.device = "cpu", precision: Precision = "float32"
) -> nn.Module:
    """A module that separates as `separator` does, faster, without gradients.

    Args:
        separator: any separator of the project; it is copied, not changed.
        device: where the copy runs.
        precision: "float32" equals the plain forward to rounding (beyond 60 dB); "bfloat16" halves the
            traffic and uses the matrix units for it (beyond 30 dB; the waves in and out stay float32).

    Returns:
        wave_BT -> separated_BST with `sample_rate` and `sources`. A TDCNpp gets the formulation of this
        file; any other separator runs as it is, in bfloat16 under autocast.
    """
    separator = copy.deepcopy(separator).to(device).eval().requires_grad_(False)
    dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
    if isinstance(separator, TDCNpp):
        return FastTDCNpp(separator, dtype)
    return separator if dtype is torch.float32 else AutocastSeparator(separator, dtype)


class AutocastSeparator(nn.Module):
    """A separator without a formulation of its own, whose matrix products and convolutions run in `dtype`."""

    def __init__(self, separator: nn.Module, dtype: torch.dtype):
        super().__init__()
        self.separator, self.dtype = separator, dtype
        self.sample_rate, self.sources = separator.sample_rate, separator.sources

    @torch.inference_mode()
    def forward(self, wave_BT: Tensor) -> Tensor:
        """Separate clips (B, T) into sources (B, S, T), float32."""
        with torch.autocast(wave_BT.device.type, self.dtype):
            return self.separator(wave_BT).float()


class FastTDCNpp(nn.Module):
    """A TDCNpp for inference, on CPU clip by clip in stretches that stay in cache, on a GPU all at once."""

    mask: Tensor

    def __init__(self, network: TDCNpp, dtype: torch.dtype):
        super().__init__()
        self.sample_rate, self.sources, self.config = network.sample_rate, network.sources, network.config
        self.plain, self.dtype = network, dtype
        self.initial = FoldedDense(network.initial, dtype)
        self.blocks = nn.ModuleList(FastBlock(cast(Block, block), dtype) for block in network.blocks)
        self.skips = nn.ModuleDict(
            {name: FoldedDense(cast(ScaledDense, dense), dtype) for name, dense in network.skips.items()}
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
        basis, config = self.plain.basis, self.config
        if not isinstance(basis, LearnedBasis):
            coefficient_BCL, feature_BCL = basis.analyse(wave_BT)
            return coefficient_BCL.mT, feature_BCL.mT
        frame_BLT = pad_to_frames(wave_BT, config).unfold(-1, config.window_samples, config.hop_samples)
        coefficient_BLC = (frame_BLT @ basis.analysis.T).relu_()
        return coefficient_BLC, coefficient_BLC

    def _activations(self, feature_BLC: Tensor) -> Tensor:
        """The mask network up to the last block, in place of one buffer (B, L, W)."""
        x_BLW = self.initial(feature_BLC)
        clips, frames, _ = x_BLW.shape
        stretch = self._stretch(x_BLW)
        room = [x_BLW.new_empty(clips, length, self.config.hidden) for length in (frames, stretch)]
        repeat_inputs: dict[int, Tensor] = {}
        for index, block in enumerate(self.blocks):
            if self.config.skip_residual and index % self.config.blocks == 0:
                for source, stored_BLW in repeat_inputs.items():
                    x_BLW += self.skips[f"{source}_to_{index}"](stored_BLW)
                repeat_inputs[index] = x_BLW.clone()
            block(x_BLW, *room)
        return x_BLW

    def _stretch(self, x_BLW: Tensor) -> int:
        """Frames that are worked on together: all on a GPU, what fits the cache on a CPU."""
        if x_BLW.is_cuda:
            return x_BLW.shape[1]
        room = STRETCH_BYTES * torch.get_num_threads()
        return min(x_BLW.shape[1], max(64, room // (self.config.hidden * x_BLW.element_size())))

    def _decode(self, x_BLW: Tensor, coefficient_BLC: Tensor, samples: int) -> Tensor:
        """Mask the coefficients of a learned basis and add the frames of every source up to a wave."""
        window, hop, sources = self.config.window_samples, self.config.hop_samples, self.sources
        clips, frames, _ = x_BLW.shape
        parts = -(-window // hop)
        wave_BSLh = x_BLW.new_zeros(clips, sources, frames + parts - 1, hop, dtype=torch.float32)
        stretch = self._stretch(x_BLW)
        for start in range(0, frames, stretch):
            span = slice(start, start + stretch)
            mask_BLSC = (x_BLW[:, span] @ self.mask).float().sigmoid_().unflatten(-1, (sources, -1))
            mask_BLSC *= coefficient_BLC[:, span, None]
            frame_BSLT = (mask_BLSC @ self.plain.basis.synthesis).transpose(1, 2)
            stop = start + frame_BSLT.shape[2]
            for part in range(parts):
                piece = frame_BSLT[..., part * hop : (part + 1) * hop]
                wave_BSLh[:, :, start + part : stop + part, : piece.shape[-1]] += piece
        return wave_BSLh.flatten(2)[..., :samples]


class FoldedDense(nn.Module):
    """a·(W·x + b) with a folded into W and b."""

    weight: Tensor
    bias: Tensor | None

    def __init__(self, dense: ScaledDense, dtype: torch.dtype):
        super().__init__()
        self.register_buffer("weight", (dense.scale * dense.weight).to(dtype))
        self.register_buffer("bias", None if dense.bias is None else (dense.scale * dense.bias).to(dtype))

    def forward(self, x_BLC: Tensor) -> Tensor:
        return F.linear(x_BLC, self.weight, self.bias)


class FastBlock(nn.Module):
    """A block of the mask network that adds its output to its input in place."""

    widen_WH: Tensor
    taps_KH: Tensor
    bias_H: Tensor
    narrow_HW: Tensor

    def __init__(self, block: Block, dtype: torch.dtype):
        super().__init__()
        self.dilation = block.depthwise.dilation
        self.norm1, self.norm2 = FoldedNorm(block.norm1), FoldedNorm(block.norm2)
        self.register_buffer("widen_WH", (block.dense1.scale * block.dense1.weight).T.contiguous().to(dtype))
        self.register_buffer("taps_KH", block.depthwise.weight.T.contiguous())
        self.register_buffer("bias_H", block.depthwise.bias.detach())
        self.register_buffer("narrow_HW", (block.dense2.scale * block.dense2.weight).T.contiguous())

    def forward(self, x_BLW: Tensor, hidden_BLH: Tensor, scratch_BLH: Tensor) -> None:
        """Change `x_BLW`. The others are room: for all hidden activations, and for those of a stretch."""
        dtype, (clips, frames, _), stretch = x_BLW.dtype, x_BLW.shape, scratch_BLH.shape[1]
        spans = [slice(start, min(start + stretch, frames)) for start in range(0, frames, stretch)]
        widen_BWH = self.widen_WH.expand(clips, -1, -1)
        sums = Sums(len(spans), clips, len(self.bias_H), x_BLW.device)
        for index, span in enumerate(spans):
            widened_BLH = torch.bmm(x_BLW[:, span], widen_BWH, out=hidden_BLH[:, span])
            sums.add(index, F.leaky_relu_(widened_BLH, self.norm1.slope), scratch_BLH)
        scale_B1H, shift_B1H = self.norm1.affine(sums, frames)
        taps_BKH = (self.taps_KH * scale_B1H).to(dtype)
        lost_BKH = (self.taps_KH * shift_B1H).to(dtype)
        bias_B1H = (self.bias_H + shift_B1H * self.taps_KH.sum(0)).to(dtype)
        past_BRH = hidden_BLH[:, :0]
        for index, span in enumerate(spans):
            out_BLH = scratch_BLH[:, : span.stop - span.start]
            self._convolve(past_BRH, hidden_BLH, span, taps_BKH, lost_BKH, bias_B1H, out_BLH)
            past_BRH = self._past(past_BRH, hidden_BLH[:, span])
            convolved_BLH = leaky_relu(out_BLH, self.norm2.slope, out=hidden_BLH[:, span])
            sums.add(index, convolved_BLH, scratch_BLH)
        scale_B1H, shift_B1H = self.norm2.affine(sums, frames)
        narrow_BHW = (self.narrow_HW * scale_B1H.mT).to(dtype)
        added_B1W = (shift_B1H @ self.narrow_HW).to(dtype)
        for span in spans:
            x_BLW[:, span].baddbmm_(hidden_BLH[:, span], narrow_BHW).add_(added_B1W)

    def _past(self, past_BRH: Tensor, now_BLH: Tensor) -> Tensor:
        """The frames that later stretches look back on, copied before they are overwritten."""
        reach = len(self.taps_KH) // 2 * self.dilation
        kept = max(0, reach - now_BLH.shape[1])
        return torch.cat([past_BRH[:, max(0, past_BRH.shape[1] - kept) :], now_BLH[:, -reach:]], 1)

    def _convolve(
        self,
        past_BRH: Tensor,
        hidden_BLH: Tensor,
        span: slice,
        taps_BKH: Tensor,
        lost_BKH: Tensor,
        bias_B1H: Tensor,
        out_BLH: Tensor,
    ) -> None:
        """Depthwise convolution of the normed activations, whose norm is folded into `taps` and `bias`.

        Frames before `span` are taken from `past`: in `hidden` they have been overwritten. Padding follows the
        norm, so a tap that falls outside of the clip finds 0 and not the norm's shift: where that happens, the
        shift that the bias holds for this tap (`lost`) is taken back.
        """
        start, stop, frames, taps = span.start, span.stop, hidden_BLH.shape[1], taps_BKH.shape[1]
        torch.addcmul(bias_B1H, hidden_BLH[:, span], taps_BKH[:, taps // 2, None], out=out_BLH)
        for tap in range(taps):
            if (offset := (tap - taps // 2) * self.dilation) == 0:
                continue
            low, high = min(max(start, -offset), stop), max(min(stop, frames - offset), start)
            seam = min(max(low, start - offset), high)
            for source_BLH, origin, begin, end in (
                (past_BRH, start - past_BRH.shape[1], low, seam),
                (hidden_BLH, 0, seam, high),
            ):
                if begin < end:
                    shifted_BLH = source_BLH[:, begin + offset - origin : end + offset - origin]
                    out_BLH[:, begin - start : end - start].addcmul_(shifted_BLH, taps_BKH[:, tap, None])
            if (low, high) != (start, stop):
                out_BLH[:, : low - start] -= lost_BKH[:, tap, None]
                out_BLH[:, high - start :] -= lost_BKH[:, tap, None]


class Sums:
    """Sums and sums of squares over time, per clip and hidden channel, gathered stretch by stretch."""

    def __init__(self, stretches: int, clips: int, channels: int, device: torch.device):
        self.parts = torch.empty(2, stretches, clips, 1, channels, device=device)

    def add(self, index: int, hidden_BLH: Tensor, scratch_BLH: Tensor) -> None:
        """Count stretch number `index` in; `scratch_BLH` is overwritten."""
        squared_BLH = torch.mul(hidden_BLH, hidden_BLH, out=scratch_BLH[:, : hidden_BLH.shape[1]])
        for part, values_BLH in zip(self.parts, (hidden_BLH, squared_BLH), strict=True):
            torch.sum(values_BLH, 1, keepdim=True, dtype=torch.float32, out=part[index])


class FoldedNorm:
    """What an ActivationNorm does beside its statistics."""

    def __init__(self, norm: ActivationNorm):
        self.slope, self.gamma, self.beta = float(norm.slope), float(norm.gamma), float(norm.beta)

    def affine(self, sums: Sums, frames: int) -> tuple[Tensor, Tensor]:
        """Scale and shift, float32 (B, 1, H), that norm the activations of which `sums` were taken."""
        mean, square = sums.parts.double().sum(1) / frames
        variance = (square - mean * mean).clamp_min(0.0)
        scale = self.gamma * (variance + NORM_EPSILON).rsqrt()
        return scale.float(), (self.beta - mean * scale).float()
