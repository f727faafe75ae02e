"""The figures of a step's time."""

import pytest
import torch

from sepscene.orchestration.config import Experiment
from sepscene.orchestration.training.flops import step_flops
from sepscene.orchestration.training.step_timing import Pace, matmul_rate


def test_figures_of_a_step(nano: Experiment) -> None:
    pace = Pace(nano, torch.device("cpu"), workers=2)
    pace.ceiling = pace.flops * 4  # a device that needs a quarter of a second for this worker's part of a step
    figures = pace.figures(16, asked=10.0, arrived=10.1, done=10.5)
    assert figures == pytest.approx({"examples_per_second": 32, "waiting_share": 0.2, "mfu": 0.5})
    assert pace.flops == step_flops(nano.encoder, nano.objective, 96, 16) / 2


def test_the_ceiling_is_a_rate_of_this_machine() -> None:
    assert 1e8 < matmul_rate(torch.device("cpu"), torch.float32) < 1e15
