"""Which number format the networks compute in: what a device does well, said before it is used.

Free of torch, because whoever plans or starts a run asks.
"""

from __future__ import annotations

import time
from functools import cache
from pathlib import Path
from typing import Literal

Precision = Literal["float32", "bfloat16"]
PrecisionChoice = Literal["auto", "float32", "bfloat16"]

WITHOUT_BFLOAT16 = ("K80", "P4", "P100", "V100", "T4")
"""GPUs, as Ray names them, that have no units for bfloat16."""

_SIDE = 768
_ROUNDS = 5


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
    square = torch.randn(_SIDE, _SIDE)
    best = {torch.float32: float("inf"), torch.bfloat16: float("inf")}
    for _ in range(_ROUNDS):
        for dtype in best:
            operand = square.to(dtype)
            begin = time.process_time()
            operand @ operand
            best[dtype] = min(best[dtype], time.process_time() - begin)
    torch.set_num_threads(threads)
    return best[torch.bfloat16] / best[torch.float32]
