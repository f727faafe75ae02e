"""Reports processes that are stopped during a training stage within a minute, and has them restarted later.

Ray notices a process that was killed, but not one that is stopped (SIGSTOP, a debugger, a partly suspended machine):
the run would wait without any message. The driver checks when the last step was reported, and whether processes of its
Ray are stopped; on a cluster, the latter only if no step was reported for some time. If Ray's core processes have died,
Ray would end this process a minute later without a message. So the stage is ended earlier, with an error.
"""

import time
from collections.abc import Callable
from pathlib import Path

from sepscene.models.config import SepsceneError
from sepscene.orchestration.runtime.run_processes import (
    ClusterProcesses,
    LocalProcesses,
    RunProcess,
    core_processes,
    is_alive,
    program_of,
)

CHECK_SECONDS = 5.0
"""Time between two checks."""

REPORT_SECONDS = 30.0
"""A process that has been stopped for this time is reported; on a cluster, if no step was reported for this time."""

RESTART_SECONDS = 300.0
"""A process that has been stopped for this time is killed, so that Ray starts another one."""

NO_STEP_SECONDS = 60.0
"""A stage without a step for this time, and for three times its longest wait so far, is reported."""


class Watchdog:
    """Checks the processes of the run and its metrics file. Call `check` often."""

    def __init__(
        self, metrics: Path, report: Callable[[str], None], processes: LocalProcesses | ClusterProcesses
    ) -> None:
        """`metrics` is a file that grows with every report of steps; `report` receives the messages."""
        self.metrics = metrics
        self.report = report
        self.checked_at = 0.0
        self.processes = processes
        self.stopped: dict[RunProcess, float] = {}
        """Process -> time at which it was found stopped."""
        self.reported: set[RunProcess] = set()
        self.killed: set[RunProcess] = set()
        self.size = self._size()
        self.grew_at = time.monotonic()
        self.longest_wait = 0.0
        self.steps_seen = False
        self.wait_reported = False
        self.core = [(each, program_of(each)) for each in core_processes()]

    def check(self) -> None:
        """Report stopped processes and missing steps, and kill processes that have been stopped for too long.

        Raises:
            SepsceneError: if Ray's core processes on this machine have died.
        """
        now = time.monotonic()
        if now - self.checked_at < CHECK_SECONDS:
            return
        self.checked_at = now
        self._check_ray()
        self._check_processes(now)
        self._check_steps(now)

    def _check_ray(self) -> None:
        dead = [f"{name} (process {each.pid})" for each, name in self.core if not is_alive(each)]
        if dead:
            raise SepsceneError(
                f"Ray has died on this machine: {', '.join(dead)} has ended; saved files are intact, continue the run "
                "with --resume"
            )

    def _check_processes(self, now: float) -> None:
        waited = now - self.grew_at
        cheap = self.processes.cheap
        if not cheap and waited < REPORT_SECONDS:
            self.stopped.clear()  # not checked while steps are reported; `reported` is kept
            return
        found = self.processes.stopped()
        self.stopped = {each: self.stopped.get(each, now) for each in found}
        self.reported &= found
        self.killed &= found
        for process, since in self.stopped.items():
            seconds = now - since
            if seconds >= RESTART_SECONDS:
                if process not in self.killed:  # on a cluster, a killed process can still be found for some time
                    self.killed.add(process)
                    self._report(
                        f"{process.description} was stopped for {seconds:.0f} s: it is killed, and Ray starts another"
                    )
                self.processes.kill(process)
            elif process not in self.reported and (seconds >= REPORT_SECONDS or not cheap):
                self.reported.add(process)
                state = f"has been stopped for {seconds:.0f} s" if cheap else f"is stopped, no step for {waited:.0f} s"
                self._report(
                    f"{process.description} {state}; continue it with `kill -CONT {process.pid}`, otherwise it is "
                    f"restarted after {RESTART_SECONDS:.0f} s"
                )

    def _check_steps(self, now: float) -> None:
        size = self._size()
        waited = now - self.grew_at
        if size != self.size:
            self.longest_wait = max(self.longest_wait, waited) if self.steps_seen else 0.0  # ignore the start
            self.size = size
            self.grew_at = now
            self.steps_seen = True
            self.wait_reported = False
        elif self.steps_seen and not self.wait_reported and waited > max(NO_STEP_SECONDS, 3 * self.longest_wait):
            self.wait_reported = True
            self._report(f"no step was reported for {waited:.0f} s, at most {self.longest_wait:.0f} s before")

    def _report(self, message: str) -> None:
        self.report(message)
        self.size = self._size()  # the message itself does not count as a step

    def _size(self) -> int:
        try:
            return self.metrics.stat().st_size
        except OSError:
            return 0
