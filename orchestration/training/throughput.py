"""Measures how busy each stage of the stream is, finds the bottleneck, and advises what to change.

Every row contains the time that each stage has spent on it (`augment.separation.blocks`), so the trainers can compute
the metrics of all stages from their own rows.

    readers ──queue──▶ separation actors ──queue──▶ trainers

The length of a queue follows from its waiting time: blocks that wait = blocks per second × seconds that each waits
(Little's law).

Shapes: B rows of a block, N rows with a property that is counted.
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

WAITING_LIMIT = 0.1
"""Up to this share of their time spent waiting, the trainers are the bottleneck."""

STORE_COUNTS = ("hits", "misses", "repairs", "dropped")

_AVERAGED = ("rows_per_second", "readers/", "separation/", "trainers/", "views/")
"""Prefixes of the metrics that are averaged over a stage."""

_CORE_SHARE_LIMIT = 0.85
"""Below this share of a core while it works, a trainer on a CPU shares its core with other processes."""

ADVICE_REPORTS = 6
"""Number of reports over which the metrics are averaged to find the bottleneck."""


class StreamBalance(Hook):
    """Sums the costs in the rows of one trainer, and computes metrics for the whole stream."""

    def __init__(self, experiment: Experiment, device: torch.device) -> None:
        """Args: device: where the trainers' process group communicates."""
        self.experiment = experiment
        self.device = device
        self.live = separates_live(experiment)
        self.elastic = self.live and experiment.resources.separation_actors_min is not None
        self.started = False
        self.last = list[dict[str, float]]()
        self.bottleneck = ""
        self.store_is_full = False  # and was reported
        self._start()

    def _start(self) -> None:
        self.begin = time.perf_counter()
        self.cpu_begin = time.process_time()
        self.sums: dict[str, float] = defaultdict(float)
        """Sums of this trainer since the last report; all trainers have the same names."""
        self.actors: set[int] = set()

    def after_step(self, step: Step) -> None:
        """Add the metrics to a reported step, and advice as an event when the bottleneck has changed."""
        if not step.reported:
            return
        step.metrics |= self.metrics()
        advice = self.advice()
        if advice:
            step.events.append(advice)
        dropped = step.metrics.get("store/dropped", 0)
        if dropped and not self.store_is_full:
            step.events.append(
                f"the store did not keep {dropped:.0f} separated clips, because it or its disk is full; they will be "
                "separated again when needed. Make room, or raise store.settings.max_bytes"
            )
        self.store_is_full = self.store_is_full or dropped > 0

    def before_step(self, batch: Batch, waited_seconds: float) -> None:
        """Add the costs of a batch that has arrived after this waiting time."""
        present_B = batch["row"] != FILLER
        usable_B = usable_rows(batch)
        present = {name: batch[name][present_B] for name in ("fault", "stored", "damaged")}
        costs = {
            "waiting": waited_seconds,
            "rows": present_B.sum(),
            "usable": usable_B.sum(),
            "silent": (usable_B & _silent(batch, self.experiment.views.pair)).sum(),
            "reading": batch["reading_seconds"].sum(),
            "separating": batch["separation_seconds"].sum(),
            "queued": batch["queued_seconds"].sum(),
            "delivery": np.maximum(time.time() - batch["made_at"], 0).sum(),
            "read_bytes": batch["read_bytes"].sum(),
            "view_bytes": batch["view_1"].nbytes + batch["view_2"].nbytes,
            **counts_of_block(present | {"dropped": batch["dropped"]}),
        }
        if self.elastic:
            self.actors.update(batch["made_by"].tolist())
        for name, value in costs.items():
            self.sums[name] += float(value)

    def metrics(self) -> dict[str, float]:
        """Metrics of all stages since the last call, by `stage/quantity`. Collective: all trainers call it together.

        - `busy`: share of a stage's processes that were busy, 0 to 1.
        - `queue_blocks`: blocks that wait between a stage and the next.
        - `bytes_per_second`: output of a stage.
        - `rows_per_second`: rows through a stage; through separation, only those that were not in the store.
        - `core_share`: share of a core that a trainer got while it worked.
        - `separation/actors`: number of actors of an elastic pool that were busy.
        - `views/silent_share`: share of the usable rows whose view is the mixture because no channel was audible.
        - `store/…`: rows whose views came from the store (hits) or had to be separated (misses), misses whose entry was
          damaged (repairs), and separated clips that the store did not keep (dropped).
        - `balance_seconds`: the time over which all of these are measured.
        """
        self.sums |= {"seconds": time.perf_counter() - self.begin, "cpu": time.process_time() - self.cpu_begin}
        local = torch.tensor(list(self.sums.values()), dtype=torch.float64, device=self.device)
        total = dict(zip(self.sums, sum_over_workers(local).tolist(), strict=True))
        metrics = self._rates(total, self._actors())
        self._start()
        if self.started:  # the first report includes the start of all processes
            self.last.append(metrics)
        self.started = True
        return metrics

    def advice(self) -> str:
        """The bottleneck in the last reports and what to change; empty if the bottleneck is the same as before."""
        if len(self.last) < ADVICE_REPORTS:
            return ""
        balance = _mean_of(self.last)
        self.last = []
        before = self.bottleneck
        self.bottleneck, advice = _diagnosis(balance, self.experiment)
        return "" if self.bottleneck == before else advice

    def _actors(self) -> int:
        """Number of separation actors; of an elastic pool, those that computed the rows since the last report."""
        counts = self.experiment.resources.separation_counts
        if not self.elastic:
            return counts[-1]
        numbers = gather_ids(torch.tensor(sorted(self.actors), dtype=torch.int64, device=self.device))
        return min(max(len(set(numbers)), counts[0]), counts[-1])

    def _rates(self, total: dict[str, float], actors: int) -> dict[str, float]:
        """The metrics from the sums of all trainers."""
        resources = self.experiment.resources
        seconds = total["seconds"] / world_size()
        working = max(total["seconds"] - total["waiting"], 1e-9)
        blocks = seconds * self.experiment.training.service_rows
        rates = {
            "balance_seconds": seconds,
            "rows_per_second": total["rows"] / seconds,
            "trainers/rows_per_second": total["rows"] / seconds,
            "readers/rows_per_second": total["rows"] / seconds,
            "trainers/busy": working / total["seconds"],
            "trainers/core_share": total["cpu"] / working,
        }
        if self.live:
            rates |= {
                "readers/busy": total["reading"] / seconds / resources.readers,
                "readers/queue_blocks": total["queued"] / blocks,
                "readers/bytes_per_second": total["read_bytes"] / seconds,
                "separation/rows_per_second": total["misses"] / seconds,
                "separation/busy": total["separating"] / seconds / actors,
                "separation/queue_blocks": total["delivery"] / blocks,
                "separation/bytes_per_second": total["view_bytes"] / seconds,
            }
        else:
            rates |= {
                "readers/busy": (total["reading"] + total["separating"]) / seconds / resources.readers,
                "readers/queue_blocks": total["delivery"] / blocks,
                "readers/bytes_per_second": total["view_bytes"] / seconds,
            }
        if self.elastic:
            rates["separation/actors"] = actors
        if self.experiment.views.separates:
            rates["views/silent_share"] = total["silent"] / max(1.0, total["usable"])
            if self.experiment.store.mode != "off":
                rates |= {f"store/{name}": total[name] for name in STORE_COUNTS}
        return rates


