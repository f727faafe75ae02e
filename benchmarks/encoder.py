"""Speed of the encoder, compared with PANNs' plain formulation in the same run.

    python -m benchmarks.encoder [--device cuda] [--compile] [--tiny] [--batch 32] [--rounds 5]

All variants use the same weights and run once in each round; times are medians over the rounds. On a CPU, the processor
time of one thread is measured, which depends little on the load of the machine; on a GPU, the synchronised wall time.
An example is one patch of 0.96 s. Only the operations of the convolutions are counted: 1.93 G multiply-adds per example
for the full network (303 MB of float32 weights), and three times as many for training.

PANNs' formulation: the spectrogram as two convolutions with the DFT matrix, batch norm over mels between two
transpositions, float32, channels first, eager. Ours: an FFT, then the options named in the table.

Shapes: B examples, T samples, N frequencies, C channels, L frames, F mels, D embedding.
"""

import argparse
import copy
import multiprocessing
import os
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Executor, ProcessPoolExecutor
from statistics import median
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from sepscene.models.encoders.encoder import Encoder, EncoderConfig
from sepscene.models.encoders.frontend import FRONT_ENDS
from sepscene.models.encoders.importer import front_end_buffers
from sepscene.models.settings import Cnn14Config
from sepscene.orchestration.runtime.allocator import MALLOC

FRONT_END = FRONT_ENDS["panns_16k"]
Step = Callable[[], Tensor]


