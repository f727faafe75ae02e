"""The simulation: properties that hold for any order of events, and cases with a closed form."""

from itertools import pairwise

import pytest

from benchmarks.simulation import Machine, Shape, balanced_gpus, limits, simulate, step_seconds

MACHINE = Machine(
    decode_seconds=0.003,
    stored_seconds=0.0005,
    separation_seconds=0.02,
    train_seconds=0.0002,
    block_seconds=0.002,
    gradient_bytes=3e8,
    link_bytes_per_second=10e9,
    store_bytes_per_second=5e9,
    scatter=0.0,
)
SHAPE = Shape(readers=64, separation_gpus=16, trainers=4, block_rows=64, global_batch=1024)
SHAPES = [
    SHAPE,
    SHAPE.changed({"separation_gpus": 256, "readers": 512}),
    SHAPE.changed({"readers": 1}),
    SHAPE.changed({"stored_share": 0.97, "trainers": 16}),
    SHAPE.changed({"stored_share": 1.0, "trainers": 64, "block_rows": 16}),
    SHAPE.changed({"stored_share": 1.0, "trainers": 64, "block_rows": 1024, "readers": 4096}),
]


@pytest.mark.parametrize("shape", SHAPES)
def test_without_scatter_the_lowest_limit_is_reached(shape):
    pace = simulate(MACHINE, shape)
    assert pace.limit == min(limits(MACHINE, shape).values())
    assert pace.limit == limits(MACHINE, shape)[pace.bottleneck]
    assert 0.93 * pace.limit < pace.rows_per_second <= pace.limit * (1 + 1e-9) + 1e-9


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("scatter", [0.1, 0.5])
def test_scatter_reduces_the_throughput_slightly(shape, scatter):
    pace = simulate(MACHINE.changed({"scatter": scatter}), shape, steps=200)
    assert (
        0.85 * pace.limit < pace.rows_per_second < 1.03 * pace.limit
    )  # 3 %: the mean of a finite sample is not exactly 1


def test_each_part_can_be_the_bottleneck():
    """One part at a time is made so slow that it must be the bottleneck; its limit is then known in closed form."""
    ample = SHAPE.changed({"separation_gpus": 256, "readers": 2000, "stored_share": 0.5})
    cases = {
        "readers": (MACHINE, ample.changed({"readers": 1}), 1 / (0.5 * 0.003 + 0.5 * 0.0005)),
        "separation": (MACHINE, ample.changed({"separation_gpus": 1}), 1 / (0.5 * 0.02)),
        "store": (MACHINE.changed({"store_bytes_per_second": 1e6}), ample, 1e6 / (0.5 * 78_000)),
        "coordinator": (MACHINE.changed({"block_seconds": 1.0}), ample, 64.0),
        "network": (MACHINE.changed({"link_bytes_per_second": 1e6}), ample, 4e6 / 61_440),
        "trainers": (MACHINE.changed({"train_seconds": 1.0}), ample, 4.0),
    }
    for name, (machine, shape, expected) in cases.items():
        machine = machine.changed({"gradient_bytes": 0.0})
        pace = simulate(machine, shape)
        assert pace.bottleneck == name
        assert pace.limit == pytest.approx(expected, rel=1e-3)
        assert pace.rows_per_second == pytest.approx(expected, rel=0.1)


def test_more_resources_never_slow_the_stream():
    for field, values in {"separation_gpus": (1, 2, 4, 8, 16, 64, 256), "readers": (1, 4, 16, 64, 256)}.items():
        rates = [simulate(MACHINE, SHAPE.changed({field: n})).rows_per_second for n in values]
        assert all(b >= a * (1 - 1e-9) for a, b in pairwise(rates))


def test_a_step_takes_the_time_of_its_rows_and_of_the_ring():
    assert step_seconds(MACHINE, SHAPE) == pytest.approx(256 * 0.0002 + 1.5 * 3e8 / 10e9)
    alone = SHAPE.changed({"trainers": 1})
    assert step_seconds(MACHINE, alone) == pytest.approx(1024 * 0.0002)


def test_the_balanced_number_of_gpus_keeps_trainers_busy():
    shape = SHAPE.changed({"readers": 512})
    gpus = balanced_gpus(MACHINE, shape) * shape.trainers
    enough = simulate(MACHINE, shape.changed({"separation_gpus": round(gpus) + 1}))
    half = simulate(MACHINE, shape.changed({"separation_gpus": round(gpus) // 2}))
    assert enough.trainer_busy > 0.9
    assert half.trainer_busy == pytest.approx(0.95 / 2, abs=0.03)
    assert half.separation_busy > 0.95
