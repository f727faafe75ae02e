"""Shared by the fault tests: a run without faults to compare with, the injection of faults, the table of results.

`python -m tests.faults.faults` prints the table of the last `make test-faults`, as in docs/reliability.md.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import psutil
from filelock import FileLock

from sepscene.orchestration.config import Experiment
from sepscene.orchestration.records.checkpoints import newest_intact, read_ledger
from sepscene.orchestration.records.results import read_metrics
from sepscene.orchestration.runtime.run_processes import command_of
from sepscene.orchestration.training.pretraining import pretrain
from sepscene.tasks.datasets.readers import Manifest

STAGE = "pretrain-mix-chan"
ROOT = Path(__file__).resolve().parents[2]
TABLE = ROOT / "build" / "faults.jsonl"
UNREPORTED = 5
"""Maximum number of steps not reported yet: a run with a checkpoint every 5 steps reports with each checkpoint."""
ONE_TRAINER_HERE = {"views.pair": "mix-mix", "resources.trainers": 1}
"""Changes with which the driver's process itself trains (`local_trainer.py`)."""
NO_MOUNT = "a tmpfs cannot be mounted on this machine, so no disk was full"


@dataclass(frozen=True)
class Outcome:
    """The cost of a fault.

    Attributes:
        lost: rows of the schedule that no step consumed.
        twice: rows that the final weights were trained on more than once.
        repeated: steps that were computed again because their weights were lost with their process.
        seconds: time from the fault to the first step that cannot have been in progress before it; None if the run was
            not interrupted.
    """

    fault: str
    outcome: str
    lost: int
    twice: int
    repeated: int
    seconds: float | None


@dataclass
class Injection:
    """A fault that is injected into a run once."""

    thread: threading.Thread | None = None
    times: list[float] = field(default_factory=list)

    @property
    def happened(self) -> bool:
        """Whether the fault was injected; waits shortly for an injection in progress."""
        if self.thread is not None:
            self.thread.join(5)
        return bool(self.times)


def losses(run_dir: Path) -> dict[int, float]:
    """Step -> loss; for a step that was repeated after a restart, its last loss."""
    return {int(record["step"]): float(record["loss"]) for record in read_metrics(run_dir) if "loss" in record}


def steps_done(run_dir: Path) -> int:
    """The last step in a run's metrics."""
    return max(losses(run_dir), default=0)


def when(ready: Callable[[], bool], inject: Callable[[], bool], limit_seconds: float = 600) -> Injection:
    """Inject a fault once `ready` returns True; `inject` is called until it returns True."""
    injection = Injection()

    def wait_and_inject() -> None:
        deadline = time.monotonic() + limit_seconds
        while time.monotonic() < deadline:
            if ready() and inject():
                injection.times.append(time.time())
                return
            time.sleep(0.05)

    injection.thread = threading.Thread(target=wait_and_inject, daemon=True)
    injection.thread.start()
    return injection


def after(steps: int, run_dir: Path, inject: Callable[[], bool], limit_seconds: float = 600) -> Injection:
    """Inject a fault after this many steps of the run."""
    return when(lambda: steps_done(run_dir) >= steps, inject, limit_seconds)


def kill(title: str, number: signal.Signals = signal.SIGKILL) -> Callable[[], bool]:
    """A fault: send the signal to one of our processes whose title contains `title`."""

    def inject() -> bool:
        for process in psutil.Process().children(recursive=True):
            if title in command_of(process):
                os.kill(process.pid, number)
                return True
        return False

    return inject


def full_for(disk: Path, seconds: float) -> Callable[[], bool]:
    """A fault: a small disk is full for this long."""

    def inject() -> bool:
        fill(disk)
        threading.Timer(seconds, (disk / "ballast").unlink).start()
        return True

    return inject


def fill(disk: Path) -> None:
    """Fill the free space of a disk."""
    with (disk / "ballast").open("wb", buffering=0) as ballast:
        try:
            while True:
                ballast.write(bytes(4096))
        except OSError:
            return


def long_enough(nano: Experiment, every: int = 5, epochs: int = 30) -> Experiment:
    """An experiment with enough steps for a fault during training: by default 45, with a checkpoint every 5."""
    return nano.changed({"training.epochs": epochs, "training.checkpoint_every_steps": every})