class PlainPanns(nn.Module):
    """The same weights in PANNs' formulation."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.trunk: Any = encoder.trunk.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
        self.hop = encoder.config.front_end.hop_samples
        real, imaginary, self.bands_NF = (
            nn.Parameter(tensor, requires_grad=False) for tensor in front_end_buffers(encoder.config.front_end).values()
        )
        self.dft = nn.ParameterList((real, imaginary))

    def forward(self, wave_BT: Tensor) -> Tensor:
        """wave_BT to h_BD."""
        edge = self.dft[0].shape[-1] // 2
        padded = functional.pad(wave_BT[:, None], (edge, edge), mode="reflect")
        real_BNL, imaginary_BNL = (functional.conv1d(padded, kernel, stride=self.hop) for kernel in self.dft)
        mel_B1LF = (real_BNL**2 + imaginary_BNL**2).transpose(1, 2)[:, None] @ self.bands_NF
        x_BCLF = 10.0 * torch.log10(mel_B1LF.clamp(min=1e-10))
        x_BCLF = self.trunk.bn0(x_BCLF.transpose(1, 3)).transpose(1, 3)
        for number in range(1, 7):
            block = getattr(self.trunk, f"conv_block{number}")
            x_BCLF = functional.relu_(block.bn1(block.conv1(x_BCLF)))
            x_BCLF = functional.relu_(block.bn2(block.conv2(x_BCLF)))
            x_BCLF = functional.avg_pool2d(x_BCLF, 2) if number < 6 else x_BCLF
        x_BCL = x_BCLF.mean(dim=3)
        return self.trunk.embedding(x_BCL.max(dim=2).values + x_BCL.mean(dim=2))


def multiply_adds(config: Cnn14Config, frames: int) -> int:
    """Multiply-adds of all convolutions for one example."""
    total = 0
    channels_in = 1
    size = (frames, config.mel_bands)
    for channels in config.widths:
        total += 9 * channels * (channels_in + channels) * size[0] * size[1]
        channels_in = channels
        size = (size[0] // 2, size[1] // 2)
    return total


def variants(encoder: Encoder, compiled: bool) -> dict[str, tuple[nn.Module, bool]]:
    """Name -> (module, bfloat16), each with its own copy of the weights."""
    device = next(encoder.parameters()).device

    def channels_last() -> Encoder:
        return copy.deepcopy(encoder).to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    ways: dict[str, tuple[nn.Module, bool]] = {
        "PANNs' formulation": (PlainPanns(copy.deepcopy(encoder)).to(device), False),
        "float32": (copy.deepcopy(encoder), False),
        "float32, channels_last": (channels_last(), False),
        "bfloat16": (copy.deepcopy(encoder), True),
        "bfloat16, channels_last": (channels_last(), True),
    }
    if compiled:
        for name, half in (("float32, compiled", False), ("bfloat16, channels_last, compiled", True)):
            module = channels_last() if half else copy.deepcopy(encoder)
            module.trunk = torch.compile(module.trunk)  # type: ignore[assignment]
            ways[name] = (module, half)
    return ways


def forward_step(module: nn.Module, half: bool, wave_BT: Tensor) -> Step:
    """One forward pass in evaluation mode."""
    module.eval()

    def step() -> Tensor:
        with torch.inference_mode(), torch.autocast(wave_BT.device.type, torch.bfloat16, enabled=half):
            return module(wave_BT)

    return step


def training_step(module: nn.Module, half: bool, wave_BT: Tensor) -> Step:
    """Forward and backward pass of a simple loss on h, without the optimiser."""
    module.train()

    def step() -> Tensor:
        module.zero_grad(set_to_none=True)
        with torch.autocast(wave_BT.device.type, torch.bfloat16, enabled=half):
            h_BD = module(wave_BT)
        h_BD.float().square().mean().backward()
        return h_BD.detach()

    return step


PASSES = {"forward": (forward_step, 1), "forward and backward": (training_step, 3)}
"""Title -> the function that creates its step, and its cost in forward passes."""

_ways: dict[str, tuple[nn.Module, bool, Tensor]] = {}
"""In a measuring process: name of a variant -> its module, whether it computes in bfloat16, and its input."""


def prepare(options: argparse.Namespace) -> tuple[list[str], int]:
    """Build all variants in this process; returns their names, and the number of samples of a patch."""
    if options.device == "cpu":
        torch.set_num_threads(1)
    torch.manual_seed(0)
    encoder = Encoder(EncoderConfig(front_end=FRONT_END, trunk=sizes(options))).to(options.device)
    wave_BT = 0.1 * torch.randn(options.batch, encoder.patch_samples, device=options.device)
    _ways.update({name: (*way, wave_BT) for name, way in variants(encoder, options.compile).items()})
    return list(_ways), encoder.patch_samples


def sizes(options: argparse.Namespace) -> Cnn14Config:
    """The configuration of the network."""
    return Cnn14Config.tiny() if options.tiny else Cnn14Config()


def timed(title: str, name: str) -> tuple[float, np.ndarray]:
    """Seconds and output of one step of a variant, in a measuring process."""
    module, half, wave_BT = _ways[name]
    step = PASSES[title][0](module, half, wave_BT)
    device = wave_BT.device
    if device.type == "cpu":
        start = time.process_time()
        output = step()
        seconds = time.process_time() - start
    else:
        torch.cuda.synchronize(device)
        start = time.perf_counter()
        output = step()
        torch.cuda.synchronize(device)
        seconds = time.perf_counter() - start
    return seconds, output.float().cpu().numpy()


def compare(title: str, places: Mapping[str, tuple[Executor, str]], rounds: int, examples: int, adds: float) -> None:
    """Print examples/s, the ratio to the first variant, operations/s, and the relative difference from its output.

    Args:
        places: label -> the process, and the name of the variant that it runs.
    """

    def run(place: tuple[Executor, str]) -> tuple[float, np.ndarray]:
        process, name = place
        return process.submit(timed, title, name).result()

    outputs = {shown: run(place)[1] for shown, place in places.items()}  # also warms up
    times: dict[str, list[float]] = {shown: [] for shown in places}
    for _ in range(rounds):
        for shown, place in places.items():
            times[shown].append(run(place)[0])
    first = next(iter(places))
    baseline = median(times[first])
    print(f"\n{title}: {examples} examples per step, median of {rounds} (range)")
    print(f"{'variant':40}{'examples/s':>12}{'ratio':>22}{'GFLOP/s':>10}{'difference':>12}")
    for shown in places:
        seconds = median(times[shown])
        off = float(np.linalg.norm(outputs[shown] - outputs[first]) / np.linalg.norm(outputs[first]))
        rate = examples / seconds
        spread = f"{baseline / seconds:.2f} ({baseline / max(times[shown]):.2f} to {baseline / min(times[shown]):.2f})"
        print(f"{shown:40}{rate:12.1f}{spread:>22}{2e-9 * adds * rate:10.1f}{off:12.1e}", flush=True)


def main() -> None:
    """Run the comparison for the forward pass and for training."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--compile", action="store_true")
    options = parser.parse_args()
    with process_with({}) as plain, process_with({"GLIBC_TUNABLES": MALLOC}) as kept:
        names, samples = plain.submit(prepare, options).result()
        kept.submit(prepare, options).result()
        adds = multiply_adds(sizes(options), FRONT_END.frames(samples))
        print(f"{torch.__version__} on {options.device}: {adds / 1e6:,.0f} M multiply-adds per example")
        places = {name: (plain, name) for name in names} | {f"{name}, kept": (kept, name) for name in names}
        for title, (_, passes) in PASSES.items():
            compare(title, places, options.rounds, options.batch, passes * adds)


def process_with(settings: dict[str, str]) -> ProcessPoolExecutor:
    """Start a process with these environment variables."""
    with patch.dict(os.environ, settings):
        process = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"))
        process.submit(os.getpid).result()  # the process starts with its first task
    return process


if __name__ == "__main__":
    main()
