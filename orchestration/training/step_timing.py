"""How fast training goes: examples per second, the share of the time spent waiting, and what the device could do.

MFU (model FLOPs utilisation) is the operations that a step needs, over its time, over the rate of one large matrix
product in the same precision on the same device, measured when the worker starts. So it is a share of what this machine
reaches, not of what is printed on its box; a repeated forward pass (`training.microbatch`) does not count as work.
"""

import time
from concurrent.futures import ThreadPoolExecutor

import torch

from sepscene.orchestration.config import Experiment
from sepscene.orchestration.runtime.precision import training_precision
from sepscene.orchestration.training.flops import step_flops
from sepscene.orchestration.training.hooks import Hook, Step

_SIDE = {"cpu": 768, "cuda": 8192}  # of the matrices: 0.9 and 1100 GFLOP a product
_ROUNDS = 5


class StepTiming(Hook):
    """Metrics of a step's time on one worker."""

    def __init__(self, experiment: Experiment, device: torch.device, workers: int) -> None:
        counting = ThreadPoolExecutor(1, thread_name_prefix="count-operations")
        self._flops = counting.submit(step_flops, experiment)  # seconds of imports, which the first batch takes as well
        counting.shutdown(wait=False)
        self.workers = workers
        self.ceiling = matmul_rate(
            device, torch.bfloat16 if training_precision(experiment) == "bfloat16" else torch.float32
        )

    @property
    def flops(self) -> float:
        """Operations of this worker's part of a step."""
        return self._flops.result() / self.workers

    def after_step(self, step: Step) -> None:
        """Add the metrics of a step: pairs of the global batch per second, share of its time spent waiting, and MFU."""
        step.metrics |= {
            "examples_per_second": step.metrics["pairs"] / step.seconds,
            "waiting_share": step.waited_seconds / step.seconds,
            "mfu": self.flops / step.seconds / self.ceiling,
        }


def matmul_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Operations per second of a large square matrix product: the best of a few."""
    side = _SIDE.get(device.type, _SIDE["cpu"])
    a = torch.ones(side, side, device=device, dtype=dtype)
    best = float("inf")
    for _ in range(_ROUNDS):
        started = time.perf_counter()
        product = a @ a
        product[0, 0].item()  # waits for the device
        best = min(best, time.perf_counter() - started)
    return 2 * side**3 / best
