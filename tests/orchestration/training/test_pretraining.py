"""One worker of the pre-training with its hooks, in this process. Tests with Ray are in tests/faults."""

import json
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sepscene.augment.draws import FILLER, SPECAUGMENT_UNIFORMS
from sepscene.models.config import SepsceneError
from sepscene.orchestration.config import Experiment
from sepscene.orchestration.records.checkpoints import write_checkpoint
from sepscene.orchestration.records.run_folder import RunFolder, pretraining_stage
from sepscene.orchestration.training import pretraining, saving
from sepscene.orchestration.training.builders import build_objective
from sepscene.orchestration.training.health import DIAGNOSED_EVERY_STEPS, BadSteps, Diagnostics, Quarantine
from sepscene.orchestration.training.hooks import Batch, Hook, Step, run_steps
from sepscene.orchestration.training.pretrainer import Pretrainer
from sepscene.orchestration.training.replay import last_bad_rows

CLIPS = 24
CPU = torch.device("cpu")


def worker(experiment: Experiment, checkpoint: Path | None = None) -> Pretrainer:
    return Pretrainer(experiment, CLIPS, CPU, checkpoint)


class Recorder(Hook):
    """Records every step, as the last of the hooks."""

    def __init__(self) -> None:
        self.steps: list[Step] = []

    def needs_report(self, number: int) -> bool:
        return number % DIAGNOSED_EVERY_STEPS == 0

    def after_step(self, step: Step) -> None:
        self.steps.append(step)

    @property
    def events(self) -> list[str]:
        return [event for step in self.steps for event in step.events]


def trained(one: Pretrainer, batches: Iterable[Batch], *hooks: Hook) -> Recorder:
    """Train on some batches with these hooks."""
    recorder = Recorder()
    run_steps(one, batches, [*hooks, recorder])
    return recorder


def consumed(one: Pretrainer, rows: Batch) -> dict[str, float]:
    """The metrics of one step."""
    return trained(one, [rows]).steps[0].metrics


def batch(step: int, rows: int = 8, spoiled: tuple[int, ...] = ()) -> Batch:
    """The rows of a step, with noise of different spectra as views; `spoiled` rows could not be read."""
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


def test_a_worker_without_a_usable_row_has_empty_views(nano: Experiment) -> None:
    """Its part of the last batch has only fillers, and the other workers wait for it in the exchange of gradients."""
    views = worker(nano).inputs(batch(0, spoiled=tuple(range(8))))
    assert [tuple(view.shape) for view in views] == [(0, 96, 64)] * 2


def spoil_the_weights(one: Pretrainer) -> None:
    """The next forward pass gives NaN."""
    forward = one.views.forward

    def bad(*arguments: torch.Tensor) -> tuple[torch.Tensor, ...]:
        one.views.forward = forward  # type: ignore[method-assign]
        return tuple(view * torch.nan for view in forward(*arguments))

    one.views.forward = bad  # type: ignore[method-assign, assignment]


def weights(one: Pretrainer) -> list[torch.Tensor]:
    return [tensor.clone() for tensor in one.objective.state_dict().values()]


def test_a_bad_step_changes_no_weight_and_no_running_average(nano: Experiment, tmp_path: Path) -> None:
    one = worker(nano.changed({"training.bad_steps": 10}))
    folder = RunFolder(tmp_path).stage("pretrain")
    hook = BadSteps(one, folder)
    trained(one, [batch(0)], hook)
    before = weights(one)
    spoil_the_weights(one)
    (step,) = trained(one, [batch(1)], hook).steps
    assert step.metrics["bad"] == 1 and step.metrics["rows"] == 16
    assert all(torch.equal(now, then) for now, then in zip(weights(one), before, strict=True))
    assert json.loads(folder.bad_rows.read_text()) == [list(range(8, 16))]
    assert step.events == ["step 2 is skipped: 8 rows, the first is row 8"] and not step.fatal
    assert consumed(one, batch(2))["bad"] == 0
    assert any(not torch.equal(now, then) for now, then in zip(weights(one), before, strict=True))


