"""The meaning of `auto` on each device; a run saves the resolved precision; a slow explicit choice causes a warning."""

from pathlib import Path

import pytest

from sepscene.orchestration.config import Resources, Training
from sepscene.orchestration.presets import named_experiment
from sepscene.orchestration.runtime import precision
from sepscene.orchestration.runtime.precision import bfloat16_time_ratio, choose, cpu_has_amx

AUTO = {"training.precision": "auto", "resources.separation_precision": "auto"}


def test_auto_is_the_default_and_scale_tiny_is_the_same_on_all_devices():
    assert Training().precision == Resources().separation_precision == "auto"
    tiny = named_experiment("demo", "tiny")
    assert precision.with_precisions(tiny) == tiny
    assert tiny.training.precision == tiny.resources.separation_precision == "float32"


@pytest.mark.parametrize(("amx", "chosen"), [(True, "bfloat16"), (False, "float32")])
def test_a_run_saves_the_resolved_precision(monkeypatch, amx, chosen):
    monkeypatch.setattr(precision, "cpu_has_amx", lambda: amx)
    resolved = precision.with_precisions(named_experiment("demo", "tiny").changed(AUTO))
    assert resolved.training.precision == resolved.resources.separation_precision == chosen
    assert precision.with_precisions(resolved).digest() == resolved.digest()


@pytest.mark.parametrize(("ratio", "warned"), [(1.64, True), (0.4, False)])
def test_a_slow_explicit_precision_causes_a_warning(monkeypatch, ratio, warned):
    monkeypatch.setattr(precision, "bfloat16_time_ratio", lambda: ratio)
    experiment = named_experiment("demo", "tiny")
    assert precision.slow_precisions(experiment) == []
    warnings = precision.slow_precisions(experiment.changed({"training.precision": "bfloat16"}))
    assert len(warnings) == warned
    assert all("training.precision bfloat16" in line and "1.6 times as long" in line for line in warnings)
    on_gpu = experiment.changed({"training.precision": "bfloat16", "resources.trainer_gpus": 1})
    assert precision.slow_precisions(on_gpu) == []


@pytest.mark.parametrize(
    ("gpus", "accelerator", "amx", "chosen"),
    [
        (0.5, None, False, "bfloat16"),
        (1, "H100", False, "bfloat16"),
        (1, "T4", True, "float32"),
        (0, None, True, "bfloat16"),
        (0, None, False, "float32"),
    ],
)
def test_auto_chooses_the_best_precision_for_the_device(monkeypatch, gpus, accelerator, amx, chosen):
    monkeypatch.setattr(precision, "cpu_has_amx", lambda: amx)
    assert choose("auto", gpus, accelerator) == chosen
    for explicit in ("float32", "bfloat16"):
        assert choose(explicit, gpus, accelerator) == explicit


@pytest.mark.parametrize(
    ("flags", "has"), [("fpu avx512f amx_tile amx_bf16", True), ("fpu avx512f", False), (None, False)]
)
def test_amx_is_read_from_the_cpus_flags(tmp_path: Path, flags, has):
    if flags is not None:
        (tmp_path / "cpuinfo").write_text(f"processor\t: 0\nflags\t\t: {flags}\nbugs\t\t: amx_bf16\n")
    assert cpu_has_amx(str(tmp_path / "cpuinfo")) is has


def test_the_ratio_is_measured_once():
    ratio = bfloat16_time_ratio()
    assert 0.01 < ratio < 100
    assert bfloat16_time_ratio() == ratio
