"""The rests of the loop that drives a stream; what they are worth is in docs/log.md, with Ray itself."""

import time
from types import SimpleNamespace
from typing import Any

import pytest

from sepscene.orchestration.runtime.ray_compat import Rests


@pytest.fixture
def slept(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    seconds: list[float] = []
    monkeypatch.setattr(time, "sleep", seconds.append)
    return seconds


def executor(taken: int, ready: int) -> Any:
    """What the rests look at of Ray Data's executor."""
    operator = SimpleNamespace(metrics=SimpleNamespace(num_inputs_received=taken, num_outputs_taken=taken))
    return SimpleNamespace(_topology=[operator], _output_node=(operator, SimpleNamespace(output_queue=[None] * ready)))


def work(seconds: float = 0.02) -> None:
    """Use the processor, as a turn of the loop does."""
    until = time.thread_time() + seconds
    while time.thread_time() < until:
        pass


def test_a_turn_that_moved_blocks_is_followed_by_the_next_at_once(slept: list[float]) -> None:
    rests = Rests()
    for taken in (1, 2, 3):
        work()
        rests.on_execution_step(executor(taken, ready=0))
    assert slept == [0.0, 0.0, 0.0]


def test_a_turn_that_moved_none_has_its_share_of_a_core(slept: list[float]) -> None:
    rests = Rests()
    rests.on_execution_step(executor(1, ready=0))
    work()
    rests.on_execution_step(executor(1, ready=0))
    assert 0.02 / Rests.SHARE * 0.5 < slept[1] <= Rests.LONGEST_SECONDS


def test_turns_in_vain_rest_the_longer_the_more_there_are_in_a_row(slept: list[float]) -> None:
    rests = Rests()
    rests.on_execution_step(executor(1, ready=0))
    for taken in (1, 1, 2, 2):
        work(0.005)
        rests.on_execution_step(executor(taken, ready=0))
    _, first, second, moved, again = slept
    assert second > 1.5 * first > 0 and moved == 0 and again < 1.5 * first


def test_blocks_in_stock_let_it_rest_whatever_has_moved(slept: list[float]) -> None:
    rests = Rests()
    rests.on_execution_step(executor(10, ready=8))  # two consumed: the pace is known from here on
    work()
    rests.on_execution_step(executor(11, ready=9))
    assert slept[0] < 0.001 < slept[1] <= Rests.LONGEST_SECONDS
