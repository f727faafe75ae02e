"""Figures of resamples: all at once from weights must equal drawing the clips and counting by hand."""

from collections.abc import Callable

import numpy as np
import pytest

from tasks.metrics import EvaluationError, d_prime, lwlrap, mean_average_precision
from tasks.resampling import mean_where_defined, resample, resampled_retrieval, resampled_scores
from tasks.retrieval import choose, query_by_example, unit_length


def scored(ties: bool = False, clips: int = 50, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng(seed)
    targets = draw.random((clips, 4)) < 0.2
    scores = draw.standard_normal(targets.shape) + targets
    return (np.round(scores) if ties else scores), targets


def slow_average_precision(score: np.ndarray, target: np.ndarray, weight: np.ndarray) -> float:
    """Over drawn clips: each positive counts itself once, other clips as often as they were drawn."""
    total, positives = 0.0, 0.0
    for i in np.flatnonzero(target & (weight > 0)):
        others = [j for j in range(len(score)) if j != i and score[j] >= score[i]]
        hits, above = sum(weight[j] * target[j] for j in others), sum(weight[j] for j in others)
        total += weight[i] * (hits + 1) / (above + 1)
        positives += weight[i]
    return total / positives if positives else np.nan


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
def test_every_clip_once_is_the_figure_itself(ties: bool) -> None:
    scores, targets = scored(ties)
    once = np.ones((50, 200), dtype=np.float32)  # more than fit one block
    found = resampled_scores(scores, targets, once)
    np.testing.assert_allclose(found.map_R, mean_average_precision(scores, targets).value, rtol=1e-6)
    np.testing.assert_allclose(found.d_prime_R, d_prime(scores, targets).value, rtol=1e-6)
    np.testing.assert_allclose(found.lwlrap_R, lwlrap(scores, targets).value, rtol=1e-6)
    h = np.random.default_rng(0).standard_normal((50, 2 if ties else 6)).round(0 if ties else 9)
    by_example = query_by_example(h, targets, clips=20).average_precision.value
    np.testing.assert_allclose(resampled_retrieval(h, targets, once, clips=20), by_example, rtol=1e-6)


def test_query_by_example_is_the_slow_loop() -> None:
    _, targets = scored()
    h = np.random.default_rng(3).standard_normal((50, 6))
    weights, unit = resample(50, 40), unit_length(h)
    found = resampled_retrieval(h, targets, weights, clips=8, seed=2)
    for r in (0, 20, 39):
        per_class = []
        for positive, negative in choose(targets, 8, 2):
            pairs = [(i, j, True) for n, i in enumerate(positive) for j in positive[n + 1 :]]
            pairs += [(i, j, False) for i in positive for j in negative]
            similarity = np.array([unit[i] @ unit[j] for i, j, _ in pairs])
            weight = np.array([weights[i, r] * weights[j, r] for i, j, _ in pairs])
            relevant = np.array([kind for *_, kind in pairs])
            per_class.append(slow_average_precision(similarity, relevant, weight))
        assert found[r] == pytest.approx(np.nanmean(per_class), rel=1e-6)


def test_a_class_without_positives_in_a_resample_is_left_out_of_it() -> None:
    scores, targets = scored()
    targets[:, 0] = False
    targets[7, 0] = True
    weights = resample(50, 300)
    present = weights[7] > 0
    with_class = resampled_scores(scores, targets, weights).map_R
    without = resampled_scores(scores[:, 1:], targets[:, 1:], weights).map_R
    assert 0.5 < present.mean() < 0.75  # 1 - 1/e
    np.testing.assert_array_equal(with_class[~present], without[~present])
    assert (with_class[present] != without[present]).all()
    alone = resampled_scores(scores[:, :1], targets[:, :1], weights)
    for figures in (alone.map_R, alone.d_prime_R, alone.lwlrap_R):
        np.testing.assert_array_equal(np.isnan(figures), ~present)


def test_no_resamples_and_nothing_defined() -> None:
    scores, targets = scored()
    assert resampled_scores(scores, targets, resample(50, 0)).map_R.shape == (0,)
    assert resampled_retrieval(scores, targets, resample(50, 0)).shape == (0,)
    np.testing.assert_array_equal(mean_where_defined(np.array([[1.0, np.nan], [3.0, np.nan]])), [2.0, np.nan])


def spread(figure: Callable[[np.ndarray, np.ndarray], float], trials: int = 60) -> tuple[float, float]:
    """Mean and deviation of a figure over fresh test sets."""
    values = [figure(*scored(clips=120, seed=seed)) for seed in range(trials)]
    return float(np.mean(values)), float(np.std(values))


def test_the_resamples_centre_on_the_estimate_and_spread_like_fresh_test_sets() -> None:
    mean, deviation = spread(lambda scores, targets: mean_average_precision(scores, targets).value)
    bias, widths = [], []
    for seed in range(20):
        scores, targets = scored(clips=120, seed=seed)
        replicates = resampled_scores(scores, targets, resample(120, 200)).map_R
        bias.append(replicates.mean() - mean_average_precision(scores, targets).value)
        widths.append(replicates.std())
    # The plain bootstrap, which counts copies of a positive as further witnesses, is off by +0.016 here.
    assert abs(np.mean(bias)) < 0.005
    assert np.mean(widths) == pytest.approx(deviation, rel=0.2)
    assert 0.3 < mean < 0.6


def test_nan_is_refused() -> None:
    scores, targets = scored()
    scores[0, 0] = np.nan
    for function in (resampled_scores, resampled_retrieval):
        with pytest.raises(EvaluationError, match="NaN"):
            function(scores, targets, resample(50, 3))
