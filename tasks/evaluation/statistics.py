"""Intervals and tests: how sure a metric is, and whether two runs differ.

Legend: R resamples.

Two kinds of chance are kept apart. The bootstrap over clips asks "what if other clips had been in the test
set?" for one trained encoder; the t statistics over seeds ask "what if the encoder had been trained
again?". A statement about a method needs seeds; a statement about an encoder needs clips.

What a bootstrap interval is about: the metric to expect on another test set of the same size and kind.
Average precision of a handful of positives lies above that of infinitely many, so intervals of small test
sets must not be compared with metrics of large ones.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from sepscene.tasks.evaluation.metrics import EvaluationError, Floats

LEVEL = 0.95
ROUNDING = 1e-12  # differences below this are noise of the arithmetic


@dataclass(frozen=True)
class Interval:
    """A metric with its 95 % interval.

    Attributes:
        value: the metric itself.
        low, high: ends of the interval; None where one measurement gives none.
        count: clips or seeds behind it.
        method: how the interval was made, in words for a report.
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
        p: two-sided; None where one measurement gives none.
        null: what p is the probability under.
    """

    difference: Interval
    p: float | None
    null: str


def bootstrap_interval(value: float, replicates_R: Floats, clips: int) -> Interval:
    """The percentile interval of a metric from its resamples (`tasks.evaluation.resampling`).

    It always holds the metric itself: where resamples lie to one side of it (scores that are all equal, a single
    positive clip), the interval ends there instead. Resamples in which the metric is undefined (NaN: no class had a
    positive) are left out and counted in `method`.

    Raises:
        EvaluationError: when the metric is undefined in every resample.
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
    """Test B against A on the same clips: both metrics on the same resamples, so that the clips' own luck cancels.

    p is the share of resamples whose difference strays from the measured one by at least the measured one's
    size: the bootstrap distribution moved to the null. (Swapping the two runs' scores clip by clip would be
    no test here: ranks go across clips, and scores of two runs share no scale.) The smallest possible p is
    1 / (R + 1).

    Raises:
        EvaluationError: when the replicates differ in number or are undefined everywhere.
    """
    if len(replicates_a_R) != len(replicates_b_R):
        raise EvaluationError(f"{len(replicates_a_R)} resamples of A and {len(replicates_b_R)} of B: pair them first")
    difference = value_b - value_a
    differences_R = replicates_b_R - replicates_a_R
    defined = _defined(differences_R)
    extreme = np.abs(defined - difference) >= abs(difference) - ROUNDING
    p = float((1 + extreme.sum()) / (1 + len(defined))) if len(defined) else None
    interval = bootstrap_interval(difference, differences_R, clips)
    return PairedTest(interval, p, "both encoders rank clips of this kind equally well")


def t_interval(values: Sequence[float]) -> Interval:
    """Mean over seeds with Student's t interval; none from one seed, nor from two that agree to the last digit: that
    says nothing about how far seeds lie apart.

    Raises:
        EvaluationError: for no values, or values that are not finite.
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
    """Test B against A over seeds: values at the same place were trained with the same seed.

    p and the interval are None from one seed, and from two whose differences are equal; `null` says so. With three
    or more seeds equal differences are no chance: p is 0, or 1 where all of them are 0.

    Raises:
        EvaluationError: when the runs differ in number, or values are not finite.
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


def p_in_words(p: float) -> str:
    """`p = 0.012`; a smaller one than three digits show is `p < 0.001`."""
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}"


def _defined(replicates_R: Floats) -> Floats:
    """The replicates that are not NaN; an error where all are."""
    defined = replicates_R[~np.isnan(replicates_R)]
    if len(replicates_R) and not len(defined):
        raise EvaluationError(
            f"the metric is undefined in all {len(replicates_R)} resamples: too few positives; evaluate "
            "on more clips or fewer classes"
        )
    return defined


def _finite(values: Sequence[float]) -> Floats:
    """The values as float64; an error where there is none, or one is not finite."""
    numbers = np.asarray(values, dtype=np.float64)
    if numbers.size == 0 or not np.isfinite(numbers).all():
        raise EvaluationError(f"metrics over seeds must be finite numbers, at least one: got {list(values)}")
    return numbers
