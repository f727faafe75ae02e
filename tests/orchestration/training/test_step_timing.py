"""The metrics of a step's time."""

import pytest
import torch

from sepscene.orchestration.config import Experiment
from sepscene.orchestration.runtime.precision import matmul_rate
from sepscene.orchestration.training.flops import step_flops
from sepscene.orchestration.training.hooks import Step
from sepscene.orchestration.training.step_timing import StepTiming


def test_metrics_of_a_step(nano: Experiment) -> None:
    timing = StepTiming(nano, torch.device("cpu"), workers=2)
    timing.ceiling = timing.flops * 4  # a device that takes a quarter of a second for this worker's part of a step
    step = Step(1, {"pairs": 16.0}, waited_seconds=0.1, seconds=0.5)
    timing.after_step(step)
    expected = {"pairs": 16, "examples_per_second": 32, "waiting_share": 0.2, "mfu": 0.5}
    assert step.metrics == pytest.approx(expected)
    assert timing.flops == step_flops(nano) / 2


def test_the_ceiling_is_a_rate_of_this_machine() -> None:
    assert 1e8 < matmul_rate("cpu", "float32") < 1e15
