"""The ledger compared with a plain set of rows."""

from pathlib import Path

import numpy as np
import pytest

from sepscene.augment.locations import TEMPORARY
from sepscene.models.config import SepsceneError
from sepscene.orchestration.records.ledger import Ledger, nth_rows


def read(text: str, folder: Path) -> Ledger:
    """The ledger of a file with this text."""
    path = folder / "ledger.json"
    path.write_text(text)
    return Ledger.load(path)


def test_any_order_of_consumption_gives_the_same_ledger() -> None:
    order = np.random.default_rng(0).permutation(1000)
    ledger = Ledger(1200)
    seen = set()
    for rows in np.array_split(order, 37):
        ledger.consume(rows)
        seen.update(rows.tolist())
        left = {row for start, end in ledger.remaining() for row in range(start, end)}
        assert left == set(range(1200)) - seen and ledger.consumed == len(seen)
    assert ledger.intervals == [(0, 1000)] and ledger.remaining() == [(1000, 1200)]


@pytest.mark.parametrize("rows", [[4], [2, 3], [9, 9], [10], [-1]])
def test_a_duplicate_or_invalid_row_is_refused_and_changes_nothing(rows: list[int]) -> None:
    ledger = Ledger(10)
    ledger.consume(np.array([3, 4, 5]))
    with pytest.raises(ValueError, match=r"twice|inside"):
        ledger.consume(np.array(rows))
    assert ledger.intervals == [(3, 6)]


def test_repeated_rows_are_counted_in_a_ledger_that_was_written_elsewhere(tmp_path: Path) -> None:
    assert Ledger(10, [(0, 3), (5, 6)]).twice == 0
    assert read('{"rows": 10, "intervals": [[0, 5], [3, 7], [4, 6]], "quarantined": {}}', tmp_path).twice == 4


def test_json_round_trip(tmp_path: Path) -> None:
    ledger = Ledger(10, [(0, 3), (5, 6)], {"a.wav": "empty"})
    assert read(ledger.to_json(), tmp_path) == ledger


def test_nth_rows_indexes_the_concatenated_intervals() -> None:
    intervals = [(2, 4), (7, 8), (10, 13)]
    rows = nth_rows(intervals, np.arange(8), beyond=-1)
    assert rows.tolist() == [2, 3, 7, 10, 11, 12, -1, -1]
    assert nth_rows([], np.arange(2), beyond=-1).tolist() == [-1, -1]


@pytest.mark.parametrize("prefix", [TEMPORARY, "cannot be read at present"])  # the second: earlier versions
def test_rows_whose_clips_could_not_be_read_are_tried_again(prefix: str, tmp_path: Path) -> None:
    ledger = Ledger(20)
    ledger.consume(np.arange(12))
    ledger.quarantined = {"gone": f"{prefix}: no such file", "torn": "truncated"}
    ledger.skip(np.array([0, 5, 6, 11]), np.array([11, 5, 6]))
    ledger = read(ledger.to_json(), tmp_path)
    assert ledger.untrained == 4 and ledger.unread == [(5, 7), (11, 12)]
    again = ledger.without_unread_rows()
    assert again.remaining() == [(5, 7), (11, 20)] and again.untrained == 1
    assert again.quarantined == {"torn": "truncated"} and again.unread == []
    again.consume(np.array([5, 6, 11]))
    assert again.remaining() == [(12, 20)] and again.twice == 0
    assert Ledger(5).without_unread_rows() == Ledger(5)


def test_a_ledger_of_an_earlier_version_is_read(tmp_path: Path) -> None:
    assert read('{"rows": 5, "intervals": [[0, 2]], "quarantined": {}}', tmp_path) == Ledger(5, [(0, 2)])


@pytest.mark.parametrize("text", ['{"rows": 5, "quarantined": {}}', '{"rows": 5, "intervals": []}', '{"rows": -1}'])
def test_a_ledger_that_lacks_a_part_is_refused(text: str, tmp_path: Path) -> None:
    with pytest.raises(SepsceneError, match=r"ledger\.json .*continue the run with --resume"):
        read(text, tmp_path)
