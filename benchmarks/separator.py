"""Speed of the separator, compared with the limits of the device and with torchaudio's Conv-TasNet.

Run it with `python -m benchmarks.separator [--device cuda] [--size tiny] [--threads 1]`. The variants are interleaved:
each runs once per round, and the medians over the rounds are compared, so that other load slows all of them equally.
On a CPU, processor time is measured in addition to wall time: with one thread, it is more reliable on a shared machine.

Known numbers: multiply-adds follow from the sizes (about 69 G per 10 s clip at full size). Bytes are those that a
formulation must move through memory, counted from its passes over the activations and ignoring caches.
"""

from __future__ import annotations

import ctypes
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
import typer
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from sepscene.models.separators.fast_path import fast_separator
from sepscene.models.separators.foreign import ConvTasNetConfig, ConvTasNetSeparator
from sepscene.models.separators.tdcnpp import TDCNpp
from sepscene.models.settings import TDCNppConfig

PLAIN_PASSES = (16, 7)
"""Passes of a plain block over activations of the hidden width and of the bottleneck width.

Hidden: dense 1, scale 2, PReLU 2, norm 3, convolution 2, PReLU 2, norm 3, dense 1; bottleneck: dense 1, dense 1,
scale 2, sum 3."""

FAST_PASSES = (4, 4)
"""The passes of a fast block. Hidden: widened, convolved (read, written), narrowed; bottleneck: input, sum (read,
written), bias."""

VARIANTS = ("plain float32", "fast float32", "fast bfloat16", "Conv-TasNet float32")


@dataclass
class Timing:
    """Seconds per round of one variant."""

    wall: list[float] = field(default_factory=list)
    processor: list[float] = field(default_factory=list)


def multiply_adds(config: TDCNppConfig, samples: int) -> float:
    """Multiply-adds for one clip of `samples` samples."""
    dense = config.window_samples * config.coefficients * (1 + config.sources)
    dense += config.coefficients * config.bottleneck * (1 + config.sources)
    block = 2 * config.bottleneck * config.hidden + config.kernel * config.hidden
    return float(config.frames(samples) * (dense + config.repeats * config.blocks * block))


def bytes_moved(config: TDCNppConfig, samples: int, passes: tuple[int, int], item_bytes: int) -> float:
    """Bytes that the blocks move through memory for one clip."""
    per_frame = passes[0] * config.hidden + passes[1] * config.bottleneck
    return float(config.frames(samples) * config.repeats * config.blocks * per_frame * item_bytes)


def build(variant: str, config: TDCNppConfig, device: str) -> nn.Module:
    """Build one variant of the separator on `device`, with the same weights in every process."""
    torch.manual_seed(0)
    if variant.startswith("Conv-TasNet"):
        sizes = ("sources", "window_samples", "coefficients", "bottleneck", "hidden", "blocks", "repeats")
        peer = ConvTasNetConfig(**{name: getattr(config, name) for name in sizes})
        return ConvTasNetSeparator(peer).to(device).eval()
    network = TDCNpp(config)
    if variant == "plain float32":
        return network.to(device).eval()
    return fast_separator(network, device, "bfloat16" if variant.endswith("bfloat16") else "float32")


def measure(work: Callable[[], object], device: str, timing: Timing) -> None:
    """Measure the wall time and processor time of one call."""
    wall = time.perf_counter()
    processor = time.process_time()
    work()
    if device != "cpu":
        torch.cuda.synchronize()
    timing.wall.append(time.perf_counter() - wall)
    timing.processor.append(time.process_time() - processor)


def ceilings(device: str, rounds: int, size: int | None = None) -> dict[str, float]:
    """The limits of the device: bytes/s of a large copy (read and written), FLOP/s of large matrix products.

    `size` is that of the matrices; the default is large enough to reach the limits, but on a CPU without AVX-512 a
    product in bfloat16 then takes 14 s.
    """
    source = torch.ones(1 << 26, device=device)
    target = torch.empty_like(source)
    size = size or (2048 if device == "cpu" else 8192)
    square = torch.randn(size, size, device=device)
    half = square.bfloat16()
    work: dict[str, tuple[float, Callable[[], object]]] = {
        "bytes/s": (2.0 * source.nbytes, lambda: target.copy_(source)),
        "float32 FLOP/s": (2.0 * size**3, lambda: square @ square),
        "bfloat16 FLOP/s": (2.0 * size**3, lambda: half @ half),
    }
    found = {}
    for name, (amount, call) in work.items():
        timing = Timing()
        for _ in range(max(5, rounds)):
            measure(call, device, timing)
        found[name] = amount / statistics.median(timing.wall[1:])
    return found


