"""Saving checkpoints beside training: in a thread, whole or not at all, and on request.

A checkpoint is written into a hidden folder, brought to the disk and renamed; only then are older ones removed. A disk
that is full costs that checkpoint and not the run: the steps' metrics wait for the next one.

Whoever knows that the end is near (a driver that got SIGTERM) leaves the file `StageFolder.wanted`; rank 0
finds it at its next report, saves, and removes it.
"""

import os
import shutil
import threading
import time
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from sepscene.models.files import replace_folder
from sepscene.orchestration.records.checkpoints import TrainingState, checkpoint_name, checkpoints_of, write_checkpoint

HIDDEN = ".writing-"


class CheckpointWriter:
    """Writes the checkpoints of a stage, one at a time, while training goes on."""

    def __init__(self, root: Path, kept: int | None) -> None:
        """Clear away what an earlier process left unfinished.

        Args:
            root: the stage's folder.
            kept: how many checkpoints stay; none keeps all.
        """
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
            reason = str(error).splitlines()[0]
            self.failure = f"checkpoint {final.name} could not be written, {free:.1f} MB were free: {reason}"
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
