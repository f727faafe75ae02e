"""The hidden activations of a TDCN++ on a CPU, in two passes where torch takes a dozen.

For torch a PReLU, a square, two sums and each tap of a depthwise convolution are passes of their own through memory.
Here what belongs together is one pass, compiled by Numba for this machine at its first use. Results do not depend on
the number of threads.

Shapes: B = 1 clip, L frames, P parts of them, W bottleneck width, H hidden channels, K taps. Activations are float32,
or bfloat16 as its bits in uint16: computed in float32, rounded to nearest even.
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

FRAMES_TOGETHER = 64
"""Sums over time are float32 over this many frames and float64 beyond: variances are differences of large numbers."""

FASTMATH = {"reassoc", "contract", "nsz"}
"""What lets loops use vectors and fused multiply-adds; a NaN stays a NaN."""

STRETCH_BYTES = 1 << 19
"""Activations that are widened and rectified together, per thread: with the weights they fit an L2 cache."""


class FusedHidden:
    """The hidden activations of one clip, widened, convolved and narrowed."""

    def __init__(self, frames: int, channels: int, reach: int, dtype: torch.dtype):
        """Room for `frames`, of which a tap of the convolution looks `reach` ahead at most."""
        self.threads = threads = torch.get_num_threads()
        if threads > 1:
            numba.set_num_threads(min(threads, numba.config.NUMBA_NUM_THREADS))  # type: ignore[attr-defined]
        # A single thread convolves in place, a reach behind, so that no frame is overwritten that is still wanted.
        behind = frames if threads > 1 else reach + 1
        buffer_RH = torch.empty(behind + frames, channels, dtype=dtype)
        self.widened_LH = buffer_RH[behind:]
        self.convolved_LH = buffer_RH[:frames]
        self.sums_P2H = torch.empty(-(-frames // FRAMES_TOGETHER), 2, channels)
        together = STRETCH_BYTES * threads // (channels * dtype.itemsize)
        self.stretch = max(1, together // FRAMES_TOGETHER) * FRAMES_TOGETHER

    def widen(self, x_BLW: Tensor, weight_WH: Tensor, slope: float) -> Tensor:
        """h = PReLU(x·W). Returns the sums of h and of h² over time (2, B = 1, 1, H), float64."""
        rectify = _compiled(_rectify, self.threads > 1)
        stretches = (part.split(self.stretch) for part in (x_BLW[0], self.widened_LH))
        sums = self.sums_P2H.split(self.stretch // FRAMES_TOGETHER)
        for x_LW, widened_LH, sums_P2H in zip(*stretches, sums, strict=True):
            torch.mm(x_LW, weight_WH, out=widened_LH)
            rectify(_array(widened_LH), np.float32(slope), _array(sums_P2H))
        return self.sums_P2H.sum(0, dtype=torch.float64)[:, None, None]

    def convolve(self, taps_BKH: Tensor, lost_BKH: Tensor, bias_B1H: Tensor, dilation: int, slope: float) -> Tensor:
        """h = PReLU(depthwise convolution of h). Returns sums as `widen` does.

        `lost` is taken from the output for each tap that falls outside of the clip.
        """
        convolve = _compiled(_convolution(taps_BKH.shape[1]), self.threads > 1)
        activations = _array(self.widened_LH), _array(self.convolved_LH)
        weights = (_array(weight_BKH[0]) for weight_BKH in (taps_BKH, lost_BKH, bias_B1H))
        convolve(*activations, *weights, dilation, np.float32(slope), _array(self.sums_P2H))
        return self.sums_P2H.sum(0, dtype=torch.float64)[:, None, None]

    def narrow(self, x_BLW: Tensor, weight_BHW: Tensor, bias_B1W: Tensor) -> None:
        """x += h·W + bias, in place."""
        for x_LW, convolved_LH in zip(x_BLW[0].split(self.stretch), self.convolved_LH.split(self.stretch), strict=True):
            x_LW.addmm_(convolved_LH, weight_BHW[0]).add_(bias_B1W[0])


def _array(x_LH: Tensor) -> np.ndarray:
    return (x_LH.view(torch.uint16) if x_LH.dtype == torch.bfloat16 else x_LH).numpy()


@cache
def _compiled(function: Callable[..., None], threads: bool) -> Callable[..., None]:
    """The function for one thread, kept on the disk for other processes, or for several, compiled in each process."""
    options: dict[str, Any] = {"nogil": True, "fastmath": FASTMATH, "error_model": "numpy"}
    if threads:
        return numba.njit(parallel=True, **options)(function)
    try:
        return numba.njit(cache=True, **options)(function)
    except RuntimeError:  # no folder can be written, beside this file or in the home folder
        return numba.njit(**options)(function)


def _load(value: Any) -> Any:
    """A stored activation as float32."""
    raise NotImplementedError


def _store(value: Any, like: Any) -> Any:
    """A float32 number in the format of a stored activation."""
    raise NotImplementedError


@overload(_load)
def _load_of(value: Any) -> Any:
    def widened(value: Any) -> Any:
        return np.uint32(np.uint32(value) << np.uint32(16)).view(np.float32)

    def itself(value: Any) -> Any:
        return value

    return widened if value == types.uint16 else itself


@overload(_store)
def _store_of(value: Any, like: Any) -> Any:
    def rounded(value: Any, like: Any) -> Any:
        bits = np.float32(value).view(np.uint32)
        odd = np.uint32(np.uint32(bits >> np.uint32(16)) & np.uint32(1))
        return np.uint16(np.uint32(bits + np.uint32(odd + np.uint32(0x7FFF))) >> np.uint32(16))

    def itself(value: Any, like: Any) -> Any:
        return value

    return rounded if like == types.uint16 else itself


def _rectify(h_LH: Any, slope: Any, sums_P2H: Any) -> None:
    frames, channels = h_LH.shape
    for part in prange(len(sums_P2H)):
        sum_H = np.zeros(channels, np.float32)
        square_H = np.zeros(channels, np.float32)
        for frame in range(part * FRAMES_TOGETHER, min((part + 1) * FRAMES_TOGETHER, frames)):
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
    """The convolution for one number of taps: so their loop can be unrolled inside of that over channels."""
    half = taps // 2

    def convolution(
        h_LH: Any, out_LH: Any, taps_KH: Any, lost_KH: Any, bias_1H: Any, dilation: int, slope: Any, sums_P2H: Any
    ) -> None:
        frames, channels = h_LH.shape
        for part in prange(len(sums_P2H)):
            sum_H = np.zeros(channels, np.float32)
            square_H = np.zeros(channels, np.float32)
            value_H = np.empty(channels, np.float32)
            for frame in range(part * FRAMES_TOGETHER, min((part + 1) * FRAMES_TOGETHER, frames)):
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
