"""The baseline without Sepscene: a plain PyTorch loop that separates its clips itself.

It has as many DDP processes as the experiment has trainers. DataLoader workers decode, and the forward pass of the
separator is part of the training loop.

Shapes: B pairs of a process, T samples of a clip, P samples of a patch, S channels.
"""

import json
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Dataset

from sepscene.augment.audio import read_clip
from sepscene.augment.views import MIXTURE, choose_channels, levels_db, patch_samples, to_pcm, view_starts
from sepscene.models.separators.fast_path import fast_separator
from sepscene.models.separators.folder import load_separator
from sepscene.orchestration.config import Experiment
from sepscene.orchestration.training.builders import build_objective
from sepscene.orchestration.training.pretrainer import ViewInputs
from sepscene.orchestration.training.stream import schedule_of
from sepscene.tasks.datasets.readers import Manifest
from sepscene.tasks.distributed.batchnorm import synchronise_batchnorm


class Decoded(Dataset):
    """Row -> its number and its decoded clip."""

    def __init__(self, experiment: Experiment, clips: Manifest) -> None:
        self.audio = experiment.audio
        self.uris = clips.clips["uri"].to_pylist()
        self.clip_N = schedule_of(experiment, len(self.uris)).clip(
            np.arange(len(self.uris) * experiment.training.epochs)
        )

    def __getitem__(self, row: int) -> tuple[int, np.ndarray]:
        return row, read_clip(self.uris[self.clip_N[row]], self.audio)


def plain_worker(rank: int, experiment: Experiment, clips: Manifest, ladder: Mapping[str, str], out: str) -> None:
    """One DDP process: decode in a DataLoader worker, separate, crop, train. Rank 0 writes the times of its steps."""
    torch.set_num_threads(1)
    world = experiment.resources.trainers
    training = experiment.training
    views = experiment.views
    dist.init_process_group("gloo", init_method=f"file://{out}.group", rank=rank, world_size=world)
    local = training.global_batch // world
    rows = np.arange(len(clips.clips) * training.epochs).reshape(-1, world, local)[:, rank].reshape(-1)
    loader = DataLoader(Decoded(experiment, clips), local, sampler=rows.tolist(), num_workers=1)
    separators = [fast_separator(load_separator(ladder[name])) for name in views.combination]
    objective = synchronise_batchnorm(build_objective(experiment)).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    model = DistributedDataParallel(objective, broadcast_buffers=False)
    optimizer = torch.optim.AdamW(objective.parameters(), lr=training.learning_rate)
    front_end = ViewInputs(experiment)
    patch = patch_samples(views, experiment.audio.sample_rate)
    steps = []
    for row_B, wave_BT in loader:
        begin = time.time()
        draws = views.draw(schedule_of(experiment, len(clips.clips)), row_B.numpy())
        start_2B = view_starts(draws, views, experiment.audio.samples, experiment.audio.sample_rate)
        view_B2P = torch.zeros(local, 2, patch)
        for n, wave_T in enumerate(wave_BT):
            with torch.inference_mode():
                separated_ST = separators[draws["processor"][n]](wave_T[None])[0]
            levels_S = levels_db(to_pcm(separated_ST.numpy()))
            chosen = choose_channels(levels_S, draws["channel_u"][n], draws["second_channel_u"][n], views)
            for view, channel in enumerate(chosen):
                source_T = wave_T if channel == MIXTURE else separated_ST[channel]
                view_B2P[n, view] = source_T[start_2B[view][n] : start_2B[view][n] + patch]
        separated = time.time()
        loss = model(*front_end(view_B2P, draws), weights=experiment.objective.weights_at(0)).loss
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(objective.parameters(), training.clip_gradient_norm)
        optimizer.step()
        steps.append((begin, separated, time.time()))
    if rank == 0:
        Path(out).write_text(json.dumps(steps))
    dist.destroy_process_group()
