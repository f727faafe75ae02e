"""mAP, d' and lwlrap against slow obvious loops, closed forms and known values."""

import numpy as np
import pytest
from sklearn.metrics import label_ranking_average_precision_score, roc_auc_score

from sepscene.tasks.evaluation.metrics import (
    EvaluationError,
    check_split,
    d_prime,
    d_prime_of,
    lwlrap,
    mean_average_precision,
)


def scored(clips: int = 60, classes: int = 5, seed: int = 0, ties: bool = False) -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng(seed)
    targets = draw.random((clips, classes)) < 0.25
    scores = draw.standard_normal((clips, classes)) + targets
    return (np.round(scores, 1) if ties else scores), targets


def slow_average_precision(score: np.ndarray, target: np.ndarray) -> float:
    total = 0.0
    for positive in np.flatnonzero(target):
        at_or_above = [row for row in range(len(score)) if score[row] >= score[positive]]
        total += sum(target[row] for row in at_or_above) / len(at_or_above)
    return total / target.sum()


def slow_lwlrap(scores: np.ndarray, targets: np.ndarray) -> float:
    precisions = []
    for score, target in zip(scores, targets, strict=True):
        for label in np.flatnonzero(target):
            at_or_above = [other for other in range(len(score)) if score[other] >= score[label]]
            precisions.append(sum(target[other] for other in at_or_above) / len(at_or_above))
    return float(np.mean(precisions))


@pytest.mark.parametrize("ties", [False, True])
def test_average_precision_is_the_slow_loop(ties: bool) -> None:
    scores, targets = scored(ties=ties)
    found = mean_average_precision(scores, targets)
    expected = [slow_average_precision(scores[:, k], targets[:, k]) for k in range(5)]
    np.testing.assert_allclose(found.per_class, expected, rtol=1e-12)
    assert found.value == pytest.approx(np.mean(expected), rel=1e-12)


def test_average_precision_by_hand() -> None:
    # Ranks of the positives: 1 and 3 of 4, so (1/1 + 2/3) / 2.
    scores = np.array([[4.0], [3.0], [2.0], [1.0]])
    targets = np.array([[True], [False], [True], [False]])
    assert mean_average_precision(scores, targets).value == pytest.approx(5 / 6)


def test_classes_without_positives_are_left_out() -> None:
    scores, targets = scored()
    targets[:, 2] = False
    found = mean_average_precision(scores, targets)
    assert np.flatnonzero(np.isnan(found.per_class)).tolist() == [2]
    assert found.value == pytest.approx(np.nanmean(found.per_class))
    assert np.flatnonzero(np.isnan(lwlrap(scores, targets).per_class)).tolist() == [2]
    targets[:, 3] = True  # no negatives: no d', yet an average precision of 1
    assert np.flatnonzero(np.isnan(d_prime(scores, targets).per_class)).tolist() == [2, 3]
    assert mean_average_precision(scores, targets).per_class[3] == 1.0


def test_perfect_and_reversed_scores() -> None:
    _, targets = scored()
    assert mean_average_precision(targets.astype(float), targets).value == 1.0
    assert lwlrap(targets.astype(float), targets).value == 1.0
    best = d_prime(targets.astype(float), targets)
    assert np.isfinite(best.value) and best.value > 3
    assert d_prime(-targets.astype(float), targets).value == pytest.approx(-best.value)


def test_random_scores_are_at_chance() -> None:
    draw = np.random.default_rng(1)
    targets = draw.random((20_000, 4)) < 0.1
    scores = draw.standard_normal(targets.shape)
    assert mean_average_precision(scores, targets).value == pytest.approx(0.1, abs=0.01)
    assert d_prime(scores, targets).value == pytest.approx(0.0, abs=0.03)


def test_d_prime_of_two_gaussians_is_their_distance() -> None:
    draw = np.random.default_rng(2)
    targets = draw.random((100_000, 1)) < 0.5
    scores = draw.standard_normal(targets.shape) + 1.5 * targets
    assert d_prime(scores, targets).value == pytest.approx(1.5, abs=0.02)


def test_d_prime_is_that_of_the_mean_area() -> None:
    scores, targets = scored(ties=True)
    areas = [roc_auc_score(targets[:, k], scores[:, k]) for k in range(5)]
    found = d_prime(scores, targets)
    assert found.value == pytest.approx(float(d_prime_of(np.mean(areas))), rel=1e-12)
    np.testing.assert_allclose(found.per_class, d_prime_of(np.array(areas)), rtol=1e-12)
    # probit(0.965) = 1.8119 in any table of the normal distribution.
    assert float(d_prime_of(0.965)) == pytest.approx(2**0.5 * 1.8119, abs=1e-4)


@pytest.mark.parametrize("ties", [False, True])
def test_lwlrap_is_the_slow_loop_and_scikit_learns(ties: bool) -> None:
    scores, targets = scored(classes=8, ties=ties)
    found = lwlrap(scores, targets)
    assert found.value == pytest.approx(slow_lwlrap(scores, targets), rel=1e-12)
    weighted = label_ranking_average_precision_score(targets, scores, sample_weight=targets.sum(axis=1))
    assert found.value == pytest.approx(weighted, rel=1e-12)
    # The value is the per-class metrics weighted by how often each class occurs.
    assert found.value == pytest.approx(np.average(found.per_class, weights=targets.sum(axis=0)), rel=1e-12)


@pytest.mark.parametrize("metric", [mean_average_precision, d_prime, lwlrap])
def test_invalid_input_is_refused(metric) -> None:  # type: ignore[no-untyped-def]
    scores, targets = scored()
    broken = scores.copy()
    broken[[3, 7], 1] = np.nan
    broken[9, 0] = np.inf
    with pytest.raises(EvaluationError, match="3 of 60 clips have NaN or infinite"):
        metric(broken, targets)
    with pytest.raises(EvaluationError, match="one row per clip"):
        metric(scores[:-1], targets)
    with pytest.raises(EvaluationError, match="not bool"):
        metric(scores, targets.astype(np.int64))
    with pytest.raises(EvaluationError, match="no class has a defined"):
        metric(scores, np.zeros_like(targets))


def test_training_and_test_must_match() -> None:
    h, targets = scored()
    with pytest.raises(EvaluationError, match="embed both with the same encoder"):
        check_split(h, targets, h[:, :3], targets)
    with pytest.raises(EvaluationError, match="training targets have 5 classes, test targets 4"):
        check_split(h, targets, h, targets[:, :4])
    with pytest.raises(EvaluationError, match="at least 2"):
        check_split(h[:1], targets[:1], h, targets)
