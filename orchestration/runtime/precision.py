"""The precision of a run's networks: the meaning of `auto` on a device, and a warning about slow choices."""

import time
from collections.abc import Callable
from functools import cache
from pathlib import Path

from sepscene.models.settings import Precision, PrecisionChoice
from sepscene.orchestration.config import Experiment

WITHOUT_BFLOAT16 = ("K80", "P4", "P100", "V100", "T4")
"""GPUs, by Ray's names, without hardware support for bfloat16."""

WARN_RATIO = 1.1
"""An explicit bfloat16 causes a warning if it takes at least this many times as long as float32."""

_SIDE = {"cpu": 768, "cuda": 8192}  # of the matrices: 0.9 and 1100 GFLOP per product
_ROUNDS = 5  # the fastest counts: other processes can only make a round slower


def separation_precision(experiment: Experiment) -> Precision:
    """The precision of the separators: the configured one, or the best for their device."""
    resources = experiment.resources
    return choose(resources.separation_precision, resources.separation_gpus, resources.separation_accelerator)


def training_precision(experiment: Experiment) -> Precision:
    """The precision of the encoder's training."""
    resources = experiment.resources
    return choose(experiment.training.precision, resources.trainer_gpus, resources.trainer_accelerator)


def with_precisions(experiment: Experiment) -> Experiment:
    """The experiment with both precisions resolved, as it is saved, displayed and logged by a run."""
    chosen = {
        "training.precision": training_precision(experiment),
        "resources.separation_precision": separation_precision(experiment),
    }
    return experiment.changed(chosen)


def slow_precisions(experiment: Experiment) -> list[str]:
    """A warning for each explicit bfloat16 that is slower than float32 on this machine's CPU."""
    resources = experiment.resources
    on_cpu = []
    if experiment.training.precision == "bfloat16" and not resources.trainer_gpus:
        on_cpu.append("training.precision")
    if resources.separation_precision == "bfloat16" and not resources.separation_gpus:
        on_cpu.append("resources.separation_precision")
    ratio = bfloat16_time_ratio() if on_cpu else 0.0
    if ratio < WARN_RATIO:
        return []
    return [
        f"{field} bfloat16: on this CPU a matrix product takes {ratio:.1f} times as long as in float32; `auto` uses "
        "the faster precision"
        for field in on_cpu
    ]


def choose(choice: PrecisionChoice, gpus: float, accelerator: str | None = None) -> Precision:
    """Resolve a configured precision.

    Args:
        choice: `auto` is bfloat16 on a GPU with hardware support for it and on a CPU with AMX, otherwise float32.
        gpus: GPUs of the process that computes; 0: it computes on a CPU like this machine's.
        accelerator: Ray's name of the GPU, if the run requests a certain one.
    """
    if choice != "auto":
        return choice
    if gpus > 0:
        return "float32" if accelerator in WITHOUT_BFLOAT16 else "bfloat16"
    return "bfloat16" if cpu_has_amx() else "float32"


@cache
def cpu_has_amx(cpuinfo: str = "/proc/cpuinfo") -> bool:
    """Whether this machine's CPU has AMX units for bfloat16. Without them, bfloat16 is slower than float32."""
    try:
        lines = Path(cpuinfo).read_text().splitlines()
    except OSError:
        return False
    flags = next((line.partition(":")[2].split() for line in lines if line.startswith("flags")), [])
    return "amx_bf16" in flags


@cache
def bfloat16_time_ratio() -> float:
    """Time of a matrix product in bfloat16 divided by that in float32, on one core of this CPU."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    in_float32 = matmul_rate("cpu", "float32", time.process_time)
    in_bfloat16 = matmul_rate("cpu", "bfloat16", time.process_time)
    torch.set_num_threads(threads)
    return in_float32 / in_bfloat16


def matmul_rate(device: str, precision: Precision, clock: Callable[[], float] = time.perf_counter) -> float:
    """FLOP per second of a large square matrix product: the best of several measurements."""
    import torch

    side = _SIDE["cuda" if device.startswith("cuda") else "cpu"]
    square = torch.ones(side, side, device=device, dtype=getattr(torch, precision))
    best = float("inf")
    for _ in range(_ROUNDS):
        begin = clock()
        (square @ square)[0, 0].item()  # waits for the device
        best = min(best, clock() - begin)
    return 2 * side**3 / best
