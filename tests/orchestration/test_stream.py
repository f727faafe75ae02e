"""The stream: the same views whatever the number of actors, readers and trainers, live or from the store."""

import zlib
from pathlib import Path

import numpy as np
import pytest
import ray
import torch

from augment.audio import read_clip
from augment.draws import FILLER
from augment.store import SeparatedStore
from augment.views import MIXTURE, choose_channels, from_pcm, levels_db, patch_samples, to_pcm, view_starts
from models import load_separator
from models.separation import fast_separator
from orchestration.config import Experiment
from orchestration.ledger import Ledger
from orchestration.stream import configure_data, prefill_stream, schedule_of, view_stream
from tasks.manifests import Manifest

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("ray_of_our_own")]

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
) -> list[Checksums]:
    """What each of the trainers reads: (row, checksum) in order of arrival."""
    configure_data(experiment.training.ordered)

    @ray.remote(num_cpus=0.1)
    def read(shard) -> Checksums:
        batches = shard.iter_batches(batch_size=experiment.training.service_rows, batch_format="numpy")
        return [
            (int(row), checksum(one, two))
            for batch in batches
            for row, one, two in zip(batch["row"], batch["view_1"], batch["view_2"], strict=True)
            if row != FILLER
        ]

    shards = view_stream(experiment, clips, ladder, ledger, store).streaming_split(trainers, equal=True)
    return ray.get([read.remote(shard) for shard in shards], timeout=200)


def by_hand(experiment: Experiment, clips: Manifest, ladder: dict[str, str]) -> Checksums:
    """The whole schedule in one process, clip by clip, without the service."""
    views, audio = experiment.views, experiment.audio
    schedule = schedule_of(experiment, len(clips.clips))
    draws = views.draw(schedule, np.arange(schedule.rows))
    start_1, start_2 = view_starts(draws, views, audio.samples, audio.sample_rate)
    samples, uris = patch_samples(views, audio.sample_rate), clips.clips["uri"].to_pylist()
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


@pytest.fixture(scope="module")
def reference(nano: Experiment, train_clips: Manifest, ladder: dict[str, str]) -> Checksums:
    """What the stream must give."""
    return by_hand(nano, train_clips, ladder)


@pytest.mark.parametrize(("actors", "readers", "trainers"), [(1, 1, 1), (3, 2, 2), (2, 1, 4)])
def test_views_do_not_depend_on_who_makes_them(
    nano: Experiment,
    train_clips: Manifest,
    ladder: dict[str, str],
    reference: Checksums,
    actors: int,
    readers: int,
    trainers: int,
) -> None:
    resources = nano.resources.model_copy(update={"separation_actors": actors, "readers": readers})
    experiment = nano.model_copy(update={"resources": resources})
    parts = collect(experiment, train_clips, ladder, Ledger(len(reference)), trainers=trainers)
    assert sorted(row for part in parts for row in part) == reference
    block = nano.training.service_rows
    expected = [reference[start : start + block] for start in range(0, len(reference), block)]
    for trainer, part in enumerate(parts):
        assert part == [row for blocks in expected[trainer::trainers] for row in blocks]


def test_only_what_the_ledger_lacks_is_streamed(
    nano: Experiment, train_clips: Manifest, ladder: dict[str, str], reference: Checksums
) -> None:
    ledger = Ledger(len(reference))
    ledger.consume(np.array([0, 1, 2, 17, 40, 41]))
    (part,) = collect(nano, train_clips, ladder, ledger)
    assert part == [row for row in reference if row[0] not in (0, 1, 2, 17, 40, 41)]


def test_the_store_gives_the_very_same_views(
    nano: Experiment, train_clips: Manifest, ladder: dict[str, str], reference: Checksums, tmp_path: Path
) -> None:
    store = SeparatedStore(str(tmp_path / "store"))
    for _ in range(2):  # the first pass fills the store, the second reads it
        (part,) = collect(nano, train_clips, ladder, Ledger(len(reference)), store)
        assert part == reference
    store.refresh()
    assert len(store) >= 2 * len(train_clips.clips)


def test_a_store_filled_before_needs_no_separation_actors(
    nano: Experiment, train_clips: Manifest, ladder: dict[str, str], reference: Checksums, tmp_path: Path
) -> None:
    experiment = nano.changed({"store.mode": "prefill", "resources.separation_cpus": 1000})
    store = SeparatedStore(str(tmp_path / "store"))
    configure_data(ordered=True)
    before = nano.changed({"store.mode": "prefill"})
    for separated in (True, False):  # what is there is not separated again
        blocks = prefill_stream(before, train_clips, ladder, store).iter_batches(batch_size=None, batch_format="numpy")
        stored = np.concatenate([block["stored"] for block in blocks])
        assert len(stored) == 2 * len(train_clips.clips) and stored.all() != separated
    (part,) = collect(experiment, train_clips, ladder, Ledger(len(reference)), store)
    assert part == reference


def test_mix_mix_needs_no_separation_actors(nano: Experiment, train_clips: Manifest, ladder: dict[str, str]) -> None:
    experiment = nano.changed({"views.pair": "mix-mix", "resources.separation_cpus": 1000})
    expected = by_hand(experiment, train_clips, ladder)
    (part,) = collect(experiment, train_clips, {}, Ledger(len(expected)))
    assert part == expected
