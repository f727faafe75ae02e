"""A disk that is full for some time loses nothing; if it stays full, the run ends and explains what to do."""

from pathlib import Path

import pytest

from sepscene.models.config import SepsceneError
from sepscene.orchestration.config import Experiment
from sepscene.orchestration.records.checkpoints import read_ledger
from sepscene.orchestration.records.results import read_metrics
from sepscene.orchestration.runtime.ray_compat import configure_data
from sepscene.orchestration.training.pretraining import pretrain
from sepscene.tasks.datasets.readers import Manifest
from tests.faults.faults import (
    NO_MOUNT,
    ONE_TRAINER_HERE,
    STAGE,
    after,
    fill,
    full_for,
    long_enough,
    losses,
    note,
    undisturbed,
)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600), pytest.mark.usefixtures("local_ray")]


def test_a_disk_that_is_full_for_some_time_loses_no_row_and_changes_no_loss(
    nano: Experiment, train_clips: Manifest, small_disk: Path, tmp_path: Path
) -> None:
    """With a trainer in this process; with Ray Train, and combined with other faults, see test_faults.py."""
    if not small_disk.is_mount():
        pytest.skip(NO_MOUNT)
    experiment = long_enough(nano).changed(ONE_TRAINER_HERE)
    run_dir = small_disk / "run"
    reference = tmp_path / "reference"
    for folder in (run_dir, reference):
        folder.mkdir()
    injection = after(10, run_dir, full_for(small_disk, 6))
    ledger = read_ledger(pretrain(experiment, train_clips, {}, run_dir, "pretrain-mix-mix"))
    pretrain(experiment, train_clips, {}, reference, "pretrain-mix-mix")
    assert injection.happened
    assert "could not be written" in " ".join(str(record.get("event")) for record in read_metrics(run_dir))
    assert ledger.intervals == [(0, ledger.rows)] and ledger.quarantined == {}
    assert losses(run_dir) == losses(reference) and len(losses(reference)) == 45


@pytest.mark.faults_long
def test_a_run_whose_disk_stays_full_ends_with_an_error_and_continues_when_there_is_space(
    nano: Experiment, train_clips: Manifest, ladder: dict[str, str], small_disk: Path
) -> None:
    if not small_disk.is_mount():
        pytest.skip(NO_MOUNT)
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
    note("disk stays full", "ends after 60 s with an error that explains what to do; continues with --resume", run_dir)
    assert losses(run_dir) == undisturbed(experiment, train_clips, ladder)