def _silent(batch: dict[str, np.ndarray], pair: str) -> np.ndarray:
    """Rows with the mixture in place of a channel, because all remaining channels were silent."""
    second_B: np.ndarray = batch["channel_2"] == MIXTURE
    return second_B | (batch["channel_1"] == MIXTURE) if pair == "chan-chan" else second_B


def balance_of(records: Sequence[dict[str, Any]], stage: str) -> dict[str, float]:
    """The balance of a whole stage from the run's metrics; empty if they contain none.

    The names are those of `StreamBalance.metrics`; the values are means over the stage's time, and sums of the store's
    counts. Each record covers the time since the previous one. The first, which includes the start of all processes, is
    only used if there is no other.
    """
    found = [record for record in records if record["stage"] == stage and "trainers/busy" in record]
    if not found:
        return {}
    return _mean_of(found[1:] or found) | {f"store/{name}": count for name, count in store_counts(found).items()}


def _mean_of(found: Sequence[dict[str, Any]]) -> dict[str, float]:
    """The means of the reported metrics, weighted by the time that each report covers."""
    seconds = np.array([record["balance_seconds"] for record in found], float)
    weights = seconds / max(seconds.sum(), 1e-9)
    names = [name for name in found[0] if name.startswith(_AVERAGED) and all(name in record for record in found)]
    return {name: float(weights @ np.array([record[name] for record in found], float)) for name in names}


def waiting_share(balance: Mapping[str, float]) -> float:
    """Share of the trainers' time spent waiting for views."""
    return 1 - balance["trainers/busy"]


