"""How busy each stage of the stream is, which one sets the pace, and what to change.

Every row brings what it has cost on its way (`augment.blocks`), so the trainers know all about the stages before them
without asking anybody.

    readers ──queue──▶ separation actors ──queue──▶ trainers

A queue is measured by its waiting time: blocks that wait = blocks a second × seconds that each waits (Little's law).
"""

import math
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from augment.draws import FILLER
from models.config import Config
from orchestration.config import Experiment
from orchestration.placement import separates_live
from tasks.gather import sum_over_workers, world_size

ENOUGH = 0.1
"""Share of the trainers' time spent waiting from which on they are not the bottleneck."""

STORE_COUNTS = ("hits", "misses", "repairs")

_STARVED = 0.85  # a process on a CPU that gets less than this share of a core while it works shares it with others


_SUMS = (
    "seconds", "cpu", "waiting", "rows", "reading", "separating", "queued", "delivery", "read_bytes", "view_bytes",
    "hits", "misses", "repairs",
)  # fmt: skip
"""What each trainer adds up between two reports."""


class StreamBalance:
    """Adds up the costs that rows bring to one trainer, and gives figures for the whole stream."""

    def __init__(self, experiment: Experiment, device: torch.device) -> None:
        """Args: device: where the trainers' process group communicates."""
        self.experiment, self.device = experiment, device
        self.live = separates_live(experiment)
        self.stored = experiment.store.mode != "off" and experiment.views.pair != "mix-mix"
        self._start()

    def _start(self) -> None:
        self.begin, self.cpu_begin = time.perf_counter(), time.process_time()
        self.sums = dict.fromkeys(_SUMS, 0.0)

    def add(self, batch: dict[str, np.ndarray], waited_seconds: float) -> None:
        """Count a batch in that has just arrived, after so long a wait."""
        seen = {
            "waiting": waited_seconds,
            "rows": len(batch["row"]),
            "reading": batch["reading_seconds"].sum(),
            "separating": batch["separation_seconds"].sum(),
            "queued": batch["queued_seconds"].sum(),
            "delivery": np.maximum(time.time() - batch["made_at"], 0).sum(),
            "read_bytes": batch["read_bytes"].sum(),
            "view_bytes": batch["view_1"].nbytes + batch["view_2"].nbytes,
        }
        if self.stored:
            present_B = batch["row"] != FILLER
            seen |= counts_of_block({name: batch[name][present_B] for name in ("fault", "stored", "damaged")})
        for name, value in seen.items():
            self.sums[name] += float(value)

    def figures(self) -> dict[str, float]:
        """Figures of all stages since the last call, by `stage/quantity`. Collective: all trainers call it together.

        `busy`: share of a stage's processes at work, 0 to 1. `queue_blocks`: blocks behind a stage that wait for the
        next. `bytes_per_second`: what it hands on. `rows_per_second`: through the whole stream. `core_share`: how much
        of a core a trainer got while it worked. `store/…`: rows whose views came from the store (hits), had to be
        separated (misses), and of those the ones whose entry was damaged (repairs). `balance_seconds`: the time that
        all of this speaks of.
        """
        self.sums |= {"seconds": time.perf_counter() - self.begin, "cpu": time.process_time() - self.cpu_begin}
        local = torch.tensor([self.sums[name] for name in _SUMS], dtype=torch.float64, device=self.device)
        total = dict(zip(_SUMS, sum_over_workers(local).tolist(), strict=True))
        self._start()
        return self._told(total)

    def _told(self, total: dict[str, float]) -> dict[str, float]:
        resources = self.experiment.resources
        seconds, working = total["seconds"] / world_size(), max(total["seconds"] - total["waiting"], 1e-9)
        blocks = seconds * self.experiment.training.service_rows
        making, handed = total["reading"] + (0 if self.live else total["separating"]), "read_bytes"
        queued = total["queued"]
        if not self.live:
            handed, queued = "view_bytes", total["delivery"]
        told = {
            "balance_seconds": seconds,
            "rows_per_second": total["rows"] / seconds,
            "trainers/busy": working / total["seconds"],
            "trainers/core_share": total["cpu"] / working,
            "readers/busy": making / seconds / resources.readers,
            "readers/queue_blocks": queued / blocks,
            "readers/bytes_per_second": total[handed] / seconds,
        }
        if self.live:
            told |= {
                "separation/busy": total["separating"] / seconds / resources.separation_actors,
                "separation/queue_blocks": total["delivery"] / blocks,
                "separation/bytes_per_second": total["view_bytes"] / seconds,
            }
        return told | ({f"store/{name}": total[name] for name in STORE_COUNTS} if self.stored else {})


