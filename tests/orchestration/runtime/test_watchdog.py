"""A stopped process is named, then killed; a stage without steps is spoken of once."""

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
    """A child with a title as Ray gives them."""
    child = subprocess.Popen(["bash", "-c", "exec -a ray::SeparationService sleep 60"])
    yield child
    child.kill()
    child.wait(10)


def stop(process: subprocess.Popen[bytes]) -> None:
    """SIGSTOP; the system takes a moment."""
    process.send_signal(signal.SIGSTOP)
    for _ in range(100):
        if is_stopped(process.pid):
            return
        time.sleep(0.05)


class Clock:
    """Time that passes when it is told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = time.monotonic()
        monkeypatch.setattr(watchdog.time, "monotonic", lambda: self.now)


class KilledLate(LocalProcesses):
    """As on a cluster: a process that is to be killed is still found for a few looks."""

    asked = 0

    def kill(self, process: RunProcess) -> None:
        self.asked += 1
        if self.asked > 3:
            super().kill(process)


@pytest.mark.parametrize("processes", [LocalProcesses, KilledLate])
def test_a_stopped_process_is_named_and_then_killed(
    process: subprocess.Popen[bytes],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    processes: type[LocalProcesses],
) -> None:
    clock, said = Clock(monkeypatch), list[str]()
    dog = Watchdog(tmp_path / "metrics.jsonl", said.append, processes())

    def wait(seconds: float) -> None:
        for _ in range(round(seconds / 10)):
            clock.now += 10
            dog.look()

    wait(100)
    assert not said
    stop(process)
    wait(50)
    assert len(said) == 1 and said[0].startswith(f"SeparationService 60 (process {process.pid}) has been stopped for")
    wait(300)
    assert len(said) == 2 and "it is killed, and Ray starts another" in said[1]
    assert process.wait(10) == -signal.SIGKILL


class Costly(LocalProcesses):
    """As on a cluster: looked at only when no step has come for a while."""

    free = False


def test_steps_between_two_looks_do_not_name_a_process_again(
    process: subprocess.Popen[bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stopped process of several may let some steps pass that were under way."""
    clock, said = Clock(monkeypatch), list[str]()
    metrics = tmp_path / "metrics.jsonl"
    dog = Watchdog(metrics, said.append, Costly())
    stop(process)
    for seconds in (40, 10, 40, 10, 200):
        clock.now += seconds
        dog.look()
        if seconds == 10:
            with metrics.open("a") as file:
                file.write("{}\n")
    assert [line for line in said if "is stopped, no step for" in line] == said[:1]
    clock.now += 301
    dog.look()
    assert "it is killed, and Ray starts another" in said[-1]


def test_a_stage_whose_steps_stay_away_is_spoken_of_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock, said = Clock(monkeypatch), list[str]()
    metrics = tmp_path / "metrics.jsonl"
    dog = Watchdog(metrics, said.append, LocalProcesses())
    for _ in range(60):  # however long it takes to start
        clock.now += 10
        dog.look()
    for _ in range(3):
        with metrics.open("a") as file:
            file.write("{}\n")
        clock.now += 40
        dog.look()
    assert not said
    for _ in range(30):
        clock.now += 10
        dog.look()
    assert len(said) == 1 and said[0].startswith("no step was reported for 130 s, at most 40 s before")


@pytest.mark.parametrize("name", ["gcs_server", "raylet"])
def test_a_ray_that_has_died_ends_the_stage_with_words(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray would end this process a minute later, without any."""
    program = shutil.which("sleep")
    assert program is not None
    shutil.copy(program, tmp_path / name)
    clock, said = Clock(monkeypatch), list[str]()
    child = subprocess.Popen([str(tmp_path / name), "60"])
    try:
        for _ in range(100):  # until it is the copy
            if psutil.Process(child.pid).name() == name:
                break
            time.sleep(0.05)
        dog = Watchdog(tmp_path / "metrics.jsonl", said.append, LocalProcesses())
        clock.now += 10
        dog.look()
    finally:
        child.kill()
    child.wait(10)
    clock.now += 10
    with pytest.raises(SepsceneError, match=rf"{name} \(process {child.pid}\) is gone; .* with --resume"):
        dog.look()
    assert not said
