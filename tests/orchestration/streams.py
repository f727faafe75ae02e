"""The actual and the expected rows of a stream as (row, checksum of both views)."""

import zlib
from pathlib import Path

import numpy as np
import ray
import torch

from sepscene.augment.audio import read_clip
from sepscene.augment.draws import FILLER
from sepscene.augment.store.separated_store import SeparatedStore
from sepscene.augment.views import MIXTURE, choose_channels, from_pcm, levels_db, patch_samples, to_pcm, view_starts
from sepscene.models.separators.fast_path import fast_separator
from sepscene.models.separators.folder import load_separator
from sepscene.orchestration.config import Experiment
from sepscene.orchestration.records.ledger import Ledger
from sepscene.orchestration.runtime.ray_compat import configure_data
from sepscene.orchestration.training.stream import schedule_of, view_stream
from sepscene.tasks.datasets.readers import Manifest

Checksums = list[tuple[int, int]]


def checksum(view_1: np.ndarray, view_2: np.ndarray) -> int:
    """One number for both views of a row."""
    return zlib.crc32(np.ascontiguousarray(view_2), zlib.crc32(np.ascontiguousarray(view_1)))


def collect(
    experiment: Experiment,
    clips: Manifest,
    ladder: dict[str, str],
    ledger: Ledger,
    store: SeparatedStore | None = None,
    trainers: int = 1,
    sign: Path | None = None,
) -> list[Checksums]:
    """The (row, checksum) pairs that each trainer reads, in order of arrival. The first batch creates `sign`."""
    configure_data(experiment.training.ordered)

    @ray.remote(num_cpus=0.1)
    def read(shard) -> Checksums:
        batches = shard.iter_batches(batch_size=experiment.training.service_rows, batch_format="numpy")
        rows = []
        for batch in batches:
            if sign is not None:
                sign.touch()
            views = zip(batch["row"], batch["view_1"], batch["view_2"], strict=True)
            rows += [(int(row), checksum(one, two)) for row, one, two in views if row != FILLER]
        return rows

    shards = view_stream(experiment, clips, ladder, ledger, store).streaming_split(trainers, equal=True)
    return ray.get([read.remote(shard) for shard in shards], timeout=200)


def by_hand(experiment: Experiment, clips: Manifest, ladder: dict[str, str]) -> Checksums:
    """The pairs of the whole schedule, computed in this process clip by clip, without the service."""
    views = experiment.views
    audio = experiment.audio
    schedule = schedule_of(experiment, len(clips.clips))
    draws = views.draw(schedule, np.arange(schedule.rows))
    start_1, start_2 = view_starts(draws, views, audio.samples, audio.sample_rate)
    samples = patch_samples(views, audio.sample_rate)
    uris = clips.clips["uri"].to_pylist()
    separators = [fast_separator(load_separator(ladder[name])) for name in views.combination]
    rows = []
    for r in range(schedule.rows):
        mixture_T = to_pcm(read_clip(uris[draws["clip"][r]], audio))
        with torch.inference_mode():
            separated = separators[draws["processor"][r]](torch.from_numpy(from_pcm(mixture_T))[None])[0].numpy()
        tracks = {MIXTURE: mixture_T, **dict(enumerate(to_pcm(separated)))}
        levels = levels_db(to_pcm(separated))
        first, second = choose_channels(levels, draws["channel_u"][r], draws["second_channel_u"][r], views)
        crops = [tracks[c][s : s + samples] for c, s in ((first, start_1[r]), (second, start_2[r]))]
        rows.append((r, checksum(*crops)))
    return rows
