"""The training loop, and the hooks that act beside it.

The loop knows three things: the next batch, a step on it, and the hooks. Whatever else goes on (metrics, diagnostics,
checkpoints, reports to the driver) is a hook with a cadence of its own, so that a new one touches no other. Hooks act
in the order in which they stand, and hand on a `Step`, to which each adds what it has to say.

Shapes: N rows of this worker's part of a batch.
"""

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
from sepscene.augment.locations import PASSING
from sepscene.orchestration.records.checkpoints import TrainingState, read_checkpoint
from sepscene.orchestration.records.ledger import Ledger
from sepscene.tasks.distributed.gather import gather_ids, sum_over_workers

Batch = dict[str, np.ndarray]


class Worker:
    """What is trained: one worker's network, optimiser and ledger. It needs no Ray."""

    def __init__(self, network: nn.Module, optimizer: Optimizer, rows: int, device: torch.device) -> None:
        """At the start of a schedule with this number of rows."""
        self.network = network
        self.optimizer = optimizer
        self.device = device
        self.ledger = Ledger(rows)
        self.step = 0
        """Optimiser steps so far."""

    def consume(self, batch: Batch, usable: int) -> dict[str, float]:
        """One step on this worker's part of the global batch, of which all workers together can use this many rows."""
        raise NotImplementedError

    def state(self) -> TrainingState:
        """What a checkpoint must hold to continue from here."""
        tensors = {"model": self.network.state_dict(), "optimizer": self.optimizer.state_dict()}
        return TrainingState(self.step, self.ledger, tensors)

    def restore(self, checkpoint: Path) -> TrainingState:
        """Continue from a checkpoint; returns what it holds."""
        state = read_checkpoint(checkpoint)
        self.network.load_state_dict(state.tensors["model"])
        self.optimizer.load_state_dict(state.tensors["optimizer"])
        self.step = state.step
        self.ledger = state.ledger.try_again()
        return state


@dataclass
class Step:
    """A step that was made, on its way through the hooks.

    Attributes:
        number: optimiser steps so far, with this one.
        metrics: its record in the metrics file.
        usable: rows of the global batch whose clips could be used.
        rows: rows of the global batch.
        waited_seconds: from asking for the batch to having it; what the hooks took before is not in it.
        seconds: from the end of the step before to the end of this one.
        reported: whether all workers report to the driver after this step.
        events: sentences for the terminal, the report and the metrics file.
        fatal: why the run must stop; empty while it goes on. The same on all workers.
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
    """Something beside the training loop. A hook overrides what it needs; all workers have the same hooks."""

    def wants_report(self, number: int) -> bool:
        """Whether all workers must report after the coming step, of this number; one worker that says so is enough."""
        return False

    def before_step(self, batch: Batch, waited_seconds: float) -> None:
        """This worker's part of a batch has arrived, after so long a wait."""

    def after_step(self, step: Step) -> None:
        """The step was made."""

    def at_end(self, last: Step) -> None:
        """The stream is at its end; what is added to `last` goes with the last report."""


def usable_rows(batch: Batch) -> np.ndarray:
    """bool (N,): rows that are no fillers and whose clips could be read."""
    usable_N: np.ndarray = (batch["row"] != FILLER) & (batch["fault"] == "")
    return usable_N


def consume_rows(ledger: Ledger, batch: Batch, device: torch.device, usable: int) -> list[int]:
    """Enter the rows of the global batch in every worker's ledger; returns them. All workers call it together.

    Args:
        ledger, batch: this worker's.
        device: where the process group communicates.
        usable: usable rows of the global batch.
    """

    def shared(chosen_N: np.ndarray) -> list[int]:
        return gather_ids(torch.from_numpy(batch["row"][chosen_N]).to(device))

    present_N = batch["row"] != FILLER
    rows = shared(present_N)
    ledger.consume(np.array(rows, np.int64))
    if usable < len(rows):
        passing_N = np.array([str(fault).startswith(PASSING) for fault in batch["fault"]], bool)
        skipped = shared(present_N & ~usable_rows(batch))
        ledger.skip(np.array(skipped, np.int64), np.array(shared(present_N & passing_N), np.int64))
    return rows


def run_steps(worker: Worker, batches: Iterable[Batch], hooks: Sequence[Hook], pause: threading.RLock) -> None:
    """Train on every batch of the stream, or until a hook finds a reason to stop. All workers call it together.

    Args:
        batches: this worker's parts of the global batches.
        pause: held during a step; whoever holds it between two steps finds the worker's state whole.
    """
    began = asked = time.perf_counter()
    for batch in batches:
        wanted = any(hook.wants_report(worker.step + 1) for hook in hooks)
        usable, rows, wanted = _shared_counts(batch, wanted, worker.device)
        with pause:
            arrived = time.perf_counter()
            for hook in hooks:
                hook.before_step(batch, arrived - asked)
            metrics = worker.consume(batch, usable)
            done = time.perf_counter()
            step = Step(worker.step, metrics, usable, rows, arrived - asked, done - began, wanted)
            for hook in hooks:
                hook.after_step(step)
        if step.fatal:
            return
        began = done
        asked = time.perf_counter()
    last = Step(worker.step)
    for hook in hooks:
        hook.at_end(last)


def _shared_counts(batch: Batch, wanted: bool, device: torch.device) -> tuple[int, int, bool]:
    """Usable rows and rows of the global batch, and whether any worker wants a report.

    It returns when all workers have their batch. So nobody waits for another's data in the middle of a step, when its
    state cannot be saved.
    """
    local = torch.tensor([usable_rows(batch).sum(), (batch["row"] != FILLER).sum(), wanted], device=device)
    usable, rows, wanting = sum_over_workers(local).tolist()
    return usable, rows, wanting > 0
