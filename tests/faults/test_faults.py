"""Faults during a run: every row is consumed once, and all losses are identical, bit for bit."""

import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
from ray.util import placement_group_table

from sepscene.augment.store.separated_store import SeparatedStore
from sepscene.models.config import SepsceneError
from sepscene.orchestration.config import Experiment
from sepscene.orchestration.records.checkpoints import is_intact, newest_intact, read_checkpoint, read_ledger
from sepscene.orchestration.records.results import read_metrics
from sepscene.orchestration.runtime import watchdog
from sepscene.orchestration.runtime.ray_compat import configure_data
from sepscene.orchestration.training.pretraining import pretrain
from sepscene.tasks.datasets.readers import Manifest
from tests.faults.faults import (
    NO_MOUNT,
    ONE_TRAINER_HERE,
    STAGE,
    after,
    full_for,
    kill,
    long_enough,
    losses,
    note,
    undisturbed,
)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600), pytest.mark.usefixtures("local_ray")]


@pytest.fixture(scope="module")
def experiment(nano: Experiment) -> Experiment:
    """An experiment of 45 steps, enough for a fault during training."""
    configure_data(ordered=True)
    return long_enough(nano)


@pytest.fixture(scope="module")
def unfaulted(experiment: Experiment, train_clips: Manifest, ladder: dict[str, str]) -> dict[int, float]:
    """The losses of a run without faults."""
    return undisturbed(experiment, train_clips, ladder)


def run(
    experiment: Experiment,
    clips: Manifest,
    ladder: dict[str, str],
    run_dir: Path,
    store: SeparatedStore | None = None,
) -> Path:
    """Pre-train to the end, in this process if possible; returns the last checkpoint."""
    run_dir.mkdir(parents=True, exist_ok=True)
    return pretrain(experiment, clips, ladder, run_dir, STAGE, store)


LONG = pytest.mark.faults_long
FULL_DISK = "full disk"


@LONG  # CI: test_faults_driver.py, test_faults_disk.py and, for SeparationService, test_stream_determinism.py
@pytest.mark.parametrize(
    "faults",
    [
        [(10, "RayTrainWorker"), (18, FULL_DISK), (30, "TrainController")],
        [(10, FULL_DISK)],
        [(10, "TrainController")],
        [(10, "RayTrainWorker"), (25, "SeparationService")],
        [(10, "SeparationService")],
        [(10, "RayTrainWorker")],
        [(10, "ClipReader")],
        [(0, "SeparationService"), (10, "SeparationService")],  # after a later step it would have separated all rows
        [(0, "RayTrainWorker"), (44, "RayTrainWorker")],
        [(5, "RayTrainWorker"), (6, "ClipReader")],  # a checkpoint is being written
    ],
    ids=lambda faults: "+".join(f"{fault}@{step}" for step, fault in faults),
)
def test_killed_processes_and_a_full_disk_lose_no_row_and_change_no_loss(
    experiment: Experiment,
    train_clips: Manifest,
    ladder: dict[str, str],
    unfaulted: dict[int, float],
    small_disk: Path,
    faults: list[tuple[int, str]],
) -> None:
    """One or more faults in a run of 45 steps, from before the first to the last; the disk is full for six seconds."""
    run_dir = small_disk / "run"
    run_dir.mkdir()
    injections = [
        after(step, run_dir, full_for(small_disk, 6) if fault == FULL_DISK else kill(fault))
        for step, fault in faults
        if fault != FULL_DISK or small_disk.is_mount()
    ]
    run(experiment, train_clips, ladder, run_dir)
    assert all(injection.happened for injection in injections), f"not all of {faults} were injected"
    reserved = [group for group in placement_group_table().values() if group["state"] != "REMOVED"]
    assert reserved == [], "the resources of trainers that have ended are still reserved"
    description = ", ".join(f"{fault} after step {step}" for step, fault in faults)
    note(f"kill -9, or a full disk: {description}", "continues automatically", run_dir,
         (injection.times[0] for injection in injections))  # fmt: skip
    assert losses(run_dir) == unfaulted
    if any(fault == FULL_DISK for _, fault in faults):
        if not small_disk.is_mount():
            pytest.skip(NO_MOUNT)
        assert "could not be written" in " ".join(str(record.get("event")) for record in read_metrics(run_dir))


@LONG
@pytest.mark.parametrize(("mode", "victim"), [("read-through", "SeparationService"), ("prefill", "ViewMaker")])
def test_a_kill_with_a_store_loses_no_row_and_changes_no_loss(
    experiment: Experiment,
    train_clips: Manifest,
    ladder: dict[str, str],
    unfaulted: dict[int, float],
    tmp_path: Path,
    mode: str,
    victim: str,
) -> None:
    """With a store that is empty at the start, in both modes: filled during the run, or filled before training."""
    injection = after(10, tmp_path, kill(victim))
    store = SeparatedStore(str(tmp_path / "store"))
    run(experiment.changed({"store.mode": mode}), train_clips, ladder, tmp_path, store)
    assert injection.happened, f"no process {victim} was found to kill"
    note(f"kill -9 of {victim}, store.mode={mode}", "continues automatically", tmp_path, injection.times)
    assert losses(tmp_path) == unfaulted


