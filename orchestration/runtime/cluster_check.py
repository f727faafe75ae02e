"""Does an experiment fit a cluster that is not there yet? The logic of `sepscene cluster check FILE`."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from sepscene.clusters.descriptions import read_pools
from sepscene.orchestration.config import Experiment
from sepscene.orchestration.runtime.placement import check_placement, concurrent_trials, pack, phases


@dataclass(frozen=True)
class Verdict:
    """How an experiment fits a cluster.

    Attributes:
        started: nodes that autoscaling must start for one trial, by their pool's name.
        spot: roles of the bundles that lie on nodes which may be taken away.
        places: role -> pools where its bundles lie, with how many.
        trials: trials that fit at once when every pool is at its largest.
    """

    started: dict[str, int]
    spot: list[str]
    places: Mapping[str, Mapping[str, int]]
    trials: int

    def lines(self) -> list[str]:
        """The verdict in words, one sentence a line."""
        said = [
            f"{role}s: " + ", ".join(f"{n} on {pool}" for pool, n in on.items()) for role, on in self.places.items()
        ]
        if self.started:
            wait = ", ".join(f"{count} x {pool}" for pool, count in self.started.items())
            said.append(f"waits until autoscaling has started {wait} (minutes; nothing is lost by waiting)")
        else:
            said.append("starts at once: every bundle lies on nodes that are always there")
        if self.spot:
            said.append(f"on spot: {', '.join(self.spot)}; a lost node costs rows since the last checkpoint, no more")
        said.append(f"at once: {self.trials} trial{'s' if self.trials != 1 else ''}; further ones of a sweep wait")
        return said


def check_cluster(description: Path, experiment: Experiment, driver_cpus: float = 0.0) -> Verdict:
    """Place one trial of an experiment on a described cluster (see `read_pools`).

    Args:
        driver_cpus: CPUs of the trial's driver (see `placement.demands`).

    Raises:
        SepsceneError: when the description is bad, or a phase of the experiment does not fit it at its largest:
            what does not fit, why, and what to change.
    """
    pools = read_pools(description)
    largest = [node for pool in pools for node in pool.nodes(pool.most)]
    present = [node for pool in pools for node in pool.nodes(pool.least)]
    asked = phases(experiment, driver_cpus)
    places: dict[str, Counter[str]] = {}
    used = Counter[str]()
    for phase in asked:
        check_placement(phase, largest)
        placed, waiting = pack(phase, present)
        if waiting:
            placed, _ = pack(phase, largest)
        places |= {demand.role: Counter[str]() for demand in phase}
        for demand, node in placed:
            places[demand.role][_pool_of(node.name)] += 1
        used |= Counter(_pool_of(name) for name in {node.name for _, node in placed})  # the larger ones
    spot = {pool.name for pool in pools if pool.spot}
    return Verdict(
        started={pool.name: used[pool.name] - pool.least for pool in pools if used[pool.name] > pool.least},
        spot=sorted(f"{role}s" for role, on in places.items() if spot & on.keys()),
        places=places,
        trials=min(concurrent_trials(phase, largest) for phase in asked),
    )


def _pool_of(node_name: str) -> str:
    return node_name.rpartition("-")[0]
