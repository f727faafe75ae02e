"""How busy each stage of the stream is, which one sets the pace, and what to change.

Every row brings what it has cost on its way (`augment.separation.blocks`), so the trainers know all about the stages
before them without asking anybody.

    readers ──queue──▶ separation actors ──queue──▶ trainers

A queue is measured by its waiting time: blocks that wait = blocks per second × seconds that each waits (Little's law).
"""

import math
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from sepscene.augment.draws import FILLER
from sepscene.augment.views import MIXTURE
from sepscene.orchestration.config import Experiment
from sepscene.orchestration.formatting import quantity
from sepscene.orchestration.runtime.placement import separates_live
from sepscene.orchestration.training.hooks import Batch, Hook, Step, usable_rows
from sepscene.tasks.distributed.gather import gather_ids, sum_over_workers, world_size

ENOUGH = 0.1
"""Share of the trainers' time spent waiting from which on they are not the bottleneck."""

STORE_COUNTS = ("hits", "misses", "repairs", "dropped")

_MEANS = ("rows_per_second", "readers/", "separation/", "trainers/", "views/")
"""How the names of metrics begin that are averaged over a stage."""

_STARVED = 0.85  # a process on a CPU that gets less than this share of a core while it works shares it with others

ADVICE_REPORTS = 6
"""Reports whose mean says what sets the pace now."""


class StreamBalance(Hook):
    """Adds up the costs that rows bring to one trainer, and gives metrics for the whole stream."""

    def __init__(self, experiment: Experiment, device: torch.device) -> None:
        """Args: device: where the trainers' process group communicates."""
        self.experiment = experiment
        self.device = device
        self.live = separates_live(experiment)
        self.separates = experiment.views.separates
        self.stored = self.separates and experiment.store.mode != "off"
        self.elastic = self.live and experiment.resources.separation_actors_min is not None
        self.started = False
        self.last = list[dict[str, float]]()
        self.paced_by = ""
        self.store_is_full = False  # and this was said
        self._start()

    def _start(self) -> None:
        self.begin = time.perf_counter()
        self.cpu_begin = time.process_time()
        self.sums: dict[str, float] = defaultdict(float)
        """What this trainer adds up between two reports; all trainers have the same names."""
        self.actors: set[int] = set()

    def after_step(self, step: Step) -> None:
        """Add the metrics to a step that is reported, and an advice when another stage sets the pace."""
        if not step.reported:
            return
        step.metrics |= self.metrics()
        advice = self.advice()
        step.events += [advice] if advice else []
        dropped = step.metrics.get("store/dropped", 0)
        if dropped and not self.store_is_full:
            step.events.append(
                f"the store did not keep {dropped:.0f} separated clips: it or its disk is full; they are separated "
                "again when they are needed; make room, or raise store.settings.max_bytes"
            )
        self.store_is_full = self.store_is_full or dropped > 0

    def before_step(self, batch: Batch, waited_seconds: float) -> None:
        """Count a batch in that has just arrived, after so long a wait."""
        present_B = batch["row"] != FILLER
        usable_B = usable_rows(batch)
        seen = {
            "waiting": waited_seconds,
            "rows": present_B.sum(),
            "usable": usable_B.sum(),
            "separated": (usable_B & ~batch["stored"].astype(bool)).sum(),
            "reading": batch["reading_seconds"].sum(),
            "separating": batch["separation_seconds"].sum(),
            "queued": batch["queued_seconds"].sum(),
            "delivery": np.maximum(time.time() - batch["made_at"], 0).sum(),
            "read_bytes": batch["read_bytes"].sum(),
            "view_bytes": batch["view_1"].nbytes + batch["view_2"].nbytes,
        }
        if self.separates:
            seen["silent"] = (usable_B & _silent(batch, self.experiment.views.pair)).sum()
        if self.elastic:
            self.actors.update(batch["made_by"].tolist())
        if self.stored:
            present = {name: batch[name][present_B] for name in ("fault", "stored", "damaged")}
            seen |= counts_of_block({**present, "dropped": batch["dropped"]})
        for name, value in seen.items():
            self.sums[name] += float(value)

    def metrics(self) -> dict[str, float]:
        """Metrics of all stages since the last call, by `stage/quantity`. Collective: all trainers call it together.

        `busy`: share of a stage's processes at work, 0 to 1. `queue_blocks`: blocks behind a stage that wait for the
        next. `bytes_per_second`: what it hands on. `rows_per_second`: through a stage; through separation only those
        that were not in the store. `core_share`: how much of a core a trainer got while it worked.
        `separation/actors`: how many of an elastic pool were at work. `views/silent_share`: share of the usable rows
        in which the mixture stands for a channel, because no channel was audible. `store/…`: rows whose views came
        from the store (hits), had to be separated (misses), and of those the ones whose entry was damaged (repairs);
        separated clips that the store did not keep (dropped).
        `balance_seconds`: the time that all of this speaks of.
        """
        self.sums |= {"seconds": time.perf_counter() - self.begin, "cpu": time.process_time() - self.cpu_begin}
        local = torch.tensor(list(self.sums.values()), dtype=torch.float64, device=self.device)
        total = dict(zip(self.sums, sum_over_workers(local).tolist(), strict=True))
        found = self._means(total, self._actors())
        self._start()
        if self.started:  # the first report holds the start of all processes
            self.last.append(found)
        self.started = True
        return found

    def advice(self) -> str:
        """What sets the pace of the last reports and what to change, when it is another stage than before; else ""."""
        if len(self.last) < ADVICE_REPORTS:
            return ""
        balance = _mean_of(self.last)
        self.last = []
        before = self.paced_by
        self.paced_by = pace_setter(balance, self.experiment)
        return "" if self.paced_by == before else bottleneck(balance, self.experiment)

    def _actors(self) -> int:
        """Separation actors that made the rows; of an elastic pool nobody else knows how many there are."""
        counts = self.experiment.resources.separation_counts
        if not self.elastic:
            return counts[-1]
        numbers = gather_ids(torch.tensor(sorted(self.actors), dtype=torch.int64, device=self.device))
        return min(max(len(set(numbers)), counts[0]), counts[-1])

    def _means(self, total: dict[str, float], actors: int) -> dict[str, float]:
        resources = self.experiment.resources
        seconds = total["seconds"] / world_size()
        working = max(total["seconds"] - total["waiting"], 1e-9)
        blocks = seconds * self.experiment.training.service_rows
        found = {
            "balance_seconds": seconds,
            "rows_per_second": total["rows"] / seconds,
            "trainers/rows_per_second": total["rows"] / seconds,
            "readers/rows_per_second": total["rows"] / seconds,
            "trainers/busy": working / total["seconds"],
            "trainers/core_share": total["cpu"] / working,
        }
        if self.live:
            found |= {
                "readers/busy": total["reading"] / seconds / resources.readers,
                "readers/queue_blocks": total["queued"] / blocks,
                "readers/bytes_per_second": total["read_bytes"] / seconds,
                "separation/rows_per_second": total["separated"] / seconds,
                "separation/busy": total["separating"] / seconds / actors,
                "separation/queue_blocks": total["delivery"] / blocks,
                "separation/bytes_per_second": total["view_bytes"] / seconds,
            }
        else:
            found |= {
                "readers/busy": (total["reading"] + total["separating"]) / seconds / resources.readers,
                "readers/queue_blocks": total["delivery"] / blocks,
                "readers/bytes_per_second": total["view_bytes"] / seconds,
            }
        if self.elastic:
            found["separation/actors"] = actors
        if self.separates:
            found["views/silent_share"] = total["silent"] / max(1.0, total["usable"])
        return found | ({f"store/{name}": total[name] for name in STORE_COUNTS} if self.stored else {})


