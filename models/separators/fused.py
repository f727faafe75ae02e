"""The hidden activations of a TDCN++ on a CPU, in two passes through memory instead of torch's dozen.

In torch a PReLU, a square, two sums and each tap of a depthwise convolution are separate passes. Here they are fused to
one pass, which Numba compiles for this machine at its first use. Results do not depend on the number of threads.

Shapes: B = 1 clip, L frames, P groups of frames, W bottleneck width, H hidden channels, K taps. Activations are
float32, or bfloat16 stored as bits in uint16: computed in float32 and rounded to nearest even.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numba
import numpy as np
import torch
from numba import prange, types
from numba.extending import overload
from torch import Tensor

GROUP_FRAMES = 64
"""Sums over time are float32 within groups of this many frames and float64 over the groups, because variances are
differences of large numbers.
"""

FASTMATH = {"reassoc", "contract", "nsz"}
"""Flags that allow vector instructions and fused multiply-adds; NaN is still handled correctly."""

CHUNK_BYTES = 1 << 19
"""Size per thread of the activations that are widened and rectified in one step: with the weights they fit in an L2
cache.
"""


class FusedHidden:
    """The hidden activations of one clip, widened, convolved and narrowed."""

    def __init__(self, frames: int, channels: int, reach: int, dtype: torch.dtype):
        """Allocate buffers for a clip. A tap of the convolution reads at most `reach` frames ahead."""
        threads = torch.get_num_threads()
        self.parallel = threads > 1
        if threads > 1:
            numba.set_num_threads(min(threads, numba.config.NUMBA_NUM_THREADS))  # type: ignore[attr-defined]
        # A single thread convolves in place: its output is `reach` frames behind, so that it overwrites no frame that
        # is still needed.
        behind = frames if threads > 1 else reach + 1
        buffer_RH = torch.empty(behind + frames, channels, dtype=dtype)
        self.widened_LH = buffer_RH[behind:]
        self.convolved_LH = buffer_RH[:frames]
        self.sums_P2H = torch.empty(-(-frames // GROUP_FRAMES), 2, channels)
        chunk = CHUNK_BYTES * threads // (channels * dtype.itemsize)
        self.chunk = max(1, chunk // GROUP_FRAMES) * GROUP_FRAMES

    def widen(self, x_BLW: Tensor, weight_WH: Tensor, slope: float) -> Tensor:
        """h = PReLU(x·W). Returns the sums of h and of h² over time (2, B = 1, 1, H), float64."""
        rectify = _compiled(_rectify, self.parallel)
        inputs = x_BLW[0].split(self.chunk)
        outputs = self.widened_LH.split(self.chunk)
        sums = self.sums_P2H.split(self.chunk // GROUP_FRAMES)
        for x_LW, widened_LH, sums_P2H in zip(inputs, outputs, sums, strict=True):
            torch.mm(x_LW, weight_WH, out=widened_LH)
            rectify(_array(widened_LH), np.float32(slope), _array(sums_P2H))
        return self.sums_P2H.sum(0, dtype=torch.float64)[:, None, None]

    def convolve(self, taps_BKH: Tensor, outside_BKH: Tensor, bias_B1H: Tensor, dilation: int, slope: float) -> Tensor:
        """h = PReLU(depthwise convolution of h). Returns the same sums as `widen`.

        `outside_BKH` is subtracted from the output for each tap outside of the clip.
        """
        convolve = _compiled(_convolution(taps_BKH.shape[1]), self.parallel)
        activations = [_array(self.widened_LH), _array(self.convolved_LH)]
        weights = [_array(taps_BKH[0]), _array(outside_BKH[0]), _array(bias_B1H[0])]
        convolve(*activations, *weights, dilation, np.float32(slope), _array(self.sums_P2H))
        return self.sums_P2H.sum(0, dtype=torch.float64)[:, None, None]

    def narrow(self, x_BLW: Tensor, weight_BHW: Tensor, bias_B1W: Tensor) -> None:
        """x += h·W + bias, in place."""
        for x_LW, convolved_LH in zip(x_BLW[0].split(self.chunk), self.convolved_LH.split(self.chunk), strict=True):
            x_LW.addmm_(convolved_LH, weight_BHW[0]).add_(bias_B1W[0])


def _array(x_LH: Tensor) -> np.ndarray:
    return (x_LH.view(torch.uint16) if x_LH.dtype == torch.bfloat16 else x_LH).numpy()


@cache
def _compiled(function: Callable[..., None], parallel: bool) -> Callable[..., None]:
    """The compiled function. The single-threaded one is cached on disk, the parallel one is compiled per process."""
    options: dict[str, Any] = {"nogil": True, "fastmath": FASTMATH, "error_model": "numpy"}
    if parallel:
        return numba.njit(parallel=True, **options)(function)
    try:
        return numba.njit(cache=True, **options)(function)
    except RuntimeError:  # neither the folder of this file nor the home folder is writable
        return numba.njit(**options)(function)


def _load(value: Any) -> Any:
    """A stored activation as float32."""
    raise NotImplementedError


def _store(value: Any, like: Any) -> Any:
    """A float32 number in the format of the stored activation `like`."""
    raise NotImplementedError


@overload(_load)
def _load_of(value: Any) -> Any:
    def widened(value: Any) -> Any:
        return np.uint32(np.uint32(value) << np.uint32(16)).view(np.float32)

    def unchanged(value: Any) -> Any:
        return value

    return widened if value == types.uint16 else unchanged


@overload(_store)
def _store_of(value: Any, like: Any) -> Any:
    def rounded(value: Any, like: Any) -> Any:
        bits = np.float32(value).view(np.uint32)
        odd = np.uint32(np.uint32(bits >> np.uint32(16)) & np.uint32(1))
        return np.uint16(np.uint32(bits + np.uint32(odd + np.uint32(0x7FFF))) >> np.uint32(16))

    def unchanged(value: Any, like: Any) -> Any:
        return value

    return rounded if like == types.uint16 else unchanged


def _rectify(h_LH: Any, slope: Any, sums_P2H: Any) -> None:
    frames, channels = h_LH.shape
    for part in prange(len(sums_P2H)):
        sum_H = np.zeros(channels, np.float32)
        square_H = np.zeros(channels, np.float32)
        for frame in range(part * GROUP_FRAMES, min((part + 1) * GROUP_FRAMES, frames)):
            for channel in range(channels):
                value = _load(h_LH[frame, channel])
                value = value if value > 0 else slope * value
                h_LH[frame, channel] = _store(value, h_LH[frame, channel])
                sum_H[channel] += value
                square_H[channel] += value * value
        sums_P2H[part, 0] = sum_H
        sums_P2H[part, 1] = square_H


@cache
def _convolution(taps: int) -> Callable[..., None]:
    """The convolution for a fixed number of taps, so that their loop is unrolled inside of the loop over channels."""
    half = taps // 2

    def convolution(
        h_LH: Any, out_LH: Any, taps_KH: Any, lost_KH: Any, bias_1H: Any, dilation: int, slope: Any, sums_P2H: Any
    ) -> None:
        frames, channels = h_LH.shape
        for part in prange(len(sums_P2H)):
            sum_H = np.zeros(channels, np.float32)
            square_H = np.zeros(channels, np.float32)
            value_H = np.empty(channels, np.float32)
            for frame in range(part * GROUP_FRAMES, min((part + 1) * GROUP_FRAMES, frames)):
                if frame >= half * dilation and frame + half * dilation < frames:
                    for channel in range(channels):
                        value = bias_1H[0, channel]
                        for tap in range(taps):
                            value += _load(h_LH[frame + (tap - half) * dilation, channel]) * taps_KH[tap, channel]
                        value_H[channel] = value
                else:
                    value_H[:] = bias_1H[0]
                    for tap in range(taps):
                        source = frame + (tap - half) * dilation
                        if source >= 0 and source < frames:
                            for channel in range(channels):
                                value_H[channel] += _load(h_LH[source, channel]) * taps_KH[tap, channel]
                        else:
                            value_H -= lost_KH[tap]
                for channel in range(channels):
                    value = value_H[channel]
                    value = value if value > 0 else slope * value
                    out_LH[frame, channel] = _store(value, out_LH[frame, channel])
                    sum_H[channel] += value
                    square_H[channel] += value * value
            sums_P2H[part, 0] = sum_H
            sums_P2H[part, 1] = square_H

    return convolution
