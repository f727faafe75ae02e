"""Intervals and tests against closed forms, scipy, and their error rates under the null hypothesis."""

import numpy as np
import pytest
from scipy import stats

from sepscene.tasks.evaluation.metrics import EvaluationError
from sepscene.tasks.evaluation.resampling import resample
from sepscene.tasks.evaluation.statistics import bootstrap_interval, paired_bootstrap, paired_t, t_interval


def test_the_t_interval_is_the_textbooks() -> None:
    values = [0.30, 0.34, 0.29, 0.33]
    found = t_interval(values)
    low, high = stats.t.interval(0.95, 3, loc=np.mean(values), scale=stats.sem(values))
    assert (found.value, found.low, found.high, found.count) == pytest.approx((np.mean(values), low, high, 4))
    assert found.method == "95 % t over 4 seeds"


def test_one_seed_has_no_interval() -> None:
    alone = t_interval([0.3])
    assert (alone.value, alone.low, alone.high) == (0.3, None, None) and "one seed" in alone.method
    assert paired_t([0.3], [0.4]).p is None


def test_the_paired_t_test_is_scipys() -> None:
    a = [0.30, 0.34, 0.29, 0.33]
    b = [0.33, 0.35, 0.33, 0.34]
    found = paired_t(a, b)
    assert found.p == pytest.approx(stats.ttest_rel(b, a).pvalue)
    assert found.difference.value == pytest.approx(np.mean(b) - np.mean(a))
    assert (found.p < 0.05) == (found.difference.low > 0)  # the interval and the test agree


def test_equal_and_constantly_different_runs() -> None:
    assert paired_t([0.1, 0.2, 0.3], [0.1, 0.2, 0.3]).p == 1.0
    assert paired_t([0.1, 0.2, 0.3], [0.2, 0.3, 0.4]).p == 0.0  # rounding errors of the differences are not spread


def test_two_seeds_without_spread_prove_nothing() -> None:
    for b in ([0.2, 0.3], [0.1, 0.2]):
        found = paired_t([0.1, 0.2], b)
        assert found.p is None and "no p" in found.null and "run a third" in found.null
        assert (found.difference.low, found.difference.high, found.difference.count) == (None, None, 2)
    assert t_interval([0.3, 0.3]).low is None
    assert paired_t([0.1, 0.2], [0.2, 0.31]).p == pytest.approx(stats.ttest_rel([0.2, 0.31], [0.1, 0.2]).pvalue)


def test_metrics_over_seeds_must_be_numbers() -> None:
    for bad in ([], [0.1, float("nan")], [float("inf")]):
        with pytest.raises(EvaluationError, match="finite"):
            t_interval(bad)
    with pytest.raises(EvaluationError, match="the same seeds"):
        paired_t([0.1], [0.1, 0.2])


def test_the_bootstrap_interval_of_a_mean_is_the_normal_one() -> None:
    values = np.random.default_rng(0).standard_normal(2000)
    replicates = values @ resample(2000, 2000) / 2000
    found = bootstrap_interval(values.mean(), replicates, 2000)
    half = 1.96 * values.std() / 2000**0.5
    assert found.low == pytest.approx(values.mean() - half, abs=0.1 * half)
    assert found.high == pytest.approx(values.mean() + half, abs=0.1 * half)
    assert found.method == "95 % bootstrap over clips, 2000 resamples" and found.count == 2000


def test_undefined_resamples_are_left_out_and_counted() -> None:
    replicates = np.array([np.nan, 0.2, 0.4, np.nan])
    found = bootstrap_interval(0.3, replicates, 10)
    assert (found.low, found.high) == pytest.approx((0.205, 0.395))
    assert "2 resamples (2 undefined ones left out)" in found.method
    with pytest.raises(EvaluationError, match="undefined in all 4 resamples"):
        bootstrap_interval(0.3, np.full(4, np.nan), 10)
    none = bootstrap_interval(0.3, np.zeros(0), 10)
    assert (none.value, none.low, none.high) == (0.3, None, None)


def test_paired_bootstrap_detects_what_independent_intervals_do_not() -> None:
    draw = np.random.default_rng(0)
    a = draw.standard_normal(200)
    b = a + 0.1 + 0.1 * draw.standard_normal(200)  # clips differ a lot, runs a little but consistently
    weights = resample(200, 1000) / 200
    found = paired_bootstrap(a.mean(), b.mean(), a @ weights, b @ weights, 200)
    assert found.p == pytest.approx(1 / 1001)  # the smallest possible with 1000 resamples
    assert found.difference.low is not None and found.difference.low > 0
    alone_a, alone_b = (bootstrap_interval(x.mean(), x @ weights, 200) for x in (a, b))
    assert alone_a.high is not None and alone_b.low is not None and alone_a.high > alone_b.low


def test_paired_bootstrap_of_a_run_with_itself() -> None:
    replicates = np.random.default_rng(0).random(100)
    assert paired_bootstrap(0.5, 0.5, replicates, replicates, 10).p == 1.0
    with pytest.raises(EvaluationError, match="use the same resamples for both"):
        paired_bootstrap(0.5, 0.5, replicates, replicates[:50], 10)
    nothing = paired_bootstrap(0.5, 0.6, np.zeros(0), np.zeros(0), 10)
    assert nothing.p is None and nothing.difference.value == pytest.approx(0.1)


def test_under_the_null_hypothesis_p_is_uniform() -> None:
    draw = np.random.default_rng(0)
    found = []
    for trial in range(300):
        weights = resample(100, 200, seed=trial) / 100
        a, b = draw.standard_normal((2, 100))
        found.append(paired_bootstrap(a.mean(), b.mean(), a @ weights, b @ weights, 100).p)
    share = np.mean(np.array(found) < 0.05)
    assert share == pytest.approx(0.05, abs=0.03)
    assert np.mean(np.array(found) < 0.5) == pytest.approx(0.5, abs=0.08)
