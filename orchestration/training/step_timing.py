"""How fast training goes: examples per second, the share of the time spent waiting, and what the device could do.

MFU (model FLOPs utilisation) is the operations that a step needs, over its time, over the rate of one large matrix
product in the same precision on the same device, measured when the worker starts. So it is a share of what this machine
reaches, not of what is printed on its box; a repeated forward pass (`training.microbatch`) does not count as work.
"""

from concurrent.futures import ThreadPoolExecutor

import torch

from sepscene.orchestration.config import Experiment
from sepscene.orchestration.runtime.precision import matmul_rate, training_precision
from sepscene.orchestration.training.flops import step_flops
from sepscene.orchestration.training.hooks import Hook, Step


class StepTiming(Hook):
    """Metrics of a step's time on one worker."""

    def __init__(self, experiment: Experiment, device: torch.device, workers: int) -> None:
        counting = ThreadPoolExecutor(1, thread_name_prefix="count-operations")
        self._flops = counting.submit(step_flops, experiment)  # seconds of imports, which the first batch takes as well
        counting.shutdown(wait=False)
        self.workers = workers
        self.ceiling = matmul_rate(str(device), training_precision(experiment))

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
