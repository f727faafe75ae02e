"""One worker of the pre-training by itself: bad steps, accumulation, what is watched. With Ray: test_faults."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import ray.train
import ray.train.torch
import torch

from sepscene.augment.draws import FILLER, SPECAUGMENT_UNIFORMS
from sepscene.models.config import SepsceneError
from sepscene.orchestration.config import Experiment
from sepscene.orchestration.records.checkpoints import write_checkpoint, write_whole
from sepscene.orchestration.training.builders import build_objective
from sepscene.orchestration.training.pretraining import BAD_ROWS, LOG_EVERY_STEPS, Pretrainer
from sepscene.orchestration.training.replay import last_bad_rows, stage_folder

CLIPS = 24
Batch = dict[str, np.ndarray]


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """One worker without Ray around it."""
    monkeypatch.setattr(ray.train.torch, "get_device", lambda: torch.device("cpu"))
    monkeypatch.setattr(ray.train.torch, "prepare_model", lambda model, **_: model)
    monkeypatch.setattr(ray.train, "get_context", lambda: SimpleNamespace(get_world_rank=lambda: 0))


def worker(experiment: Experiment, folder: Path) -> Pretrainer:
    if not (folder / "resume").exists():
        write_whole(folder / "resume", "")
    return Pretrainer(experiment, CLIPS, folder)


def batch(step: int, rows: int = 8, spoiled: tuple[int, ...] = ()) -> Batch:
    """The rows of a step, with noise of different colours for views; `spoiled` rows could not be read."""
    draws = np.random.default_rng(step)
    wave = np.cumsum(draws.normal(0, 300, (2, rows, 15_360)), axis=2) % 20_000 - 10_000
    fault = np.array(["broken" if n in spoiled else "" for n in range(rows)], object)
    return {
        "row": np.arange(step * rows, (step + 1) * rows),
        "fault": fault,
        "uri": np.array([f"clip {n}" for n in range(rows)], object),
        "view_1": wave[0].astype(np.int16),
        "view_2": wave[1].astype(np.int16),
        "specaugment_u": draws.random((rows, 2 * SPECAUGMENT_UNIFORMS), np.float32),
    }


def poison(one: Pretrainer) -> None:
    """The next forward pass gives NaN."""
    forward = one.views.forward

    def bad(*arguments: torch.Tensor) -> tuple[torch.Tensor, ...]:
        one.views.forward = forward  # type: ignore[method-assign]
        return tuple(view * torch.nan for view in forward(*arguments))

    one.views.forward = bad  # type: ignore[method-assign, assignment]


def weights(one: Pretrainer) -> list[torch.Tensor]:
    return [tensor.clone() for tensor in one.objective.state_dict().values()]


def test_a_bad_step_changes_no_weight_and_no_running_average(nano: Experiment, tmp_path: Path) -> None:
    one = worker(nano, tmp_path)
    one.consume(batch(0))
    before = weights(one)
    poison(one)
    figures = one.consume(batch(1))
    assert figures["bad"] == 1 and figures["rows"] == 16
    assert all(torch.equal(now, then) for now, then in zip(weights(one), before, strict=True))
    assert json.loads((tmp_path / BAD_ROWS).read_text()) == [list(range(8, 16))]
    assert one.events == ["step 2 is skipped: 8 rows from 8 on"]
    assert one.consume(batch(2))["bad"] == 0
    assert any(not torch.equal(now, then) for now, then in zip(weights(one), before, strict=True))


def test_bad_steps_count_over_restarts(nano: Experiment, tmp_path: Path) -> None:
    strict = nano.changed({"training.bad_steps": 1})
    one = worker(strict, tmp_path)
    poison(one)
    one.consume(batch(0))
    assert one.must_stop() == ""
    write_checkpoint(tmp_path / "step-00000001", one.state())
    write_whole(tmp_path / "resume", "step-00000001")
    again = worker(strict, tmp_path)
    assert again.bad_rows == [list(range(8))] and again.step == 1
    poison(again)
    again.consume(batch(1))
    assert "2 steps had a NaN" in again.must_stop() and "rows: 8, 9, 10" in again.must_stop()


@pytest.mark.parametrize("microbatch", [None, 3])
def test_a_restored_worker_continues_bit_for_bit(nano: Experiment, tmp_path: Path, microbatch: int | None) -> None:
    experiment = nano.changed({"objective.learn_temperature": True, "training.microbatch": microbatch})
    straight = worker(experiment, tmp_path)
    for step in range(4):
        straight.consume(batch(step))
        if step == 1:
            write_checkpoint(tmp_path / "step-00000002", straight.state())
    write_whole(tmp_path / "resume", "step-00000002")
    resumed = worker(experiment, tmp_path)
    for step in (2, 3):
        resumed.consume(batch(step))
    assert resumed.step == straight.step and resumed.ledger == straight.ledger
    assert all(torch.equal(one, other) for one, other in zip(weights(resumed), weights(straight), strict=True))


def test_replay_takes_the_rows_of_the_last_bad_step(nano: Experiment, tmp_path: Path) -> None:
    nano.save(tmp_path / "experiment.yaml")
    with pytest.raises(SepsceneError, match="has skipped no step"):
        last_bad_rows(tmp_path)
    one = worker(nano, stage_folder(tmp_path, nano))
    for step in range(2):
        poison(one)
        one.consume(batch(step))
    assert last_bad_rows(tmp_path) == list(range(8, 16))


def test_microbatches_give_the_losses_of_the_whole_batch(nano: Experiment, tmp_path: Path) -> None:
    whole, small = (worker(nano.changed({"training.microbatch": m}), tmp_path) for m in (None, 4))
    for one in (whole, small):
        one.objective.eval()  # BatchNorm's statistics are a microbatch's: fix them to compare
    for step in range(2):
        rows = batch(step, spoiled=(0, 3))
        expected, figures = whole.consume(rows), small.consume(rows)
        for name in ("loss", "similarity", "coincidence"):
            assert figures[name] == pytest.approx(expected[name], rel=1e-5), name
        assert figures["gradient_norm"] == pytest.approx(expected["gradient_norm"], rel=2e-4)  # sums of float32
        assert figures["pairs"] == 6


def test_each_task_may_have_rows_of_its_own(nano: Experiment, tmp_path: Path) -> None:
    own = {"objective.coincidence_pairs": "own", "objective.alpha": 0.5}
    one, small = (worker(nano.changed({**own, "training.microbatch": m}), tmp_path) for m in (None, 2))
    rows = batch(0, spoiled=(1,))
    view_1, view_2, own_1, own_2 = one._logmels(rows, rows["fault"] == "")
    assert len(view_1) == len(view_2) == 4 and len(own_1) == len(own_2) == 3
    shared = worker(nano, tmp_path)._logmels(rows, rows["fault"] == "")
    assert torch.equal(shared[0][[0, 1, 3, 5]], view_1) and torch.equal(shared[1][[2, 4, 6]], own_2)
    for alone in (one, small):
        alone.objective.eval()
    figures, chunked = one.consume(rows), small.consume(rows)
    assert figures["pairs"] == 4 and figures["coincidence_pairs"] == 3
    assert chunked["loss"] == pytest.approx(figures["loss"], rel=1e-5)


def test_health_is_watched_every_few_steps_and_a_collapse_told_once(nano: Experiment, tmp_path: Path) -> None:
    one = worker(nano, tmp_path)
    records = [one.consume(batch(step)) for step in range(LOG_EVERY_STEPS)]
    assert ["effective_rank" in record for record in records] == [False] * (LOG_EVERY_STEPS - 1) + [True]
    assert records[-1].keys() >= {"alignment", "uniformity", "positive_similarity", "coincidence_auc"}
    one = worker(nano.changed({"training.epochs": 40, "training.learning_rate": 1e-9}), tmp_path)
    with torch.no_grad():
        one.objective.get_submodule("trunk").embedding.weight.zero_()  # type: ignore[union-attr, operator]
    for step in range(2 * LOG_EVERY_STEPS):
        one.consume(batch(step))
    assert sum("collapsing" in event for event in one.events) == 1


def test_a_filler_carries_nothing(nano: Experiment, tmp_path: Path) -> None:
    one = worker(nano, tmp_path)
    rows = batch(0)
    rows["row"][5:] = FILLER
    figures = one.consume(rows)
    assert figures["pairs"] == 5 and figures["rows"] == 5


def test_every_worker_starts_from_the_same_weights(nano: Experiment) -> None:
    one, other = (build_objective(nano).state_dict() for _ in range(2))
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())
