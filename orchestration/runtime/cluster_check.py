"""Check whether an experiment fits a cluster that does not exist yet: the logic of `sepscene cluster check FILE`."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from sepscene.clusters.descriptions import read_pools
from sepscene.orchestration.config import Experiment
from sepscene.orchestration.runtime.placement import check_placement, concurrent_trials, pack, phases


@dataclass(frozen=True)
class ClusterFit:
    """How an experiment fits a cluster.

    Attributes:
        started: pool name -> number of nodes that autoscaling must start for one trial.
        spot: roles with bundles on spot nodes.
        places: role -> pool -> number of its bundles there.
        trials: number of trials that fit at the same time when every pool has its maximum size.
    """

    started: dict[str, int]
    spot: list[str]
    places: Mapping[str, Mapping[str, int]]
    trials: int

    def lines(self) -> list[str]:
        """The result as text, one sentence per line."""
        lines = [
            f"{role}s: " + ", ".join(f"{n} on {pool}" for pool, n in on.items()) for role, on in self.places.items()
        ]
        if self.started:
            nodes = ", ".join(f"{count} x {pool}" for pool, count in self.started.items())
            lines.append(f"waits until autoscaling has started {nodes} (minutes; nothing is lost by waiting)")
        else:
            lines.append("starts immediately: every bundle fits on nodes that always exist")
        if self.spot:
            lines.append(f"on spot nodes: {', '.join(self.spot)}; a lost node costs only the rows since the checkpoint")
        lines.append(f"concurrent trials: {self.trials}; further trials of a sweep wait")
        return lines


def check_cluster(description: Path, experiment: Experiment, driver_cpus: float = 0.0) -> ClusterFit:
    """Place one trial of an experiment on a described cluster (see `read_pools`).

    Args:
        driver_cpus: CPUs of the trial's driver (see `placement.demands`).

    Raises:
        SepsceneError: if the description is invalid, or if a phase of the experiment does not fit the cluster at its
            maximum size; the message gives what does not fit, why, and what to change.
    """
    pools = read_pools(description)
    largest = [node for pool in pools for node in pool.nodes(pool.most)]
    present = [node for pool in pools for node in pool.nodes(pool.least)]
    all_phases = phases(experiment, driver_cpus)
    places: dict[str, Counter[str]] = {}
    used = Counter[str]()
    for phase in all_phases:
        check_placement(phase, largest)
        placed, waiting = pack(phase, present)
        if waiting:
            placed, _ = pack(phase, largest)
        places |= {demand.role: Counter[str]() for demand in phase}
        for demand, node in placed:
            places[demand.role][_pool_of(node.name)] += 1
        used |= Counter(_pool_of(name) for name in {node.name for _, node in placed})  # the maximum over the phases
    spot = {pool.name for pool in pools if pool.spot}
    return ClusterFit(
        started={pool.name: used[pool.name] - pool.least for pool in pools if used[pool.name] > pool.least},
        spot=sorted(f"{role}s" for role, on in places.items() if spot & on.keys()),
        places=places,
        trials=min(concurrent_trials(phase, largest) for phase in all_phases),
    )


def _pool_of(node_name: str) -> str:
    return node_name.rpartition("-")[0]
