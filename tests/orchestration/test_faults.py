"""Kill -9 in the middle of a run: every row once, and the same final loss, bit for bit."""

import os
import shutil
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from models.config import SepsceneError
from orchestration.checkpoints import is_sound, newest_sound, read_checkpoint, read_ledger
from orchestration.config import Experiment
from orchestration.pretraining import pretrain
from orchestration.results import read_metrics
from orchestration.stream import configure_data
from tasks.manifests import Manifest

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("ray_of_our_own")]

STAGE = "pretrain-mix-chan"


@pytest.fixture(scope="module")
def experiment(nano: Experiment) -> Experiment:
    """Long enough to be hit in the middle: 45 steps."""
    configure_data(ordered=True)
    training = nano.training.model_copy(update={"epochs": 30, "checkpoint_every_steps": 5})
    return nano.model_copy(update={"training": training})


def losses(run_dir: Path) -> dict[int, float]:
    """Step -> loss; a step repeated after a restart counts once, as it was the last time."""
    return {int(record["step"]): float(record["loss"]) for record in read_metrics(run_dir) if "loss" in record}


def run(experiment: Experiment, clips: Manifest, ladder: dict[str, str], run_dir: Path) -> Path:
    """Pre-train to the end; returns the last checkpoint."""
    run_dir.mkdir(parents=True, exist_ok=True)
    return pretrain(experiment, clips, ladder, run_dir, STAGE)


@pytest.fixture(scope="module")
def unfaulted(
    experiment: Experiment, train_clips: Manifest, ladder: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> dict[int, float]:
    """The losses of a run in peace."""
    run_dir = tmp_path_factory.mktemp("unfaulted")
    newest = run(experiment, train_clips, ladder, run_dir)
    assert read_ledger(newest).remaining() == []
    return losses(run_dir)


def kill_after(steps: int, run_dir: Path, title: str) -> tuple[threading.Thread, list[int]]:
    """Kill -9 one of our own Ray processes with that title once the run has made so many steps."""
    killed: list[int] = []

    def watch() -> None:
        deadline = time.monotonic() + 200
        while time.monotonic() < deadline and not killed:
            if max(losses(run_dir), default=0) >= steps:
                for process in psutil.Process().children(recursive=True):
                    if title in " ".join(_title(process)):
                        os.kill(process.pid, signal.SIGKILL)
                        killed.append(process.pid)
                        return
            time.sleep(0.05)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    return thread, killed


def _title(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


@pytest.mark.parametrize("victim", ["SeparationService", "ClipReader", "RayTrainWorker"])
def test_a_killed_process_costs_no_row_and_changes_no_bit(
    experiment: Experiment,
    train_clips: Manifest,
    ladder: dict[str, str],
    unfaulted: dict[int, float],
    tmp_path: Path,
    victim: str,
) -> None:
    thread, killed = kill_after(10, tmp_path, victim)
    newest = run(experiment, train_clips, ladder, tmp_path)
    thread.join(5)
    assert killed, f"no process {victim} was found to kill"
    ledger = read_ledger(newest)
    assert ledger.intervals == [(0, ledger.rows)] and not ledger.quarantined
    assert losses(tmp_path) == unfaulted


def damage_truncate(folder: Path) -> None:
    """Half of the state is missing."""
    state = folder / "state.pt"
    os.truncate(state, state.stat().st_size // 2)


def damage_flip(folder: Path) -> None:
    """One bit is wrong, in the middle of the weights."""
    with (folder / "state.pt").open("r+b") as file:
        file.seek(file.seek(0, os.SEEK_END) // 2)
        byte = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte[0] ^ 1]))


@pytest.mark.parametrize("damage", [damage_truncate, damage_flip])
def test_a_damaged_checkpoint_is_passed_over(
    experiment: Experiment,
    train_clips: Manifest,
    ladder: dict[str, str],
    unfaulted: dict[int, float],
    tmp_path: Path,
    damage: Callable[[Path], None],
) -> None:
    short = experiment.model_copy(update={"training": experiment.training.model_copy(update={"epochs": 10})})
    newest = run(short, train_clips, ladder, tmp_path)
    final = read_checkpoint(newest)
    damage(newest)
    assert not is_sound(newest)
    before = newest_sound(newest.parent)
    assert before is not None and before != newest
    again = run(short, train_clips, ladder, tmp_path)
    ledger = read_ledger(again)
    assert ledger.intervals == [(0, ledger.rows)]
    for name, tensor in read_checkpoint(again).tensors["model"].items():
        assert tensor.equal(final.tensors["model"][name]), name


def test_corrupt_clips_are_quarantined_and_named(
    experiment: Experiment, train_clips: Manifest, ladder: dict[str, str], tmp_path: Path
) -> None:
    uris = train_clips.clips["uri"].to_pylist()
    originals = {uri: Path(uri).read_bytes() for uri in uris[:3]}
    short = experiment.model_copy(
        update={"training": experiment.training.model_copy(update={"epochs": 2, "quarantine_share": 0.2})}
    )
    try:
        for uri, content in zip(uris[:3], (b"", b"not audio at all", originals[uris[2]][:2000]), strict=True):
            Path(uri).write_bytes(content)
        ledger = read_ledger(run(short, train_clips, ladder, tmp_path / "some"))
        assert ledger.intervals == [(0, ledger.rows)] and set(ledger.quarantined) == set(uris[:3])
        assert all(ledger.quarantined.values())
        strict = short.model_copy(update={"training": short.training.model_copy(update={"quarantine_share": 0.0})})
        with pytest.raises(SepsceneError, match="3 of 24 clips cannot be used"):
            run(strict, train_clips, ladder, tmp_path / "strict")
    finally:
        for uri, content in originals.items():
            Path(uri).write_bytes(content)
        shutil.rmtree(tmp_path, ignore_errors=True)
