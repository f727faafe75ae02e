"""Confidence intervals of metrics, and tests of whether two runs differ.

Legend: R resamples.

Two sources of randomness are kept apart: the bootstrap over clips is for statements about one encoder, the t statistics
over seeds for those about a method (docs/reading_results.md, Intervals).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from sepscene.tasks.evaluation.metrics import EvaluationError, Floats

LEVEL = 0.95  # of all confidence intervals
ROUNDING = 1e-12  # smaller differences are rounding errors


@dataclass(frozen=True)
class Interval:
    """A metric with its 95 % interval.

    Attributes:
        value: the metric itself.
        low, high: ends of the interval; None if there is no interval, e.g. for a single seed.
        count: number of clips or seeds.
        method: how the interval was computed, as text for a report.
    """

    value: float
    low: float | None
    high: float | None
    count: int
    method: str


@dataclass(frozen=True)
class PairedTest:
    """Whether run B differs from run A on the same clips or the same seeds.

    Attributes:
        difference: B minus A, with its 95 % interval.
        p: two-sided; None if there is no test, e.g. for a single seed.
        null: the null hypothesis of p.
    """

    difference: Interval
    p: float | None
    null: str


def bootstrap_interval(value: float, replicates_R: Floats, clips: int) -> Interval:
    """The percentile interval of a metric from its resamples (`tasks.evaluation.resampling`).

    It always contains the metric itself: if all resamples are on one side of it (scores that are all equal, a single
    positive clip), the interval is extended to it. Resamples in which the metric is undefined (NaN: no class had a
    positive) are left out and counted in `method`.

    Raises:
        EvaluationError: the metric is undefined in every resample.
    """
    defined = _defined(replicates_R)
    if len(defined) == 0:
        return Interval(value, None, None, clips, "no interval: no resamples")
    low, high = np.quantile(defined, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    undefined = len(replicates_R) - len(defined)
    note = f" ({undefined} undefined ones left out)" if undefined else ""
    method = f"95 % bootstrap over clips, {len(defined)} resamples{note}"
    return Interval(value, min(float(low), value), max(float(high), value), clips, method)


def paired_bootstrap(
    value_a: float, value_b: float, replicates_a_R: Floats, replicates_b_R: Floats, clips: int
) -> PairedTest:
    """Test B against A on the same clips. Both use the same resamples, so effects of the clips on both cancel out.

    p is the share of resamples whose difference deviates from the measured difference by at least the size of the
    measured difference: the bootstrap distribution shifted to the null hypothesis. (A permutation test that swaps the
    scores of the two runs clip by clip would be invalid: clips are ranked against each other, and the scores of two
    runs have different scales.) The smallest possible p is 1 / (R + 1).

    Raises:
        EvaluationError: the numbers of replicates differ, or the difference is undefined in every resample.
    """
    if len(replicates_a_R) != len(replicates_b_R):
        raise EvaluationError(
            f"{len(replicates_a_R)} resamples of A and {len(replicates_b_R)} of B: use the same resamples for both"
        )
    difference = value_b - value_a
    differences_R = replicates_b_R - replicates_a_R
    defined = _defined(differences_R)
    extreme = np.abs(defined - difference) >= abs(difference) - ROUNDING
    p = float((1 + extreme.sum()) / (1 + len(defined))) if len(defined) else None
    interval = bootstrap_interval(difference, differences_R, clips)
    return PairedTest(interval, p, "both encoders rank clips of this kind equally well")


def t_interval(values: Sequence[float]) -> Interval:
    """Mean over seeds with Student's t interval.

    There is no interval for one seed, or for two seeds with equal values, because these do not show how much seeds
    differ.

    Raises:
        EvaluationError: there are no values, or values are not finite.
    """
    numbers = _finite(values)
    mean = float(numbers.mean())
    count = len(numbers)
    if count == 1:
        return Interval(mean, None, None, 1, "no interval: one seed")
    error = stats.sem(numbers)
    if count == 2 and error < ROUNDING:
        return Interval(mean, None, None, 2, "no interval: two seeds without any spread; run a third")
    half = float(stats.t.ppf((1 + LEVEL) / 2, count - 1) * error)
    return Interval(mean, mean - half, mean + half, count, f"95 % t over {count} seeds")


def paired_t(values_a: Sequence[float], values_b: Sequence[float]) -> PairedTest:
    """Test B against A over seeds: values at the same position were trained with the same seed.

    p and the interval are None for one seed, and for two seeds with equal differences; `null` then states this. With
    three or more seeds and equal differences, p is 0, or 1 if all differences are 0.

    Raises:
        EvaluationError: the numbers of seeds differ, or values are not finite.
    """
    if len(values_a) != len(values_b):
        raise EvaluationError(
            f"{len(values_a)} seeds of A and {len(values_b)} of B: a paired test needs the same seeds"
        )
    differences = _finite(values_b) - _finite(values_a)
    interval = t_interval(differences.tolist())
    null = "over seeds, both runs have the same mean"
    if interval.low is None:
        return PairedTest(interval, None, f"{null} (no p and {interval.method})")
    if stats.sem(differences) < ROUNDING:
        return PairedTest(interval, 1.0 if abs(interval.value) < ROUNDING else 0.0, null)
    return PairedTest(interval, float(stats.ttest_rel(values_b, values_a).pvalue), null)


def format_p(p: float) -> str:
    """`p = 0.012`; `p < 0.001` if three digits would show zero."""
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}"


def _defined(replicates_R: Floats) -> Floats:
    """The replicates that are not NaN; an error if all are."""
    defined = replicates_R[~np.isnan(replicates_R)]
    if len(replicates_R) and not len(defined):
        raise EvaluationError(
            f"the metric is undefined in all {len(replicates_R)} resamples: too few positives; evaluate "
            "on more clips or fewer classes"
        )
    return defined


def _finite(values: Sequence[float]) -> Floats:
    """The values as float64; an error if there are none, or any is not finite."""
    numbers = np.asarray(values, dtype=np.float64)
    if numbers.size == 0 or not np.isfinite(numbers).all():
        raise EvaluationError(f"metrics over seeds must be one or more finite numbers, got {list(values)}")
    return numbers
