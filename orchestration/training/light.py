"""A stage whose one trainer works in the driver's own process, without Ray Train and Ray Data.

No controller, worker, reader or coordinator of data is started: for a small trial, most of its time. (Ray Train has a
local mode, `num_workers=0`, but it refuses to work inside a Tune trial. The loop that drives a stream of Ray Data turns
without a rest while blocks lie ready: here it took a third of the trainer's time.) What they do is done here, and
nothing restarts what is killed: who kills the driver ends the stage, and whoever starts it again goes on from its
newest checkpoint. So a stage runs like this only on one machine, where whatever ends a trainer mostly ends its driver.
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
"""Batches that are made before they are asked for, as `prefetch_batches` has it elsewhere."""


def starts_light(experiment: Experiment) -> bool:
    """Whether the trainer can do without a process of its own: one, on this machine's CPU, and nothing to separate."""
    asked = experiment.resources
    somewhere = asked.trainer_gpus or asked.trainer_labels or asked.trainer_accelerator
    return list(asked.trainer_counts) == [1] and not somewhere and not separates_live(experiment) and is_local()


def local_batches(
    draws: DrawRows, make: Callable[[Columns], Columns], training: Training, stop: threading.Event
) -> Iterator[Columns]:
    """The batches that a stream of the same parts gives a single trainer, made ahead by a thread of this process.

    Args:
        draws: of the rows that remain.
        make: makes the views of a block.
        training: says how many rows a batch and a block have; the last batch is filled up.
        stop: ends them early.
    """
    rows = training.global_batch
    block_rows = training.service_rows
    batches = draws.batches(rows)

    def batch(number: int) -> Columns:
        position_B = np.arange(number * rows, (number + 1) * rows)
        blocks = [make(draws({"id": part})) for part in np.split(position_B, range(block_rows, rows, block_rows))]
        return {name: np.concatenate([block[name] for block in blocks]) for name in blocks[0]}

    with ThreadPoolExecutor(1, thread_name_prefix="views") as maker:
        made = deque(maker.submit(batch, number) for number in range(min(AHEAD, batches)))
        for number in range(AHEAD, batches + AHEAD):
            if number < batches:
                made.append(maker.submit(batch, number))
            yield made.popleft().result()
            if stop.is_set():
                return


class LocalReports:
    """Takes the place of `ray.train.report`: metrics to the run's file at once, encoders to their validation."""

    def __init__(self, folder: StageFolder, validation: ray.train.ValidationConfig | None) -> None:
        """Args: validation: as `validation_of` gives it; none validates nothing."""
        self.folder = folder
        self.validation = validation
        self.file = MetricsFile(folder)

    def __call__(
        self,
        metrics: dict[str, Any],
        checkpoint: ray.train.Checkpoint | None = None,
        validation: ray.train.ValidationTaskConfig | None = None,
        **_: Any,
    ) -> None:
        """The arguments of `ray.train.report`."""
        self.file.after_report(None, [metrics], None)
        if self.validation is None or checkpoint is None or validation is None:
            return
        threads = torch.get_num_threads()
        self.validation.fn(checkpoint, **(validation.fn_kwargs or {}))
        torch.set_num_threads(threads)
        shutil.rmtree(checkpoint.path)
        collect_validations(self.folder)