def test_bad_steps_count_over_restarts(nano: Experiment, tmp_path: Path) -> None:
    once = nano.changed({"training.bad_steps": 1})
    one = worker(once)
    folder = RunFolder(tmp_path).stage("pretrain")
    spoil_the_weights(one)
    (step,) = trained(one, [batch(0)], BadSteps(one, folder)).steps
    assert not step.fatal
    write_checkpoint(tmp_path / "step-00000001", one.state())
    again = worker(once, tmp_path / "step-00000001")
    assert again.bad_rows == [list(range(8))] and again.step == 1
    spoil_the_weights(again)
    (step,) = trained(again, [batch(1), batch(2)], BadSteps(again, folder)).steps
    assert "2 steps had a NaN" in step.fatal and "rows of the last one: 8, 9, 10" in step.fatal


@pytest.mark.parametrize("microbatch", [None, 3])
def test_a_restored_worker_continues_bit_for_bit(nano: Experiment, tmp_path: Path, microbatch: int | None) -> None:
    experiment = nano.changed({"objective.learn_temperature": True, "training.microbatch": microbatch})
    straight = worker(experiment)
    trained(straight, [batch(0), batch(1)])
    write_checkpoint(tmp_path / "step-00000002", straight.state())
    trained(straight, [batch(2), batch(3)])
    resumed = worker(experiment, tmp_path / "step-00000002")
    trained(resumed, [batch(2), batch(3)])
    assert resumed.step == straight.step and resumed.ledger == straight.ledger
    assert all(torch.equal(one, other) for one, other in zip(weights(resumed), weights(straight), strict=True))


def test_replay_uses_the_rows_of_the_last_bad_step(nano: Experiment, tmp_path: Path) -> None:
    nano.save(tmp_path / "experiment.yaml")
    with pytest.raises(SepsceneError, match="has skipped no step"):
        last_bad_rows(tmp_path)
    one = worker(nano.changed({"training.bad_steps": 10}))
    hook = BadSteps(one, RunFolder(tmp_path).stage(pretraining_stage(nano.views.pair)))
    for step in range(2):
        spoil_the_weights(one)
        trained(one, [batch(step)], hook)
    assert last_bad_rows(tmp_path) == list(range(8, 16))


def test_a_batch_without_a_usable_row_changes_no_weight(nano: Experiment) -> None:
    one = worker(nano)
    trained(one, [batch(0)])
    before = weights(one)
    metrics = consumed(one, batch(1, spoiled=tuple(range(8))))
    assert metrics["rows"] == 16 and "loss" not in metrics
    assert all(torch.equal(now, then) for now, then in zip(weights(one), before, strict=True))
    assert consumed(one, batch(2, spoiled=tuple(range(7))))["pairs"] == 1


def test_missing_data_ends_the_run_in_its_second_batch(nano: Experiment) -> None:
    one = worker(nano.changed({"training.quarantine_share": 1.0}))
    batches = [batch(step, spoiled=tuple(range(8))) for step in range(4)]
    recorder = trained(one, batches, Quarantine(one, CLIPS))
    assert [bool(step.fatal) for step in recorder.steps] == [False, True]
    assert recorder.steps[1].fatal == "no clip of 2 consecutive batches can be used; the first: clip 0: broken"


def test_too_many_unusable_clips_end_the_run_in_the_step_that_reads_them(nano: Experiment) -> None:
    one = worker(nano.changed({"training.quarantine_share": 0.1}))
    recorder = trained(one, [batch(0, spoiled=(3,)), batch(1, spoiled=(4, 5)), batch(2)], Quarantine(one, CLIPS))
    assert one.ledger.quarantined == {"clip 3": "broken", "clip 4": "broken", "clip 5": "broken"}
    assert [step.fatal for step in recorder.steps] == [
        "", "3 of 24 clips cannot be used, more than training.quarantine_share = 0.1; the first: clip 3: broken"
    ]  # fmt: skip


