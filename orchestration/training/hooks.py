"""The training loop and its hooks.

The loop takes the next batch, trains on it, and calls the hooks. Everything else (metrics, diagnostics, checkpoints,
reports to the driver) is a hook. Hooks are called in the order of their list, and the one that reports is called last.
Each gets the same `Step`, which has the metrics of `Worker.consume`, and adds its metrics and events to it.

A hook works at every step, or at its own interval: diagnostics, validation and checkpoints each have one. All hooks
share the interval of the reports: the loop asks them before each step (`Hook.needs_report`), and after it
`Step.reported` is the same for all hooks and workers. Metrics that are only needed in a report, such as the balance of
the stream, are computed at those steps.

Shapes: N rows of this worker's part of a batch.
"""

import json
import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.optim import Optimizer

from sepscene.augment.draws import FILLER
from sepscene.augment.locations import is_temporary
from sepscene.orchestration.config import Experiment
from sepscene.orchestration.records.checkpoints import TrainingState, read_checkpoint
from sepscene.orchestration.records.ledger import Ledger
from sepscene.tasks.distributed.gather import gather_ids, gather_texts, sum_over_workers

Batch = dict[str, np.ndarray]


class Worker:
    """The network, optimiser and ledger of one worker. It does not need Ray."""

    def __init__(
        self, experiment: Experiment, network: nn.Module, optimizer: Optimizer, rows: int, device: torch.device
    ) -> None:
        """Args: rows: number of rows of the schedule."""
        self.experiment = experiment
        self.network = network
        self.optimizer = optimizer
        self.device = device
        self.ledger = Ledger(rows)
        self.step = 0
        """Number of optimiser steps so far."""
        self.pause = threading.RLock()
        """Held during a step. A thread that holds it between two steps finds a consistent state."""

    def consume(self, batch: Batch, usable: int) -> dict[str, float]:
        """Do one step on this worker's part of the global batch, and return its metrics.

        Args:
            usable: number of usable rows of the global batch.
        """
        raise NotImplementedError

    def state(self) -> TrainingState:
        """The content of a checkpoint from which training can continue."""
        tensors = {"model": self.network.state_dict(), "optimizer": self.optimizer.state_dict()}
        return TrainingState(self.step, self.ledger, tensors)

    def restore(self, checkpoint: Path) -> TrainingState:
        """Continue from a checkpoint, and return its content."""
        state = read_checkpoint(checkpoint)
        self.network.load_state_dict(state.tensors["model"])
        self.optimizer.load_state_dict(state.tensors["optimizer"])
        self.step = state.step
        self.ledger = state.ledger.without_unread_rows()
        return state


@dataclass
class Step:
    """A completed step, as the hooks get it.

    Attributes:
        number: optimiser steps so far, including this one.
        metrics: its record in the metrics file.
        usable: rows of the global batch whose clips could be used.
        rows: rows of the global batch.
        waited_seconds: time spent waiting for the batch, without the time of the hooks.
        seconds: from the end of the previous step to the end of this one.
        reported: whether all workers report to the driver after this step.
        events: sentences for the terminal, the report and the metrics file.
        fatal: why the run must stop; empty if it can continue. The same on all workers.
        report_options: further arguments of `ray.train.report`.
    """

    number: int
    metrics: dict[str, float] = field(default_factory=dict)
    usable: int = 0
    rows: int = 0
    waited_seconds: float = 0.0
    seconds: float = 0.0
    reported: bool = True
    events: list[str] = field(default_factory=list)
    fatal: str = ""
    report_options: dict[str, Any] = field(default_factory=dict)


class Hook:
    """Base class of hooks. A hook overrides the methods it needs. One with collective calls must be on all workers."""

    def needs_report(self, number: int) -> bool:
        """Whether all workers must report after the next step, which has this number. One worker's True is enough."""
        return False

    def before_step(self, batch: Batch, waited_seconds: float) -> None:
        """Called when this worker's part of a batch has arrived, after this waiting time."""

    def after_step(self, step: Step) -> None:
        """Called after each step."""

    def at_end(self, last: Step) -> None:
        """Called at the end of the stream; additions to `last` are part of the last report. Not after a fatal step."""


def usable_rows(batch: Batch) -> np.ndarray:
    """bool (N,): rows that are not fillers and whose clips could be read."""
    usable_N: np.ndarray = (batch["row"] != FILLER) & (batch["fault"] == "")
    return usable_N


def consume_rows(ledger: Ledger, batch: Batch, device: torch.device, usable: int) -> list[int]:
    """Enter the rows and unusable clips of the global batch in every worker's ledger, and return the rows.

    All workers call it together.

    Args:
        batch: this worker's part of the batch.
        device: where the process group communicates.
        usable: number of usable rows of the global batch.
    """
    present_N = batch["row"] != FILLER
    rows = gather_ids(torch.from_numpy(batch["row"][present_N]).to(device))
    ledger.consume(np.array(rows, np.int64))
    if usable < len(rows):
        unusable_N = present_N & ~usable_rows(batch)
        local = [batch[name][unusable_N].tolist() for name in ("row", "uri", "fault")]
        skipped: list[int] = []
        unread: list[int] = []
        for text in gather_texts(json.dumps(local), device):
            for row, uri, fault in zip(*json.loads(text), strict=True):
                ledger.quarantined[uri] = fault
                skipped.append(row)
                if is_temporary(fault):
                    unread.append(row)
        ledger.skip(np.array(skipped, np.int64), np.array(unread, np.int64))
    return rows


def run_steps(worker: Worker, batches: Iterable[Batch], hooks: Sequence[Hook]) -> None:
    """Train on every batch of the stream, or until a hook sets `Step.fatal`. All workers call it together.

    Args:
        batches: this worker's parts of the global batches.
        hooks: the last one reports what the others have added to a step.
    """
    began = time.perf_counter()
    requested = began
    for batch in batches:
        needed = any(hook.needs_report(worker.step + 1) for hook in hooks)
        usable, rows, reported = _shared_counts(batch, needed, worker.device)
        with worker.pause:
            arrived = time.perf_counter()
            for hook in hooks:
                hook.before_step(batch, arrived - requested)
            metrics = worker.consume(batch, usable)
            done = time.perf_counter()
            step = Step(worker.step, metrics, usable, rows, arrived - requested, done - began, reported)
            for hook in hooks:
                hook.after_step(step)
        if step.fatal:
            return
        began = done
        requested = time.perf_counter()
    last = Step(worker.step)
    for hook in hooks:
        hook.at_end(last)


def _shared_counts(batch: Batch, needs_report: bool, device: torch.device) -> tuple[int, int, bool]:
    """Usable rows and rows of the global batch, and whether any worker needs a report.

    It returns when all workers have their batch. So no worker waits for the data of another one in the middle of a
    step, when its state cannot be saved.
    """
    local = torch.tensor([usable_rows(batch).sum(), (batch["row"] != FILLER).sum(), needs_report], device=device)
    usable, rows, reporting = sum_over_workers(local).tolist()
    return usable, rows, reporting > 0