def cut_in_half(folder: Path) -> None:
    """Truncate the state to half its size."""
    state = folder / "state.pt"
    os.truncate(state, state.stat().st_size // 2)


def one_bit_flipped(folder: Path) -> None:
    """Flip one bit in the middle of the weights."""
    with (folder / "state.pt").open("r+b") as file:
        file.seek(file.seek(0, os.SEEK_END) // 2)
        byte = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte[0] ^ 1]))


@LONG  # CI: tests/orchestration/records/test_checkpoints.py
@pytest.mark.parametrize("damage", [cut_in_half, one_bit_flipped])
def test_a_damaged_checkpoint_is_skipped(
    experiment: Experiment,
    train_clips: Manifest,
    ladder: dict[str, str],
    unfaulted: dict[int, float],
    tmp_path: Path,
    damage: Callable[[Path], None],
) -> None:
    short = experiment.changed({"training.epochs": 10})
    newest = run(short, train_clips, ladder, tmp_path)
    final = read_checkpoint(newest)
    damage(newest)
    assert not is_intact(newest)
    before = newest_intact(newest.parent)
    assert before is not None and before != newest
    again = run(short, train_clips, ladder, tmp_path)
    note(f"newest checkpoint: {damage.__name__}", "the previous one is used, with a warning", tmp_path)
    for name, tensor in read_checkpoint(again).tensors["model"].items():
        assert tensor.equal(final.tensors["model"][name]), name


def break_clips(uris: list[str]) -> None:
    """Damage eight clips, each in a different way."""
    paths = [Path(uri) for uri in uris]
    intact = paths[0].read_bytes()
    for path, content in zip(paths, (b"", b"not audio at all", intact[:30], intact[:2000]), strict=False):
        path.write_bytes(content)
    missing, empty, nan, folder = paths[4:8]
    missing.unlink()
    soundfile.write(empty, np.zeros(0, np.float32), 16_000)
    soundfile.write(nan, np.full(32_000, np.nan, np.float32), 16_000, subtype="FLOAT")
    folder.unlink()
    folder.mkdir()


@pytest.mark.parametrize("changes", [ONE_TRAINER_HERE, pytest.param({}, marks=LONG)], ids=["here", "Ray Train"])
def test_missing_data_ends_the_run_with_an_error_and_it_continues_once_the_data_is_back(
    experiment: Experiment, train_clips: Manifest, ladder: dict[str, str], tmp_path: Path, changes: dict[str, object]
) -> None:
    short = experiment.changed({"training.epochs": 4, **changes})
    folder = Path(train_clips.clips["uri"][0].as_py()).parent
    away = folder.with_name("away")
    folder.rename(away)
    try:
        # Which of the two limits is reached first depends on when the workers report; both errors name the first clip.
        too_few = r"(of 24 clips cannot be used|no clip of 2 consecutive batches can be used).*; the first: .*\.wav"
        with pytest.raises(SepsceneError, match=too_few):
            run(short, train_clips, ladder, tmp_path)
    finally:
        away.rename(folder)
    ledger = read_ledger(run(short, train_clips, ladder, tmp_path))
    assert ledger.intervals == [(0, 4 * 24)] and ledger.quarantined == {} and ledger.untrained == 0


def test_corrupt_clips_are_quarantined_with_a_reason(
    experiment: Experiment, train_clips: Manifest, ladder: dict[str, str], tmp_path: Path
) -> None:
    """The run trains on all rows except theirs."""
    uris = train_clips.clips["uri"].to_pylist()[:8]
    originals = {uri: Path(uri).read_bytes() for uri in uris}
    short = experiment.changed({"training.epochs": 4, "training.quarantine_share": 0.4})
    try:
        break_clips(uris)
        ledger = read_ledger(run(short, train_clips, ladder, tmp_path))
        assert ledger.intervals == [(0, ledger.rows)] and set(ledger.quarantined) == set(uris)
        assert all(ledger.quarantined.values())
        assert ledger.untrained == 8 * 4 and ledger.unread == []  # eight clips, four epochs
    finally:
        shutil.rmtree(uris[7], ignore_errors=True)
        for uri, content in originals.items():
            Path(uri).write_bytes(content)


@LONG  # CI: tests/orchestration/runtime/test_watchdog.py
@pytest.mark.parametrize("victim", ["SeparationService", "RayTrainWorker", "TrainController"])
def test_a_stopped_process_is_reported_and_restarted(
    experiment: Experiment,
    train_clips: Manifest,
    ladder: dict[str, str],
    unfaulted: dict[int, float],
    tmp_path: Path,
    victim: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, seconds in (("CHECK_SECONDS", 1.0), ("REPORT_SECONDS", 3.0), ("RESTART_SECONDS", 8.0)):
        monkeypatch.setattr(watchdog, name, seconds)
    injection = after(10, tmp_path, kill(victim, signal.SIGSTOP))
    run(experiment, train_clips, ladder, tmp_path)
    assert injection.happened
    events = [str(record["event"]) for record in read_metrics(tmp_path) if "event" in record]
    assert any(victim in event and "has been stopped" in event for event in events), events
    note(f"SIGSTOP of {victim}", "is reported, then restarted", tmp_path, injection.times)
    assert losses(tmp_path) == unfaulted
