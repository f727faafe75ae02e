"""The time limit for nodes that have not joined yet; a real wait is in test_placed_run.py."""

import pytest

from sepscene.models.config import SepsceneError
from sepscene.orchestration.runtime.node_wait import DEFAULT_WAIT_SECONDS, WAIT_VARIABLE, _wait_limit


def test_the_limit_is_read_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for value, expected in (("", DEFAULT_WAIT_SECONDS), ("12.5", 12.5)):
        monkeypatch.setenv(WAIT_VARIABLE, value)
        assert _wait_limit() == expected


def test_a_limit_that_is_not_a_number_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(WAIT_VARIABLE, "15 min")
    with pytest.raises(SepsceneError, match="SEPSCENE_NODE_WAIT_SECONDS='15 min' is not a number"):
        _wait_limit()
