"""The driver itself dies, or is told to stop: the run continues with --resume, and no bit differs."""

import signal
import time
from pathlib import Path

import psutil
import pytest

from sepscene.orchestration.config import Experiment
from sepscene.orchestration.records.checkpoints import newest_sound, read_ledger
from sepscene.orchestration.records.run_folder import StageFolder
from sepscene.orchestration.runtime.ray_compat import configure_data
from sepscene.tasks.datasets.readers import Manifest
from tests.faults.faults import (
    STAGE,
    after,
    as_command,
    finish,
    long_enough,
    losses,
    note,
    start,
    steps_done,
    undisturbed,
)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600), pytest.mark.usefixtures("ray_of_our_own")]


@pytest.mark.parametrize(
    ("number", "every", "code"),
    [
        (signal.SIGKILL, 5, -signal.SIGKILL),
        (signal.SIGHUP, 1000, 128 + signal.SIGHUP),
        pytest.param(signal.SIGINT, 1000, 128 + signal.SIGINT, marks=pytest.mark.faults_long),
        pytest.param(signal.SIGTERM, 1000, 128 + signal.SIGTERM, marks=pytest.mark.faults_long),
    ],
)
def test_a_run_whose_driver_ends_continues_where_it_was(
    nano: Experiment,
    train_clips: Manifest,
    scenes_dir: Path,
    ladder: dict[str, str],
    tmp_path: Path,
    number: signal.Signals,
    every: int,
    code: int,
) -> None:
    """With a signal that can be heard there is no checkpoint but the one that it leads to, and a word on how to go on.

    Ray Train's own notes of the earlier command, torn here as a kill may tear them, do not matter.
    """
    configure_data(ordered=True)
    command = as_command(long_enough(nano, every), ladder, scenes_dir, tmp_path, "hit")
    run_dir, log = tmp_path / "runs" / "hit", tmp_path / "log"
    process = start(command, log)
    family: list[psutil.Process] = []

    def inject() -> bool:
        family.extend(psutil.Process(process.pid).children(recursive=True))
        process.send_signal(number)
        return True

    try:
        injection = after(10, run_dir, inject)
        assert process.wait(400) == code, log.read_text()[-3000:]
        assert injection.happened
        deadline = time.monotonic() + 60
        # Ray's two agents look for the cluster's head for a while before they give up.
        while names := [one.name() for one in psutil.wait_procs(family, timeout=1)[1] if "Agent" not in one.name()]:
            assert time.monotonic() < deadline, f"processes were left behind: {names}"
    finally:
        process.kill()
        for orphan in family:
            if orphan.is_running():
                orphan.kill()
    made = newest_sound(run_dir / "checkpoints" / STAGE)
    assert made is not None and 0 < read_ledger(made).consumed < read_ledger(made).rows
    if number != signal.SIGKILL:
        assert "the checkpoint is saved; go on with --resume" in log.read_text()
    StageFolder(run_dir, STAGE).ray_snapshot.write_text('{"ckpt')
    before, again = steps_done(run_dir), time.time()
    finish(start([*command, "--resume"], log), log)
    assert before < 45
    word = "goes on with --resume" if number == signal.SIGKILL else "checkpoint, exit; goes on with --resume"
    note(f"{number.name} of the driver", word, run_dir, [again])
    assert losses(run_dir) == undisturbed(long_enough(nano), train_clips, ladder)
