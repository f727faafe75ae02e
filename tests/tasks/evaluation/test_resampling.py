"""Metrics of resamples computed from weights must equal a slow loop over the drawn clips."""

from collections.abc import Callable

import numpy as np
import pytest
from scipy.special import ndtr

from sepscene.tasks.evaluation.metrics import EvaluationError, d_prime, d_prime_of, lwlrap, mean_average_precision
from sepscene.tasks.evaluation.resampling import resample, resampled_retrieval, resampled_scores
from sepscene.tasks.evaluation.retrieval import choose, query_by_example, unit_length


def scored(ties: bool = False, clips: int = 50, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng(seed)
    targets = draw.random((clips, 4)) < 0.2
    scores = draw.standard_normal(targets.shape) + targets
    return (np.round(scores) if ties else scores), targets


def rare(ties: bool = False, clips: int = 50) -> tuple[np.ndarray, np.ndarray]:
    """Classes with many, three, two and one positive clips, and one with all clips but one."""
    scores, targets = scored(ties, clips)
    draw = np.random.default_rng(1)
    for k, positives in enumerate((3, 2, 1), start=1):
        targets[:, k] = False
        targets[draw.choice(clips, positives, replace=False), k] = True
    common = np.arange(clips) != 7
    return np.column_stack([scores, draw.standard_normal(clips)]), np.column_stack([targets, common])


def slow_average_precision(score: np.ndarray, target: np.ndarray, weight: np.ndarray) -> float:
    """Average precision over drawn clips: each positive counts itself once, other clips as often as they were drawn."""
    total = 0.0
    positives = 0.0
    for i in np.flatnonzero(target & (weight > 0)):
        others = [j for j in range(len(score)) if j != i and score[j] >= score[i]]
        hits = sum(weight[j] * target[j] for j in others)
        above = sum(weight[j] for j in others)
        total += weight[i] * (hits + 1) / (above + 1)
        positives += weight[i]
    return total / positives if positives else np.nan


def slow_area(score: np.ndarray, target: np.ndarray, weight: np.ndarray) -> float:
    """Share of the drawn (positive, negative) pairs in the right order; ties count half."""
    pairs = weight[target][:, None] * weight[~target]
    apart = score[target][:, None] - score[~target]
    return float((pairs * (0.5 + 0.5 * np.sign(apart))).sum() / pairs.sum())


def slow_mean(metrics: np.ndarray, share: np.ndarray, few: list[int]) -> float:
    """Mean over classes; those with few positives share their weight in proportion to how often these are drawn."""
    weights = np.ones(len(metrics))
    if few and share[few].any():
        weights[few] = len(few) * share[few] / share[few].sum()
    return float(np.mean(weights * metrics))


def test_resamples_hold_as_many_clips_as_there_are() -> None:
    weights = resample(37, 200, seed=1)
    assert weights.shape == (37, 200) and weights.dtype == np.float32
    np.testing.assert_array_equal(weights.sum(axis=0), 37)
    np.testing.assert_array_equal(weights, resample(37, 200, seed=1))
    assert not np.array_equal(weights, resample(37, 200, seed=2))
    # Counts of one clip are binomial(37, 1/37): mean 1, variance 36/37.
    assert weights.mean() == 1.0 and weights.var() == pytest.approx(36 / 37, abs=0.05)


@pytest.mark.parametrize("ties", [False, True])
def test_map_is_the_slow_loop(ties: bool) -> None:
    scores, targets = scored(ties)
    weights = resample(50, 30)
    found = resampled_scores(scores, targets, weights).map_R
    expected = [
        np.nanmean([slow_average_precision(scores[:, k], targets[:, k], weights[:, r]) for k in range(4)])
        for r in range(30)
    ]
    np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.parametrize("ties", [False, True])
def test_d_prime_and_lwlrap_are_those_of_the_drawn_clips(ties: bool) -> None:
    scores, targets = scored(ties)
    weights = resample(50, 30)
    found = resampled_scores(scores, targets, weights)
    for r in range(30):
        rows = np.repeat(np.arange(50), weights[:, r].astype(int))
        assert found.d_prime_R[r] == pytest.approx(d_prime(scores[rows], targets[rows]).value, rel=1e-6)
        assert found.lwlrap_R[r] == pytest.approx(lwlrap(scores[rows], targets[rows]).value, rel=1e-6)


@pytest.mark.parametrize("ties", [False, True])
def test_every_clip_once_is_the_metric_itself(ties: bool) -> None:
    scores, targets = scored(ties)
    once = np.ones((50, 200), dtype=np.float32)  # more than fit one block
    found = resampled_scores(scores, targets, once)
    np.testing.assert_allclose(found.map_R, mean_average_precision(scores, targets).value, rtol=1e-6)
    np.testing.assert_allclose(found.d_prime_R, d_prime(scores, targets).value, rtol=1e-6)
    np.testing.assert_allclose(found.lwlrap_R, lwlrap(scores, targets).value, rtol=1e-6)
    h = np.random.default_rng(0).standard_normal((50, 2 if ties else 6)).round(0 if ties else 9)
    by_example = query_by_example(h, targets, clips=20).average_precision.value
    np.testing.assert_allclose(resampled_retrieval(h, targets, once, clips=20), by_example, rtol=1e-6)


@pytest.mark.parametrize("ties", [False, True])
def test_lost_classes_keep_their_metric_and_rare_ones_are_pooled_as_in_the_slow_loop(ties: bool) -> None:
    scores, targets = rare(ties)
    weights = resample(50, 60)
    found = resampled_scores(scores, targets, weights)
    own_precision = mean_average_precision(scores, targets).per_class
    own_area = ndtr(d_prime(scores, targets).per_class / 2**0.5)
    drawn_RK = weights.T @ targets
    assert (drawn_RK[:, 1:4] == 0).any(axis=0).all() and (drawn_RK[:, 4] == 50).any()
    for r in range(60):
        precision = own_precision.copy()
        area = own_area.copy()
        for k in np.flatnonzero(drawn_RK[r] > 0):
            precision[k] = slow_average_precision(scores[:, k], targets[:, k], weights[:, r])
        for k in np.flatnonzero((drawn_RK[r] > 0) & (drawn_RK[r] < 50)):
            half_pair = 0.5 / (drawn_RK[r, k] * (50 - drawn_RK[r, k]))
            area[k] = np.clip(slow_area(scores[:, k], targets[:, k], weights[:, r]), half_pair, 1 - half_pair)
        share = drawn_RK[r] / targets.sum(axis=0)
        assert found.map_R[r] == pytest.approx(slow_mean(precision, share, [2, 3]), rel=1e-6)
        assert found.d_prime_R[r] == pytest.approx(d_prime_of(slow_mean(area, share, [2, 3])), rel=1e-6)


@pytest.mark.parametrize("make", [scored, rare])
def test_query_by_example_is_the_slow_loop(make: Callable[[], tuple[np.ndarray, np.ndarray]]) -> None:
    _, targets = make()
    h = np.random.default_rng(3).standard_normal((50, 6))
    weights = resample(50, 40)
    unit = unit_length(h)
    found = resampled_retrieval(h, targets, weights, clips=8, seed=2)
    own = query_by_example(h, targets, clips=8, seed=2).average_precision.per_class
    lost = 0
    for r in range(0, 40, 5):
        per_class = own.copy()
        share = np.zeros(len(own))
        for k, (positive, negative) in enumerate(choose(targets, 8, 2)):
            pairs = [(i, j, True) for n, i in enumerate(positive) for j in positive[n + 1 :]]
            pairs += [(i, j, False) for i in positive for j in negative]
            similarity = np.array([unit[i] @ unit[j] for i, j, _ in pairs])
            weight = np.array([weights[i, r] * weights[j, r] for i, j, _ in pairs])
            relevant = np.array([kind for *_, kind in pairs])
            if weight[relevant].any() and weight[~relevant].any():
                per_class[k] = slow_average_precision(similarity, relevant, weight)
            else:
                lost += 1
            share[k] = weight[relevant].mean() if relevant.any() else 0
        few = [k for k in range(len(own)) if targets[:, k].sum() == 2]
        kept = ~np.isnan(own)
        assert found[r] == pytest.approx(slow_mean(per_class[kept], share[kept], few), rel=1e-6)
    assert (lost > 0) == (make is rare)


def test_a_lost_class_keeps_its_metric() -> None:
    scores, targets = rare()
    weights = resample(50, 300)
    lost = weights[targets[:, 3]][0] == 0
    assert 0.25 < lost.mean() < 0.5  # 1/e
    alone = resampled_scores(scores[:, 3:4], targets[:, 3:4], weights)
    metrics = (mean_average_precision, d_prime)
    for metric, found in zip(metrics, (alone.map_R, alone.d_prime_R), strict=True):
        np.testing.assert_allclose(found[lost], metric(scores[:, 3:4], targets[:, 3:4]).value, rtol=1e-6)
    # lwlrap is weighted by labels, so it is undefined if no labels are drawn.
    np.testing.assert_array_equal(np.isnan(alone.lwlrap_R), lost)


@pytest.mark.parametrize("strength", [0.5, 2.0])
def test_many_classes_of_one_clip_leave_the_estimate_inside_its_interval(strength: float) -> None:
    """If lost classes were left out, the easier frequent ones would raise mAP by 0.1, beyond its interval."""
    bias = []
    for seed in range(6):
        draw = np.random.default_rng(seed)
        targets = draw.random((200, 16)) < 0.15
        targets[:, 8:] = np.arange(200)[:, None] == draw.integers(0, 200, 8)
        scores = draw.standard_normal(targets.shape) + targets * np.repeat([3.0, strength], 8)
        found = resampled_scores(scores, targets, resample(200, 150, seed))
        weights = resample(200, 150, seed)
        by_example = query_by_example(scores, targets, clips=20).average_precision.value
        by_metric = {
            mean_average_precision(scores, targets).value: found.map_R,
            d_prime(scores, targets).value: found.d_prime_R,
            by_example: resampled_retrieval(scores, targets, weights, clips=20),
        }
        for value, replicates in by_metric.items():
            low, high = np.quantile(replicates, [0.025, 0.975])
            assert low < value < high
        bias.append([replicates.mean() - value for value, replicates in by_metric.items()])
    assert (np.abs(np.mean(bias, axis=0)) < [0.015, 0.1, 0.015]).all()


def test_no_resamples_and_nothing_defined() -> None:
    scores, targets = scored()
    assert resampled_scores(scores, targets, resample(50, 0)).map_R.shape == (0,)
    assert resampled_retrieval(scores, targets, resample(50, 0)).shape == (0,)


def spread(metric: Callable[[np.ndarray, np.ndarray], float], trials: int = 60) -> tuple[float, float]:
    """Mean and standard deviation of a metric over new test sets."""
    values = [metric(*scored(clips=120, seed=seed)) for seed in range(trials)]
    return float(np.mean(values)), float(np.std(values))


def test_resamples_have_the_mean_of_the_estimate_and_the_spread_of_new_test_sets() -> None:
    mean, deviation = spread(lambda scores, targets: mean_average_precision(scores, targets).value)
    bias = []
    widths = []
    for seed in range(20):
        scores, targets = scored(clips=120, seed=seed)
        replicates = resampled_scores(scores, targets, resample(120, 200)).map_R
        bias.append(replicates.mean() - mean_average_precision(scores, targets).value)
        widths.append(replicates.std())
    # The plain bootstrap, which counts copies of a positive as additional hits, is off by +0.016 here.
    assert abs(np.mean(bias)) < 0.005
    assert np.mean(widths) == pytest.approx(deviation, rel=0.2)
    assert 0.3 < mean < 0.6


def test_resamples_with_many_classes_of_one_clip_have_the_spread_of_new_test_sets() -> None:
    """A class with one clip hardly varies: without pooling, intervals would be half as wide as they should be."""
    values = []
    bias = []
    widths = []
    for seed in range(40):
        draw = np.random.default_rng(seed)
        targets = draw.random((128, 16)) < 0.08
        targets[:, :8] = np.arange(128)[:, None] == draw.integers(0, 128, 8)
        scores = draw.standard_normal(targets.shape) + targets
        values.append(mean_average_precision(scores, targets).value)
        if seed < 12:
            replicates = resampled_scores(scores, targets, resample(128, 150, seed)).map_R
            bias.append(replicates.mean() - values[-1])
            widths.append(replicates.std())
    assert np.mean(widths) == pytest.approx(np.std(values), rel=0.3)
    assert abs(np.mean(bias)) < 0.015


def test_nan_is_refused() -> None:
    scores, targets = scored()
    scores[0, 0] = np.nan
    for function in (resampled_scores, resampled_retrieval):
        with pytest.raises(EvaluationError, match="NaN"):
            function(scores, targets, resample(50, 3))
