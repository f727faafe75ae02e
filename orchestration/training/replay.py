"""Replay: computes the views and the loss of given rows again, in one process, to find the cause of a bad step.

Shapes: B rows, D embedding.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sepscene.augment.separation.reader import ViewMaker
from sepscene.models.config import SepsceneError
from sepscene.models.separators.custom import checkpoint_folders
from sepscene.orchestration.config import Experiment, load_experiment
from sepscene.orchestration.records.checkpoints import newest_intact
from sepscene.orchestration.records.files import read_typed
from sepscene.orchestration.records.ledger import Ledger
from sepscene.orchestration.records.run_folder import RunFolder, StageFolder, pretraining_stage
from sepscene.orchestration.training.pretrainer import Pretrainer, pcm_pair
from sepscene.orchestration.training.separator_training import read_ladder
from sepscene.orchestration.training.stream import draws_of, service_settings
from sepscene.tasks.datasets.readers import Manifest

_BLOCK_ROWS = 32  # rows that are separated at a time, to limit the memory
_GIVE_ROWS = "give the rows to replay, with --row at least twice"


@dataclass(frozen=True)
class Replayed:
    """One row computed again: its clip, its fault, the peaks of its views and the norm of h."""

    row: int
    uri: str
    fault: str
    peak_1: float
    peak_2: float
    h_norm: float
    """Norm of h of both views together; NaN or infinite if the encoder fails on this row."""


def last_bad_rows(run_dir: Path) -> list[int]:
    """The rows of the last step that the run skipped.

    Raises:
        SepsceneError: when it has skipped no step.
    """
    path = _stage_of(run_dir, load_experiment(RunFolder(run_dir).experiment)).bad_rows
    if not path.exists():
        raise SepsceneError(f"{run_dir} has skipped no step: {_GIVE_ROWS}")
    skipped = read_typed(path, list[list[int]], _GIVE_ROWS)
    return skipped[-1] if skipped else []


@torch.no_grad()
def replay(run_dir: Path, train: Manifest, rows: list[int]) -> tuple[list[Replayed], float]:
    """Compute rows of a run with its newest weights; also returns their loss as one batch.

    Raises:
        SepsceneError: when the run has no configuration or no such row, or a separator is damaged.
    """
    files = RunFolder(run_dir)
    experiment = load_experiment(files.experiment)
    newest = newest_intact(_stage_of(run_dir, experiment).path)
    worker = Pretrainer(experiment, len(train), torch.device("cpu"), newest)
    if max(rows) >= worker.ledger.rows:
        raise SepsceneError(f"the schedule has the rows 0 to {worker.ledger.rows - 1}, not {max(rows)}")
    draws = draws_of(experiment, train, Ledger(worker.ledger.rows))
    given = experiment.separator.checkpoints
    checkpoints = checkpoint_folders(given, files.ladder) if given else read_ladder(run_dir)
    make = ViewMaker(service_settings(experiment, checkpoints))
    objective = worker.objective.eval()
    found: list[Replayed] = []
    h: list[tuple[Tensor, ...]] = []
    for part in np.split(np.array(rows, np.int64), range(_BLOCK_ROWS, len(rows), _BLOCK_ROWS)):
        block = make(draws({"id": part}))
        view_B2P = pcm_pair(block, "view", worker.device)
        h.append(objective.encode(*worker.views(view_B2P, block)))
        peak_B2 = view_B2P.abs().amax(dim=2)
        norm_B = torch.cat(h[-1], dim=1).norm(dim=1)
        for n, row in enumerate(part.tolist()):
            peak_1, peak_2 = peak_B2[n].tolist()
            found.append(Replayed(row, str(block["uri"][n]), str(block["fault"][n]), peak_1, peak_2, float(norm_B[n])))
    weights = {name: term.weight for name, term in experiment.objective.used_terms.items()}
    h_1_BD, h_2_BD = (torch.cat(view) for view in zip(*h, strict=True))
    return found, float(objective.loss(h_1_BD, h_2_BD, weights=weights).parts["loss"])


def _stage_of(run_dir: Path, experiment: Experiment) -> StageFolder:
    return RunFolder(run_dir).stage(pretraining_stage(experiment.views.pair))
