"""The last checkpoint waits for space on a full disk; if the disk stays full, the message gives the remedy."""

from pathlib import Path
from threading import RLock
from unittest.mock import Mock

import pytest

from sepscene.orchestration.records import checkpoints
from sepscene.orchestration.records.checkpoints import TrainingState, newest_intact, read_checkpoint, write_checkpoint
from sepscene.orchestration.records.ledger import Ledger
from sepscene.orchestration.records.run_folder import RunFolder
from sepscene.orchestration.training import saving
from sepscene.orchestration.training.hooks import Step
from sepscene.orchestration.training.saving import Saving

EVERY = 5


def last_step(run_dir: Path, steps: int, refusals: int, seconds: float, monkeypatch: pytest.MonkeyPatch) -> Step:
    """The end of a stage with this many steps, when the disk is full for this many writes of the last checkpoint.

    Args:
        seconds: how long the last checkpoint waits for space.
    """
    left = [0]

    def write(folder: Path, state: TrainingState) -> None:
        if left[0]:
            left[0] -= 1
            raise OSError(28, "No space left on device")
        write_checkpoint(folder, state)

    monkeypatch.setattr(saving, "FULL_DISK_SECONDS", seconds)
    monkeypatch.setattr(checkpoints, "write_checkpoint", write)
    now = [0]
    folder = RunFolder(run_dir).stage("stage")
    worker = Mock(pause=RLock(), state=lambda: TrainingState(now[0], Ledger(100, [(0, now[0])]), {}))
    worker.experiment.training.checkpoint_every_steps = EVERY
    hook = Saving(worker, folder, kept=1)
    for number in range(1, steps + 1):
        left[0] = refusals if number == steps else 0
        now[0] = number
        hook.after_step(Step(number, {"step": number}))
    last = Step(steps)
    hook.at_end(last)
    return last


@pytest.mark.parametrize(("steps", "refusals"), [(2 * EVERY, 2), (2 * EVERY + 1, 1)])
def test_it_waits_for_space(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, steps: int, refusals: int) -> None:
    last = last_step(tmp_path, steps, refusals, 0.1, monkeypatch)
    assert not last.fatal
    newest = newest_intact(RunFolder(tmp_path).stage("stage").path)
    assert newest is not None
    state = read_checkpoint(newest)
    assert state.step == steps
    assert [record["step"] for record in state.metrics] == list(range(EVERY * ((steps - 1) // EVERY) + 1, steps + 1))


@pytest.mark.parametrize("steps", [2 * EVERY, 2 * EVERY + 1])
def test_the_message_gives_the_remedy_if_the_disk_stays_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, steps: int
) -> None:
    last = last_step(tmp_path, steps, 1000, 0.01, monkeypatch)
    assert f"step-{steps:08d} could not be written" in last.fatal
    assert "make room under" in last.fatal and last.fatal.endswith("continue the run with --resume")
