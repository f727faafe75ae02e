"""Checkpoints of a training stage: written atomically while training continues, and verified before use.

A checkpoint is a folder `step-00000100` with the training state, the ledger, the metrics of its steps and
`manifest.json`, which contains the SHA-256 of every file and is written last. A folder whose hashes do not match is
damaged or unfinished; the checkpoint before it is used instead.

A checkpoint is written into a hidden folder, flushed to disk and renamed; only then are older ones removed. If the disk
is full, the checkpoint is lost but the run continues: the metrics of its steps are saved with the next one.

A process that is about to end (a driver that received SIGTERM) creates the file `StageFolder.wanted`. Rank 0 finds it
at its next report, saves a checkpoint and removes the file.
"""

import hashlib
import json
import logging
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
from sepscene.orchestration.records.files import read_text, read_typed, write_text_atomically
from sepscene.orchestration.records.ledger import Ledger
from sepscene.orchestration.records.run_folder import (
    CheckpointFolder,
    StageFolder,
    checkpoint_name,
    checkpoints_of,
    is_checkpoint_name,
    unfinished_checkpoint,
    unfinished_checkpoints,
)
from sepscene.orchestration.renamed import OLD_METRICS_FILE

logger = logging.getLogger("sepscene")

FILES = tuple(str(name) for name in (CheckpointFolder.state, CheckpointFolder.ledger, CheckpointFolder.steps))
"""The files that the manifest of a checkpoint lists."""


class Manifest(BaseModel):
    """The step of a checkpoint, and the SHA-256 of each of its files."""

    step: int = Field(ge=0)
    sha256: dict[str, str]


@dataclass(frozen=True)
class TrainingState:
    """The content of a checkpoint."""

    step: int
    ledger: Ledger
    tensors: dict[str, Any]
    """State dicts by name: "model", "optimizer", …"""
    metrics: list[dict[str, float]] = field(default_factory=list)
    """One record per step since the previous checkpoint. If a worker group is killed after it has written a checkpoint
    and before it has reported these steps to the driver, their metrics are recovered from here."""


def write_checkpoint(folder: Path, state: TrainingState) -> None:
    """Fill `folder` with a checkpoint; its manifest is written last."""
    files = CheckpointFolder(folder)
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(state.tensors, files.state)
    write_text_atomically(files.ledger, state.ledger.to_json())
    write_text_atomically(files.steps, json.dumps(state.metrics))
    hashes = {name: _sha256(folder / name) for name in FILES}
    write_text_atomically(files.manifest, json.dumps({"step": state.step, "sha256": hashes}, indent=2))


def is_intact(folder: Path) -> bool:
    """Whether the manifest lists exactly the files of a checkpoint, and each exists and has the listed hash."""
    try:
        manifest = read_typed(CheckpointFolder(folder).manifest, Manifest)
        return manifest.sha256 == {name: _sha256(folder / name) for name in FILES}
    except (OSError, SepsceneError):
        return False


def newest_intact(root: Path) -> Path | None:
    """The newest undamaged checkpoint under `root`; logs a warning for each damaged one that it skips.

    Raises:
        SepsceneError: if the newest one was written by an earlier version.
    """
    for folder in checkpoints_of(root)[::-1]:
        if (folder / OLD_METRICS_FILE).exists():
            raise SepsceneError(
                f"{folder} was written by an earlier version of Sepscene ({OLD_METRICS_FILE} was renamed to "
                f"{CheckpointFolder.steps}): finish the run with that version, or start it again with another --id"
            )
        if is_intact(folder):
            return folder
        logger.warning("checkpoint %s is damaged or unfinished; using the one before it", folder)
    return None


def read_ledger(folder: Path) -> Ledger:
    """The ledger of a checkpoint."""
    return Ledger.load(CheckpointFolder(folder).ledger)


def read_steps(folder: Path) -> list[dict[str, float]]:
    """The records of the steps between the previous checkpoint and this one.

    Raises:
        SepsceneError: if the file contains anything else.
    """
    return read_typed(CheckpointFolder(folder).steps, list[dict[str, int | float]])


