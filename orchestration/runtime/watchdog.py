"""Which process stands still, while a stage of training runs: it is named within a minute and restarted later.

A process that is killed is noticed by Ray. One that is stopped (SIGSTOP, a debugger, a machine that is suspended in
part) is not: the run waits without a word. The driver looks at the processes of the Ray that it started itself, and at
how long ago the last step was reported. Of a cluster's processes it only knows the latter. Where Ray's own processes
have died, Ray ends this one without a word a minute later; so the stage is ended before, with words.
"""

import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil
import ray

from sepscene.models.config import SepsceneError

EVERY_SECONDS = 5.0
"""Between two looks."""

SILENT_SECONDS = 30.0
"""A process that was stopped for so long is named."""

RESTART_SECONDS = 300.0
"""A process that was stopped for so long is killed, so that Ray starts another in its place."""

QUIET_SECONDS = 60.0
"""So long without a step, and three times longer than ever before, is worth a word."""

RAY_ITSELF = ("gcs_server", "raylet")
"""Processes of a Ray that was started here, without which it is at its end."""


class Watchdog:
    """Looks at the processes of this machine's Ray and at the metrics file. Call `look` often."""

    def __init__(self, metrics: Path, report: Callable[[str], None]) -> None:
        """Args:
        metrics: file that grows with every report of steps.
        report: takes what is to be said.
        """
        self.metrics = metrics
        self.report = report
        self.looked = 0.0
        self.stopped: dict[psutil.Process, float] = {}  # since when
        self.named: set[psutil.Process] = set()
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
        found = [each for each in psutil.Process().children(recursive=True) if _is_stopped(each)]
        self.stopped = {each: self.stopped.get(each, now) for each in found}
        self.named &= set(found)
        for process, since in self.stopped.items():
            seconds = now - since
            if seconds >= RESTART_SECONDS:
                self.report(f"{_name(process)} was stopped for {seconds:.0f} s: it is killed, and Ray starts another")
                with suppress(psutil.Error):
                    process.kill()
            elif seconds >= SILENT_SECONDS and process not in self.named:
                self.named.add(process)
                self.report(
                    f"{_name(process)} has been stopped for {seconds:.0f} s; `kill -CONT {process.pid}` lets"
                    f" it go on, else it is restarted after {RESTART_SECONDS:.0f} s"
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
            self.report(f"no step was reported for {waited:.0f} s, at most {self.longest:.0f} s before")
            self.size = self._size()  # its own words are no step

    def _size(self) -> int:
        try:
            return self.metrics.stat().st_size
        except OSError:
            return 0


def ray_itself() -> list[psutil.Process]:
    """GCS and raylet of a Ray that this process has started, also those that have died since."""
    return [child for child in psutil.Process().children() if _program(child) in RAY_ITSELF]


def processes_of_ray() -> list[psutil.Process]:
    """All that a Ray of this process has started beside its workers: also its monitors and agents."""
    package = str(Path(ray.__file__).parent)
    return [child for child in psutil.Process().children() if package in _command(child)]


def _command(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def _program(process: psutil.Process) -> str:
    try:
        return process.name()
    except psutil.Error:
        return ""


def is_alive(process: psutil.Process) -> bool:
    """Whether a process still runs."""
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return False


def _is_stopped(process: psutil.Process) -> bool:
    try:
        return bool(process.status() == psutil.STATUS_STOPPED)
    except psutil.Error:
        return False


def _name(process: psutil.Process) -> str:
    """What Ray calls the process, and its number."""
    title = _command(process).strip() or _program(process) or "a process"
    return f"{title.removeprefix('ray::')[:60]} (process {process.pid})"
