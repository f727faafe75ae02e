"""The stream: remaining rows, live separation, the store, no separation. See also test_stream_determinism.py."""

from pathlib import Path

import numpy as np
import pytest
import ray
import torch
from typer.testing import CliRunner

from sepscene.augment.augmentations.settings import streams_of
from sepscene.augment.draws import FILLER
from sepscene.augment.separation.reader import ClipReader
from sepscene.augment.separation.service import SeparationService
from sepscene.augment.store.separated_store import SeparatedStore
from sepscene.orchestration.cli.main import app
from sepscene.orchestration.config import Experiment
from sepscene.orchestration.records.ledger import Ledger
from sepscene.orchestration.runtime.ray_compat import configure_data
from sepscene.orchestration.training.prefill import fill
from sepscene.orchestration.training.pretrainer import ViewInputs, pcm_pair
from sepscene.orchestration.training.row_draws import DrawRows
from sepscene.orchestration.training.stream import prefill_stream, schedule_of, service_settings, view_stream
from sepscene.tasks.datasets.readers import Manifest
from tests.orchestration.streams import Checksums, by_hand, collect

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("local_ray")]


@pytest.fixture(scope="module")
def reference(nano: Experiment, train_clips: Manifest, ladder: dict[str, str]) -> Checksums:
    """The expected rows of the stream."""
    return by_hand(nano, train_clips, ladder)


def test_only_rows_that_the_ledger_lacks_are_streamed(
    nano: Experiment, train_clips: Manifest, ladder: dict[str, str], reference: Checksums
) -> None:
    ledger = Ledger(len(reference))
    ledger.consume(np.array([0, 1, 2, 17, 40, 41]))
    pool = {"resources.separation_actors": 3, "resources.separation_actors_min": 1}  # elastic: the views are the same
    (part,) = collect(nano.changed(pool), train_clips, ladder, ledger)
    assert part == [row for row in reference if row[0] not in (0, 1, 2, 17, 40, 41)]


def test_the_store_gives_the_same_views(
    nano: Experiment, train_clips: Manifest, ladder: dict[str, str], reference: Checksums, tmp_path: Path
) -> None:
    store = SeparatedStore(str(tmp_path / "store"))
    for _ in range(2):  # the first pass fills the store, the second reads it
        (part,) = collect(nano, train_clips, ladder, Ledger(len(reference)), store)
        assert part == reference
    store.refresh()
    assert len(store) >= 2 * len(train_clips.clips)


def test_a_prefilled_store_needs_no_separation_actors(
    nano: Experiment,
    train_clips: Manifest,
    scenes_dir: Path,
    ladder: dict[str, str],
    reference: Checksums,
    tmp_path: Path,
) -> None:
    """The store is filled by the command, which prints the result."""
    experiment = nano.changed(
        {"store.mode": "prefill", "separator.checkpoints": ladder, "data.root": str(scenes_dir)}
        | {"store.uri": str(tmp_path / "store")}
    )
    experiment.save(tmp_path / "nano.yaml")
    command = ["separator", "prefill", str(tmp_path / "nano.yaml"), "--storage", str(tmp_path), "--run-id", "filling"]
    both = 2 * len(train_clips)
    for what in (
        f"{both} of {both} separated clips are in {tmp_path}/store\n",
        f"{tmp_path}/store is already complete",
    ):
        result = CliRunner().invoke(app, command)
        assert result.exit_code == 0, (result.output, result.exception)
        assert what in result.output
    configure_data(ordered=True)
    store = SeparatedStore(str(tmp_path / "store"))
    blocks = prefill_stream(experiment, train_clips, ladder, store).iter_batches(batch_size=None, batch_format="numpy")
    stored = np.concatenate([block["stored"] for block in blocks])
    assert len(stored) == both and stored.all(), "stored clips are not separated again"
    nowhere = experiment.changed({"resources.separation_cpus": 1000})
    (part,) = collect(nowhere, train_clips, ladder, Ledger(len(reference)), store)
    assert part == reference


