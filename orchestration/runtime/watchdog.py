"""Which process stands still, while a stage of training runs: it is named within a minute and restarted later.

A process that is killed is noticed by Ray. One that is stopped (SIGSTOP, a debugger, a machine that is suspended in
part) is not: the run waits without a word. The driver looks at how long ago the last step was reported and at the
processes of its Ray; on a cluster at these only when no step has come for a while. Where Ray's own processes have died,
Ray ends this one without a word a minute later; so the stage is ended before, with words.
"""

import time
from collections.abc import Callable
from pathlib import Path

from sepscene.models.config import SepsceneError
from sepscene.orchestration.runtime.run_processes import (
    ClusterProcesses,
    LocalProcesses,
    RunProcess,
    is_alive,
    ray_itself,
)

EVERY_SECONDS = 5.0
"""Between two looks."""

SILENT_SECONDS = 30.0
"""A process that was stopped for so long is named; on a cluster, where no step has come for so long."""

RESTART_SECONDS = 300.0
"""A process that was stopped for so long is killed, so that Ray starts another in its place."""

QUIET_SECONDS = 60.0
"""So long without a step, and three times longer than ever before, is worth a word."""


class Watchdog:
    """Looks at the processes of this machine's Ray and at the metrics file. Call `look` often."""

    def __init__(
        self, metrics: Path, report: Callable[[str], None], processes: LocalProcesses | ClusterProcesses
    ) -> None:
        """`metrics` is a file that grows with every report of steps; `report` takes what is to be said."""
        self.metrics = metrics
        self.report = report
        self.looked = 0.0
        self.processes = processes
        self.stopped: dict[RunProcess, float] = {}  # since when
        self.named: set[RunProcess] = set()
        self.killed: set[RunProcess] = set()
        self.size = self._size()
        self.grew = time.monotonic()
        self.longest = 0.0
        self.steps_seen = self.quiet = False
        self.ray = [(each, each.name()) for each in ray_itself()]

    def look(self) -> None:
        """Name what stands still, and kill what has done so for too long.

        Raises:
            SepsceneError: Ray itself has died on this machine.
        """
        now = time.monotonic()
        if now - self.looked < EVERY_SECONDS:
            return
        self.looked = now
        self._look_at_ray()
        self._look_at_processes(now)
        self._look_at_steps(now)

    def _look_at_ray(self) -> None:
        dead = [f"{name} (process {each.pid})" for each, name in self.ray if not is_alive(each)]
        if dead:
            raise SepsceneError(
                f"Ray has died on this machine: {', '.join(dead)} is gone; all that is saved is kept, continue the run "
                "with --resume"
            )

    def _look_at_processes(self, now: float) -> None:
        quiet = now - self.grew
        free = self.processes.free
        if not free and quiet < SILENT_SECONDS:
            self.stopped.clear()  # steps come, so nobody looks; what was named is not named again
            return
        found = self.processes.stopped()
        self.stopped = {each: self.stopped.get(each, now) for each in found}
        self.named &= found
        self.killed &= found
        for process, since in self.stopped.items():
            seconds = now - since
            if seconds >= RESTART_SECONDS:
                if process not in self.killed:  # on a cluster a dead process may still be found for a while
                    self.killed.add(process)
                    restarted = "it is killed, and Ray starts another"
                    self._say(f"{process.described} was stopped for {seconds:.0f} s: {restarted}")
                self.processes.kill(process)
            elif process not in self.named and (seconds >= SILENT_SECONDS or not free):
                self.named.add(process)
                stands = f"has been stopped for {seconds:.0f} s" if free else f"is stopped, no step for {quiet:.0f} s"
                self._say(
                    f"{process.described} {stands}; `kill -CONT {process.pid}` lets it go on, else it is restarted "
                    f"after {RESTART_SECONDS:.0f} s"
                )

    def _look_at_steps(self, now: float) -> None:
        size = self._size()
        waited = now - self.grew
        if size != self.size:
            self.longest = max(self.longest, waited) if self.steps_seen else 0.0  # the first wait is the start's
            self.size = size
            self.grew = now
            self.steps_seen = True
            self.quiet = False
        elif self.steps_seen and not self.quiet and waited > max(QUIET_SECONDS, 3 * self.longest):
            self.quiet = True
            self._say(f"no step was reported for {waited:.0f} s, at most {self.longest:.0f} s before")

    def _say(self, words: str) -> None:
        self.report(words)
        self.size = self._size()  # its own words are no step

    def _size(self) -> int:
        try:
            return self.metrics.stat().st_size
        except OSError:
            return 0
