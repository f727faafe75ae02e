"""Replay: the views and the loss of given rows, computed again in one process, to look at what went wrong."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from augment.blocks import ServiceSettings
from augment.reader import ClipReader
from augment.service import SeparationService
from augment.views import from_pcm
from orchestration.checkpoints import newest_sound, read_checkpoint
from orchestration.config import load_experiment
from orchestration.pretraining import Views, build_objective
from orchestration.separator_training import read_ladder
from orchestration.stream import schedule_of
from tasks.manifests import Manifest


@dataclass(frozen=True)
class Replayed:
    """One row again."""

    row: int
    uri: str
    fault: str
    peak_1: float
    peak_2: float
    h_norm: float
    """Norm of h of both views together; NaN or infinite where the encoder fails on this row."""


def replay(run_dir: Path, train: Manifest, rows: list[int]) -> tuple[list[Replayed], float]:
    """Rows of a run through the newest checkpoint's weights; also their loss as one batch.

    Raises:
        SepsceneError: when the run has no configuration, or a separator is damaged.
    """
    experiment = load_experiment(run_dir / "experiment.yaml")
    schedule = schedule_of(experiment, len(train.clips))
    columns = experiment.views.draw(schedule, np.array(rows, np.int64))
    columns["uri"] = train.clips["uri"].to_numpy(zero_copy_only=False)[columns["clip"]]
    columns["offset_seconds"] = train.clips["offset_seconds"].to_numpy()[columns["clip"]]
    checkpoints = experiment.separator.checkpoints or read_ladder(run_dir)
    settings = ServiceSettings(views=experiment.views, audio=experiment.audio, checkpoints=checkpoints)
    block = SeparationService(settings)(ClipReader(settings)(columns))
    newest = newest_sound(run_dir / "checkpoints" / f"pretrain-{experiment.views.pair}")
    objective = build_objective(experiment).eval()
    if newest is not None:
        objective.load_state_dict(read_checkpoint(newest).tensors["model"])
    view_B2P = torch.from_numpy(from_pcm(np.stack([block["view_1"], block["view_2"]], axis=1)))
    uniforms = torch.from_numpy(block["specaugment_u"].reshape(len(rows), 2, -1))
    with torch.no_grad():
        result = objective(*Views(experiment)(view_B2P, uniforms), alpha=experiment.objective.alpha)
    norms = (result.h_1_nD.square().sum(1) + result.h_2_nD.square().sum(1)).sqrt()
    peaks = view_B2P.abs().amax(dim=2)
    found = [
        Replayed(
            row, str(block["uri"][n]), str(block["fault"][n]), float(peaks[n, 0]), float(peaks[n, 1]), float(norms[n])
        )
        for n, row in enumerate(rows)
    ]
    return found, float(result.parts["loss"])
