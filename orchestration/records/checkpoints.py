"""Checkpoints of a training stage: written whole or not at all, verified before use, chosen once.

A checkpoint is a folder `step-00000100` with the training state, the ledger, the figures of its steps and
`manifest.json`, which holds the SHA-256 of every file and is written last. A folder whose hashes do not match is
damaged or unfinished and is passed over for the one before it.
"""

import hashlib
import json
import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from sepscene.orchestration.records.ledger import Ledger

logger = logging.getLogger("sepscene")


@dataclass(frozen=True)
class TrainingState:
    """What a checkpoint brings back."""

    step: int
    ledger: Ledger
    tensors: dict[str, Any]
    """State dicts by name: "model", "optimizer", …"""
    figures: list[dict[str, float]] = field(default_factory=list)
    """One record a step since the checkpoint before: a worker group may die after its checkpoint is written and
    before the driver hears of it; the metrics of those steps are brought back from here."""


def checkpoint_name(step: int) -> str:
    """Folder name of the checkpoint after `step` optimiser steps; names sort by step."""
    return f"step-{step:08d}"


def write_checkpoint(folder: Path, state: TrainingState) -> None:
    """Fill `folder` with a checkpoint; its manifest is written last."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(state.tensors, folder / "state.pt")
    (folder / "ledger.json").write_text(state.ledger.to_json())
    (folder / "figures.json").write_text(json.dumps(state.figures))
    files = {name: _sha256(folder / name) for name in ("state.pt", "ledger.json", "figures.json")}
    (folder / "manifest.json").write_text(json.dumps({"step": state.step, "sha256": files}, indent=2))


def is_sound(folder: Path) -> bool:
    """Whether every file of the checkpoint is there and has the hash its manifest states."""
    try:
        files = json.loads((folder / "manifest.json").read_text())["sha256"]
        return all(_sha256(folder / name) == expected for name, expected in files.items())
    except (OSError, ValueError, KeyError):
        return False


def newest_sound(root: Path) -> Path | None:
    """The newest undamaged checkpoint under `root`; says which damaged ones it passed over."""
    for folder in sorted(root.glob("step-*"), reverse=True):
        if is_sound(folder):
            return folder
        logger.warning("checkpoint %s is damaged or unfinished; using the one before it", folder)
    return None


def read_ledger(folder: Path) -> Ledger:
    """The ledger of a checkpoint."""
    return Ledger.from_json((folder / "ledger.json").read_text())


def read_figures(folder: Path) -> list[dict[str, float]]:
    """The records of the steps between the checkpoint before and this one."""
    records: list[dict[str, float]] = json.loads((folder / "figures.json").read_text())
    return records


def read_checkpoint(folder: Path) -> TrainingState:
    """Read a checkpoint that `newest_sound` chose. Nothing is unpickled but tensors and plain values."""
    step = json.loads((folder / "manifest.json").read_text())["step"]
    tensors = torch.load(folder / "state.pt", map_location="cpu", weights_only=True)
    return TrainingState(step, read_ledger(folder), tensors, read_figures(folder))


def choose_resume_point(root: Path) -> Path | None:
    """Choose where a worker group starts and write the choice down, so that stream and workers agree on it.

    Called where the stream is built; `resume_point` reads it on every worker.
    """
    chosen = newest_sound(root)
    write_whole(root / "resume", chosen.name if chosen else "")
    return chosen


def resume_point(root: Path) -> Path | None:
    """What `choose_resume_point` wrote."""
    name = (root / "resume").read_text()
    return root / name if name else None


def write_whole(path: Path, text: str) -> None:
    """Write a file that is either complete or not there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}")
    partial.write_text(text)
    partial.replace(path)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
