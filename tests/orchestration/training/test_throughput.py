"""The balance of the stream: metrics from known costs, and the advice."""

import time

import numpy as np
import pytest
import torch

from sepscene.augment.draws import FILLER
from sepscene.augment.views import MIXTURE
from sepscene.orchestration.config import Experiment
from sepscene.orchestration.presets import named_experiment
from sepscene.orchestration.training.hooks import Step
from sepscene.orchestration.training.throughput import (
    ADVICE_REPORTS,
    STORE_COUNTS,
    StreamBalance,
    balance_line,
    balance_of,
    bottleneck,
)

GPUS = {"resources.separation_gpus": 1.0, "resources.trainer_gpus": 1.0}


def experiment(**changes: object) -> Experiment:
    """Two trainers, two separation actors, one reader, blocks of 8 rows."""
    return named_experiment("demo", "tiny").changed({"store.mode": "off", "training.service_rows": 8} | changes)


def batch(rows: int, made_seconds_ago: float = 0.0) -> dict[str, np.ndarray]:
    """Rows that took 1 ms to read and 10 ms to separate, and waited 20 ms in between; half were in the store."""
    return {
        "row": np.arange(rows),
        "fault": np.array([""] * rows, object),
        "reading_seconds": np.full(rows, 1e-3),
        "separation_seconds": np.full(rows, 1e-2),
        "queued_seconds": np.full(rows, 2e-2),
        "made_at": np.full(rows, time.time() - made_seconds_ago),
        "made_by": np.arange(rows) % 3,
        "read_bytes": np.full(rows, 1000),
        "view_1": np.zeros((rows, 50), np.int16),
        "view_2": np.zeros((rows, 50), np.int16),
        "stored": np.arange(rows) % 2 == 0,
        "damaged": np.arange(rows) == 1,
        "dropped": np.where(np.arange(rows) == 0, 7, 0),
        "channel_1": np.where(np.arange(rows) < 2, MIXTURE, 0),
        "channel_2": np.where(np.arange(rows) % 8 == 1, MIXTURE, 1),
    }


def balance_of_steps(settings: Experiment, seconds: float, rows: int) -> dict[str, float]:
    """Metrics of one trainer that consumed this many rows in this many seconds."""
    balance = StreamBalance(settings, torch.device("cpu"))
    balance.before_step(batch(rows, made_seconds_ago=0.5), waited_seconds=0.25 * seconds)
    balance.begin -= seconds
    return balance.metrics()


def test_metrics_follow_from_the_costs_in_rows() -> None:
    one = experiment(**{"resources.trainers": 1})
    metrics = balance_of_steps(one, seconds=4.0, rows=80)
    expected = {
        "balance_seconds": 4,
        "rows_per_second": 20,
        "trainers/busy": 0.75,
        "readers/busy": 80 * 1e-3 / 4,
        "separation/busy": 80 * 1e-2 / 4 / 2,
        "readers/queue_blocks": 2.5 * 0.02,  # 2.5 blocks per second, each waits 20 ms
        "separation/queue_blocks": 2.5 * 0.5,
        "readers/bytes_per_second": 20_000,
        "separation/bytes_per_second": 20 * 200,
        "readers/rows_per_second": 20,
        "separation/rows_per_second": 10,  # the other half was in the store
        "trainers/rows_per_second": 20,
        "views/silent_share": 1 / 8,
    }
    assert {name: metrics[name] for name in expected} == pytest.approx(expected, rel=0.02)
    assert not any(name.startswith("store/") for name in metrics)


def test_fillers_and_unusable_rows_are_not_counted() -> None:
    balance = StreamBalance(experiment(**{"resources.trainers": 1}), torch.device("cpu"))
    some = batch(8)
    some["row"][6:] = FILLER
    some["fault"][:2] = "torn"
    balance.before_step(some, waited_seconds=0.0)
    balance.begin -= 1.0
    metrics = balance.metrics()
    assert metrics["rows_per_second"] == pytest.approx(6, rel=0.02)
    assert metrics["separation/rows_per_second"] == pytest.approx(2, rel=0.02)  # rows 3 and 5
    assert metrics["views/silent_share"] == 0


def test_a_silent_channel_of_either_view_counts() -> None:
    both = balance_of_steps(experiment(**{"resources.trainers": 1, "views.pair": "chan-chan"}), seconds=4.0, rows=80)
    assert both["views/silent_share"] == pytest.approx(11 / 80)  # channel_2 of ten rows, channel_1 of one more
    none = balance_of_steps(experiment(**{"resources.trainers": 1, "views.pair": "mix-mix"}), seconds=4.0, rows=80)
    assert "views/silent_share" not in none and "separation/rows_per_second" not in none


def test_the_busy_share_of_an_elastic_pool_refers_to_its_present_actors() -> None:
    elastic = {"resources.trainers": 1, "resources.separation_actors": 8, "resources.separation_actors_min": 1}
    metrics = balance_of_steps(experiment(**elastic), seconds=4.0, rows=80)
    assert metrics["separation/actors"] == 3
    assert metrics["separation/busy"] == pytest.approx(80 * 1e-2 / 4 / 3, rel=0.02)
    stuck = measured(0.3, 0.99) | {"separation/actors": 1.0}
    advice = bottleneck(stuck, experiment(**GPUS | elastic))
    assert "1 of at most 8 actors 99% busy" in advice and "resources.separation_actors_min" in advice