class Balance(Config):
    """The balance of a whole stage: means over its time, and the store's counts."""

    seconds: float
    rows_per_second: float
    busy: dict[str, float]
    """Stage ("readers", "separation", "trainers") -> share of its processes at work."""
    queue_blocks: dict[str, float]
    bytes_per_second: dict[str, float]
    core_share: float
    store: dict[str, int]
    """"hits", "misses", "repairs"; empty without a store."""

    @property
    def waiting(self) -> float:
        """Share of the trainers' time spent waiting for views."""
        return 1 - self.busy["trainers"]


def balance_of(records: Sequence[dict[str, Any]], stage: str) -> Balance | None:
    """The balance of a stage from the run's metrics; None where they hold none.

    Each record that tells of the balance speaks for the time since the one before; the first, which holds the start of
    all processes, only counts where it is the only one.
    """
    told = [record for record in records if record["stage"] == stage and "trainers/busy" in record]
    if not told:
        return None
    times = [float(record["balance_seconds"]) for record in told]
    settled = slice(1, None) if len(told) > 1 else slice(None)
    total = sum(times[settled])

    def mean(name: str) -> float:
        parts = zip(told[settled], times[settled], strict=True)
        return sum(float(record[name]) * seconds for record, seconds in parts) / max(total, 1e-9)

    def by_stage(quantity: str) -> dict[str, float]:
        names = [name.removesuffix(f"/{quantity}") for name in told[0] if name.endswith(f"/{quantity}")]
        return {name: mean(f"{name}/{quantity}") for name in names}

    return Balance(
        seconds=total,
        rows_per_second=mean("rows_per_second"),
        busy=by_stage("busy"),
        queue_blocks=by_stage("queue_blocks"),
        bytes_per_second=by_stage("bytes_per_second"),
        core_share=mean("trainers/core_share"),
        store=store_counts(told),
    )


def counts_of_block(block: dict[str, np.ndarray]) -> dict[str, int]:
    """Rows of a block that were in the store, that had to be separated, and of those the ones that were damaged."""
    usable_N, stored_N = block["fault"] == "", block["stored"]
    separated_N = usable_N & ~stored_N
    counts = (usable_N & stored_N, separated_N, separated_N & block["damaged"])
    return {name: int(np.count_nonzero(rows_N)) for name, rows_N in zip(STORE_COUNTS, counts, strict=True)}


def store_counts(records: Sequence[dict[str, Any]]) -> dict[str, int]:
    """What the SeparatedStore gave: rows by "hits", "misses" and "repairs" over all records; empty without a store."""
    return {
        name: round(sum(float(record.get(f"store/{name}", 0)) for record in records))
        for name in STORE_COUNTS
        if any(f"store/{name}" in record for record in records)
    }


def bottleneck(balance: Balance, experiment: Experiment) -> str:
    """Which stage sets the pace, and what to change, in one or two sentences."""
    resources, waiting = experiment.resources, balance.waiting
    waited = f"the trainers waited {waiting:.0%} of the time"
    on_cpus = not (resources.trainer_gpus or resources.separation_gpus)
    if on_cpus and balance.core_share < _STARVED:
        return (
            f"the CPU cores set the pace: the trainers got {balance.core_share:.0%} of a core each while they worked, "
            f"and {waited}; more processes won't help, more cores or store.mode=prefill will"
        )
    if waiting <= ENOUGH:
        spare = _spare(balance, experiment)
        return f"the trainers set the pace ({waited} only): add trainers (resources.trainers)" + spare
    stage = max((name for name in balance.busy if name != "trainers"), key=lambda name: balance.busy[name])
    field_name, count = {
        "separation": ("separation_actors", resources.separation_actors),
        "readers": ("readers", resources.readers),
    }[stage]
    busy = balance.busy[stage]
    if busy < 1 - 2 * ENOUGH:
        return (
            f"{waited}, though no stage was more than {busy:.0%} busy ({stage}): scheduling sets the pace; "
            "make blocks larger (training.service_rows)"
        )
    wanted = max(count + 1, math.ceil(count * busy / (1 - waiting)))
    said = (
        f"{stage} sets the pace: {count} of {count} {busy:.0%} busy, {waited}; add {wanted - count} "
        f"{'separation actor' if stage == 'separation' else 'reader'}{'s' if wanted - count > 1 else ''} "
        f"(resources.{field_name}: {count} → {wanted})"
    )
    return said + (", or separate once for all epochs (store.mode=prefill)" if stage == "separation" else "")


def _spare(balance: Balance, experiment: Experiment) -> str:
    """How many separation actors a run could do without."""
    if "separation" not in balance.busy:
        return ""
    count = experiment.resources.separation_actors
    needed = max(1, math.ceil(count * balance.busy["separation"] / (1 - ENOUGH)))
    return f"; {needed} of the {count} separation actors would do" if needed < count else ""
