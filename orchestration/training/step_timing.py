"""Training speed: examples per second, the share of the time spent waiting, and MFU.

MFU (model FLOPs utilisation) is the rate of the operations that a step needs, as a share of the rate of one large
matrix product in the same precision on the same device. That rate is measured when the worker starts, so MFU refers to
what this machine reaches, not to its data sheet. The repeated forward pass of `training.microbatch` is not counted.
"""

from concurrent.futures import ThreadPoolExecutor

import torch

from sepscene.orchestration.config import Experiment
from sepscene.orchestration.runtime.precision import matmul_rate, training_precision
from sepscene.orchestration.training.flops import step_flops
from sepscene.orchestration.training.hooks import Hook, Step


class StepTiming(Hook):
    """Metrics of a step's time on one worker, from the metric `pairs` of a `Pretrainer`."""

    def __init__(self, experiment: Experiment, device: torch.device, workers: int) -> None:
        counting = ThreadPoolExecutor(1, thread_name_prefix="count-operations")
        self._flops = counting.submit(step_flops, experiment)  # imports for seconds, while the first batch is computed
        counting.shutdown(wait=False)
        self.workers = workers
        self.ceiling = matmul_rate(str(device), training_precision(experiment))

    @property
    def flops(self) -> float:
        """Operations of this worker's part of a step."""
        return self._flops.result() / self.workers

    def after_step(self, step: Step) -> None:
        """Add the metrics of a step: pairs of the global batch per second, share of the time spent waiting, and MFU."""
        step.metrics |= {
            "examples_per_second": step.metrics["pairs"] / step.seconds,
            "waiting_share": step.waited_seconds / step.seconds,
            "mfu": self.flops / step.seconds / self.ceiling,
        }
