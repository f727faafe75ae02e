"""Progress: lines at intervals in a log, a bar on a terminal, and the most important metrics."""

import contextlib
import io

from rich.console import Console

from sepscene.orchestration.reports.progress import Terms, progress

STEP = {"stage": "pretrain", "step": 5, "loss": 5.851, "similarity": 4.5, "coincidence": 1.35, "waiting_share": 0.031}


class Log(Console):
    """A console that is not a terminal, with its own clock."""

    def __init__(self) -> None:
        self.now = 1000.0
        super().__init__(file=io.StringIO(), width=60, get_time=lambda: self.now)

    def lines(self) -> list[str]:
        """The printed lines, with single spaces."""
        return [" ".join(line.split()) for line in self.file.getvalue().splitlines()]


def test_a_log_gets_lines_at_intervals() -> None:
    log = Log()
    with progress(log, "pretrain-mix-chan", 600) as shown:
        for done in range(10, 110, 10):
            log.now += 10
            shown.update(done, f"loss {5 - done / 100:.2f}")
        shown.event("worker group failed (worker 1), restarting")
        log.now += 5
    assert log.lines() == [
        "pretrain-mix-chan 0/600 0:00:00",
        "pretrain-mix-chan 30/600 0:00:30 0:09:30 left loss 4.70",
        "pretrain-mix-chan 60/600 0:01:00 0:09:00 left loss 4.40",
        "pretrain-mix-chan 90/600 0:01:30 0:08:30 left loss 4.10",
        "pretrain-mix-chan: worker group failed (worker 1), restarting",
        "pretrain-mix-chan 600/600 0:01:45 loss 4.00",
    ]


def test_the_remaining_time_does_not_depend_on_the_start_of_processes() -> None:
    """The first of 600 steps came after 42 s, and the log once gave a remaining time of seven hours, not 5 minutes."""
    log = Log()
    with progress(log, "pretrain-mix-chan", 600) as shown:
        log.now += 42
        shown.update(1)  # the first step is reported immediately, then several at a time
        for reported in range(1, 121, 5):
            log.now += 2.5
            for step in range(reported + 1, reported + 6):
                shown.update(step)
    lines = log.lines()
    assert lines[1] == "pretrain-mix-chan 1/600 0:00:42"
    assert lines[2] == "pretrain-mix-chan 57/600 0:01:12 0:04:51 left"
    assert lines[3] == "pretrain-mix-chan 117/600 0:01:42 0:04:10 left"


def test_a_continued_stage_starts_at_its_earlier_progress() -> None:
    log = Log()
    with progress(log, "pretrain-mix-chan", 600, start=300) as shown:
        for done in (310, 320, 330):
            log.now += 15
            shown.update(done)
    lines = log.lines()
    assert lines[0] == "pretrain-mix-chan 300/600 0:00:00"
    assert lines[1] == "pretrain-mix-chan 320/600 0:00:30 0:07:00 left"  # 10 in 15 s, 280 to go


def test_a_failed_stage_is_not_shown_as_complete() -> None:
    out = io.StringIO()
    with contextlib.suppress(ValueError), progress(Console(file=out), "scenes", 5) as shown:
        shown.update(2)
        raise ValueError
    assert "5/5" not in out.getvalue()


def test_a_terminal_gets_a_bar() -> None:
    out = io.StringIO()
    with progress(Console(file=out, force_terminal=True, width=100), "scenes", 5) as shown:
        shown.update(2, "loss 1.00")
        shown.event("something happened")
    assert "━" in out.getvalue()
    assert "5/5" in out.getvalue()
    assert "something happened" in out.getvalue()


def test_metrics_that_are_not_in_each_record_are_kept() -> None:
    terms = Terms(100)
    terms.update({**STEP, "effective_rank": 23.4, "examples_per_second": 41.2})
    terms.update({"stage": "pretrain", "step": 5, "validation_knn_map": 0.3126})
    text = terms.update({**STEP, "loss": 5.0})
    assert text == "loss 5.00  41/s  waiting 3%  sim 4.50  coin 1.35  val mAP 0.313  rank 23"


def test_a_narrow_terminal_gets_the_most_important_metrics() -> None:
    assert Terms(22).update(STEP) == "loss 5.85  waiting 3%"
    assert Terms(0).update(STEP) == "loss 5.85"
    assert Terms(80).update({"stage": "separator", "mixit_loss": -4.0}) == "loss -4.00"
    assert Terms(80).update({"stage": "evaluate"}) == ""
