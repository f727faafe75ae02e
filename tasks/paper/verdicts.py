"""The rule that decides a claim about differences between rows, and the statistical power of the design.

Shapes: N seeds, R resamples of the test clips.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import stats

from sepscene.tasks.evaluation.metrics import EvaluationError, Floats
from sepscene.tasks.evaluation.statistics import ROUNDING, format_p

Verdict = Literal["supported", "contradicted", "equal", "undecided"]

LEVEL = 0.05  # largest probability of each wrong verdict (see `decide`)
MARGIN = 0.01
"""Difference in mAP within which two rows count as equal."""


@dataclass(frozen=True)
class Contrasted:
    """A difference between two rows, over seeds.

    The tests use Student's t distribution directly, because `error` includes the spread over test clips; scipy's
    `ttest_1samp` computes its own error from the values over seeds.

    Attributes:
        value: the mean difference.
        error: its standard error, from the spread over seeds and, if known, over test clips; None for one seed, and
            for two without any spread.
        seeds: number of seeds.
        margin: the claim states that the difference is above -margin.
    """

    value: float
    error: float | None
    seeds: int
    margin: float

    def p_above(self, bound: float) -> float:
        """One-sided p of "the true difference is above the bound"; 1 without a standard error."""
        if self.error is None:
            return 1.0
        if self.error < ROUNDING:
            return 0.0 if self.value > bound + ROUNDING else 1.0
        return float(stats.t.sf((self.value - bound) / self.error, self.seeds - 1))

    def p_below(self, bound: float) -> float:
        """One-sided p of "the true difference is below the bound"; 1 without a standard error."""
        return Contrasted(-self.value, self.error, self.seeds, self.margin).p_above(-bound)

    @property
    def interval(self) -> tuple[float, float] | None:
        """95 % interval of Student's t; None without a standard error."""
        if self.error is None:
            return None
        half = float(stats.t.ppf(0.975, self.seeds - 1)) * self.error
        return self.value - half, self.value + half

    @property
    def words(self) -> str:
        """For example "+0.012 [−0.003, +0.021], p = 0.012, 16 seeds"."""
        if self.interval is None:
            return f"{signed(self.value)}, {'one seed' if self.seeds == 1 else 'two seeds without any spread'}, no test"
        low, high = self.interval
        null = f" against −{self.margin:g}" if self.margin else ""
        p = self.p_above(-self.margin)
        side = format_p(p) if p <= 0.5 else f"{format_p(1 - p)} for below"
        return f"{signed(self.value)} [{signed(low)}, {signed(high)}], {side}{null}, {self.seeds} seeds"

    def power(self, difference: float) -> float | None:
        """Probability that a test at `LEVEL` detects such a true difference, with this spread and this many seeds."""
        if self.error is None or self.error < ROUNDING:
            return None
        critical = stats.t.ppf(1 - LEVEL, self.seeds - 1)
        return float(stats.nct.sf(critical, self.seeds - 1, difference / self.error))


@dataclass(frozen=True)
class Decision:
    """A verdict, the index of the lowest contrast, and the lowest power to detect a difference of `MARGIN`."""

    verdict: Verdict
    lowest: int
    power: float | None


def signed(value: float) -> str:
    """+0.012 or −0.003, with a minus sign."""
    return f"{value:+.3f}".replace("-", "−")


def contrasted(difference_N: Floats, clips_R: Floats | None = None, margin: float = 0.0) -> Contrasted:
    """The difference of two rows from its values over seeds.

    Args:
        difference_N: one value per seed.
        clips_R: the mean over seeds on each resample of the test clips. All seeds share these clips, so their effect
            does not average out over seeds: its variance is added to the variance of the mean over seeds.
        margin: see `Contrasted`.

    Raises:
        EvaluationError: there are no values, or values are not finite.
    """
    if not len(difference_N) or not np.isfinite(difference_N).all():
        raise EvaluationError(f"differences over seeds must be one or more finite numbers, got {difference_N.tolist()}")
    count = len(difference_N)
    value = float(np.mean(difference_N))
    spread = float(np.std(difference_N, ddof=1)) if count > 1 else 0.0
    if count <= 2 and spread < ROUNDING:
        return Contrasted(value, None, count, margin)
    clips = float(np.std(clips_R, ddof=1)) if clips_R is not None else 0.0
    return Contrasted(value, float(np.hypot(spread / np.sqrt(count), clips)), count, margin)


def decide(run: Sequence[Contrasted], margin: float, complete: bool) -> Decision:
    """The verdict on "the smallest true difference is above -margin".

    Each of three wrong verdicts has a probability of at most `LEVEL`: supported when the smallest true difference is
    not above -margin, contradicted when it is not below it, equal when it is not within `MARGIN` of 0.

    Args:
        run: the contrasts that were run.
        margin: 0, or `MARGIN` for "at least as good".
        complete: whether these are all contrasts of the claim; otherwise it can only be contradicted.
    """
    if not run:
        return Decision("undecided", 0, None)
    lowest = int(np.argmin([contrast.value for contrast in run]))
    powers = [contrast.power(MARGIN) for contrast in run]
    power = min((power for power in powers if power is not None), default=None)
    one_of_many = LEVEL / len(run)
    verdict: Verdict = "undecided"
    if complete and all(contrast.p_above(-margin) < LEVEL for contrast in run):
        verdict = "supported"
    elif any(contrast.p_below(-margin) < one_of_many for contrast in run):
        verdict = "contradicted"
    elif (
        complete
        and all(contrast.p_above(-MARGIN) < LEVEL for contrast in run)
        and any(contrast.p_below(MARGIN) < one_of_many for contrast in run)
    ):
        verdict = "equal"
    return Decision(verdict, lowest, power)
