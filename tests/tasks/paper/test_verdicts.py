"""The rule for verdicts: its error rates, its power, and clear cases."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from sepscene.tasks.evaluation.metrics import EvaluationError
from sepscene.tasks.evaluation.statistics import paired_t
from sepscene.tasks.paper.claims import PAPER_TABLES, decide_claims
from sepscene.tasks.paper.verdicts import LEVEL, MARGIN, Contrasted, contrasted, decide

SEEDS = 8
SPREAD = 0.012
STUDIES = 4_000
HIGH = LEVEL + 3 * np.sqrt(LEVEL * (1 - LEVEL) / STUDIES)  # three standard errors of a rate of 5 %: 0.060


def verdicts(true_C: tuple[float, ...], margin: float = 0.0, studies: int = STUDIES) -> dict[str, float]:
    """How often each verdict occurs for these true differences of the contrasts."""
    draw = np.random.default_rng(0).normal(true_C, SPREAD, (studies, SEEDS, len(true_C)))
    mean_SC = draw.mean(axis=1)
    error_SC = draw.std(axis=1, ddof=1) / np.sqrt(SEEDS)
    found = [
        decide([Contrasted(m, e, SEEDS, margin) for m, e in zip(means, errors, strict=True)], margin, True).verdict
        for means, errors in zip(mean_SC.tolist(), error_SC.tolist(), strict=True)
    ]
    return {name: found.count(name) / studies for name in ("supported", "contradicted", "equal", "undecided")}


@pytest.mark.parametrize(
    ("true_C", "wrong"),
    [
        ((0.0,), ("supported", "contradicted")),
        ((MARGIN,), ("equal", "contradicted")),
        ((-MARGIN,), ("equal", "supported")),
        ((0.0, 0.2, 0.2), ("supported",)),  # the least favourable case: one contrast on the edge, the others sure
        ((0.0, 0.0, 0.0), ("supported", "contradicted")),
        ((MARGIN, MARGIN, MARGIN), ("equal", "contradicted")),
        ((-MARGIN, 0.2, 0.2), ("equal", "supported")),
    ],
)
@pytest.mark.slow
def test_each_wrong_verdict_occurs_in_five_per_cent_at_most(true_C: tuple[float, ...], wrong: tuple[str, ...]) -> None:
    rates = verdicts(true_C)
    for verdict in wrong:
        assert rates[verdict] <= HIGH, (verdict, rates)


@pytest.mark.slow
def test_at_least_as_good_is_wrong_in_five_per_cent_at_most() -> None:
    rates = verdicts((-MARGIN,), margin=MARGIN)
    assert rates["supported"] <= HIGH and rates["contradicted"] <= HIGH


@pytest.mark.slow
def test_the_power_is_how_often_a_true_difference_is_found() -> None:
    found = Contrasted(0.0, SPREAD / np.sqrt(SEEDS), SEEDS, 0.0).power(MARGIN)
    assert found is not None
    # The standard error varies between studies; the mean of the studies' powers is close to this.
    assert verdicts((MARGIN,))["supported"] == pytest.approx(found, abs=0.03)


def test_clear_cases() -> None:
    def verdict(*values: float, margin: float = 0.0, complete: bool = True) -> str:
        return decide([Contrasted(value, 0.002, 16, margin) for value in values], margin, complete).verdict

    assert verdict(0.02, 0.03) == "supported"
    assert verdict(0.02, -0.02) == "contradicted"
    assert verdict(0.001, 0.03) == "equal" and verdict(0.0) == "equal"
    assert verdict(-0.012) == "contradicted" and verdict(-0.002, 0.03) == "equal"
    assert verdict(-0.003, margin=MARGIN) == "supported" and verdict(-0.02, margin=MARGIN) == "contradicted"
    assert verdict(0.02, complete=False) == "undecided" and verdict(-0.02, complete=False) == "contradicted"
    assert decide([], 0.0, False).verdict == "undecided"


def test_bonferroni_counts_the_contrasts_that_were_run() -> None:
    """p = 0.0146 (two-sided 0.029) contradicts with three contrasts, but not with seven."""
    value = -float(stats.t.isf(0.0146, 15)) * 0.002
    low = Contrasted(value, 0.002, 16, 0.0)
    sure = Contrasted(0.03, 0.002, 16, 0.0)
    assert decide([low, sure, sure], 0.0, complete=False).verdict == "contradicted"
    assert decide([low, *[sure] * 6], 0.0, complete=True).verdict != "contradicted"


def test_the_test_is_the_paired_t_test() -> None:
    a, b = np.random.default_rng(1).normal(0.3, 0.01, (2, 9))
    ours = contrasted(b - a)
    theirs = paired_t(a.tolist(), b.tolist())
    assert theirs.p == pytest.approx(2 * min(ours.p_above(0), ours.p_below(0)), rel=1e-12)
    assert ours.interval == pytest.approx((theirs.difference.low, theirs.difference.high), rel=1e-12)


def test_the_variance_over_test_clips_widens_the_interval() -> None:
    gain_N = np.random.default_rng(2).normal(0.01, 0.01, 16)
    clips_R = np.random.default_rng(3).normal(0.01, 0.006, 500)
    seeds = contrasted(gain_N)
    both = contrasted(gain_N, clips_R)
    assert seeds.error is not None and both.error is not None
    assert both.error**2 - seeds.error**2 == pytest.approx(np.var(clips_R, ddof=1), rel=1e-9)


def test_one_seed_and_no_spread() -> None:
    assert contrasted(np.array([0.1])).interval is None and "one seed" in contrasted(np.array([0.1])).words
    assert decide([contrasted(np.array([0.1]))], 0.0, True).verdict == "undecided"
    assert decide([contrasted(np.array([0.1, 0.1, 0.1]))], 0.0, True).verdict == "supported"
    with pytest.raises(EvaluationError, match="finite"):
        contrasted(np.array([0.1, np.nan]))


SMALL = st.one_of(st.sampled_from([0.0, MARGIN, -MARGIN, 1.0]), st.floats(-1, 1))


@settings(max_examples=80, deadline=None, derandomize=True)
@given(st.lists(st.lists(SMALL, min_size=1, max_size=4), min_size=1, max_size=3), st.booleans(), st.booleans())
def test_verdicts_follow_the_rules_for_any_differences(
    seeds: list[list[float]], complete: bool, tolerant: bool
) -> None:
    """With one seed, equal seeds, or differences on the margin: p is a probability, the interval contains its value,
    both directions are symmetric, and a single seed never decides."""
    margin = MARGIN if tolerant else 0.0
    found = [contrasted(np.array(values), margin=margin) for values in seeds]
    for contrast in found:
        for bound in (-MARGIN, 0.0, MARGIN):
            above = contrast.p_above(bound)
            below = contrast.p_below(bound)
            assert 0 <= above <= 1 and 0 <= below <= 1 and (contrast.error is None or above + below >= 1 - 1e-9)
        if contrast.interval is not None:
            assert contrast.interval[0] <= contrast.value <= contrast.interval[1]
        power = contrast.power(MARGIN)
        assert power is None or 0 <= power <= 1
        assert "nan" not in contrast.words
    decision = decide(found, margin, complete)
    assert 0 <= decision.lowest < len(found) and (decision.power is None or 0 <= decision.power <= 1)
    if all(contrast.error is None for contrast in found):
        assert decision.verdict == "undecided"
    if not complete:
        assert decision.verdict in ("contradicted", "undecided")


@settings(max_examples=30, deadline=None, derandomize=True)
@given(
    st.dictionaries(st.sampled_from([row.name for table in PAPER_TABLES.values() for row in table]),
                    st.dictionaries(st.integers(0, 3), SMALL, max_size=3), max_size=18),
    st.floats(0, 1),
)  # fmt: skip
def test_claims_are_decided_with_any_rows(metrics: dict[str, dict[int, float]], constant: float) -> None:
    """Including rows without seeds, seeds of a single row, and constant replicates."""
    replicates = {row: dict.fromkeys(seeds, [constant] * 5) for row, seeds in metrics.items()}
    for found in (decide_claims(metrics), decide_claims(metrics, replicates)):
        assert len(found) == 6
        for claim in found:
            assert claim.reason and "nan" not in claim.reason
            assert claim.verdict in ("supported", "contradicted", "equal", "undecided")


def test_words_have_real_minus_signs_and_no_p_of_zero() -> None:
    words = contrasted(np.array([-0.05, -0.0501, -0.0499, -0.05])).words
    assert words.startswith("−0.050 [−0.050, −0.050], p < 0.001 for below") and "-" not in words
