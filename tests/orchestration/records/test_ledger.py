"""The ledger against a plain set of rows."""

import numpy as np
import pytest

from sepscene.orchestration.records.ledger import Ledger, nth_rows


def test_any_order_of_consumption_gives_the_same_ledger() -> None:
    order = np.random.default_rng(0).permutation(1000)
    ledger, seen = Ledger(1200), set()
    for rows in np.array_split(order, 37):
        ledger.consume(rows)
        seen.update(rows.tolist())
        left = {row for start, end in ledger.remaining() for row in range(start, end)}
        assert left == set(range(1200)) - seen and ledger.consumed == len(seen)
    assert ledger.intervals == [(0, 1000)] and ledger.remaining() == [(1000, 1200)]


@pytest.mark.parametrize("rows", [[4], [2, 3], [9, 9], [10], [-1]])
def test_a_row_twice_or_outside_is_refused_and_changes_nothing(rows: list[int]) -> None:
    ledger = Ledger(10)
    ledger.consume(np.array([3, 4, 5]))
    with pytest.raises(ValueError, match=r"twice|inside"):
        ledger.consume(np.array(rows))
    assert ledger.intervals == [(3, 6)]


def test_rows_twice_are_counted_in_a_ledger_that_somebody_else_wrote() -> None:
    assert Ledger(10, [(0, 3), (5, 6)]).twice == 0
    assert Ledger.from_json('{"rows": 10, "intervals": [[0, 5], [3, 7], [4, 6]], "quarantined": {}}').twice == 4


def test_json_round_trip() -> None:
    ledger = Ledger(10, [(0, 3), (5, 6)], {"a.wav": "empty"})
    assert Ledger.from_json(ledger.to_json()) == ledger


def test_nth_rows_walks_the_intervals() -> None:
    intervals = [(2, 4), (7, 8), (10, 13)]
    rows = nth_rows(intervals, np.arange(8), beyond=-1)
    assert rows.tolist() == [2, 3, 7, 10, 11, 12, -1, -1]
    assert nth_rows([], np.arange(2), beyond=-1).tolist() == [-1, -1]
