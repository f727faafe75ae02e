"""What a trial requests in each of its phases, and how many trials fit at the same time. Does not need Ray."""

from collections.abc import Iterable, Sequence

from sepscene.clusters.pools import Node
from sepscene.models.config import SepsceneError
from sepscene.orchestration.config import Experiment
from sepscene.orchestration.runtime.placement import Demand, concurrent_trials, demands, phases

DRIVER_CPUS = 0.01
"""CPUs that Tune reserves for a trial's driver, which only waits."""


def trial_phases(experiment: Experiment) -> list[list[Demand]]:
    """What a trial requests in each of its phases, including its driver; it is in one phase at a time.

    In addition to the phases of a run there is the evaluation. Its actors use the resources of separation actors, also
    for views without separation.
    """
    everything = demands(experiment.resources, driver_cpus=DRIVER_CPUS)
    evaluation = [demand for demand in everything if demand.role not in ("trainer", "reader")]
    return [*phases(experiment, DRIVER_CPUS), evaluation]


def gpus_of(experiment: Experiment) -> float:
    """The number of GPUs that one trial occupies: the maximum over its phases."""
    return max(sum(demand.gpus for demand in phase) for phase in trial_phases(experiment))


def fitting_trials(experiments: Iterable[Experiment], nodes: Sequence[Node]) -> int:
    """How many trials fit at the same time, for any choice of trials and any phases of them; 0 if none fits."""
    distinct = {str(phase): phase for experiment in experiments for phase in trial_phases(experiment)}
    return min(concurrent_trials(phase, nodes) for phase in distinct.values())


def most_demanding(experiments: Iterable[Experiment]) -> Experiment:
    """The experiment that needs the most resources. If it fits, so do the others, which request the same or fewer.

    Raises:
        SepsceneError: if there is no experiment.
    """
    chosen = max(experiments, key=lambda one: (gpus_of(one), _cpus_of(one)), default=None)
    if chosen is None:
        raise SepsceneError("there is nothing to run: give at least one experiment")
    return chosen


def _cpus_of(experiment: Experiment) -> float:
    return max(sum(demand.cpus for demand in phase) for phase in trial_phases(experiment))
