"""Validation during training: its clips, its metric, its records, and the best encoder."""

import json
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch

from sepscene.clusters.pools import Node
from sepscene.models.config import SepsceneError
from sepscene.models.encoders.encoder import Encoder, load_encoder, save_encoder
from sepscene.orchestration.config import Experiment
from sepscene.orchestration.presets import named_experiment
from sepscene.orchestration.records.files import write_text_atomically
from sepscene.orchestration.records.metrics_log import append_metrics, collect_validations, recover_metrics
from sepscene.orchestration.records.results import read_metrics
from sepscene.orchestration.records.run_folder import RunFolder
from sepscene.orchestration.runtime.placement import check_placement, demands, phases
from sepscene.orchestration.training.builders import encoder_of
from sepscene.orchestration.training.hooks import Step
from sepscene.orchestration.training.pretrainer import Pretrainer
from sepscene.orchestration.training.validation import METRIC, ValidationHook, best_metric, choose_probe, keep_best
from sepscene.tasks.datasets.manifest import Clip, make_manifest
from sepscene.tasks.datasets.readers import Manifest

STAGE = "pretrain-mix-chan"


def manifest(labels: list[tuple[str, ...]]) -> Manifest:
    return make_manifest((Clip(f"{n:03d}", f"/{n:03d}", own, "train") for n, own in enumerate(labels)), "test")


def test_the_same_labelled_clips_are_chosen_in_any_order() -> None:
    labels: list[tuple[str, ...]] = [("dog",), ("rain",), ()] * 20
    chosen = choose_probe(manifest(labels), 24)
    assert len(set(chosen.uris)) == 24 and chosen.query_N.sum() == 6
    assert chosen.targets_NK.any(axis=1).all() and chosen.targets_NK.shape == (24, 2)
    clips = manifest(labels)
    backwards = Manifest(clips.clips.take(list(range(59, -1, -1))), clips.classes)
    assert choose_probe(backwards, 24).uris == chosen.uris


def test_a_class_with_a_single_clip_is_left_out() -> None:
    clips = [("dog",)] * 20 + [("once",)]
    assert choose_probe(manifest(clips), 100).targets_NK.shape[1] == 1


@pytest.mark.parametrize("labels", [[()] * 20, [(f"class {n}",) for n in range(20)]])
def test_validation_without_usable_labels_is_refused(labels: list[tuple[str, ...]]) -> None:
    with pytest.raises(SepsceneError, match=r"set training\.validation_every_steps to 0"):
        choose_probe(manifest(labels), 100)


def test_validation_records_are_moved_to_the_metrics_file_once_and_do_not_hide_steps(tmp_path: Path) -> None:
    stage = RunFolder(tmp_path).stage(STAGE)
    for step in (20, 100):
        write_text_atomically(
            stage.validations / f"step-{step:08d}.json", json.dumps({"step": step, METRIC: step / 200})
        )
    for _ in range(2):
        collect_validations(stage)
    assert [(record["step"], record[METRIC]) for record in read_metrics(tmp_path)] == [(20, 0.1), (100, 0.5)]
    recover_metrics(stage, [{"step": 20, "rows": 320, "loss": 1.0}])
    assert read_metrics(tmp_path)[-1]["loss"] == 1.0
    append_metrics(RunFolder(tmp_path).stage("other"), [])


def options_and_events(hook: ValidationHook) -> tuple[dict[str, Any], list[str]]:
    """The options and the events of the last report."""
    last = Step(9)
    hook.at_end(last)
    return last.report_options, last.events


def hook_of(experiment: Experiment, encoder: Encoder) -> ValidationHook:
    """The hook of a worker that validates this encoder after steps 7 and 9."""
    changed = experiment.changed({"training.validation_every_steps": 7})
    return ValidationHook(Mock(spec=Pretrainer, experiment=changed, encoder=lambda: encoder, last_step=9))


def test_an_encoder_is_reported_as_it_was_and_once(nano: Experiment) -> None:
    encoder = encoder_of(nano, None)
    hook = hook_of(nano, encoder)
    assert options_and_events(hook) == ({}, [])
    before = encoder.trunk.embedding.weight.detach().clone()
    hook.after_step(Step(7))
    with torch.no_grad():
        encoder.trunk.embedding.weight.add_(1)  # training continues
    options, _ = options_and_events(hook)
    assert options["validation"].fn_kwargs == {"step": 7}
    assert torch.equal(load_encoder(options["checkpoint"].path).trunk.embedding.weight, before)
    assert options_and_events(hook) == ({}, [])


def test_an_encoder_that_is_not_finite_gives_an_event(nano: Experiment) -> None:
    encoder = encoder_of(nano, None)
    hook = hook_of(nano, encoder)
    with torch.no_grad():
        encoder.trunk.embedding.weight.fill_(torch.nan)
    hook.after_step(Step(7))
    options, (fault,) = options_and_events(hook)
    assert options == {} and fault.startswith("step 7 is not validated")
    assert options_and_events(hook) == ({}, [])


def test_the_best_encoder_is_replaced_atomically(nano: Experiment, tmp_path: Path) -> None:
    stage = RunFolder(tmp_path).stage(STAGE)
    best = stage.best
    assert best_metric(stage) == -np.inf
    bundles = {}
    for step, value in ((2, 0.25), (4, 0.5), (6, 0.4)):
        bundles[step] = encoder_of(nano.changed({"seed": step}), None)
        save_encoder(bundles[step], tmp_path / str(step), {"steps": step})
        keep_best(stage, tmp_path / str(step), step, value)
        assert best_metric(stage) == (0.5 if step == 6 else value)
    assert sorted(folder.name for folder in best.parent.iterdir()) == ["best"]
    wave_BT = torch.randn(2, 32_000)
    with torch.inference_mode():
        assert torch.equal(load_encoder(best)(wave_BT), bundles[4](wave_BT))
    assert "0.500" in (best / "README.md").read_text()


def test_placement_includes_the_validation_task(nano: Experiment) -> None:
    without, validated = (demands(nano.resources, validates=on) for on in (False, True))
    assert [demand.role for demand in validated if demand not in without] == ["validation task"]


@pytest.mark.parametrize("cpus", [0.15, 0.25])
def test_a_tiny_run_with_validation_fits_two_cores_or_is_refused(cpus: float) -> None:
    tiny = named_experiment("demo", "tiny").changed(
        {"training.validation_every_steps": 30, "resources.validation_cpus": cpus}
    )
    (asked,) = phases(tiny)
    if cpus == 0.15:
        check_placement(asked, [Node("laptop", 2)])
    else:
        with pytest.raises(SepsceneError, match="does not fit the cluster"):
            check_placement(asked, [Node("laptop", 2)])