def test_microbatches_give_the_losses_of_the_whole_batch(nano: Experiment) -> None:
    whole, small = (worker(nano.changed({"training.microbatch": m})) for m in (None, 4))
    for one in (whole, small):
        one.objective.eval()  # in training mode, BatchNorm uses the statistics of a microbatch
    for step in range(2):
        rows = batch(step, spoiled=(0, 3))
        expected = consumed(whole, rows)
        metrics = consumed(small, rows)
        for name in ("loss", "similarity", "coincidence"):
            assert metrics[name] == pytest.approx(expected[name], rel=1e-5), name
        assert metrics["gradient_norm"] == pytest.approx(expected["gradient_norm"], rel=2e-4)  # sums of float32
        assert metrics["pairs"] == 6


def test_diagnostics_run_every_few_steps_and_a_collapse_is_reported_once(nano: Experiment) -> None:
    one = worker(nano)
    hook = Diagnostics(one)
    records = [step.metrics for step in trained(one, map(batch, range(DIAGNOSED_EVERY_STEPS)), hook).steps]
    assert ["effective_rank" in record for record in records] == [False] * (DIAGNOSED_EVERY_STEPS - 1) + [True]
    assert records[-1].keys() >= {"alignment", "uniformity", "positive_similarity", "coincidence_auc"}
    one = worker(nano.changed({"training.epochs": 40, "training.learning_rate": 1e-9}))
    hook = Diagnostics(one)
    with torch.no_grad():
        one.objective.get_submodule("trunk").embedding.weight.zero_()  # type: ignore[union-attr, operator]
    events = trained(one, map(batch, range(2 * DIAGNOSED_EVERY_STEPS)), hook).events
    assert sum("collapsing" in event for event in events) == 1


class Slow(Hook):
    """A hook that takes longer than a step."""

    def after_step(self, step: Step) -> None:
        time.sleep(1.0)


def test_the_time_of_hooks_is_not_waiting_time(nano: Experiment) -> None:
    second = trained(worker(nano), map(batch, range(2)), Slow()).steps[1]
    assert second.seconds - second.waited_seconds >= 1.0


@pytest.mark.parametrize(("seconds", "reports"), [(0.0, [[1], [2], [3], []]), (1e9, [[1], [2, 3]])])
def test_the_first_step_is_reported_immediately_and_later_ones_together(
    nano: Experiment, monkeypatch: pytest.MonkeyPatch, seconds: float, reports: list[list[int]]
) -> None:
    monkeypatch.setattr(saving, "REPORT_SECONDS", seconds)
    sent: list[list[int]] = []
    reporting = saving.Reporting(lambda report: sent.append([record["step"] for record in report["steps"]]))
    run_steps(worker(nano), map(batch, range(3)), [reporting])
    assert sent == reports


def test_the_report_has_the_additions_of_all_hooks_and_a_fatal_step_ends_the_loop(nano: Experiment) -> None:
    class Ending(Hook):
        ended = False

        def after_step(self, step: Step) -> None:
            step.metrics["added"] = step.number
            step.fatal = "enough" if step.number == 2 else ""

        def at_end(self, last: Step) -> None:
            self.ended = True

    sent: list[dict[str, Any]] = []
    hook = Ending()
    run_steps(worker(nano), map(batch, range(3)), [hook, saving.Reporting(sent.append)])
    assert [record["added"] for report in sent for record in report["steps"]] == [1, 2]
    assert sent[-1]["fatal"] == "enough" and not hook.ended


def test_fillers_are_not_counted(nano: Experiment) -> None:
    rows = batch(0)
    rows["row"][5:] = FILLER
    metrics = consumed(worker(nano), rows)
    assert metrics["pairs"] == 5 and metrics["rows"] == 5


def test_every_worker_starts_from_the_same_weights(nano: Experiment) -> None:
    one, other = (build_objective(nano).state_dict() for _ in range(2))
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def test_only_rank_0_keeps_the_metrics_of_steps_until_a_checkpoint(
    nano: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the other ranks, no checkpoint would ever remove them."""
    monkeypatch.setattr(pretraining, "rank", lambda: 1)
    found: list[Hook] = []
    monkeypatch.setattr(pretraining, "run_steps", lambda worker, batches, hooks: found.extend(hooks))
    pretraining._train(worker(nano), RunFolder(tmp_path).stage("stage"), [], set, print)
    assert found and not any(isinstance(hook, saving.Saving) for hook in found)
