"""What the fault suite shares: an undisturbed run to compare with, a fault in the middle, the table.

`python -m tests.faults.faults` prints the table of the last `make test-faults`, as it stands in
docs/reliability.md.
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
from sepscene.orchestration.records.checkpoints import newest_sound, read_ledger
from sepscene.orchestration.records.results import read_metrics
from sepscene.orchestration.training.pretraining import pretrain
from sepscene.tasks.datasets.readers import Manifest

STAGE = "pretrain-mix-chan"
ROOT = Path(__file__).resolve().parents[2]
TABLE = ROOT / "build" / "faults.jsonl"
UNREPORTED = 5
"""Steps that a run may have made and not reported: one with a checkpoint every 5 steps reports with each."""
ONE_TRAINER_HERE = {"views.pair": "mix-mix", "resources.trainers": 1}
"""Changes with which the driver's own process can train (`local_trainer.py`)."""
NO_MOUNT = "this machine lets nobody mount a tmpfs, so no disk was full"


@dataclass(frozen=True)
class Outcome:
    """What a fault cost.

    Attributes:
        lost: rows of the schedule that no step consumed.
        twice: rows in excess of one a step that the kept weights were trained on.
        repeated: steps whose weights were lost with their process, so that they were computed again.
        seconds: from the fault to the first steps beyond those that may have been on their way; none where nothing
            stood still.
    """

    fault: str
    outcome: str
    lost: int
    twice: int
    repeated: int
    seconds: float | None


@dataclass
class Injection:
    """Something that happens to a run, once."""

    thread: threading.Thread | None = None
    times: list[float] = field(default_factory=list)

    @property
    def happened(self) -> bool:
        """Whether it happened; waits for a watcher that is at it."""
        if self.thread is not None:
            self.thread.join(5)
        return bool(self.times)


def losses(run_dir: Path) -> dict[int, float]:
    """Step -> loss; a step repeated after a restart counts once, as it was the last time."""
    return {int(record["step"]): float(record["loss"]) for record in read_metrics(run_dir) if "loss" in record}


def steps_done(run_dir: Path) -> int:
    """The last step in a run's metrics."""
    return max(losses(run_dir), default=0)


def when(ripe: Callable[[], bool], inject: Callable[[], bool], limit_seconds: float = 400) -> Injection:
    """Inject a fault once it is time; `inject` is tried until it says that it hit something."""
    injection = Injection()

    def wait_and_inject() -> None:
        deadline = time.monotonic() + limit_seconds
        while time.monotonic() < deadline:
            if ripe() and inject():
                injection.times.append(time.time())
                return
            time.sleep(0.05)

    injection.thread = threading.Thread(target=wait_and_inject, daemon=True)
    injection.thread.start()
    return injection


def after(steps: int, run_dir: Path, inject: Callable[[], bool], limit_seconds: float = 400) -> Injection:
    """Inject a fault once the run has made this many steps."""
    return when(lambda: steps_done(run_dir) >= steps, inject, limit_seconds)


def kill(title: str, number: signal.Signals = signal.SIGKILL) -> Callable[[], bool]:
    """A fault: one of our own processes with that in its title gets the signal."""

    def inject() -> bool:
        for process in psutil.Process().children(recursive=True):
            if title in " ".join(_title(process)):
                os.kill(process.pid, number)
                return True
        return False

    return inject


def full_for(disk: Path, seconds: float) -> Callable[[], bool]:
    """A fault: a small disk is full for so long."""

    def inject() -> bool:
        fill(disk)
        threading.Timer(seconds, (disk / "ballast").unlink).start()
        return True

    return inject


def fill(disk: Path) -> None:
    """Take all the room that is left."""
    with (disk / "ballast").open("wb", buffering=0) as ballast:
        try:
            while True:
                ballast.write(bytes(4096))
        except OSError:
            return