def balance_line(record: Mapping[str, Any]) -> str:
    """The balance of every stage in one line; empty for a record without a balance."""
    parts = []
    for stage in ("readers", "separation", "trainers"):
        if f"{stage}/busy" not in record:
            continue
        facts = [f"{stage} {record[f'{stage}/rows_per_second']:.3g} rows/s", f"{record[f'{stage}/busy']:.0%} busy"]
        if stage == "trainers":
            facts.append(f"waiting {1 - record['trainers/busy']:.0%}")
        else:
            rate = quantity(float(record[f"{stage}/bytes_per_second"]))
            facts += [f"{record[f'{stage}/queue_blocks']:.1f} blocks wait", f"{rate}B/s"]
        parts.append(", ".join(facts))
    return "; ".join(parts)


def counts_of_block(block: dict[str, np.ndarray]) -> dict[str, int]:
    """Counts of a block by `STORE_COUNTS`: rows that were in the store, rows that had to be separated, those of them
    whose entry was damaged, and separated clips that the store did not keep."""
    usable_N = block["fault"] == ""
    stored_N = block["stored"]
    separated_N = usable_N & ~stored_N
    rows = {"hits": usable_N & stored_N, "misses": separated_N, "repairs": separated_N & block["damaged"]}
    counts = {name: int(np.count_nonzero(rows_N)) for name, rows_N in rows.items()}
    return {**counts, "dropped": int(block["dropped"].sum())}


def store_counts(records: Sequence[dict[str, Any]]) -> dict[str, int]:
    """Sums of the counts over all records, by `STORE_COUNTS`; empty without a store."""
    return {
        name: round(sum(float(record.get(f"store/{name}", 0)) for record in records))
        for name in STORE_COUNTS
        if any(f"store/{name}" in record for record in records)
    }


def bottleneck(balance: Mapping[str, float], experiment: Experiment) -> str:
    """The bottleneck and what to change, in one or two sentences."""
    return _diagnosis(balance, experiment)[1]


def _diagnosis(balance: Mapping[str, float], experiment: Experiment) -> tuple[str, str]:
    """The bottleneck ("cores", "trainers", "separation", "readers" or "scheduling"), and the text about it."""
    resources = experiment.resources
    waiting = waiting_share(balance)
    waited = f"the trainers waited {waiting:.0%} of the time"
    core_share = balance["trainers/core_share"]
    if not (resources.trainer_gpus or resources.separation_gpus) and core_share < _CORE_SHARE_LIMIT:
        return "cores", (
            f"the CPU cores are the bottleneck: each trainer got {core_share:.0%} of a core while it worked, and "
            f"{waited}; more processes will not help, but more cores or store.mode=prefill will"
        )
    actors = round(balance.get("separation/actors", resources.separation_actors))
    if waiting <= WAITING_LIMIT:
        # Without live separation, no actor can be saved.
        needed = max(1, math.ceil(actors * balance.get("separation/busy", 1) / (1 - WAITING_LIMIT)))
        spare = f"; {needed} of the {actors} separation actors would be enough" if needed < actors else ""
        advice = f"they waited {waiting:.0%} of the time; raise resources.trainers{spare}"
        return "trainers", f"the trainers are the bottleneck: {advice}"
    busy_shares = {stage: balance[f"{stage}/busy"] for stage in ("readers", "separation") if f"{stage}/busy" in balance}
    stage, busy = max(busy_shares.items(), key=lambda item: item[1])
    if busy < 1 - 2 * WAITING_LIMIT:
        return "scheduling", (
            f"scheduling is the bottleneck: {waited}, though no stage was more than {busy:.0%} busy ({stage}); "
            "use larger blocks (training.service_rows)"
        )
    if stage == "readers":
        return stage, f"readers are the bottleneck: {_more('reader', resources.readers, busy, waiting)}"
    if actors < resources.separation_actors:
        return stage, (
            f"separation is the bottleneck: {actors} of at most {resources.separation_actors} actors {busy:.0%} busy, "
            f"{waited}, and Ray has not started more; start with more (resources.separation_actors_min)"
        )
    more = _more("separation actor", resources.separation_actors, busy, waiting)
    return stage, f"separation is the bottleneck: {more}, or separate once for all epochs (store.mode=prefill)"


def _more(process: str, count: int, busy: float, waiting: float) -> str:
    """How many processes of a kind there are, how busy they are, and how many to add."""
    needed = max(count + 1, math.ceil(count * busy / (1 - waiting)))
    added = needed - count
    return (
        f"{count} {process}{'s' if count > 1 else ''} {busy:.0%} busy, the trainers waited {waiting:.0%} of the time; "
        f"add {added} {process}{'s' if added > 1 else ''} "
        f"(resources.{process.replace(' ', '_')}s: {count} → {needed})"
    )
