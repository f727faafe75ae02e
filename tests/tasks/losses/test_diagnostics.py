"""The metrics that show whether pre-training is healthy, against closed forms and scikit-learn."""

from math import exp, log

import pytest
import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor

from sepscene.models.encoders.heads import CoincidenceHead
from sepscene.tasks.losses.diagnostics import (
    coincidence_metrics,
    collapse_warning,
    diagnose,
    effective_rank,
    similarity_metrics,
)
from sepscene.tasks.losses.joint import JointLoss


def step(h_1: Tensor, h_2: Tensor) -> JointLoss:
    return JointLoss(torch.zeros(()), {}, h_1, h_2, h_1, h_2)


def test_similarity_of_orthogonal_pairs() -> None:
    metrics = similarity_metrics(torch.eye(6), torch.eye(6))
    expected = {"alignment": 0, "uniformity": -4, "positive_similarity": 1, "negative_similarity": 0}
    assert metrics == pytest.approx(expected, abs=1e-6)


def test_uniformity_is_the_mean_kernel_of_wang_and_isola() -> None:
    torch.manual_seed(0)
    unit = torch.nn.functional.normalize(torch.randn(7, 3, dtype=torch.float64), dim=1)
    kernel = [exp(-2 * float((unit[i] - unit[j]).square().sum())) for i in range(7) for j in range(7) if i != j]
    assert similarity_metrics(unit, unit)["uniformity"] == pytest.approx(log(sum(kernel) / len(kernel)), rel=1e-10)
    assert similarity_metrics(unit, -unit)["alignment"] == pytest.approx(4, rel=1e-10)


def test_coincidence_metrics_equal_scikit_learn() -> None:
    torch.manual_seed(0)
    head = CoincidenceHead(4, 9)
    h_m = torch.randn(8, 4)
    h_c = torch.randn(8, 4)
    with torch.no_grad():
        logits = torch.stack([head(h_m[i : i + 1].expand(8, -1), h_c) for i in range(8)])
        metrics = coincidence_metrics(head, h_m, h_c)
    same = torch.eye(8, dtype=torch.bool)
    assert metrics["coincidence_auc"] == pytest.approx(roc_auc_score(same.flatten(), logits.flatten()), abs=1e-9)
    right = ((logits[same] > 0).double().mean() + (logits[~same] <= 0).double().mean()) / 2
    assert metrics["coincidence_accuracy"] == pytest.approx(float(right), abs=1e-9)
    torch.nn.init.zeros_(head.last.weight)
    with torch.no_grad():
        assert coincidence_metrics(head, h_m, h_c)["coincidence_auc"] == 0.5


def test_effective_rank_closed_forms() -> None:
    corners = torch.cat([torch.eye(8), -torch.eye(8)])
    assert effective_rank(corners) == pytest.approx(8, rel=1e-6)
    line = torch.outer(torch.linspace(-1, 1, 20), torch.ones(8))
    assert effective_rank(line) == pytest.approx(1, rel=1e-6)
    assert effective_rank(torch.full((20, 8), 3.3)) == 0
    two_to_one = corners[:, :2] * torch.tensor([2.0, 1.0])
    assert effective_rank(two_to_one) == pytest.approx(3 / 2 ** (2 / 3), rel=1e-6)


def test_warns_of_collapse_and_only_then() -> None:
    torch.manual_seed(0)
    healthy = diagnose(step(torch.randn(64, 32), torch.randn(64, 32)), CoincidenceHead(32, 16))
    assert collapse_warning(healthy) == ""
    assert {"alignment", "effective_rank", "coincidence_auc"} <= healthy.keys()
    one_line = torch.randn(64, 1) * torch.ones(32)
    collapsed = diagnose(step(one_line, one_line + 1e-6 * torch.randn(64, 32)))
    assert "effective rank of 1.0, out of 32" in collapse_warning(collapsed)
    assert "coincidence_auc" not in collapsed
    point = torch.ones(64, 32)
    assert "0.0" in collapse_warning(diagnose(step(point, point)))


def test_too_few_rows_give_no_metrics() -> None:
    assert diagnose(step(torch.zeros(0, 4), torch.zeros(0, 4)), CoincidenceHead(4)) == {}
    assert collapse_warning(diagnose(step(torch.ones(3, 4), torch.ones(3, 4)))) == ""