def steps_up_to(chosen: Path) -> list[dict[str, float]]:
    """The records of all steps in this checkpoint and in those before it that still exist, oldest first.

    A controller that hangs before it is killed can lose the reports of several checkpoints.

    Raises:
        SepsceneError: as `read_steps`, for `chosen`.
    """
    records: list[dict[str, float]] = []
    for folder in checkpoints_of(chosen.parent):
        if folder.name < chosen.name:
            with suppress(OSError, SepsceneError):  # damaged: its records are lost
                records += read_steps(folder)
    return list({record["step"]: record for record in [*records, *read_steps(chosen)]}.values())


def read_checkpoint(folder: Path) -> TrainingState:
    """Read a checkpoint that `newest_intact` has verified. Only tensors and plain values are unpickled."""
    files = CheckpointFolder(folder)
    step = read_typed(files.manifest, Manifest).step
    tensors = torch.load(files.state, map_location="cpu", weights_only=True)
    return TrainingState(step, read_ledger(folder), tensors, read_steps(folder))


def choose_resume_point(folder: StageFolder) -> Path | None:
    """Choose the checkpoint from which a worker group starts and record it, so that stream and workers agree.

    Called where the stream is built; `resume_point` reads the choice on every worker.
    """
    chosen = newest_intact(folder.path)
    write_text_atomically(folder.resume, chosen.name if chosen else "")
    return chosen


def resume_point(folder: StageFolder) -> Path | None:
    """The checkpoint that `choose_resume_point` has chosen; None: start from the beginning.

    Raises:
        SepsceneError: if the file names anything but a checkpoint of this folder.
    """
    name = read_text(folder.resume)
    if name and not is_checkpoint_name(name):
        raise SepsceneError(
            f"{folder.resume} names {name[:80]!r}, which is not a checkpoint: delete the file and continue the run"
        )
    return folder.path / name if name else None


class CheckpointWriter:
    """Writes the checkpoints of a stage, one at a time, while training continues."""

    def __init__(self, root: Path, kept: int | None) -> None:
        """Remove unfinished checkpoints of earlier processes from `root`, the stage's folder.

        Args:
            kept: how many checkpoints to keep; None keeps all.
        """
        self.root = root
        self.kept = kept
        self.failure = ""
        self.unsaved = list[dict[str, float]]()
        self._thread: threading.Thread | None = None
        root.mkdir(parents=True, exist_ok=True)
        for unfinished in unfinished_checkpoints(root):
            shutil.rmtree(unfinished, ignore_errors=True)

    def start(self, state: TrainingState) -> None:
        """Copy the state and write it in a thread, after waiting for the previous write."""
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
        """Wait until the current write ends; returns why it failed, or ""."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        return self.failure

    def save(self, state: TrainingState, timeout_seconds: float) -> str:
        """Write and wait; retry failed writes for up to `timeout_seconds`. Returns why the last one failed, or ""."""
        deadline = time.monotonic() + timeout_seconds
        self.start(state)
        while self.wait() and time.monotonic() < deadline:
            time.sleep(min(2.0, timeout_seconds))
            self.start(replace(state, metrics=[]))  # its metrics are in `unsaved` by now
        return self.failure

    def _write(self, state: TrainingState) -> None:
        hidden = unfinished_checkpoint(self.root, str(state.step))
        final = self.root / checkpoint_name(state.step)
        try:
            write_checkpoint(hidden, state)
            replace_folder(hidden, final)  # an existing one was damaged, and its steps were trained again
        except (OSError, RuntimeError) as error:  # torch.save raises a RuntimeError if the disk is full
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
    """The same tree with its tensors copied to host memory: training changes them while they are written."""
    if isinstance(value, torch.Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return type(value)((key, _copied(inner)) for key, inner in value.items())
    if isinstance(value, list | tuple):
        return type(value)(_copied(inner) for inner in value)
    return value


def _remove(folder: Path) -> None:
    """Hide the folder before deleting it, so that no process reads a partly deleted checkpoint."""
    hidden = unfinished_checkpoint(folder.parent, f"gone-{folder.name}")
    folder.rename(hidden)
    shutil.rmtree(hidden, ignore_errors=True)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
