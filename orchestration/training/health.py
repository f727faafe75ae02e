"""What looks after the training's health: clips that cannot be used, steps that are not finite, a collapse of h, and a
batch that the memory does not hold.

Shapes: N rows of this worker's part of a batch.
"""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import torch

from sepscene.augment.draws import FILLER
from sepscene.models.config import first_line
from sepscene.models.encoders.heads import CoincidenceHead
from sepscene.orchestration.records.files import write_whole
from sepscene.orchestration.records.ledger import Ledger
from sepscene.orchestration.records.run_folder import StageFolder
from sepscene.orchestration.training.hooks import Batch, Hook, Step
from sepscene.tasks.distributed.gather import gather_rows, gather_texts, rank
from sepscene.tasks.losses.diagnostics import collapse_warning, diagnose
from sepscene.tasks.losses.joint import JointLoss

DIAGNOSED_EVERY_STEPS = 5
"""Steps from one look at the representation to the next: for it all workers exchange their h."""

EMPTY_BATCHES = 2
"""Global batches in a row without any usable row after which the data itself must be gone."""

_WORDS_OF_A_CPU = "DefaultCPUAllocator: can't allocate memory"
"""What torch says on a CPU, in a plain RuntimeError; for devices it has a class of its own."""


class Quarantine(Hook):
    """Enters clips that cannot be used in the ledger, and stops the run when there are too many."""

    def __init__(self, ledger: Ledger, clips: int, most_share: float, device: torch.device) -> None:
        """Of `clips` clips in the data set `most_share` may be unusable; on `device` the process group communicates."""
        self.ledger = ledger
        self.clips = clips
        self.most_share = most_share
        self.device = device
        self.faults: dict[str, str] = {}
        self.empty = 0  # global batches in a row without a usable row

    def before_step(self, batch: Batch, waited_seconds: float) -> None:
        """Note the faults of this worker's rows."""
        for n in np.flatnonzero((batch["row"] != FILLER) & (batch["fault"] != "")):
            self.faults[str(batch["uri"][n])] = str(batch["fault"][n])

    def after_step(self, step: Step) -> None:
        """Share the faults of all workers in every step that has some; all know how many rows were usable."""
        self.empty = 0 if step.usable or not step.rows else self.empty + 1
        if step.usable < step.rows:
            self._share(step)
        if step.reported:
            step.metrics["quarantined"] = len(self.ledger.quarantined)

    def _share(self, step: Step) -> None:
        for faults in gather_texts(json.dumps(self.faults), self.device):
            self.ledger.quarantined.update(json.loads(faults))
        self.faults = {}
        unusable = self.ledger.quarantined
        uri, reason = next(iter(unusable.items()))
        first = f"the first: {uri}: {reason}"
        if self.empty >= EMPTY_BATCHES:
            step.fatal = step.fatal or f"no clip of {self.empty} whole batches in a row can be used; {first}"
        elif len(unusable) > self.most_share * self.clips:
            step.fatal = step.fatal or (
                f"{len(unusable)} of {self.clips} clips cannot be used, more than "
                f"training.quarantine_share = {self.most_share:g}; {first}"
            )


class BadSteps(Hook):
    """Keeps the rows of steps whose loss or gradient was not finite, and stops the run when there are too many."""

    def __init__(self, folder: StageFolder, bad_rows: list[list[int]], most: int) -> None:
        """`bad_rows`: the worker's own list of the rows of each such step; over restarts, at most `most` of them."""
        self.folder = folder
        self.bad_rows = bad_rows
        self.most = most

    def after_step(self, step: Step) -> None:
        """Look whether this step was skipped."""
        if step.metrics["bad"] and rank() == 0:
            rows = self.bad_rows[-1]
            write_whole(self.folder.bad_rows, json.dumps(self.bad_rows))  # for `sepscene replay`
            step.events.append(f"step {step.number} is skipped: {len(rows)} rows from {rows[0]} on")
        if len(self.bad_rows) > self.most:
            rows = self.bad_rows[-1]
            some = ", ".join(map(str, rows[:8])) + (", …" if len(rows) > 8 else "")
            step.fatal = step.fatal or (
                f"{len(self.bad_rows)} steps had a NaN or infinite loss or gradient, more than training.bad_steps = "
                f"{self.most}; the last one's rows: {some}; all are in "
                f"{self.folder.bad_rows}, and `sepscene replay RUN` computes the last step's again, one by one"
            )


class Diagnostics(Hook):
    """Whether the representation is healthy, over the global batch: metrics, and a warning when h collapses."""

    def __init__(self, result: Callable[[], JointLoss | None], head: CoincidenceHead | None) -> None:
        """`result`: what the objective gave in the last step, none where that was skipped; `head`: of coincidence."""
        self.result = result
        self.head = head
        self.collapsed = False  # whether the last look found h collapsed

    def after_step(self, step: Step) -> None:
        """Every few steps; all workers share their rows, and rank 0 looks."""
        result = self.result()
        if step.number % DIAGNOSED_EVERY_STEPS or result is None:
            return
        h_1_ND = gather_rows(result.h_1_nD)
        h_2_ND = gather_rows(result.h_2_nD)
        if rank() != 0:
            return
        metrics = diagnose(replace(result, h_1_nD=h_1_ND, h_2_nD=h_2_ND), self.head)
        warning = collapse_warning(metrics)
        if warning and not self.collapsed:
            step.events.append(warning)
        self.collapsed = bool(warning)
        step.metrics |= metrics


@contextmanager
def ends_when_memory_is_full(folder: StageFolder, advice: str) -> Iterator[None]:
    """Note the advice as what ends the stage, where the block fails for lack of memory: again it would end the same."""
    try:
        yield
    except RuntimeError as error:
        if message := out_of_memory(error, advice):
            write_whole(folder.fatal, message)
        raise


def out_of_memory(error: BaseException, advice: str) -> str:
    """What failed and what to do, for an error that says that a device's memory is full; empty for any other."""
    if not isinstance(error, torch.OutOfMemoryError) and _WORDS_OF_A_CPU not in str(error):
        return ""
    return f"the memory of the trainer's device is full ({first_line(error)}); {advice}"