def _silent(batch: dict[str, np.ndarray], pair: str) -> np.ndarray:
    """Rows in which the mixture stands where a channel should, because all channels left were silent."""
    second_B: np.ndarray = batch["channel_2"] == MIXTURE
    return second_B | (batch["channel_1"] == MIXTURE) if pair == "chan-chan" else second_B


def balance_of(records: Sequence[dict[str, Any]], stage: str) -> dict[str, float]:
    """The balance of a whole stage from the run's metrics; empty where they hold none.

    Names are those of `StreamBalance.metrics`: means over the stage's time, and sums of the store's counts.

    Each record that tells of the balance speaks for the time since the one before; the first, which holds the start of
    all processes, only counts where it is the only one.
    """
    found = [record for record in records if record["stage"] == stage and "trainers/busy" in record]
    if not found:
        return {}
    return _mean_of(found[1:] or found) | {f"store/{name}": count for name, count in store_counts(found).items()}


def _mean_of(found: Sequence[dict[str, Any]]) -> dict[str, float]:
    """The mean of what all reports tell of the stages, each weighted by the time that it speaks of."""
    times = [float(record["balance_seconds"]) for record in found]
    total = max(sum(times), 1e-9)
    means = {}
    for name in found[0]:
        if name.startswith(_MEANS) and all(name in record for record in found):
            parts = zip(found, times, strict=True)
            means[name] = sum(float(record[name]) * seconds for record, seconds in parts) / total
    return means


def waiting_share(balance: Mapping[str, float]) -> float:
    """Share of the trainers' time spent waiting for views."""
    return 1 - balance["trainers/busy"]


