"""A stopped process is reported, then killed; a stage without steps is reported once."""

import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from sepscene.models.config import SepsceneError
from sepscene.orchestration.runtime import watchdog
from sepscene.orchestration.runtime.run_processes import LocalProcesses, RunProcess, is_stopped
from sepscene.orchestration.runtime.watchdog import Watchdog


@pytest.fixture
def process() -> Iterator[subprocess.Popen[bytes]]:
    """A child process with a title like those of Ray."""
    child = subprocess.Popen(["bash", "-c", "exec -a ray::SeparationService sleep 60"])
    yield child
    child.kill()
    child.wait(10)


def stop(process: subprocess.Popen[bytes]) -> None:
    """Send SIGSTOP and wait until the process is stopped."""
    process.send_signal(signal.SIGSTOP)
    for _ in range(100):
        if is_stopped(process.pid):
            return
        time.sleep(0.05)


class Clock:
    """A clock that is advanced by the test."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = time.monotonic()
        monkeypatch.setattr(watchdog.time, "monotonic", lambda: self.now)


class KilledLate(LocalProcesses):
    """As on a cluster: a process to be killed is still found by the next checks."""

    calls = 0

    def kill(self, process: RunProcess) -> None:
        self.calls += 1
        if self.calls > 3:
            super().kill(process)


@pytest.mark.parametrize("processes", [LocalProcesses, KilledLate])
def test_a_stopped_process_is_reported_and_then_killed(
    process: subprocess.Popen[bytes],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    processes: type[LocalProcesses],
) -> None:
    clock = Clock(monkeypatch)
    messages = list[str]()
    dog = Watchdog(tmp_path / "metrics.jsonl", messages.append, processes())

    def wait(seconds: float) -> None:
        for _ in range(round(seconds / 10)):
            clock.now += 10
            dog.check()

    wait(100)
    assert not messages
    stop(process)
    wait(50)
    assert len(messages) == 1 and messages[0].startswith(
        f"SeparationService 60 (process {process.pid}) has been stopped for"
    )
    wait(300)
    assert len(messages) == 2 and "it is killed, and Ray starts another" in messages[1]
    assert process.wait(10) == -signal.SIGKILL


class Expensive(LocalProcesses):
    """As on a cluster: checked only if no step was reported for some time."""

    cheap = False


def test_a_process_is_not_reported_again_after_steps_between_two_checks(
    process: subprocess.Popen[bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If one of several processes is stopped, steps in progress can still be reported."""
    clock = Clock(monkeypatch)
    messages = list[str]()
    metrics = tmp_path / "metrics.jsonl"
    dog = Watchdog(metrics, messages.append, Expensive())
    stop(process)
    for seconds in (40, 10, 40, 10, 200):
        clock.now += seconds
        dog.check()
        if seconds == 10:
            with metrics.open("a") as file:
                file.write("{}\n")
    assert [line for line in messages if "is stopped, no step for" in line] == messages[:1]
    clock.now += 301
    dog.check()
    assert "it is killed, and Ray starts another" in messages[-1]


def test_a_stage_without_steps_is_reported_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    messages = list[str]()
    metrics = tmp_path / "metrics.jsonl"
    dog = Watchdog(metrics, messages.append, LocalProcesses())
    for _ in range(60):  # the start may take any time
        clock.now += 10
        dog.check()
    for _ in range(3):
        with metrics.open("a") as file:
            file.write("{}\n")
        clock.now += 40
        dog.check()
    assert not messages
    for _ in range(30):
        clock.now += 10
        dog.check()
    assert len(messages) == 1 and messages[0].startswith("no step was reported for 130 s, at most 40 s before")


@pytest.mark.parametrize("name", ["gcs_server", "raylet"])
def test_a_ray_that_has_died_ends_the_stage_with_an_error(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray would end this process a minute later without a message."""
    program = shutil.which("sleep")
    assert program is not None
    shutil.copy(program, tmp_path / name)
    clock = Clock(monkeypatch)
    messages = list[str]()
    child = subprocess.Popen([str(tmp_path / name), "60"])
    try:
        for _ in range(100):  # until the child runs the copy
            if psutil.Process(child.pid).name() == name:
                break
            time.sleep(0.05)
        dog = Watchdog(tmp_path / "metrics.jsonl", messages.append, LocalProcesses())
        clock.now += 10
        dog.check()
    finally:
        child.kill()
    child.wait(10)
    clock.now += 10
    with pytest.raises(SepsceneError, match=rf"{name} \(process {child.pid}\) has ended; .* with --resume"):
        dog.check()
    assert not messages