def as_command(experiment: Experiment, ladder: dict[str, str], scenes: Path, folder: Path, run_id: str) -> list[str]:
    """The command that runs the experiment on generated scenes: `sepscene pretrain …` with storage FOLDER/runs."""
    complete = experiment.changed({"data.root": str(scenes), "separator.checkpoints": ladder})
    complete.save(folder / "experiment.yaml")
    options = ["--storage", str(folder / "runs"), "--run-id", run_id, "--no-evaluate"]
    return [sys.executable, "-m", "sepscene", "pretrain", str(folder / "experiment.yaml"), *options]


def start(command: list[str], log: Path, **variables: str) -> subprocess.Popen[bytes]:
    """Start a command in the checkout, in a process group as a shell does; its output is appended to `log`."""
    environment = {**os.environ, "RAY_AUTH_MODE": "disabled", "OMP_NUM_THREADS": "1", **variables}
    with log.open("ab") as output:
        return subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT, process_group=0
        )


def finish(process: subprocess.Popen[bytes], log: Path, seconds: float = 600, code: int = 0) -> None:
    """Wait for a command, which must end with this exit code."""
    try:
        assert process.wait(seconds) == code, f"exit code {process.returncode}: {log.read_text()[-3000:]}"
    finally:
        family = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
        for one in (process, *family):
            one.kill()


def undisturbed(experiment: Experiment, clips: Manifest, ladder: dict[str, str]) -> dict[int, float]:
    """The losses of the same run without faults; computed once per experiment for all test processes."""
    folder = Path(ladder["S2"]).parents[1]  # pytest's temporary folder of this process
    shared = folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder
    known = shared / f"undisturbed-{experiment.digest()}.json"
    with FileLock(f"{known}.lock", timeout=500):
        if not known.exists():
            with tempfile.TemporaryDirectory() as run_dir:
                newest = pretrain(experiment, clips, ladder, Path(run_dir), STAGE)
                assert read_ledger(newest).remaining() == []
                known.write_text(json.dumps(losses(Path(run_dir))))
    return {int(step): loss for step, loss in json.loads(known.read_text()).items()}


def note(fault: str, outcome: str, run_dir: Path, times: Iterable[float] = ()) -> Outcome:
    """Measure the cost of a fault in a finished run, add it to the table, and assert that no row was lost.

    Args:
        times: when the faults were injected, Unix time in seconds.
    """
    newest = newest_intact(run_dir / "checkpoints" / STAGE)
    assert newest is not None
    ledger = read_ledger(newest)
    records = [record for record in read_metrics(run_dir) if record["stage"] == STAGE and "loss" in record]
    last = {int(record["step"]): record for record in records}
    waits = [_recovery(records, fault_time) for fault_time in times]
    measured = Outcome(
        fault=fault,
        outcome=outcome,
        lost=ledger.rows - ledger.consumed,
        twice=int(sum(float(record["pairs"]) for record in last.values())) - ledger.consumed,
        repeated=len(records) - len(last),
        seconds=max(waits) if waits else None,
    )
    TABLE.parent.mkdir(exist_ok=True)
    with TABLE.open("a") as table:
        table.write(json.dumps(asdict(measured)) + "\n")
    assert ledger.intervals == [(0, ledger.rows)] and not ledger.quarantined
    assert (measured.lost, measured.twice) == (0, 0), measured
    assert sorted(last) == list(range(1, len(last) + 1)), "a step is missing in the metrics"
    return measured


def _recovery(records: list[dict[str, float | str]], fault_time: float) -> float:
    """Seconds from a fault to the first step that cannot have been in progress before it."""
    reported = max((float(record["step"]) for record in records if float(record["seconds"]) <= fault_time), default=0.0)
    later = [float(record["seconds"]) for record in records if float(record["step"]) > reported + UNREPORTED]
    return min(later, default=fault_time) - fault_time


def main() -> None:
    """Print the table with the last outcome of each fault."""
    rows = {row["fault"]: row for row in map(json.loads, TABLE.read_text().splitlines())}
    print(
        "| fault | outcome | rows lost | rows twice | steps repeated | seconds to recover |\n|---|---|---|---|---|---|"
    )
    for row in rows.values():
        seconds = "–" if row["seconds"] is None else f"{row['seconds']:.0f}"
        print(f"| {row['fault']} | {row['outcome']} | {row['lost']} | {row['twice']} | {row['repeated']} | {seconds} |")


if __name__ == "__main__":
    main()
