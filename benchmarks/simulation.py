"""Simulation of the stream on large clusters, with 1 to 256 separation GPUs and 1 to 64 trainers.

A discrete-event simulation of how Ray Data and the trainers process blocks of rows:

    readers ─▶ separation actors ─▶ coordinator ─▶ trainers, in synchronous steps
       ╰──── the store's bandwidth                    ╰──── each trainer's network

Blocks keep their order, the number of blocks in flight is limited, and stage times vary randomly. Because the order is
kept, the time of each event is computed block by block from earlier ones with a maximum and a sum, without an event
queue.
"""

import heapq
from dataclasses import dataclass

import numpy as np
from pydantic import Field

from sepscene.models.config import Config


class Machine(Config):
    """The speed of one unit of each kind. Times are seconds per row, on one reader, separation GPU or trainer."""

    decode_seconds: float = Field(gt=0, description="for a reader to decode one clip")
    stored_seconds: float = Field(gt=0, description="for a reader to read the views of one row from the store")
    separation_seconds: float = Field(gt=0, description="for a GPU to separate one clip")
    train_seconds: float = Field(gt=0, description="for a trainer to train one row")
    block_seconds: float = Field(ge=0, description="for the driver to schedule one block through all stages")
    gradient_bytes: float = Field(ge=0, description="that trainers exchange in each step")
    link_bytes_per_second: float = Field(gt=0, description="network bandwidth of one trainer")
    store_bytes_per_second: float = Field(
        gt=0, description="bandwidth of the store's filesystem for all readers together"
    )
    scatter: float = Field(0.1, ge=0, lt=1, description="relative standard deviation of a block's stage time")


class Shape(Config):
    """The size of the cluster and of blocks and batches."""

    readers: int = Field(ge=1)
    separation_gpus: int = Field(ge=1)
    trainers: int = Field(ge=1)
    block_rows: int = Field(ge=1, description="training.service_rows")
    global_batch: int = Field(ge=1, description="training.global_batch")
    stored_share: float = Field(0.0, ge=0, le=1, description="share of rows whose views come from the store")
    live_row_bytes: int = Field(381_000, ge=0, description="in the object store, for a row that is separated")
    stored_row_bytes: int = Field(123_000, ge=0, description="in the object store, for a row from the SeparatedStore")
    read_bytes: int = Field(78_000, ge=0, description="read from the SeparatedStore for one row: two crops")
    views_bytes: int = Field(61_440, ge=0, description="of both views of a row, sent to a trainer")


@dataclass(frozen=True)
class Throughput:
    """The simulated throughput.

    Attributes:
        rows_per_second: of the trainers, in the steady state.
        trainer_busy, separation_busy: shares of the time that they are busy.
        store_bytes_per_second, object_bytes_per_second: bandwidths used at this throughput.
        bottleneck: the stage with the lowest limit.
        limit: the limit of the bottleneck, in rows per second: an upper bound of the throughput.
    """

    rows_per_second: float
    trainer_busy: float
    separation_busy: float
    store_bytes_per_second: float
    object_bytes_per_second: float
    bottleneck: str
    limit: float


def step_seconds(machine: Machine, shape: Shape) -> float:
    """Seconds of one optimiser step: the rows of each trainer, then the ring all-reduce of the gradients."""
    ring = 2 * (shape.trainers - 1) / shape.trainers * machine.gradient_bytes / machine.link_bytes_per_second
    return shape.global_batch / shape.trainers * machine.train_seconds + ring


def limits(machine: Machine, shape: Shape) -> dict[str, float]:
    """The maximum throughput of each part alone, in rows per second."""
    live = 1 - shape.stored_share
    reading = live * machine.decode_seconds + shape.stored_share * machine.stored_seconds
    unlimited = float("inf")
    return {
        "readers": shape.readers / reading,
        "separation": shape.separation_gpus / (live * machine.separation_seconds) if live else unlimited,
        "store": machine.store_bytes_per_second / (shape.stored_share * shape.read_bytes)
        if shape.stored_share
        else unlimited,
        "coordinator": shape.block_rows / machine.block_seconds if machine.block_seconds else unlimited,
        "network": shape.trainers * machine.link_bytes_per_second / max(1, shape.views_bytes),
        "trainers": shape.global_batch / step_seconds(machine, shape),
    }


