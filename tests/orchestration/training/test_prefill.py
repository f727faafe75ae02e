"""A prefill is complete when every entry is in the store, not when the stream has ended."""

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
from rich.console import Console

from sepscene.augment.separation.blocks import StoredViews
from sepscene.augment.store.separated_store import SeparatedStore
from sepscene.models.separators.folder import save_separator
from sepscene.models.separators.tdcnpp import TDCNpp
from sepscene.orchestration.config import Experiment
from sepscene.orchestration.pipeline.run import Run
from sepscene.orchestration.records.mlflow_mirror import Tracker
from sepscene.orchestration.training import prefill as filling
from sepscene.orchestration.training.prefill import PrefillResult, fill
from sepscene.orchestration.training.stream import service_settings
from sepscene.tasks.datasets.manifest import Clip, Manifest, make_manifest

pytestmark = pytest.mark.slow  # imports Ray, though it starts none
CLIPS = 6


class Actors:
    """Replaces the stream: puts entries into the store, except for the lost ones, and records its clips."""

    def __init__(self, lost: list[set[tuple[str, int]]], bad: str = "") -> None:
        """Args:
        lost: for each pass, the (uri, processor) whose entry is not stored.
        bad: a clip that cannot be used.
        """
        self.lost = lost
        self.bad = bad
        self.passes = list[list[str]]()

    def __call__(
        self, experiment: Experiment, clips: Manifest, ladder: dict[str, str], store: SeparatedStore
    ) -> Iterator[dict[str, np.ndarray]]:
        stored = StoredViews(service_settings(experiment, ladder), store)
        uris = clips.clips["uri"].to_pylist()
        lost = self.lost[len(self.passes)]
        self.passes.append(uris)
        rows = [(n, k) for n in range(len(uris)) for k in range(len(stored.digests))]
        batch: dict[str, Any] = {
            "row": np.arange(len(rows)),
            "clip": np.array([n for n, _ in rows]),
            "processor": np.array([k for _, k in rows]),
            "uri": np.array([uris[n] for n, _ in rows], object),
            "fault": np.array(["torn" * (uris[n] == self.bad) for n, _ in rows], object),
            "stored": np.zeros(len(rows), bool),
            "damaged": np.zeros(len(rows), bool),
            "dropped": np.zeros(len(rows), np.int64),
            "offset_seconds": clips.clips["offset_seconds"].to_numpy()[[n for n, _ in rows]],
        }
        batch["content"] = np.array([f"hash of {uri}" for uri in batch["uri"]], object)
        for row, (n, k) in enumerate(rows):
            if (uris[n], k) not in lost and uris[n] != self.bad:
                for key in stored.keys(batch, row):
                    store.put(key, np.ones((1, 100), np.int16), np.zeros(1))
        store.flush()
        yield batch


@pytest.fixture
def ladder(nano: Experiment, tmp_path: Path) -> dict[str, str]:
    for name in ("S2", "N"):
        save_separator(TDCNpp(nano.separator.network), tmp_path / name, {})
    return {name: str(tmp_path / name) for name in ("S2", "N")}


@pytest.fixture
def clips() -> Manifest:
    """Clips whose files do not exist."""
    return make_manifest((Clip(f"{n}.wav", f"/x/{n}.wav", ("a",), "train", n / 4) for n in range(CLIPS)), "a test")


@pytest.fixture(autouse=True)
def _no_waiting_and_no_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(filling, "SHARDS_SECONDS", 0.0)
    monkeypatch.setattr(filling, "blocks_of", lambda blocks: blocks)  # of `Actors`


def filled_by(
    actors: Actors, nano: Experiment, clips: Manifest, ladder: dict[str, str], folder: Path, patch: pytest.MonkeyPatch
) -> PrefillResult:
    patch.setattr(filling, "prefill_stream", actors)
    with SeparatedStore(str(folder / "store")) as store:
        return fill(nano, clips, ladder, store, lambda done: None)


def test_lost_entries_are_separated_again(
    nano: Experiment, clips: Manifest, ladder: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    actors = Actors([{("/x/2.wav", 1), ("/x/4.wav", 0), ("/x/4.wav", 1)}, set()], bad="/x/5.wav")
    filled = filled_by(actors, nano, clips, ladder, tmp_path, monkeypatch)
    assert actors.passes == [[f"/x/{n}.wav" for n in range(CLIPS)], ["/x/2.wav", "/x/4.wav"]]
    assert (filled.expected, filled.unusable, filled.missing, filled.present) == (12, 2, 0, 10)


def test_a_complete_store_takes_one_pass(
    nano: Experiment, clips: Manifest, ladder: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    actors = Actors([set()])
    assert filled_by(actors, nano, clips, ladder, tmp_path, monkeypatch).present == 12 and len(actors.passes) == 1


def test_only_a_complete_prefill_is_marked(
    nano: Experiment,
    clips: Manifest,
    ladder: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    always = {("/x/0.wav", 0)}
    actors = Actors([always, always, set()])
    monkeypatch.setattr(filling, "prefill_stream", actors)
    run = Run(tmp_path, nano, Mock(spec=Tracker), Console(quiet=True))
    with caplog.at_level(logging.WARNING, "sepscene"):
        first = run.prefill(clips, ladder)
    assert (first.present, first.missing) == (11, 1) and len(actors.passes) == 2
    assert "1 of 12 separated clips are still missing" in caplog.text
    assert run.prefill(clips, ladder).present == 12 and len(actors.passes) == 3, "missing entries are filled later"
    again = run.prefill(clips, ladder)
    assert again.present == 12 and not again.counts and len(actors.passes) == 3, "a complete prefill is skipped"