def peak_memory_bytes(variant: str, size: str, seconds: float, device: str) -> float:
    """Peak memory for separating one clip, without the weights, measured in a separate process."""
    command = [sys.executable, "-m", "benchmarks.separator", "--size", size, "--device", device]
    command += ["--seconds", str(seconds), "--only-memory-of", variant]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


def _memory_of(variant: str, config: TDCNppConfig, wave_BT: Tensor, device: str) -> float:
    separator = build(variant, config, device)
    with torch.inference_mode():
        separator(wave_BT[:1, : config.window_samples * 50])  # warm-up: libraries allocate memory at their first use
        if device != "cpu":
            torch.cuda.reset_peak_memory_stats()
            held = torch.cuda.memory_allocated()
            separator(wave_BT[:1])
            return torch.cuda.max_memory_allocated() - held
        ctypes.CDLL(None).malloc_trim(0)  # otherwise, freed memory would be reused without being counted
        Path("/proc/self/clear_refs").write_text("5")  # Linux: reset the peak
        before = _resident_bytes("VmRSS")
        separator(wave_BT[:1])
        return _resident_bytes("VmHWM") - before


def _resident_bytes(field_name: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024.0 * next(int(line.split()[1]) for line in lines if line.startswith(field_name))


def snr_db(expected: Tensor, found: Tensor) -> float:
    """Energy of `expected` over that of the difference, in decibels."""
    return float(10 * torch.log10(expected.square().sum() / (expected - found).square().sum()))


def main(
    device: str = "cpu",
    size: str = "full",
    seconds: float = 10.0,
    clips: int = 1,
    rounds: int = 5,
    threads: int = 1,
    only_memory_of: str = typer.Option("", hidden=True),
) -> None:
    """Compare the variants on random clips and print a table."""
    torch.set_num_threads(threads)
    config = TDCNppConfig() if size == "full" else TDCNppConfig.tiny()
    samples = round(seconds * config.sample_rate)
    wave_BT = torch.randn(clips, samples, generator=torch.Generator().manual_seed(0)).to(device) * 0.1
    if only_memory_of:
        print(_memory_of(only_memory_of, config, wave_BT, device))
        return
    separators = {variant: build(variant, config, device) for variant in VARIANTS}
    timings = {variant: Timing() for variant in VARIANTS}
    separated: dict[str, Tensor] = {}
    with torch.inference_mode():
        for _ in range(rounds + 1):
            for variant, separator in separators.items():
                measure(lambda: separated.update({variant: separator(wave_BT)}), device, timings[variant])  # noqa: B023
        best = ceilings(device, rounds)
    table = Table("variant", "s/clip", "× real time", "ratio", "ratio (CPU time)", "SNR dB", "GFLOP/s", "of peak")
    for column in ("GB/s", "of copy", "peak MB/clip"):
        table.add_column(column)
    plain = timings[VARIANTS[0]]
    for variant, timing in timings.items():
        wall = statistics.median(timing.wall[1:])
        ratio = statistics.median(a / b for a, b in zip(plain.wall[1:], timing.wall[1:], strict=True))
        cpu_ratio = statistics.median(a / b for a, b in zip(plain.processor[1:], timing.processor[1:], strict=True))
        row = [variant, f"{wall / clips:.3f}", f"{clips * seconds / wall:.1f}", f"{ratio:.2f}"]
        row.append(f"{cpu_ratio:.2f}" if device == "cpu" else "-")
        if variant.startswith("Conv-TasNet"):
            row += ["-"] * 5
        else:
            half = variant.endswith("bfloat16")
            flops = clips * 2 * multiply_adds(config, samples) / wall
            passes = PLAIN_PASSES if variant.startswith("plain") else FAST_PASSES
            moved = clips * bytes_moved(config, samples, passes, 2 if half else 4) / wall
            peak = best["bfloat16 FLOP/s" if half else "float32 FLOP/s"]
            row += [f"{snr_db(separated[VARIANTS[0]], separated[variant]):.0f}", f"{flops / 1e9:.0f}"]
            row += [f"{flops / peak:.0%}", f"{moved / 1e9:.1f}", f"{moved / best['bytes/s']:.0%}"]
        row.append(f"{peak_memory_bytes(variant, size, seconds, device) / 1e6:.0f}")
        table.add_row(*row)
    Console(width=150).print(table)
    for name, value in best.items():
        print(f"ceiling: {value / 1e9:.0f} G{name}")
    print(f"known: {multiply_adds(config, samples) / 1e9:.1f} G multiply-adds per clip of {seconds:g} s")
    print(f"{device}, {threads} threads, torch {torch.__version__}, {rounds} rounds")


if __name__ == "__main__":
    typer.run(main)