def balance_line(record: Mapping[str, Any]) -> str:
    """The balance of every stage in one line, from a record that tells of it; empty for another."""
    parts = []
    for stage in ("readers", "separation", "trainers"):
        if f"{stage}/busy" not in record:
            continue
        words = [f"{stage} {record[f'{stage}/rows_per_second']:.3g} rows/s", f"{record[f'{stage}/busy']:.0%} busy"]
        if stage == "trainers":
            words.append(f"waiting {1 - record['trainers/busy']:.0%}")
        else:
            moved = quantity(float(record[f"{stage}/bytes_per_second"]))
            words += [f"{record[f'{stage}/queue_blocks']:.1f} blocks wait", f"{moved}B/s"]
        parts.append(", ".join(words))
    return "; ".join(parts)


def counts_of_block(block: dict[str, np.ndarray]) -> dict[str, int]:
    """Rows of a block that were in the store, that had to be separated, and of those the ones that were damaged; also
    the separated clips that the store did not keep."""
    usable_N = block["fault"] == ""
    stored_N = block["stored"]
    separated_N = usable_N & ~stored_N
    rows = {"hits": usable_N & stored_N, "misses": separated_N, "repairs": separated_N & block["damaged"]}
    counts = {name: int(np.count_nonzero(rows_N)) for name, rows_N in rows.items()}
    return {**counts, "dropped": int(block["dropped"].sum())}


def store_counts(records: Sequence[dict[str, Any]]) -> dict[str, int]:
    """What the SeparatedStore did over all records: rows by "hits", "misses" and "repairs", and separated clips
    "dropped"; empty without a store."""
    return {
        name: round(sum(float(record.get(f"store/{name}", 0)) for record in records))
        for name in STORE_COUNTS
        if any(f"store/{name}" in record for record in records)
    }


def pace_setter(balance: Mapping[str, float], experiment: Experiment) -> str:
    """What sets the pace: "cores", "trainers", "separation", "readers" or "scheduling"."""
    resources = experiment.resources
    on_cpus = not (resources.trainer_gpus or resources.separation_gpus)
    if on_cpus and balance["trainers/core_share"] < _STARVED:
        return "cores"
    if waiting_share(balance) <= ENOUGH:
        return "trainers"
    stage = _busiest(balance)
    return "scheduling" if balance[f"{stage}/busy"] < 1 - 2 * ENOUGH else stage


def _busiest(balance: Mapping[str, float]) -> str:
    """The busiest of the stages before the trainers."""
    stages = [stage for stage in ("readers", "separation") if f"{stage}/busy" in balance]
    return max(stages, key=lambda stage: balance[f"{stage}/busy"])


def bottleneck(balance: Mapping[str, float], experiment: Experiment) -> str:
    """Which stage sets the pace, and what to change, in one or two sentences."""
    resources = experiment.resources
    waiting = waiting_share(balance)
    waited = f"the trainers waited {waiting:.0%} of the time"
    started = round(balance.get("separation/actors", resources.separation_actors))
    setter = pace_setter(balance, experiment)
    if setter == "cores":
        return (
            f"the CPU cores set the pace: the trainers got {balance['trainers/core_share']:.0%} of a core each while "
            f"they worked, and {waited}; more processes won't help, more cores or store.mode=prefill will"
        )
    if setter == "trainers":
        said = f"the trainers set the pace ({waited} only): add trainers (resources.trainers)"
        # Where nothing is separated live, there are none to spare.
        needed = max(1, math.ceil(started * balance.get("separation/busy", 1) / (1 - ENOUGH)))
        return said + (f"; {needed} of the {started} separation actors would do" if needed < started else "")
    stage = _busiest(balance)
    busy = balance[f"{stage}/busy"]
    if setter == "scheduling":
        return (
            f"{waited}, though no stage was more than {busy:.0%} busy ({stage}): scheduling sets the pace; "
            "make blocks larger (training.service_rows)"
        )
    if stage == "separation" and started < resources.separation_actors:
        return (
            f"separation sets the pace: {started} actors {busy:.0%} busy, {waited}, and Ray has added no more of the "
            f"{resources.separation_actors} allowed; start with more (resources.separation_actors_min)"
        )
    process = "separation actor" if stage == "separation" else "reader"
    field_name = f"{process.replace(' ', '_')}s"
    count: int = getattr(resources, field_name)
    wanted = max(count + 1, math.ceil(count * busy / (1 - waiting)))
    said = (
        f"{stage} sets the pace: {count} of {count} {busy:.0%} busy, {waited}; add {wanted - count} "
        f"{process}{'s' if wanted - count > 1 else ''} (resources.{field_name}: {count} → {wanted})"
    )
    return said + (", or separate once for all epochs (store.mode=prefill)" if stage == "separation" else "")
