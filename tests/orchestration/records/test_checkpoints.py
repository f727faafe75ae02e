"""Checkpoints: written atomically, also on a full disk; skipped if damaged; one resume point for all workers."""

import json
import os
import pickle
from pathlib import Path

import pytest
import torch

from sepscene.models.config import SepsceneError
from sepscene.orchestration.records import checkpoints as saving
from sepscene.orchestration.records.checkpoints import (
    TrainingState,
    choose_resume_point,
    newest_intact,
    read_checkpoint,
    resume_point,
    write_checkpoint,
)
from sepscene.orchestration.records.ledger import Ledger
from sepscene.orchestration.records.run_folder import RunFolder, checkpoint_name


def write(root: Path, step: int) -> Path:
    folder = root / checkpoint_name(step)
    write_checkpoint(folder, TrainingState(step, Ledger(100, [(0, step)]), {"model": {"w": torch.full((64,), step)}}))
    return folder


def test_round_trip(tmp_path: Path) -> None:
    state = read_checkpoint(write(tmp_path, 7))
    assert state.step == 7 and state.ledger == Ledger(100, [(0, 7)])
    assert torch.equal(state.tensors["model"]["w"], torch.full((64,), 7))


def test_the_newest_intact_one_is_chosen(tmp_path: Path) -> None:
    assert newest_intact(tmp_path) is None
    first = write(tmp_path, 1)
    second = write(tmp_path, 2)
    third = write(tmp_path, 3)
    fourth = write(tmp_path, 10)
    assert newest_intact(tmp_path) == fourth
    os.truncate(fourth / "state.pt", 100)
    assert newest_intact(tmp_path) == third
    content = bytearray((third / "ledger.json").read_bytes())
    content[10] ^= 1
    (third / "ledger.json").write_bytes(content)
    assert newest_intact(tmp_path) == second
    (second / "manifest.json").unlink()  # an interrupted write: the manifest is written last
    assert newest_intact(tmp_path) == first


def test_a_checkpoint_of_an_earlier_version_is_refused_with_its_new_name(tmp_path: Path) -> None:
    (write(tmp_path, 3) / "metrics.json").rename(tmp_path / "step-00000003" / "figures.json")
    with pytest.raises(
        SepsceneError, match=r"step-00000003 .*earlier version.*figures\.json was renamed to metrics\.json"
    ):
        newest_intact(tmp_path)


def test_a_checkpoint_whose_manifest_does_not_list_all_files_is_not_used(tmp_path: Path) -> None:
    first = write(tmp_path, 1)
    second = write(tmp_path, 2)
    content = bytearray((second / "state.pt").read_bytes())
    content[len(content) // 2] ^= 1
    (second / "state.pt").write_bytes(content)
    whole = json.loads((second / "manifest.json").read_text())
    for damaged in ({}, {"ledger.json": whole["sha256"]["ledger.json"]}, {**whole["sha256"], "../../x": "0"}):
        (second / "manifest.json").write_text(json.dumps({**whole, "sha256": damaged}))
        assert newest_intact(tmp_path) == first
    for text in ("null", "{}", "[]", '{"step": "two", "sha256": {}}', "{", "\xff"):
        (second / "manifest.json").write_bytes(text.encode("latin-1"))
        assert newest_intact(tmp_path) == first


def test_all_workers_start_from_what_was_chosen(tmp_path: Path) -> None:
    stage = RunFolder(tmp_path).stage("pretrain")
    assert choose_resume_point(stage) is None and resume_point(stage) is None
    first = write(stage.path, 1)
    assert choose_resume_point(stage) == first
    write(stage.path, 2)  # a late write of the previous group must not split the new one
    assert resume_point(stage) == first
    for name in ("../../elsewhere/step-00000001", "/etc", "step-1\n"):
        stage.resume.write_text(name)
        with pytest.raises(SepsceneError, match="not a checkpoint"):
            resume_point(stage)


def test_a_pickle_with_code_is_refused(tmp_path: Path) -> None:
    folder = write(tmp_path, 1)
    torch.save({"model": Path("x")}, folder / "state.pt")
    with pytest.raises(pickle.UnpicklingError, match=r"(?i)weights"):
        read_checkpoint(folder)


def state(step: int) -> TrainingState:
    return TrainingState(step, Ledger(100, [(0, step)]), {"model": {"w": torch.full((3,), step)}}, [{"step": step}])


def names(root: Path) -> list[str]:
    return sorted(path.name for path in root.iterdir())


def test_the_newest_are_kept(tmp_path: Path) -> None:
    writer = saving.CheckpointWriter(tmp_path, kept=2)
    for step in (1, 2, 3):
        assert writer.save(state(step), 0) == ""
    assert names(tmp_path) == ["step-00000002", "step-00000003"]
    newest = newest_intact(tmp_path)
    assert newest is not None
    assert read_checkpoint(newest).tensors["model"]["w"].tolist() == [3, 3, 3]


def test_training_may_change_the_weights_while_they_are_written(tmp_path: Path) -> None:
    writer = saving.CheckpointWriter(tmp_path, kept=None)
    changing = state(1)
    writer.start(changing)
    changing.tensors["model"]["w"].zero_()
    changing.ledger.consume(torch.arange(1, 50).numpy())
    assert writer.wait() == ""
    restored = read_checkpoint(tmp_path / "step-00000001")
    assert restored.tensors["model"]["w"].tolist() == [1, 1, 1] and restored.ledger.consumed == 1


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


def test_a_damaged_checkpoint_of_the_same_step_is_replaced_and_unfinished_ones_are_removed(tmp_path: Path) -> None:
    (tmp_path / "step-00000002").mkdir()
    (tmp_path / ".writing-1-99").mkdir()
    writer = saving.CheckpointWriter(tmp_path, kept=2)
    assert writer.save(state(2), 0) == ""
    assert names(tmp_path) == ["step-00000002"] and newest_intact(tmp_path) == tmp_path / "step-00000002"
