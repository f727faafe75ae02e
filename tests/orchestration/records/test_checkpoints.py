"""Checkpoints: whole or passed over, and chosen once."""

import json
import os
import pickle
from pathlib import Path

import pytest
import torch

from sepscene.models.config import SepsceneError
from sepscene.orchestration.records.checkpoints import (
    TrainingState,
    checkpoint_name,
    choose_resume_point,
    newest_sound,
    read_checkpoint,
    resume_point,
    write_checkpoint,
)
from sepscene.orchestration.records.ledger import Ledger
from sepscene.orchestration.records.run_folder import StageFolder


def write(root: Path, step: int) -> Path:
    folder = root / checkpoint_name(step)
    write_checkpoint(folder, TrainingState(step, Ledger(100, [(0, step)]), {"model": {"w": torch.full((64,), step)}}))
    return folder


def test_round_trip(tmp_path: Path) -> None:
    state = read_checkpoint(write(tmp_path, 7))
    assert state.step == 7 and state.ledger == Ledger(100, [(0, 7)])
    assert torch.equal(state.tensors["model"]["w"], torch.full((64,), 7))


def test_the_newest_sound_one_is_chosen(tmp_path: Path) -> None:
    assert newest_sound(tmp_path) is None
    first, second, third, fourth = (write(tmp_path, step) for step in (1, 2, 3, 10))
    assert newest_sound(tmp_path) == fourth
    os.truncate(fourth / "state.pt", 100)
    assert newest_sound(tmp_path) == third
    content = bytearray((third / "ledger.json").read_bytes())
    content[10] ^= 1
    (third / "ledger.json").write_bytes(content)
    assert newest_sound(tmp_path) == second
    (second / "manifest.json").unlink()  # an upload that was cut off: the manifest is written last
    assert newest_sound(tmp_path) == first


def test_a_checkpoint_of_an_earlier_version_is_refused_with_its_new_name(tmp_path: Path) -> None:
    (write(tmp_path, 3) / "metrics.json").rename(tmp_path / "step-00000003" / "figures.json")
    with pytest.raises(SepsceneError, match=r"step-00000003 .*earlier version.*figures\.json is called metrics\.json"):
        newest_sound(tmp_path)


def test_a_manifest_that_does_not_list_all_files_proves_nothing(tmp_path: Path) -> None:
    first, second = write(tmp_path, 1), write(tmp_path, 2)
    content = bytearray((second / "state.pt").read_bytes())
    content[len(content) // 2] ^= 1
    (second / "state.pt").write_bytes(content)
    whole = json.loads((second / "manifest.json").read_text())
    for damaged in ({}, {"ledger.json": whole["sha256"]["ledger.json"]}, {**whole["sha256"], "../../x": "0"}):
        (second / "manifest.json").write_text(json.dumps({**whole, "sha256": damaged}))
        assert newest_sound(tmp_path) == first
    for text in ("null", "{}", "[]", '{"step": "two", "sha256": {}}', "{", "\xff"):
        (second / "manifest.json").write_bytes(text.encode("latin-1"))
        assert newest_sound(tmp_path) == first


def test_all_workers_start_from_what_was_chosen(tmp_path: Path) -> None:
    stage = StageFolder(tmp_path, "pretrain")
    assert choose_resume_point(stage) is None and resume_point(stage) is None
    first = write(stage.path, 1)
    assert choose_resume_point(stage) == first
    write(stage.path, 2)  # a late upload of the dead group must not split the new one
    assert resume_point(stage) == first
    for name in ("../../elsewhere/step-00000001", "/etc", "step-1\n"):
        stage.resume.write_text(name)
        with pytest.raises(SepsceneError, match="no checkpoint"):
            resume_point(stage)


def test_a_pickle_with_code_is_refused(tmp_path: Path) -> None:
    folder = write(tmp_path, 1)
    torch.save({"model": Path("x")}, folder / "state.pt")
    with pytest.raises(pickle.UnpicklingError, match=r"(?i)weights"):
        read_checkpoint(folder)
