"""A run keeps the precision that was chosen for it; an explicit slow one is warned of with the ratio."""

import pytest

from sepscene.models import precision
from sepscene.orchestration.config import Resources, Training
from sepscene.orchestration.presets import named_experiment
from sepscene.orchestration.runtime import precision as of_runs

AUTO = {"training.precision": "auto", "resources.separation_precision": "auto"}


def test_auto_is_the_default_and_tiny_gives_the_same_numbers_everywhere():
    assert Training().precision == Resources().separation_precision == "auto"
    tiny = named_experiment("demo", "tiny")
    assert of_runs.with_precisions(tiny) == tiny
    assert tiny.training.precision == tiny.resources.separation_precision == "float32"


@pytest.mark.parametrize(("amx", "chosen"), [(True, "bfloat16"), (False, "float32")])
def test_a_run_keeps_what_was_chosen(monkeypatch, amx, chosen):
    monkeypatch.setattr(precision, "cpu_has_amx", lambda: amx)
    kept = of_runs.with_precisions(named_experiment("demo", "tiny").changed(AUTO))
    assert kept.training.precision == kept.resources.separation_precision == chosen
    assert of_runs.with_precisions(kept).digest() == kept.digest()


@pytest.mark.parametrize(("ratio", "warned"), [(1.64, True), (0.4, False)])
def test_an_explicit_slow_precision_is_warned_of(monkeypatch, ratio, warned):
    monkeypatch.setattr(of_runs, "bfloat16_time_ratio", lambda: ratio)
    experiment = named_experiment("demo", "tiny")
    assert of_runs.slow_precisions(experiment) == []
    said = of_runs.slow_precisions(experiment.changed({"training.precision": "bfloat16"}))
    assert len(said) == warned
    assert all("training.precision bfloat16" in line and "1.6 times as long" in line for line in said)
    on_gpu = experiment.changed({"training.precision": "bfloat16", "resources.trainer_gpus": 1})
    assert of_runs.slow_precisions(on_gpu) == []
