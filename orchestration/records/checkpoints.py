"""Checkpoints of a training stage: written beside training, whole or not at all; verified before use, chosen once.

A checkpoint is a folder `step-00000100` with the training state, the ledger, the metrics of its steps and
`manifest.json`, which holds the SHA-256 of every file and is written last. A folder whose hashes do not match is
damaged or unfinished and is passed over for the one before it.

It is written into a hidden folder, brought to the disk and renamed; only then are older ones removed. A disk that is
full costs that checkpoint and not the run: the steps' metrics wait for the next one.

Whoever knows that the end is near (a driver that got SIGTERM) leaves the file `StageFolder.wanted`; rank 0 finds it at
its next report, saves, and removes it.
"""

import hashlib
import json
import logging
import os
import re
import shutil
import threading
import time
from contextlib import suppress
from copy import deepcopy
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, Field

from sepscene.models.config import SepsceneError, first_line
from sepscene.models.files import replace_folder
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
HIDDEN = ".writing-"


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
    return Ledger.load(folder / LEDGER)


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


class CheckpointWriter:
    """Writes the checkpoints of a stage, one at a time, while training goes on."""

    def __init__(self, root: Path, kept: int | None) -> None:
        """Clear away what an earlier process left unfinished in `root`, the stage's folder; `kept` None keeps all."""
        self.root = root
        self.kept = kept
        self.failure = ""
        self.unsaved = list[dict[str, float]]()
        self._thread: threading.Thread | None = None
        root.mkdir(parents=True, exist_ok=True)
        for left in root.glob(f"{HIDDEN}*"):
            shutil.rmtree(left, ignore_errors=True)

    def start(self, state: TrainingState) -> None:
        """Copy the state and write it in a thread; waits for the one before."""
        self.wait()
        copy = replace(
            state,
            ledger=deepcopy(state.ledger),
            tensors=_copied(state.tensors),
            metrics=[*self.unsaved, *state.metrics],
        )
        self._thread = threading.Thread(target=self._write, args=(copy,), name="write-checkpoint")
        self._thread.start()

    def wait(self) -> str:
        """Wait for what is being written; returns why it failed, or nothing."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        return self.failure

    def save(self, state: TrainingState, patience_seconds: float) -> str:
        """Write now, again and again while the disk refuses; returns why it failed in the end, or nothing."""
        deadline = time.monotonic() + patience_seconds
        self.start(state)
        while self.wait() and time.monotonic() < deadline:
            time.sleep(min(2.0, patience_seconds))
            self.start(replace(state, metrics=[]))  # its metrics are among the unsaved ones by now
        return self.failure

    def _write(self, state: TrainingState) -> None:
        hidden = self.root / f"{HIDDEN}{state.step}-{os.getpid()}"
        final = self.root / checkpoint_name(state.step)
        try:
            write_checkpoint(hidden, state)
            replace_folder(hidden, final)  # one that is there was found damaged, and trained again
        except (OSError, RuntimeError) as error:  # torch.save tells a full disk as a RuntimeError of its own words
            free = shutil.disk_usage(self.root).free / 1e6
            shutil.rmtree(hidden, ignore_errors=True)
            self.failure = f"checkpoint {final.name} could not be written, {free:.1f} MB were free: {first_line(error)}"
            self.unsaved = state.metrics
            return
        self.failure = ""
        self.unsaved = []
        if self.kept is not None:
            older = [folder for folder in checkpoints_of(self.root) if folder.name < final.name]
            for folder in older[: len(older) + 1 - self.kept]:
                _remove(folder)


def _copied(value: Any) -> Any:
    """The same tree with its tensors copied to the host's memory: training changes them while they are written."""
    if isinstance(value, torch.Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return type(value)((key, _copied(inner)) for key, inner in value.items())
    if isinstance(value, list | tuple):
        return type(value)(_copied(inner) for inner in value)
    return value


def _remove(folder: Path) -> None:
    """Out of sight first, so that nobody reads a checkpoint that is half removed."""
    hidden = folder.with_name(f"{HIDDEN}gone-{folder.name}-{os.getpid()}")
    folder.rename(hidden)
    shutil.rmtree(hidden, ignore_errors=True)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
