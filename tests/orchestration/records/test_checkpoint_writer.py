"""Checkpoints beside training: whole or not at all, the oldest removed, a full disk survived."""

from pathlib import Path

import pytest
import torch

from sepscene.orchestration.records import checkpoint_writer as saving
from sepscene.orchestration.records.checkpoints import TrainingState, newest_sound, read_checkpoint
from sepscene.orchestration.records.ledger import Ledger


def state(step: int) -> TrainingState:
    return TrainingState(step, Ledger(100, [(0, step)]), {"model": {"w": torch.full((3,), step)}}, [{"step": step}])


def names(root: Path) -> list[str]:
    return sorted(path.name for path in root.iterdir())


def test_the_newest_are_kept(tmp_path: Path) -> None:
    writer = saving.CheckpointWriter(tmp_path, kept=2)
    for step in (1, 2, 3):
        assert writer.save(state(step), 0) == ""
    assert names(tmp_path) == ["step-00000002", "step-00000003"]
    newest = newest_sound(tmp_path)
    assert newest is not None
    assert read_checkpoint(newest).tensors["model"]["w"].tolist() == [3, 3, 3]


def test_training_may_change_the_weights_while_they_are_written(tmp_path: Path) -> None:
    writer, changing = saving.CheckpointWriter(tmp_path, kept=None), state(1)
    writer.start(changing)
    changing.tensors["model"]["w"].zero_()
    changing.ledger.consume(torch.arange(1, 50).numpy())
    assert writer.wait() == ""
    back = read_checkpoint(tmp_path / "step-00000001")
    assert back.tensors["model"]["w"].tolist() == [1, 1, 1] and back.ledger.consumed == 1


def test_a_full_disk_costs_one_checkpoint_and_no_metrics(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = saving.CheckpointWriter(tmp_path, kept=1)
    assert writer.save(state(1), 0) == ""
    with monkeypatch.context() as full:
        full.setattr(saving, "write_checkpoint", _refuse)
        assert "step-00000002 could not be written" in writer.save(state(2), 0.01)
        assert names(tmp_path) == ["step-00000001"]
    assert writer.save(state(3), 0) == ""
    assert names(tmp_path) == ["step-00000003"]
    assert read_checkpoint(tmp_path / "step-00000003").metrics == [{"step": 2}, {"step": 3}]


def _refuse(folder: Path, _: TrainingState) -> None:
    folder.mkdir()
    (folder / "state.pt").write_bytes(b"half")
    raise OSError(28, "No space left on device")


def test_a_damaged_checkpoint_of_the_same_step_is_replaced_and_leavings_are_cleared(tmp_path: Path) -> None:
    (tmp_path / "step-00000002").mkdir()
    (tmp_path / f"{saving.HIDDEN}1-99").mkdir()
    writer = saving.CheckpointWriter(tmp_path, kept=2)
    assert writer.save(state(2), 0) == ""
    assert names(tmp_path) == ["step-00000002"] and newest_sound(tmp_path) == tmp_path / "step-00000002"