def test_advice_is_given_during_the_run_when_the_bottleneck_changes() -> None:
    settings = experiment(**GPUS | {"resources.trainers": 1})
    balance = StreamBalance(settings, torch.device("cpu"))

    def report(waiting: float, separating: float) -> str:
        busy = batch(80) | {"separation_seconds": np.full(80, separating * 4.0 * 2 / 80)}
        balance.before_step(busy, waited_seconds=4.0 * waiting)
        balance.begin -= 4.0
        balance.metrics()
        return balance.advice()

    starts = [report(0.99, 0.1)]
    slow = [report(0.5, 0.97) for _ in range(2 * ADVICE_REPORTS)]
    fixed = [report(0.02, 0.4) for _ in range(ADVICE_REPORTS)]
    assert starts == [""]
    assert [n for n, advice in enumerate(slow) if advice] == [ADVICE_REPORTS - 1]  # once, not again
    assert "separation is the bottleneck" in slow[ADVICE_REPORTS - 1]
    assert fixed[:-1] == [""] * (ADVICE_REPORTS - 1) and "the trainers are the bottleneck" in fixed[-1]


def test_a_line_gives_the_balance_of_every_stage() -> None:
    assert balance_line({"stage": "separator", "step": 5}) == ""
    metrics = balance_of_steps(experiment(**{"resources.trainers": 1}), seconds=4.0, rows=80)
    exact = {"readers/queue_blocks": 0.1, "separation/queue_blocks": 1.2}
    line = balance_line({name: float(f"{value:.2g}") for name, value in metrics.items()} | exact)
    assert line == (
        "readers 20 rows/s, 2% busy, 0.1 blocks wait, 20 kB/s; "
        "separation 10 rows/s, 10% busy, 1.2 blocks wait, 4 kB/s; "
        "trainers 20 rows/s, 75% busy, waiting 25%"
    )


def test_with_a_prefilled_store_there_is_no_separation() -> None:
    filled = experiment(**{"resources.trainers": 1, "store.mode": "prefill"})
    metrics = balance_of_steps(filled, seconds=4.0, rows=80)
    assert metrics["readers/busy"] == pytest.approx(80 * 1.1e-2 / 4, rel=0.02)
    assert "separation/busy" not in metrics
    assert [metrics[f"store/{name}"] for name in STORE_COUNTS] == [40, 40, 1, 7]


def test_the_first_record_includes_the_start_and_is_left_out() -> None:
    record = {"stage": "pretrain", "store/hits": 10.0, "trainers/core_share": 1.0, "rows_per_second": 10.0}
    records = [
        record | {"trainers/busy": busy, "balance_seconds": seconds, "separation/busy": 0.5}
        for busy, seconds in ((0.1, 60.0), (0.8, 1.0), (0.5, 3.0))
    ]
    balance = balance_of([*records, {"stage": "other", "step": 1}], "pretrain")
    assert balance["trainers/busy"] == pytest.approx((0.8 + 3 * 0.5) / 4)
    assert {name for name in balance if name.startswith("store/")} == {"store/hits"} and balance["store/hits"] == 30
    assert balance_of(records[:1], "pretrain")["trainers/busy"] == pytest.approx(0.1)
    assert balance_of([{"stage": "pretrain", "step": 1}], "pretrain") == {}


def measured(trainers: float, separation: float, readers: float = 0.2, core: float = 1.0) -> dict[str, float]:
    """A balance with these busy shares."""
    busy = {"readers/busy": readers, "separation/busy": separation, "trainers/busy": trainers}
    return {"rows_per_second": 30, "trainers/core_share": core, **busy}


@pytest.mark.parametrize(
    ("balance", "advice"),
    [
        (measured(0.5, 0.99), "add 2 separation actors (resources.separation_actors: 2 → 4), or separate once"),
        (measured(0.85, 0.99), "add 1 separation actor (resources.separation_actors: 2 → 3)"),
        (measured(0.6, 0.5, readers=0.97), "add 1 reader (resources.readers: 1 → 2)"),
        (measured(0.5, 0.4), "use larger blocks (training.service_rows)"),
        (measured(0.97, 0.9), "raise resources.trainers"),
        (measured(0.97, 0.3), "1 of the 2 separation actors would be enough"),
    ],
)
def test_the_advice_names_the_stage_and_the_number(balance: dict[str, float], advice: str) -> None:
    assert advice in bottleneck(balance, experiment(**GPUS))


def test_more_processes_are_not_advised_when_cores_are_short() -> None:
    assert "more cores" in bottleneck(measured(0.5, 0.99, core=0.6), experiment())
    assert "add 2 separation actors" in bottleneck(measured(0.5, 0.99, core=1.0), experiment())


def test_a_full_store_is_reported_once() -> None:
    """The report lists the events of a run."""
    stream = StreamBalance(experiment(**{"store.mode": "read-through"}), torch.device("cpu"))
    events: list[str] = []
    for dropped in (0, 3, 5):
        rows = batch(16)
        rows["dropped"] = np.array([dropped, *[0] * 15])
        stream.before_step(rows, 0.0)
        step = Step(1, reported=True)
        stream.after_step(step)
        events += [event for event in step.events if event.startswith("the store")]
    (only,) = events
    assert only.startswith("the store did not keep 3 separated clips, because it or its disk is full")
