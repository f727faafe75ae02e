"""The precision of a run's networks: `auto` becomes what the devices do well, and a slow choice is warned of."""

import time
from collections.abc import Callable
from functools import cache
from pathlib import Path

from sepscene.models.settings import Precision, PrecisionChoice
from sepscene.orchestration.config import Experiment

WITHOUT_BFLOAT16 = ("K80", "P4", "P100", "V100", "T4")
"""GPUs, as Ray names them, that have no units for bfloat16."""

WORTH_A_WORD = 1.1
"""From this ratio of times on, an explicit bfloat16 is warned of."""

_SIDE = {"cpu": 768, "cuda": 8192}  # of the matrices: 0.9 and 1100 GFLOP a product
_ROUNDS = 5


def separation_precision(experiment: Experiment) -> Precision:
    """The precision in which separators compute: the one asked for, or what their device does well."""
    asked = experiment.resources
    return choose(asked.separation_precision, asked.separation_gpus, asked.separation_accelerator)


def training_precision(experiment: Experiment) -> Precision:
    """That of the encoder's training."""
    asked = experiment.resources
    return choose(experiment.training.precision, asked.trainer_gpus, asked.trainer_accelerator)


def with_precisions(experiment: Experiment) -> Experiment:
    """The experiment with both precisions chosen, as a run keeps, shows and logs it."""
    chosen = {
        "training.precision": training_precision(experiment),
        "resources.separation_precision": separation_precision(experiment),
    }
    return experiment.changed(chosen)


def slow_precisions(experiment: Experiment) -> list[str]:
    """A sentence for each explicit bfloat16 that is slower than float32 on this machine's CPU."""
    places = {
        "training.precision": (experiment.training.precision, experiment.resources.trainer_gpus),
        "resources.separation_precision": (
            experiment.resources.separation_precision,
            experiment.resources.separation_gpus,
        ),
    }
    on_cpu = [field for field, (precision, gpus) in places.items() if precision == "bfloat16" and not gpus]
    ratio = bfloat16_time_ratio() if on_cpu else 0.0
    if ratio < WORTH_A_WORD:
        return []
    return [
        f"{field} bfloat16: on this CPU a matrix product takes {ratio:.1f} times as long as in float32; `auto` takes "
        "the faster one"
        for field in on_cpu
    ]


def choose(choice: PrecisionChoice, gpus: float, accelerator: str | None = None) -> Precision:
    """The precision that a choice means.

    Args:
        choice: `auto` takes bfloat16 on a GPU that has units for it and on a CPU with AMX, else float32.
        gpus: of the process that computes; 0 computes on a CPU like this machine's.
        accelerator: Ray's name of the GPU, where the run asks for one.
    """
    if choice != "auto":
        return choice
    if gpus > 0:
        return "float32" if accelerator in WITHOUT_BFLOAT16 else "bfloat16"
    return "bfloat16" if cpu_has_amx() else "float32"


@cache
def cpu_has_amx(cpuinfo: str = "/proc/cpuinfo") -> bool:
    """Whether this machine's CPU has matrix units for bfloat16 (AMX). Without them bfloat16 is slower than float32."""
    try:
        lines = Path(cpuinfo).read_text().splitlines()
    except OSError:
        return False
    flags = next((line.partition(":")[2].split() for line in lines if line.startswith("flags")), [])
    return "amx_bf16" in flags


@cache
def bfloat16_time_ratio() -> float:
    """Time of a matrix product in bfloat16 over that in float32, on one core of this CPU: the better of a few."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    in_float32 = matmul_rate("cpu", "float32", time.process_time)
    in_bfloat16 = matmul_rate("cpu", "bfloat16", time.process_time)
    torch.set_num_threads(threads)
    return in_float32 / in_bfloat16


def matmul_rate(device: str, precision: Precision, clock: Callable[[], float] = time.perf_counter) -> float:
    """Operations per second of a large square matrix product: the best of a few."""
    import torch

    side = _SIDE["cuda" if device.startswith("cuda") else "cpu"]
    square = torch.ones(side, side, device=device, dtype=getattr(torch, precision))
    best = float("inf")
    for _ in range(_ROUNDS):
        begin = clock()
        (square @ square)[0, 0].item()  # waits for the device
        best = min(best, clock() - begin)
    return 2 * side**3 / best
