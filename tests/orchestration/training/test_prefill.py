"""A prefill is complete when every entry is in the store, not when the stream has ended."""

import logging
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import soundfile
from rich.console import Console

from sepscene.augment.separation.blocks import StoredViews
from sepscene.augment.separation.reader import ClipReader
from sepscene.augment.separation.service import SeparationService
from sepscene.augment.store.separated_store import SeparatedStore
from sepscene.augment.store.shards import StoreKey
from sepscene.orchestration.config import Experiment
from sepscene.orchestration.pipeline.run import Run
from sepscene.orchestration.records.ledger import Ledger
from sepscene.orchestration.records.mlflow_mirror import Tracker
from sepscene.orchestration.training import prefill as filling
from sepscene.orchestration.training.prefill import PrefillResult, fill, prefill_key
from sepscene.orchestration.training.row_draws import PrefillRows
from sepscene.orchestration.training.stream import schedule_of, service_settings
from sepscene.tasks.datasets.manifest import Clip, Manifest, make_manifest

pytestmark = pytest.mark.slow  # imports Ray, though it starts none
CLIPS = 6


class LossyStore(SeparatedStore):
    """A store that loses some entries, as if the process that made them was killed before it had published them."""

    lost: frozenset[bytes] = frozenset()
    """Digests of the keys of these entries."""

    def put(self, key: StoreKey, wave_ST: np.ndarray, levels: np.ndarray) -> None:
        """As `SeparatedStore.put`, except for lost entries."""
        if key.digest() not in self.lost:
            super().put(key, wave_ST, levels)


class Stages:
    """The stages of the stream in this process, without Ray; the clips of each pass are recorded."""

    def __init__(self, lost: list[set[tuple[str, int]]]) -> None:
        """`lost`: for each pass, the (clip, processor) whose entry is lost."""
        self.lost = lost
        self.passes: list[list[str]] = []

    def __call__(
        self, experiment: Experiment, clips: Manifest, ladder: dict[str, str], store: SeparatedStore
    ) -> Iterator[dict[str, np.ndarray]]:
        """One block with all rows, as `prefill_stream` gives them."""
        settings = service_settings(experiment, ladder)
        schedule = schedule_of(experiment, len(clips))
        draws = PrefillRows(clips.clips, schedule, Ledger(schedule.rows), experiment.views)
        rows = draws({"id": np.arange(len(clips) * len(settings.processors))})
        lost = self.lost[len(self.passes)]
        self.passes.append([Path(uri).stem for uri in clips.clips["uri"].to_pylist()])
        with LossyStore(store.uri) as lossy:
            read = ClipReader(settings, lossy)(rows)
            stored = StoredViews(settings, lossy)
            names = [Path(uri).stem for uri in read["uri"]]
            rows_lost = [n for n, name in enumerate(names) if (name, read["processor"][n]) in lost]
            lossy.lost = frozenset(stored.keys(read, n)[0].digest() for n in rows_lost)
            yield SeparationService(settings, lossy)(read)


@pytest.fixture
def clips(tmp_path: Path) -> Manifest:
    """Parts of recordings."""
    draws = np.random.default_rng(0)
    for n in range(CLIPS):
        soundfile.write(tmp_path / f"{n}.wav", 0.1 * draws.standard_normal(4 * 16_000), 16_000)
    listed = (Clip(f"{n}.wav", str(tmp_path / f"{n}.wav"), ("a",), "train", n / 4) for n in range(CLIPS))
    return make_manifest(listed, "a test")


@pytest.fixture(autouse=True)
def _no_waiting_and_no_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(filling, "SHARDS_SECONDS", 0.0)
    monkeypatch.setattr(filling, "blocks_of", lambda blocks: blocks)  # of `Stages`


def filled_by(
    stages: Stages, nano: Experiment, clips: Manifest, ladder: dict[str, str], folder: Path, patch: pytest.MonkeyPatch
) -> PrefillResult:
    patch.setattr(filling, "prefill_stream", stages)
    with SeparatedStore(str(folder / "store")) as store:
        return fill(nano, clips, ladder, store, lambda done: None)


def test_lost_entries_are_separated_again(
    nano: Experiment, clips: Manifest, ladder: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "5.wav").write_text("not a sound")
    stages = Stages([{("2", 1), ("4", 0), ("4", 1)}, set()])
    filled = filled_by(stages, nano, clips, ladder, tmp_path, monkeypatch)
    assert stages.passes == [[str(n) for n in range(CLIPS)], ["2", "4"]]
    assert (filled.expected, filled.unusable, filled.missing, filled.present) == (12, 2, 0, 10)


def test_a_complete_store_takes_one_pass(
    nano: Experiment, clips: Manifest, ladder: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stages = Stages([set()])
    assert filled_by(stages, nano, clips, ladder, tmp_path, monkeypatch).present == 12 and len(stages.passes) == 1


def test_only_a_complete_prefill_is_marked(
    nano: Experiment,
    clips: Manifest,
    ladder: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    always = {("0", 0)}
    stages = Stages([always, always, set()])
    monkeypatch.setattr(filling, "prefill_stream", stages)
    run = Run(tmp_path, nano, Mock(spec=Tracker), Console(quiet=True))
    run.manifests = (clips, clips)
    with caplog.at_level(logging.WARNING, "sepscene"):
        first = run.prefill(ladder)
    assert (first.present, first.missing) == (11, 1) and len(stages.passes) == 2
    assert "1 of 12 separated clips are still missing" in caplog.text
    assert run.prefill(ladder).present == 12 and len(stages.passes) == 3, "missing entries are filled later"
    again = run.prefill(ladder)
    assert again.present == 12 and not again.counts and len(stages.passes) == 3, "a complete prefill is skipped"


def test_a_prefill_is_of_one_precision(nano: Experiment, clips: Manifest, ladder: dict[str, str]) -> None:
    half = nano.changed({"resources.separation_precision": "bfloat16"})
    keys = [prefill_key(experiment, clips, ladder) for experiment in (nano, nano, half)]
    assert keys[0] == keys[1] != keys[2]
