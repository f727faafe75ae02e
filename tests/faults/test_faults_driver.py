"""The driver is killed or gets a signal: the run continues with --resume, with bit-identical losses."""

import os
import signal
import time
from pathlib import Path

import psutil
import pytest

from sepscene.orchestration.config import Experiment
from sepscene.orchestration.records.checkpoints import newest_intact, read_ledger
from sepscene.orchestration.records.run_folder import RunFolder
from sepscene.orchestration.runtime.ray_compat import configure_data
from sepscene.orchestration.runtime.run_processes import program_of
from sepscene.tasks.datasets.readers import Manifest
from tests.faults.faults import (
    ONE_TRAINER_HERE,
    STAGE,
    after,
    as_command,
    finish,
    kill,
    long_enough,
    losses,
    note,
    start,
    steps_done,
    undisturbed,
)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200), pytest.mark.usefixtures("local_ray")]


LONG = pytest.mark.faults_long


@pytest.mark.parametrize(
    ("numbers", "every", "killed"),
    [
        ([signal.SIGHUP], 5, [(10, "RayTrainWorker"), (32, "TrainController")]),
        pytest.param([signal.SIGHUP], 1000, [], marks=LONG),
        pytest.param([signal.SIGHUP, signal.SIGKILL], 1000, [], marks=LONG),
        pytest.param([signal.SIGKILL], 5, [], marks=LONG),
        pytest.param([signal.SIGINT], 1000, [], marks=LONG),
        pytest.param([signal.SIGTERM], 1000, [], marks=LONG),
    ],
    ids=str,
)
def test_a_run_whose_driver_ends_continues_where_it_stopped(
    nano: Experiment,
    train_clips: Manifest,
    scenes_dir: Path,
    ladder: dict[str, str],
    tmp_path: Path,
    numbers: list[signal.Signals],
    every: int,
    killed: list[tuple[int, str]],
) -> None:
    """A signal that can be handled leads to a checkpoint of the last step and a message on how to continue.

    `killed` lists further processes to be killed, as step and title, one per command. Ray Train's snapshot of the
    previous command is truncated here, as a kill could do, and must have no effect.
    """
    configure_data(ordered=True)
    command = as_command(long_enough(nano, every), ladder, scenes_dir, tmp_path, "hit")
    run_dir = tmp_path / "runs" / "hit"
    log = tmp_path / "log"
    kills = [after(step, run_dir, kill(title)) for step, title in killed[:1]]
    for step, number in zip((20, 30), numbers, strict=False):
        end_by(number, step, command, run_dir, log)
        newest = newest_intact(run_dir / "checkpoints" / STAGE)
        assert newest is not None and 0 < read_ledger(newest).consumed < read_ledger(newest).rows
        assert number == signal.SIGKILL or read_ledger(newest).consumed >= 16 * steps_done(run_dir)
        RunFolder(run_dir).stage(STAGE).ray_snapshot.write_text('{"ckpt')
        command = [*command, "--resume"]
    before = steps_done(run_dir)
    resumed = time.time()
    kills += [after(step, run_dir, kill(title)) for step, title in killed[1:]]
    finish(start(command, log), log)
    assert before < 45
    assert all(one.happened for one in kills)
    handled = numbers[0] != signal.SIGKILL
    outcome = "checkpoint, exit; continues with --resume" if handled else "continues with --resume"
    fault = f"{' and '.join(number.name for number in numbers)} of the driver"
    fault += "".join(f", kill -9 of {title} after step {step}" for step, title in killed)
    note(fault, outcome, run_dir, [resumed, *(one.times[0] for one in kills)])
    assert losses(run_dir) == undisturbed(long_enough(nano), train_clips, ladder)


@pytest.mark.parametrize("numbers", [pytest.param([signal.SIGINT], marks=LONG), [signal.SIGINT, signal.SIGKILL]])
def test_a_stage_in_the_drivers_own_process_handles_signals_and_continues(
    nano: Experiment, scenes_dir: Path, ladder: dict[str, str], tmp_path: Path, numbers: list[signal.Signals]
) -> None:
    """For its losses after a restart see tests/orchestration/training/test_local_trainer.py."""
    experiment = long_enough(nano, epochs=60).changed(ONE_TRAINER_HERE)
    command = as_command(experiment, ladder, scenes_dir, tmp_path, "hit")
    run_dir = tmp_path / "runs" / "hit"
    log = tmp_path / "log"
    for step, number in zip((10, 40), numbers, strict=False):
        end_by(number, step, command, run_dir, log)
        command = [*command, "--resume"]
    before = steps_done(run_dir)
    finish(start(command, log), log)
    assert before < 90 == steps_done(run_dir)
    newest = newest_intact(run_dir / "checkpoints" / "pretrain-mix-mix")
    assert newest is not None and read_ledger(newest).intervals == [(0, 60 * 24)]
    assert "Stack trace" not in log.read_text()


@LONG
@pytest.mark.parametrize("victim", ["gcs_server", "raylet"])
def test_a_run_whose_ray_dies_ends_with_an_error_and_continues(
    nano: Experiment,
    train_clips: Manifest,
    scenes_dir: Path,
    ladder: dict[str, str],
    tmp_path: Path,
    victim: str,
) -> None:
    configure_data(ordered=True)
    command = as_command(long_enough(nano), ladder, scenes_dir, tmp_path, "hit")
    run_dir = tmp_path / "runs" / "hit"
    log = tmp_path / "log"
    process = start(command, log)

    def inject() -> bool:
        found = [one for one in psutil.Process(process.pid).children() if program_of(one) == victim]
        for one in found:
            one.kill()
        return bool(found)

    injection = after(12, run_dir, inject)
    finish(process, log, code=2)
    assert injection.happened
    assert "Ray has died on this machine" in log.read_text() and "--resume" in log.read_text()
    resumed = time.time()
    finish(start([*command, "--resume"], log), log)
    note(f"kill -9 of this machine's {victim}", "ends with an error; continues with --resume", run_dir, [resumed])
    assert losses(run_dir) == undisturbed(long_enough(nano), train_clips, ladder)


def end_by(number: signal.Signals, step: int, command: list[str], run_dir: Path, log: Path) -> None:
    """Start the command and end its driver with the signal after this step; all its processes must end too.

    SIGHUP and SIGINT go to the whole process group, as a terminal sends them if it is closed or at Ctrl-C.
    """
    process = start(command, log)
    log_size = log.stat().st_size
    family: list[psutil.Process] = []

    def inject() -> bool:
        family.extend(psutil.Process(process.pid).children(recursive=True))
        send = os.killpg if number in (signal.SIGHUP, signal.SIGINT) else os.kill
        send(process.pid, number)
        return True

    try:
        injection = after(step, run_dir, inject)
        code = -number if number == signal.SIGKILL else 128 + number
        assert process.wait(400) == code, log.read_text()[-3000:]
        assert injection.happened
        deadline = time.monotonic() + 60
        # Ray's two agents try to reach the cluster's head for some time before they end.
        while names := [
            each for each in map(program_of, psutil.wait_procs(family, timeout=1)[1]) if "Agent" not in each
        ]:
            assert time.monotonic() < deadline, f"processes were left behind: {names}"
    finally:
        process.kill()
        for orphan in family:
            if orphan.is_running():
                orphan.kill()
    if number != signal.SIGKILL:
        assert "the checkpoint is saved; continue with --resume" in log.read_text()[log_size:]
