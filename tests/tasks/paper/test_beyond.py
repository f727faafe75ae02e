"""Rows that are not in the paper are compared with their reference row over shared seeds."""

import pytest
from scipy import stats

from sepscene.tasks.paper.beyond import BEYOND, beyond_results


def test_gain_is_paired_over_shared_seeds_and_rows_not_run_are_left_out() -> None:
    row = BEYOND[0]
    metrics = {row.name: {0: 0.30, 1: 0.33, 2: 0.31}, row.reference: {0: 0.28, 2: 0.30, 3: 0.9}}
    (found,) = beyond_results(metrics)
    assert found.row is row and found.test is not None
    assert found.ours.value == pytest.approx((0.30 + 0.33 + 0.31) / 3)
    assert found.test.difference.value == pytest.approx(0.015)
    assert found.test.p == pytest.approx(stats.ttest_rel([0.30, 0.31], [0.28, 0.30]).pvalue)


def test_without_a_shared_seed_there_is_no_gain() -> None:
    row = BEYOND[0]
    (found,) = beyond_results({row.name: {0: 0.3}, row.reference: {1: 0.3}})
    assert found.test is None
    assert beyond_results({row.reference: {0: 0.3}}) == ()
