"""A stage whose only trainer runs in the driver's process, without Ray Train and Ray Data.

Starting their controller, workers, readers and coordinators takes most of the time of a small trial. (Ray Train has a
local mode, `num_workers=0`, but it does not work inside a Tune trial. The loop that drives a stream of Ray Data polls
without pause while blocks are ready: here it took a third of the trainer's time.) Nothing restarts such a stage: if the
driver is killed, the stage ends, and the next start continues from its newest checkpoint. So a stage runs like this
only on a single machine, where most causes that end a trainer end its driver as well.

Shapes: B rows of a batch.
"""

import shutil
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import ray.train
import torch

from sepscene.orchestration.config import Experiment, Training
from sepscene.orchestration.records.metrics_log import MetricsFile, collect_validations
from sepscene.orchestration.records.run_folder import StageFolder
from sepscene.orchestration.runtime.placement import is_local, separates_live
from sepscene.orchestration.training.row_draws import Columns, DrawRows

AHEAD = 2
"""Batches that are computed in advance; corresponds to `prefetch_batches` of Ray Data."""


def trains_in_driver(experiment: Experiment) -> bool:
    """Whether the stage can run in the driver: one trainer, on this machine's CPU, and nothing to separate."""
    resources = experiment.resources
    placed = resources.trainer_gpus or resources.trainer_labels or resources.trainer_accelerator
    return list(resources.trainer_counts) == [1] and not placed and not separates_live(experiment) and is_local()


def local_batches(
    draws: DrawRows, make: Callable[[Columns], Columns], training: Training, stop: threading.Event
) -> Iterator[Columns]:
    """The same batches as from the stream of a single trainer, computed in advance by a thread of this process.

    Args:
        draws: draws of the remaining rows.
        make: computes the views of a block.
        training: gives the rows per batch and per block; the last batch is padded.
        stop: ends the iteration early.
    """
    rows = training.global_batch
    block_rows = training.service_rows
    batches = draws.batches(rows)

    def batch(number: int) -> Columns:
        position_B = np.arange(number * rows, (number + 1) * rows)
        blocks = [make(draws({"id": part})) for part in np.split(position_B, range(block_rows, rows, block_rows))]
        return {name: np.concatenate([block[name] for block in blocks]) for name in blocks[0]}

    with ThreadPoolExecutor(1, thread_name_prefix="views") as executor:
        pending = deque(executor.submit(batch, number) for number in range(min(AHEAD, batches)))
        for number in range(AHEAD, batches + AHEAD):
            if number < batches:
                pending.append(executor.submit(batch, number))
            yield pending.popleft().result()
            if stop.is_set():
                return


class LocalReports(MetricsFile):
    """Replaces `ray.train.report`: writes metrics to the run's file and validates encoders, in the calling thread."""

    def __init__(self, folder: StageFolder, validation: ray.train.ValidationConfig | None) -> None:
        """Args: validation: as returned by `validation_of`; None: encoders are not validated."""
        super().__init__(folder)
        self.validation = validation

    def __call__(
        self,
        metrics: dict[str, Any],
        checkpoint: ray.train.Checkpoint | None = None,
        validation: ray.train.ValidationTaskConfig | None = None,
        **_: Any,
    ) -> None:
        """Takes the arguments of `ray.train.report`."""
        self.after_report(None, [metrics], None)
        if self.validation is None or checkpoint is None or validation is None:
            return
        threads = torch.get_num_threads()
        self.validation.fn(checkpoint, **(validation.fn_kwargs or {}))
        torch.set_num_threads(threads)
        shutil.rmtree(checkpoint.path)
        collect_validations(self.folder)
