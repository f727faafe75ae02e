"""A disk that is full: checkpoints and metrics wait for room, training goes on; at the end the run says what to do."""

import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from sepscene.models.config import SepsceneError
from sepscene.orchestration.config import Experiment
from sepscene.orchestration.records.results import read_metrics
from sepscene.orchestration.runtime.ray_compat import configure_data
from sepscene.orchestration.training.pretraining import pretrain
from sepscene.tasks.datasets.readers import Manifest
from tests.faults.faults import STAGE, after, long_enough, losses, note, undisturbed

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600), pytest.mark.usefixtures("ray_of_our_own")]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 4 MB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(disk)], capture_output=True)
    if done.returncode:
        pytest.skip(f"this machine lets nobody mount a tmpfs: {done.stderr.decode().strip()}")
    yield disk
    subprocess.run(["umount", "--lazy", str(disk)], check=True)


def fill(disk: Path) -> None:
    """Take all the room that is left."""
    with (disk / "ballast").open("wb", buffering=0) as ballast:
        try:
            while True:
                ballast.write(bytes(4096))
        except OSError:
            return


def test_a_run_goes_on_while_its_disk_is_full(
    nano: Experiment, train_clips: Manifest, ladder: dict[str, str], small_disk: Path
) -> None:
    configure_data(ordered=True)
    experiment = long_enough(nano)
    expected = undisturbed(experiment, train_clips, ladder)
    run_dir = small_disk / "run"
    run_dir.mkdir()

    def inject() -> bool:
        fill(small_disk)
        threading.Timer(6, (small_disk / "ballast").unlink).start()
        return True

    injection = after(10, run_dir, inject)
    pretrain(experiment, train_clips, ladder, run_dir, STAGE)
    assert injection.happened
    note("disk full for six seconds: checkpoints, metrics", "goes on; writes both later", run_dir, injection.times)
    assert losses(run_dir) == expected
    assert "could not be written" in " ".join(str(record.get("event")) for record in read_metrics(run_dir))


@pytest.mark.faults_long
def test_a_run_whose_disk_stays_full_says_so_and_continues_when_there_is_room(
    nano: Experiment, train_clips: Manifest, ladder: dict[str, str], small_disk: Path
) -> None:
    configure_data(ordered=True)
    experiment = long_enough(nano)
    run_dir = small_disk / "run"
    run_dir.mkdir()

    def inject() -> bool:
        fill(small_disk)
        return True

    injection = after(10, run_dir, inject)
    with pytest.raises(SepsceneError, match=r"make room under .* then continue the run with --resume"):
        pretrain(experiment, train_clips, ladder, run_dir, STAGE)
    assert injection.happened
    (small_disk / "ballast").unlink()
    pretrain(experiment, train_clips, ladder, run_dir, STAGE)
    note("disk full to the end", "waits 60 s, then says what to do; goes on with --resume", run_dir)
    assert losses(run_dir) == undisturbed(experiment, train_clips, ladder)