def test_clips_are_separated_and_stored_in_the_precision_of_the_experiment(
    nano: Experiment, train_clips: Manifest, ladder: dict[str, str], tmp_path: Path
) -> None:
    """An entry of one precision is not used for the other. `fill` reports entries of another precision as missing."""
    half = nano.changed({"resources.separation_precision": "bfloat16"})
    both = 2 * len(train_clips)
    configure_data(ordered=True)
    with SeparatedStore(str(tmp_path / "store")) as store:
        for experiment in (half, nano):
            filled = fill(experiment, train_clips, ladder, store, lambda done: None)
            assert (filled.present, filled.counts["misses"]) == (both, both)


def test_actors_carry_the_name_of_their_run(nano: Experiment, train_clips: Manifest, ladder: dict[str, str]) -> None:
    """So that Ray's dashboard, and `ps`, distinguish the actors of several runs."""
    rows = Ledger(nano.training.epochs * len(train_clips))
    for pair, actor in (("mix-chan", "SeparationService"), ("mix-mix", "ViewMaker")):
        stream = view_stream(nano.changed({"views.pair": pair}), train_clips, ladder, rows, run_name="run-stage")
        assert f"{actor} of run-stage" in repr(stream)


def test_mix_mix_needs_no_separation_actors(nano: Experiment, train_clips: Manifest, ladder: dict[str, str]) -> None:
    experiment = nano.changed({"views.pair": "mix-mix", "resources.separation_cpus": 1000})
    expected = by_hand(experiment, train_clips, ladder)
    (part,) = collect(experiment, train_clips, {}, Ledger(len(expected)))
    assert part == expected


def test_the_draws_of_augmentations_reach_one_or_two_trainers(
    nano: Experiment, train_clips: Manifest, ladder: dict[str, str]
) -> None:
    """With a random gain and mix-back, each row gives the encoder the same views as when one process computes them."""
    experiment = nano.changed(
        {"training.epochs": 1, "augmentations": {"gain": {"probability": 0.5}, "mix-back": {}, "specaugment": {}}}
    )
    configure_data(ordered=True)

    @ray.remote(num_cpus=0.1)
    def read(shard: ray.data.DataIterator) -> dict[int, np.ndarray]:
        views = ViewInputs(experiment)
        seen = {}
        for batch in shard.iter_batches(batch_size=experiment.training.service_rows, batch_format="numpy"):
            real = {name: column[batch["row"] != FILLER] for name, column in batch.items()}
            logmel_B2LF = torch.stack(views(pcm_pair(real, "view", torch.device("cpu")), real), dim=1).numpy()
            seen |= dict(zip(real["row"].tolist(), logmel_B2LF, strict=True))
        return seen

    found = []
    for trainers in (1, 2):
        stream = view_stream(experiment, train_clips, ladder, Ledger(len(train_clips)))
        parts = ray.get([read.remote(shard) for shard in stream.streaming_split(trainers, equal=True)], timeout=200)
        found.append({row: view for part in parts for row, view in part.items()})
    schedule = schedule_of(experiment, len(train_clips))
    rows = DrawRows(
        train_clips.clips, schedule, Ledger(schedule.rows), experiment.views, streams_of(experiment.used_augmentations)
    )
    settings = service_settings(experiment, ladder)
    block = SeparationService(settings)(ClipReader(settings)(rows({"id": np.arange(schedule.rows)})))
    expected = torch.stack(ViewInputs(experiment)(pcm_pair(block, "view", torch.device("cpu")), block), dim=1).numpy()
    assert 0 < block["gain_on"].sum() < 2 * schedule.rows and block["mixture_2"].any()
    for seen in found:
        assert sorted(seen) == list(range(schedule.rows))
        np.testing.assert_array_equal(np.stack([seen[row] for row in range(schedule.rows)]), expected)
