"""What a trial asks for while it runs, and so how many fit beside each other; without Ray."""

from collections.abc import Iterable, Sequence

from sepscene.clusters.pools import Node
from sepscene.models.config import SepsceneError
from sepscene.orchestration.config import Experiment
from sepscene.orchestration.runtime.placement import Demand, concurrent_trials, demands, phases

DRIVER_CPUS = 0.01
"""What Tune sets aside for a trial's driver, which only waits."""


def trial_phases(experiment: Experiment) -> list[list[Demand]]:
    """What a trial asks for at one time and another, its driver included: it never holds more than one of them.

    Beside a run's own phases there is the evaluation, whose actors stand where separation actors would, also for views
    that need no separation.
    """
    everything = demands(experiment.resources, driver_cpus=DRIVER_CPUS)
    evaluating = [demand for demand in everything if demand.role not in ("trainer", "reader")]
    return [*phases(experiment, DRIVER_CPUS), evaluating]


def gpus_of(experiment: Experiment) -> float:
    """GPUs that one trial holds, in the phase in which it holds most."""
    return max(sum(demand.gpus for demand in phase) for phase in trial_phases(experiment))


def fitting_trials(experiments: Iterable[Experiment], nodes: Sequence[Node]) -> int:
    """How many trials fit at once, whichever of them they are and whatever each is at; 0 when not even one does."""
    kinds = {str(phase): phase for experiment in experiments for phase in trial_phases(experiment)}
    return min(concurrent_trials(phase, nodes) for phase in kinds.values())


def most_demanding(experiments: Iterable[Experiment]) -> Experiment:
    """The one that needs most: where it fits, the others do, which share its resources and may ask for fewer of them.

    Raises:
        SepsceneError: when there is none.
    """
    chosen = max(experiments, key=lambda one: (gpus_of(one), _cpus_of(one)), default=None)
    if chosen is None:
        raise SepsceneError("there is nothing to run")
    return chosen


def _cpus_of(experiment: Experiment) -> float:
    return max(sum(demand.cpus for demand in phase) for phase in trial_phases(experiment))