def simulate(machine: Machine, shape: Shape, steps: int = 60, seed: int = 0) -> Throughput:
    """Simulate `steps` optimiser steps, after a warm-up of a third as many."""
    warm_up = steps // 3
    ends = _step_ends(machine, shape, warm_up + steps, seed)
    seconds = ends[-1] - ends[warm_up - 1] if warm_up else ends[-1]
    rate = steps * shape.global_batch / seconds
    live = 1 - shape.stored_share
    all_limits = limits(machine, shape)
    bottleneck = min(all_limits, key=lambda name: all_limits[name])
    return Throughput(
        rows_per_second=rate,
        trainer_busy=rate / all_limits["trainers"],
        separation_busy=rate / all_limits["separation"],
        store_bytes_per_second=rate * shape.stored_share * shape.read_bytes,
        object_bytes_per_second=rate * (live * shape.live_row_bytes + shape.stored_share * shape.stored_row_bytes),
        bottleneck=bottleneck,
        limit=all_limits[bottleneck],
    )


def _step_ends(machine: Machine, shape: Shape, steps: int, seed: int) -> np.ndarray:
    """The end time of each step. The heaps hold the times at which each reader and each actor becomes free."""
    rng = np.random.default_rng(seed)
    per_step = -(-shape.global_batch // shape.block_rows)
    blocks = steps * per_step
    rows = shape.global_batch / per_step
    stored_B = rng.binomial(round(rows), shape.stored_share, blocks)
    live_B = rows - stored_B
    scatter_2B = _scatter(rng, machine.scatter, (2, blocks))
    reading_B = (live_B * machine.decode_seconds + stored_B * machine.stored_seconds) * scatter_2B[0]
    separating_B = live_B * machine.separation_seconds * scatter_2B[1]
    serving_B = stored_B * shape.read_bytes / machine.store_bytes_per_second
    sending = rows * shape.views_bytes / machine.link_bytes_per_second
    in_flight = shape.readers + 2 * shape.separation_gpus + per_step  # one batch is prefetched
    step = step_seconds(machine, shape)
    readers = [0.0] * shape.readers
    actors = [0.0] * shape.separation_gpus
    links = [0.0] * shape.trainers
    started = np.zeros(blocks)
    store_free = coordinator_free = 0.0
    ends = np.zeros(steps)
    for block in range(blocks):
        room = started[block - in_flight] if block >= in_flight else 0.0
        begin = max(heapq.heappop(readers), room)
        store_free = max(store_free, begin) + serving_B[block]
        read = max(begin + reading_B[block], store_free)
        heapq.heappush(readers, read)
        separated = max(heapq.heappop(actors), read) + separating_B[block]
        heapq.heappush(actors, separated)
        coordinator_free = max(coordinator_free, separated) + machine.block_seconds  # in order
        trainer = block % shape.trainers
        links[trainer] = max(links[trainer], coordinator_free) + sending
        number = block // per_step
        if block % per_step == per_step - 1:
            begin = max(max(links), ends[number - 1] if number else 0.0)
            started[number * per_step : block + 1] = begin
            ends[number] = begin + step
    return ends


def _scatter(rng: np.random.Generator, deviation: float, shape: tuple[int, ...]) -> np.ndarray:
    """Positive random factors with mean 1, from a gamma distribution."""
    if not deviation:
        return np.ones(shape)
    return rng.gamma(deviation**-2, deviation**2, shape)


def balanced_gpus(machine: Machine, shape: Shape, busy: float = 0.95) -> float:
    """The number of separation GPUs per trainer that keeps the trainers busy.

    Args:
        busy: share of their time that the trainers should be busy.
    """
    trainers = limits(machine, shape)["trainers"]
    return busy * trainers * (1 - shape.stored_share) * machine.separation_seconds / shape.trainers
