"""Hooks that detect faults: unusable clips, non-finite steps, a collapse of h. Also handles out-of-memory errors."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch

from sepscene.models.config import first_line
from sepscene.orchestration.records.files import write_text_atomically
from sepscene.orchestration.records.run_folder import StageFolder
from sepscene.orchestration.training.hooks import Hook, Step, Worker
from sepscene.orchestration.training.pretrainer import Pretrainer
from sepscene.tasks.distributed.gather import gather_rows, rank
from sepscene.tasks.losses.diagnostics import collapse_warning, diagnose

DIAGNOSED_EVERY_STEPS = 5
"""Steps between two diagnostics of the representation, for which all workers exchange their h."""

EMPTY_BATCHES = 2
"""Consecutive global batches without a usable row after which the run stops, because the data must be missing."""

_CPU_OUT_OF_MEMORY = "DefaultCPUAllocator: can't allocate memory"
"""Torch's message on a CPU, in a plain RuntimeError; on other devices torch raises OutOfMemoryError."""


class Quarantine(Hook):
    """Stops the run when too many clips of the ledger are unusable."""

    def __init__(self, worker: Worker, clips: int) -> None:
        """Args: clips: number of clips of the data set."""
        self.ledger = worker.ledger
        self.clips = clips
        self.max_share = worker.experiment.training.quarantine_share
        self.empty = 0  # consecutive global batches without a usable row

    def after_step(self, step: Step) -> None:
        """Report the number of unusable clips so far, and check it after every step with an unusable row."""
        unusable = self.ledger.quarantined
        self.empty = 0 if step.usable or not step.rows else self.empty + 1
        if step.reported:
            step.metrics["quarantined"] = len(unusable)
        if step.usable == step.rows:
            return
        uri, reason = next(iter(unusable.items()))
        first = f"the first: {uri}: {reason}"
        if self.empty >= EMPTY_BATCHES:
            step.fatal = step.fatal or f"no clip of {self.empty} consecutive batches can be used; {first}"
        elif len(unusable) > self.max_share * self.clips:
            step.fatal = step.fatal or (
                f"{len(unusable)} of {self.clips} clips cannot be used, more than "
                f"training.quarantine_share = {self.max_share:g}; {first}"
            )


class BadSteps(Hook):
    """Stores the rows of steps whose loss or gradient was not finite, and stops the run when there are too many.

    The worker collects them, including those before a restart.
    """

    def __init__(self, worker: Pretrainer, folder: StageFolder) -> None:
        self.folder = folder
        self.bad_rows = worker.bad_rows
        self.max_steps = worker.experiment.training.bad_steps

    def after_step(self, step: Step) -> None:
        """Report this step if it was skipped."""
        if step.metrics["bad"] and rank() == 0:
            rows = self.bad_rows[-1]
            try:
                write_text_atomically(self.folder.bad_rows, json.dumps(self.bad_rows))  # for `sepscene replay`
            except OSError as error:  # the next bad step writes all of them again
                step.events.append(f"the rows of skipped steps cannot be saved: {error}")
            step.events.append(f"step {step.number} is skipped: {len(rows)} rows, the first is row {rows[0]}")
        if len(self.bad_rows) > self.max_steps:
            rows = self.bad_rows[-1]
            some = ", ".join(map(str, rows[:8])) + (", …" if len(rows) > 8 else "")
            step.fatal = step.fatal or (
                f"{len(self.bad_rows)} steps had a NaN or infinite loss or gradient, more than training.bad_steps = "
                f"{self.max_steps}; rows of the last one: {some}. The rows of all of them are in "
                f"{self.folder.bad_rows}; `sepscene replay RUN` computes those of the last step again, one at a time"
            )


class Diagnostics(Hook):
    """Metrics of the representation over the global batch, and a warning when h collapses."""

    def __init__(self, worker: Pretrainer) -> None:
        self.worker = worker
        self.collapsed = False  # whether h was collapsed at the last diagnostics

    def after_step(self, step: Step) -> None:
        """Every few steps, gather the h of all workers and compute the metrics on rank 0."""
        result = self.worker.result
        if step.number % DIAGNOSED_EVERY_STEPS or result is None:
            return
        h_1_ND = gather_rows(result.h_1_nD)
        h_2_ND = gather_rows(result.h_2_nD)
        if rank() != 0:
            return
        metrics = diagnose(replace(result, h_1_nD=h_1_ND, h_2_nD=h_2_ND), self.worker.objective.coincidence_head)
        warning = collapse_warning(metrics)
        if warning and not self.collapsed:
            step.events.append(warning)
        self.collapsed = bool(warning)
        step.metrics |= metrics


@contextmanager
def fatal_when_out_of_memory(folder: StageFolder, advice: str) -> Iterator[None]:
    """Make an out-of-memory error in the block fatal for the stage, with this advice: a restart would fail again."""
    try:
        yield
    except RuntimeError as error:
        if message := out_of_memory(error, advice):
            write_text_atomically(folder.fatal, message)
        raise


def out_of_memory(error: BaseException, advice: str) -> str:
    """A message with the error and the advice, if the error means that a device's memory is full; else empty."""
    if not isinstance(error, torch.OutOfMemoryError) and _CPU_OUT_OF_MEMORY not in str(error):
        return ""
    return f"the memory of the trainer's device is full ({first_line(error)}); {advice}"
