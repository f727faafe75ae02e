"""The same rows, views and losses with 1 or 3 actors, 1, 2 or 4 trainers, live or stored, with and without a kill.

`make test` runs some of the cases (for one actor and one trainer see tests/orchestration/training/test_stream.py), and
`make test-faults` runs all.
"""

from collections.abc import Iterator
from itertools import product
from pathlib import Path

import pytest

from sepscene.augment.store.separated_store import SeparatedStore
from sepscene.orchestration.config import Experiment
from sepscene.orchestration.records.checkpoints import read_ledger
from sepscene.orchestration.records.ledger import Ledger
from sepscene.orchestration.runtime.ray_compat import configure_data
from sepscene.orchestration.training.pretraining import pretrain
from sepscene.orchestration.training.stream import prefill_stream, schedule_of
from sepscene.tasks.datasets.readers import Manifest
from tests.faults.faults import STAGE, kill, losses, when
from tests.orchestration.streams import Checksums, by_hand, collect

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600), pytest.mark.usefixtures("local_ray")]

SOURCES = ("off", "read-through", "prefill")
IN_CI = {
    ("off", 3, 4, True),
    ("read-through", 3, 2, False),
    ("prefill", 1, 4, True),
}


def _cases() -> Iterator[object]:
    for case in product(SOURCES, (1, 3), (1, 2, 4), (False, True)):
        marks = () if case in IN_CI else (pytest.mark.faults_long,)
        source, actors, trainers, killed = case
        name = f"{source}-{actors}actors-{trainers}trainers"
        if killed:
            name += "-killed"
        yield pytest.param(*case, marks=marks, id=name)


@pytest.fixture(scope="module")
def long(nano: Experiment) -> Experiment:
    """Enough rows to kill a process between the first and the last."""
    return nano.changed({"training.epochs": 20})


@pytest.fixture(scope="module")
def reference(long: Experiment, train_clips: Manifest, ladder: dict[str, str]) -> Checksums:
    """The checksums that every stream must produce."""
    return by_hand(long, train_clips, ladder)


@pytest.fixture(scope="module")
def filled(
    long: Experiment, train_clips: Manifest, ladder: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> str:
    """A store that contains every clip, separated by every processor."""
    folder = str(tmp_path_factory.mktemp("filled"))
    configure_data(ordered=True)
    for _ in prefill_stream(long, train_clips, ladder, SeparatedStore(folder)).iter_batches(batch_size=None):
        pass
    return folder


@pytest.mark.parametrize(("source", "actors", "trainers", "killed"), _cases())
def test_every_row_has_the_expected_views(
    long: Experiment,
    train_clips: Manifest,
    ladder: dict[str, str],
    reference: Checksums,
    filled: str,
    tmp_path: Path,
    source: str,
    actors: int,
    trainers: int,
    killed: bool,
) -> None:
    """In order, each of W trainers gets every W-th block, independently of the actors and of restarts."""
    counts = {"resources.separation_actors": actors, "resources.readers": actors}
    experiment = long.changed({"store.mode": source, **counts})
    store = None if source == "off" else SeparatedStore(filled)
    victim = "ViewMaker" if source == "prefill" else "SeparationService"
    first_row = tmp_path / "first"
    injection = when(first_row.exists, kill(victim)) if killed else None
    parts = collect(experiment, train_clips, ladder, Ledger(len(reference)), store, trainers, first_row)
    assert injection is None or injection.happened, f"no process {victim} was found to kill"
    block = experiment.training.service_rows
    expected = [reference[start : start + block] for start in range(0, len(reference), block)]
    for trainer, part in enumerate(parts):
        assert part == [row for blocks in expected[trainer::trainers] for row in blocks]


def test_without_order_the_set_of_views_is_the_same(
    long: Experiment, train_clips: Manifest, ladder: dict[str, str], reference: Checksums
) -> None:
    experiment = long.changed({"training.ordered": False, "resources.separation_actors": 3, "resources.readers": 2})
    parts = collect(experiment, train_clips, ladder, Ledger(len(reference)), trainers=2)
    assert sorted(row for part in parts for row in part) == reference


def trained(
    experiment: Experiment, clips: Manifest, ladder: dict[str, str], run_dir: Path, filled: str
) -> dict[int, float]:
    """The losses of a complete run, whose ledger must be exact."""
    run_dir.mkdir()
    store = None if experiment.store.mode == "off" else SeparatedStore(filled)
    ledger = read_ledger(pretrain(experiment, clips, ladder, run_dir, STAGE, store))
    assert ledger.intervals == [(0, schedule_of(experiment, len(clips.clips)).rows)] and not ledger.quarantined
    return losses(run_dir)


@pytest.mark.faults_long
@pytest.mark.timeout(600)
def test_losses_are_bit_identical_for_all_sources_of_views(
    nano: Experiment, train_clips: Manifest, ladder: dict[str, str], filled: str, tmp_path: Path
) -> None:
    runs = {
        f"{source}-{actors}": trained(
            nano.changed({"store.mode": source, "resources.separation_actors": actors, "resources.readers": actors}),
            train_clips, ladder, tmp_path / f"{source}-{actors}", filled,
        )
        for source, actors in product(SOURCES, (1, 3))
    }  # fmt: skip
    (first, *others) = runs.values()
    assert len(first) == 6 and all(other == first for other in others), runs


@pytest.mark.faults_long
@pytest.mark.timeout(600)
def test_losses_do_not_depend_on_the_number_of_trainers(
    nano: Experiment, train_clips: Manifest, ladder: dict[str, str], filled: str, tmp_path: Path
) -> None:
    """Sums over 1, 2 and 4 workers are rounded differently, and the differences grow during training."""
    runs = {
        trainers: trained(
            nano.changed({"resources.trainers": trainers}), train_clips, ladder, tmp_path / str(trainers), filled
        )
        for trainers in (1, 2, 4)
    }
    for step, loss in runs[1].items():
        tolerance = 1e-5 if step <= 2 else 1e-3
        assert [run[step] for run in runs.values()] == pytest.approx([loss] * 3, rel=tolerance), step