def _title(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def long_enough(nano: Experiment, every: int = 5, epochs: int = 30) -> Experiment:
    """An experiment that can be hit in the middle: 45 steps, a checkpoint every 5."""
    return nano.changed({"training.epochs": epochs, "training.checkpoint_every_steps": every})


def as_command(experiment: Experiment, ladder: dict[str, str], scenes: Path, folder: Path, run_id: str) -> list[str]:
    """The command line that runs the experiment on written scenes: `sepscene pretrain …` under FOLDER/runs."""
    whole = experiment.changed({"data.root": str(scenes), "separator.checkpoints": ladder})
    whole.save(folder / "experiment.yaml")
    options = ["--storage", str(folder / "runs"), "--run-id", run_id, "--no-evaluate"]
    return [sys.executable, "-m", "sepscene", "pretrain", str(folder / "experiment.yaml"), *options]


def start(command: list[str], log: Path, **variables: str) -> subprocess.Popen[bytes]:
    """Start a command in the checkout; its output is appended to `log`."""
    environment = {**os.environ, "RAY_AUTH_MODE": "disabled", "OMP_NUM_THREADS": "1", **variables}
    with log.open("ab") as output:
        return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT)


def finish(process: subprocess.Popen[bytes], log: Path, seconds: float = 400, code: int = 0) -> None:
    """Wait for a command that must end with this code."""
    try:
        assert process.wait(seconds) == code, log.read_text()[-3000:]
    finally:
        family = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
        for one in (process, *family):
            one.kill()


def undisturbed(experiment: Experiment, clips: Manifest, ladder: dict[str, str]) -> dict[int, float]:
    """The losses of the same run in peace; computed once for each experiment, for all processes of the tests."""
    folder = Path(ladder["S2"]).parents[1]  # pytest's, of this process
    shared = folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder
    known = shared / f"undisturbed-{experiment.digest()}.json"
    with FileLock(f"{known}.lock", timeout=500):
        if not known.exists():
            with tempfile.TemporaryDirectory() as run_dir:
                newest = pretrain(experiment, clips, ladder, Path(run_dir), STAGE)
                assert read_ledger(newest).remaining() == []
                known.write_text(json.dumps(losses(Path(run_dir))))
    return {int(step): loss for step, loss in json.loads(known.read_text()).items()}


def note(fault: str, outcome: str, run_dir: Path, struck: Iterable[float] = ()) -> Outcome:
    """Measure what a fault cost a finished run, assert that it cost no row, and enter it in the table."""
    newest = newest_sound(run_dir / "checkpoints" / STAGE)
    assert newest is not None
    ledger = read_ledger(newest)
    records = [record for record in read_metrics(run_dir) if record["stage"] == STAGE and "loss" in record]
    once = {int(record["step"]): record for record in records}
    waits = [_recovery(records, moment) for moment in struck]
    measured = Outcome(
        fault=fault,
        outcome=outcome,
        lost=ledger.rows - ledger.consumed,
        twice=int(sum(float(record["pairs"]) for record in once.values())) - ledger.consumed,
        repeated=len(records) - len(once),
        seconds=max(waits) if waits else None,
    )
    TABLE.parent.mkdir(exist_ok=True)
    with TABLE.open("a") as table:
        table.write(json.dumps(asdict(measured)) + "\n")
    assert ledger.intervals == [(0, ledger.rows)] and not ledger.quarantined
    assert (measured.lost, measured.twice) == (0, 0), measured
    assert sorted(once) == list(range(1, len(once) + 1)), "a step is missing from the metrics"
    return measured


def _recovery(records: list[dict[str, float | str]], moment: float) -> float:
    reported = max((float(record["step"]) for record in records if float(record["seconds"]) <= moment), default=0.0)
    beyond = [float(record["seconds"]) for record in records if float(record["step"]) > reported + UNREPORTED]
    return min(beyond, default=moment) - moment


def main() -> None:
    """Print the table, the last outcome of each fault."""
    rows = {row["fault"]: row for row in map(json.loads, TABLE.read_text().splitlines())}
    print(
        "| fault | outcome | rows lost | rows twice | steps repeated | seconds to recover |\n|---|---|---|---|---|---|"
    )
    for row in rows.values():
        seconds = "–" if row["seconds"] is None else f"{row['seconds']:.0f}"
        print(f"| {row['fault']} | {row['outcome']} | {row['lost']} | {row['twice']} | {row['repeated']} | {seconds} |")


if __name__ == "__main__":
    main()
