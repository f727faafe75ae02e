"""Checkpoints of a training stage: written whole or not at all, verified before use, chosen once.

A checkpoint is a folder `step-00000100` with the training state, the ledger, the metrics of its steps and
`manifest.json`, which holds the SHA-256 of every file and is written last. A folder whose hashes do not match is
damaged or unfinished and is passed over for the one before it.
"""

import hashlib
import json
import logging
import re
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, Field

from sepscene.models.config import SepsceneError
from sepscene.orchestration.records.files import read_text, read_typed, write_whole
from sepscene.orchestration.records.ledger import Ledger
from sepscene.orchestration.records.run_folder import StageFolder
from sepscene.orchestration.renamed import OLD_STEPS

logger = logging.getLogger("sepscene")

STATE = "state.pt"
LEDGER = "ledger.json"
STEPS = "metrics.json"
MANIFEST = "manifest.json"
FILES = (STATE, LEDGER, STEPS)
"""What a checkpoint consists of, beside its manifest."""

NAME = re.compile(r"step-\d{8,}")


class Manifest(BaseModel):
    """The step of a checkpoint, and the SHA-256 of each of its files."""

    step: int = Field(ge=0)
    sha256: dict[str, str]


@dataclass(frozen=True)
class TrainingState:
    """What a checkpoint brings back."""

    step: int
    ledger: Ledger
    tensors: dict[str, Any]
    """State dicts by name: "model", "optimizer", …"""
    metrics: list[dict[str, float]] = field(default_factory=list)
    """One record a step since the checkpoint before: a worker group may die after its checkpoint is written and
    before the driver hears of it; the metrics of those steps are brought back from here."""


def checkpoint_name(step: int) -> str:
    """Folder name of the checkpoint after `step` optimiser steps; names sort by step."""
    return f"step-{step:08d}"


def checkpoints_of(root: Path) -> list[Path]:
    """The folders of all checkpoints under `root`, sound or not, the oldest first."""
    return sorted(folder for folder in root.glob("step-*") if NAME.fullmatch(folder.name))


def write_checkpoint(folder: Path, state: TrainingState) -> None:
    """Fill `folder` with a checkpoint; its manifest is written last."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(state.tensors, folder / STATE)
    write_whole(folder / LEDGER, state.ledger.to_json())
    write_whole(folder / STEPS, json.dumps(state.metrics))
    files = {name: _sha256(folder / name) for name in FILES}
    write_whole(folder / MANIFEST, json.dumps({"step": state.step, "sha256": files}, indent=2))


def is_sound(folder: Path) -> bool:
    """Whether the manifest lists every file of a checkpoint, and each is there and has the hash that it states."""
    try:
        manifest = read_typed(folder / MANIFEST, Manifest)
        return manifest.sha256 == {name: _sha256(folder / name) for name in FILES}
    except (OSError, SepsceneError):
        return False


def newest_sound(root: Path) -> Path | None:
    """The newest undamaged checkpoint under `root`; says which damaged ones it passed over.

    Raises:
        SepsceneError: when the newest one was written by an earlier version.
    """
    for folder in checkpoints_of(root)[::-1]:
        if (folder / OLD_STEPS).exists():
            raise SepsceneError(
                f"{folder} was written by an earlier version of Sepscene ({OLD_STEPS} is called {STEPS} now): finish "
                "the run with that version, or begin it again under another --id"
            )
        if is_sound(folder):
            return folder
        logger.warning("checkpoint %s is damaged or unfinished; using the one before it", folder)
    return None


def read_ledger(folder: Path) -> Ledger:
    """The ledger of a checkpoint."""
    return Ledger.from_json(read_text(folder / LEDGER))


def read_steps(folder: Path) -> list[dict[str, float]]:
    """The records of the steps between the checkpoint before and this one.

    Raises:
        SepsceneError: when the file holds anything else.
    """
    return read_typed(folder / STEPS, list[dict[str, int | float]])


def steps_up_to(chosen: Path) -> list[dict[str, float]]:
    """The records of all steps that this checkpoint and the kept ones before it know, oldest first.

    A controller that stood still before it died lost the reports of several checkpoints.

    Raises:
        SepsceneError: as `read_steps`, for `chosen`.
    """
    records: list[dict[str, float]] = []
    for folder in checkpoints_of(chosen.parent):
        if folder.name < chosen.name:
            with suppress(OSError, SepsceneError):  # damaged: what it knew is lost
                records += read_steps(folder)
    return list({record["step"]: record for record in [*records, *read_steps(chosen)]}.values())


def read_checkpoint(folder: Path) -> TrainingState:
    """Read a checkpoint that `newest_sound` chose. Nothing is unpickled but tensors and plain values."""
    step = read_typed(folder / MANIFEST, Manifest).step
    tensors = torch.load(folder / STATE, map_location="cpu", weights_only=True)
    return TrainingState(step, read_ledger(folder), tensors, read_steps(folder))


def choose_resume_point(folder: StageFolder) -> Path | None:
    """Choose where a worker group starts and write the choice down, so that stream and workers agree on it.

    Called where the stream is built; `resume_point` reads it on every worker.
    """
    chosen = newest_sound(folder.path)
    write_whole(folder.resume, chosen.name if chosen else "")
    return chosen


def resume_point(folder: StageFolder) -> Path | None:
    """What `choose_resume_point` wrote.

    Raises:
        SepsceneError: when the file names anything but a checkpoint of this folder.
    """
    name = read_text(folder.resume)
    if name and not NAME.fullmatch(name):
        raise SepsceneError(f"{folder.resume} names {name[:80]!r}, no checkpoint: delete it and continue the run")
    return folder.path / name if name else None


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
