"""A disk that stays full: at its end the run says what to do. One that is full for a while: test_faults.py."""

from pathlib import Path

import pytest

from sepscene.models.config import SepsceneError
from sepscene.orchestration.config import Experiment
from sepscene.orchestration.runtime.ray_compat import configure_data
from sepscene.orchestration.training.pretraining import pretrain
from sepscene.tasks.datasets.readers import Manifest
from tests.faults.faults import NO_MOUNT, STAGE, after, fill, long_enough, losses, note, undisturbed

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600), pytest.mark.usefixtures("ray_of_our_own")]


@pytest.mark.faults_long
def test_a_run_whose_disk_stays_full_says_so_and_continues_when_there_is_room(
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
    note("disk full to the end", "waits 60 s, then says what to do; goes on with --resume", run_dir)
    assert losses(run_dir) == undisturbed(experiment, train_clips, ladder)
