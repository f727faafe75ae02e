"""Hooks that write checkpoints, and that report metrics to the driver."""

import math
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import ray.train

from sepscene.orchestration.records.checkpoints import CheckpointWriter, TrainingState
from sepscene.orchestration.records.run_folder import StageFolder
from sepscene.orchestration.runtime.ray_compat import leaving_nodes
from sepscene.orchestration.training.hooks import Hook, Step, Worker

FULL_DISK_SECONDS = 60.0
"""How long the last checkpoint waits for space on the disk."""

POLL_SECONDS = 0.5
"""Time between two checks for a warning."""

REPORT_SECONDS = 2.0
"""Least time between two reports. Ray Train keeps one report until its controller fetches it, every
`stage.POLL_SECONDS`; a second one would block training until then. Each report also costs some hundredths of a second
of CPU time over all processes of the run."""


class Saving(Hook):
    """Writes a checkpoint every few steps, at the end, and when the run is about to be interrupted. For rank 0 only.

    A thread waits for a warning (a signal to the driver, a node that is being drained), and then saves immediately,
    between two steps. `after_step` cannot do this: Ray Data gives no more work to a node that is being drained, so the
    stream can stop until that node is removed.
    """

    def __init__(
        self, worker: Worker, folder: StageFolder, kept: int | None, leaving: Callable[[], set[str]] = leaving_nodes
    ) -> None:
        """Start the thread that waits for warnings.

        Args:
            kept: number of checkpoints to keep; None keeps all.
            leaving: returns the nodes that are being drained.
        """
        self.worker = worker
        self.folder = folder
        self.every = worker.experiment.training.checkpoint_every_steps
        self.leaving = leaving
        self.unsaved: list[dict[str, float]] = []
        self.events: list[str] = []
        self._reason = ""  # why the last checkpoint failed
        self._ended = threading.Event()
        self.writer = CheckpointWriter(folder.path, kept)
        threading.Thread(target=self._poll, name="save-on-warning", daemon=True).start()

    def needs_report(self, number: int) -> bool:
        """Before each checkpoint, so that the driver has the metrics of all steps in the previous one."""
        return number % self.every == 0

    def after_step(self, step: Step) -> None:
        """Start to write a checkpoint in the background, if it is due."""
        self.unsaved.append(step.metrics)
        if step.number % self.every == 0:
            self._note(self.writer.wait())
            self.writer.start(self._state())
        step.events += self.events
        self.events = []
        if step.fatal:
            self._ended.set()

    def at_end(self, last: Step) -> None:
        """Write the last checkpoint and wait for it; if the disk stays full, the run must stop."""
        self._ended.set()
        with self.worker.pause:
            refused = self.writer.wait()
            if not last.fatal and (refused or last.number % self.every):
                refused = self.writer.save(self._state(), FULL_DISK_SECONDS)
            if refused:
                advice = f"make room under {self.folder.path}, then continue the run with --resume"
                last.fatal = last.fatal or f"{refused}; {advice}"
            self.folder.wanted.unlink(missing_ok=True)

    def _poll(self) -> None:
        saved_for: set[str] = set()
        while not self._ended.wait(POLL_SECONDS):
            leaving = self.leaving()
            if leaving <= saved_for and not self.folder.wanted.exists():
                continue
            with self.worker.pause:
                if self._ended.is_set():
                    return
                self._note(self.writer.wait())
                self.writer.start(self._state())
                self._note(self.writer.wait())
                if not self.writer.failure:
                    saved_for |= leaving
                    self.folder.wanted.unlink(missing_ok=True)

    def _state(self) -> TrainingState:
        metrics = self.unsaved
        self.unsaved = []
        return replace(self.worker.state(), metrics=metrics)

    def _note(self, failure: str) -> None:
        if failure and failure != self._reason:
            self.events.append(f"{failure}; training continues")
        self._reason = failure


class Reporting(Hook):
    """Reports metrics and events to the driver: those of the first step immediately, then every few seconds.

    It must be the last of the hooks, so that it reports the additions of all.
    """

    def __init__(self, send: Callable[..., None] = ray.train.report) -> None:
        """Args: send: takes the arguments of `ray.train.report`."""
        self.send = send
        self.unsent: list[dict[str, Any]] = []
        self._sent = -math.inf

    def needs_report(self, number: int) -> bool:
        """Whether `REPORT_SECONDS` have passed since the last report."""
        return time.monotonic() - self._sent >= REPORT_SECONDS

    def after_step(self, step: Step) -> None:
        """Keep metrics and events for the next report, and send it if it is due."""
        if step.metrics:  # the last step has none
            self.unsent.append(step.metrics)
        self.unsent += [{"step": step.number, "event": event} for event in step.events]
        if step.reported or step.fatal:
            self.send({"steps": self.unsent, "fatal": step.fatal}, **step.report_options)
            self.unsent = []
            self._sent = time.monotonic()

    def at_end(self, last: Step) -> None:
        """Send the last report."""
        self.after_step(last)
