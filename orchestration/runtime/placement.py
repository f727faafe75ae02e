"""Check whether a trial fits the cluster before anything starts: Ray waits forever for resources that no node has.

A trial requests resources for its trainers (one placement group), its separation actors and readers (both are actors
and hold their CPUs), one CPU that Ray Data's own tasks share, and the validation task if there is one. Everything else
that Ray 2.60 starts for it has `num_cpus=0`: the Train controller, the data coordinator, the preemption watcher, the
checkpoint synchronizer, the job's supervisor and the splitting of blocks.

The check is a best-fit packing that places the most constrained demand first. Like any greedy packing, in rare cases it
rejects a trial that an exhaustive search would place. It never accepts a trial that does not fit.
"""

import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from sepscene.clusters.pools import Node
from sepscene.models.config import SepsceneError
from sepscene.orchestration.config import Experiment, Resources

CLUSTER_VARIABLE = "SEPSCENE_CLUSTER"
"""Path of the description of an autoscaling cluster; if set, nodes that are not started yet count as available."""

LOCAL_LABEL = "sepscene-local"
"""Label of the node of a Ray that one of our commands has started for itself."""

DATA_TASK_CPUS = 1.0
"""CPUs of Ray Data's own tasks (reading ranges, splitting blocks): its default, which cannot be configured.

Measured on 2.60: with only 0.5 CPU available, `range` and `repartition` wait forever."""

TRIALS_PER_DATA_TASK = 4
"""Number of trials whose data tasks share one CPU: the tasks are short, and none waits for another trial."""

_LIST = re.compile(r"in\((?P<values>[^)]*)\)")
_ROUNDING = 1e-6  # Ray counts resources in units of 1e-4


@dataclass(frozen=True)
class Demand:
    """One bundle of resources, which must be on a single node.

    Attributes:
        role: "trainer", "separation actor", "reader", "data task", "validation task" or "trial driver".
        gpus: a fraction of one GPU, or a whole number of GPUs.
        labels: label selector, e.g. {"pool": "trainers"}, {"pool": "!spot"}, {"pool": "in(a,b)"}.
        fields: the configuration fields that determine this demand, for messages.
    """

    role: str
    cpus: float
    gpus: float = 0.0
    labels: Mapping[str, str] = field(default_factory=dict)
    accelerator: str | None = None
    fields: str = ""

    def ray_options(self) -> dict[str, Any]:
        """The demand as options of a Ray task, actor or `map_batches`, so that Ray gets exactly what was checked."""
        options: dict[str, Any] = {"num_cpus": self.cpus}
        if self.gpus:
            options["num_gpus"] = self.gpus
        if self.labels:
            options["label_selector"] = dict(self.labels)
        if self.accelerator:
            options["accelerator_type"] = self.accelerator
        return options


def actor_demand(resources: Resources) -> Demand:
    """The demand of one separation actor."""
    return Demand(
        "separation actor",
        resources.separation_cpus,
        resources.separation_gpus,
        resources.separation_labels,
        resources.separation_accelerator,
        "resources.separation_actors, .separation_actors_min, .separation_cpus, .separation_gpus, "
        ".separation_labels, .separation_accelerator",
    )


def reader_demand(resources: Resources) -> Demand:
    """The demand of one reader."""
    return Demand("reader", resources.reader_cpus, fields="resources.readers, .reader_cpus")


def separates_live(experiment: Experiment) -> bool:
    """Whether clips are separated during training.

    Mix-mix does not separate, and with `store.mode=prefill` all clips are separated before training. In both cases only
    the readers create the views, and no separation actor is requested.
    """
    return experiment.views.separates and experiment.store.mode != "prefill"


def phases(experiment: Experiment, driver_cpus: float = 0.0) -> list[list[Demand]]:
    """What a run requests in each of its phases; each phase must fit the cluster separately."""
    validates = experiment.training.validation_every_steps > 0
    separates = experiment.views.separates
    requested = demands(experiment.resources, separates=separates, driver_cpus=driver_cpus, validates=validates)
    if separates_live(experiment):
        return [requested]
    training = [demand for demand in requested if demand.role != "separation actor"]
    prefill = [demand for demand in requested if demand.role not in ("trainer", "validation task")]
    # Without separation, the actors that embed the test clips still use the resources of separation actors.
    embedding = [actor_demand(experiment.resources)]
    return [prefill, training] if separates else [training, embedding]


def demands(
    resources: Resources, *, separates: bool = True, driver_cpus: float = 0.0, validates: bool = False
) -> list[Demand]:
    """Everything that one trial requests at the same time, one entry per bundle.

    Of trainers and separation actors, only the minimum number is counted with which the trial can run: it does not wait
    for more of them.

    Args:
        separates: whether clips are separated; if not, the readers crop the views.
        driver_cpus: CPUs of the driver: 0 for a job, the CPUs given to Tune for a Tune trial.
        validates: whether checkpoints are validated during training, one at a time.

    Raises:
        SepsceneError: if the number of GPUs is above one and not whole, which Ray does not support.
    """
    trainer = Demand(
        "trainer",
        resources.trainer_cpus,
        resources.trainer_gpus,
        resources.trainer_labels,
        resources.trainer_accelerator,
        "resources.trainers, .trainers_min, .trainer_cpus, .trainer_gpus, .trainer_labels, .trainer_accelerator",
    )
    actor = actor_demand(resources)
    validation = Demand(
        "validation task",
        resources.validation_cpus,
        resources.validation_gpus,
        fields="resources.validation_cpus, .validation_gpus, training.validation_every_steps",
    )
    for demand in (trainer, actor, validation):
        if demand.gpus > 1 and demand.gpus != int(demand.gpus):
            raise SepsceneError(
                f"a {demand.role} requests {demand.gpus:g} GPUs, but above one only whole GPUs can be assigned: "
                f"set a fraction below 1 or a whole number ({demand.fields})"
            )
    data_task = Demand(
        "data task",
        max(DATA_TASK_CPUS, resources.reader_cpus),
        fields="the other demands (this one is fixed by Ray Data)",
    )
    placed = [trainer] * resources.trainer_counts[0]
    if separates:
        placed += [actor] * resources.separation_counts[0]
    placed += [reader_demand(resources)] * resources.readers
    placed.append(data_task)
    if validates:
        placed.append(validation)
    if driver_cpus:
        placed.append(Demand("trial driver", driver_cpus, fields="the CPUs of the trial's driver"))
    return placed


def matches(labels: Mapping[str, str], selector: Mapping[str, str]) -> bool:
    """Whether a node's labels satisfy a selector, by Ray's rules.

    `x` and `in(a,b)` require the label to exist; `!x` and `!in(a,b)` also match a node without it.
    """
    return all(_value_matches(labels.get(key), wanted) for key, wanted in selector.items())


def _value_matches(value: str | None, wanted: str) -> bool:
    plain = wanted.removeprefix("!")
    listed = _LIST.fullmatch(plain)
    allowed = {part.strip() for part in listed["values"].split(",")} if listed else {plain}
    return (value in allowed) != wanted.startswith("!")


class _FreeResources:
    """The free resources of one node. GPUs are counted separately: three shares of 0.6 do not fit on two GPUs."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self.cpus = float(node.cpus)
        self.gpus = [1.0] * int(node.gpus)

    def fits(self, demand: Demand) -> bool:
        if demand.cpus > self.cpus + _ROUNDING:
            return False
        if demand.gpus >= 1:
            return sum(left >= 1 - _ROUNDING for left in self.gpus) >= demand.gpus
        return demand.gpus == 0 or any(left >= demand.gpus - _ROUNDING for left in self.gpus)

    def reserve(self, demand: Demand) -> None:
        self.cpus -= demand.cpus
        if demand.gpus >= 1:
            whole = [index for index, left in enumerate(self.gpus) if left >= 1 - _ROUNDING]
            for index in whole[: int(demand.gpus)]:
                self.gpus[index] = 0.0
        elif demand.gpus:
            left, index = min((left, index) for index, left in enumerate(self.gpus) if left >= demand.gpus - _ROUNDING)
            self.gpus[index] = left - demand.gpus


def _eligible(demand: Demand, nodes: Sequence[Node]) -> list[Node]:
    """Nodes with the labels and the accelerator that the demand selects."""
    return [
        node for node in nodes if matches(node.labels, demand.labels) and demand.accelerator in (None, node.accelerator)
    ]


def pack(requested: Sequence[Demand], nodes: Sequence[Node]) -> tuple[list[tuple[Demand, Node]], list[Demand]]:
    """Place as many demands as possible.

    The most constrained demand is placed first (fewest eligible nodes, then most GPUs, then most CPUs), on the fitting
    node with the fewest free GPUs and CPUs, so that a reader does not occupy a node that a trainer needs.

    Returns:
        (placed, waiting): each placed demand with its node, and the demands that would wait forever.
    """
    free = [_FreeResources(node) for node in nodes]
    placed: list[tuple[Demand, Node]] = []
    waiting: list[Demand] = []
    eligible = [(_eligible(demand, nodes), demand) for demand in requested]
    for hosts, demand in sorted(eligible, key=lambda one: (len(one[0]), -one[1].gpus, -one[1].cpus)):
        fitting = [one for one in free if one.node in hosts and one.fits(demand)]
        if not fitting:
            waiting.append(demand)
            continue
        best = min(fitting, key=lambda one: (sum(one.gpus), one.cpus))
        best.reserve(demand)
        placed.append((demand, best.node))
    return placed, waiting


def check_placement(requested: Sequence[Demand], nodes: Sequence[Node]) -> None:
    """Check that all demands of one trial fit the cluster at the same time.

    Raises:
        SepsceneError: if not; the message gives each kind of bundle that does not fit, the reason, and the fields to
            change.
    """
    _, waiting = pack(requested, nodes)
    if not waiting:
        return
    total = Counter(demand.role for demand in requested)
    unplaced = Counter(demand.role for demand in waiting)
    kinds = {demand.role: demand for demand in sorted(waiting, key=lambda one: one.cpus)}
    lines = [
        f"  {unplaced[role]} of {total[role]} {role}s ({describe(demand)} each): {_reason(demand, nodes)}; "
        f"change {demand.fields}, or add nodes"
        for role, demand in kinds.items()
    ]
    raise SepsceneError(
        "the run does not fit the cluster and would wait forever:\n"
        + "\n".join(lines)
        + _cpu_advice(requested, nodes)
        + f"\n  nodes: {_inventory(nodes)}"
    )


def _cpu_advice(requested: Sequence[Demand], nodes: Sequence[Node]) -> str:
    """How to run without GPUs, if GPUs are requested and no node has one."""
    with_gpu = {demand.role: demand for demand in requested if demand.gpus}
    fields = {"trainer": "trainer", "separation actor": "separation", "validation task": "validation"}
    # The demands of `sepscene embed` have other options, which its own message names.
    if not with_gpu or not with_gpu.keys() <= fields.keys() or any(node.gpus for node in nodes):
        return ""
    changes = [f"resources.{fields[role]}_gpus=0" for role in with_gpu]
    changes += [f"resources.{fields[role]}_accelerator=null" for role, demand in with_gpu.items() if demand.accelerator]
    advice = f"\n  no node has a GPU; to run on CPUs, slowly: --set {' --set '.join(changes)}"
    if not pack([replace(demand, gpus=0.0, accelerator=None) for demand in requested], nodes)[1]:
        return advice
    total = sum(demand.cpus for demand in requested)
    available = sum(node.cpus for node in nodes)
    return (
        f"{advice}, and lower resources.readers, .reader_cpus, .separation_cpus or .trainer_cpus (fractions of a CPU "
        f"are allowed): in total they request {total:g} CPU, and {available:g} are available"
    )


def concurrent_trials(requested: Sequence[Demand], nodes: Sequence[Node], limit: int = 1024) -> int:
    """How many equal trials fit at the same time, at most `limit`; 0 if none fits.

    The tasks of Ray Data are short, so those of a few trials share one CPU.
    """
    tasks = [demand for demand in requested if demand.role == "data task"]
    rest = [demand for demand in requested if demand.role != "data task"]
    fitting = 0
    too_many = limit + 1
    while too_many - fitting > 1:  # bisection: if a number of trials does not fit, no larger number does
        trials = min(2 * fitting + 1, (fitting + too_many) // 2)
        if pack(rest * trials + tasks * -(-trials // TRIALS_PER_DATA_TASK), nodes)[1]:
            too_many = trials
        else:
            fitting = trials
    return fitting


def describe(demand: Demand) -> str:
    """`1 CPU, 0.5 GPU L4, pool=separators`."""
    parts = [f"{demand.cpus:g} CPU"]
    if demand.gpus:
        parts.append(f"{demand.gpus:g} GPU")
    if demand.accelerator:
        parts.append(f"accelerator {demand.accelerator}")
    return ", ".join(parts + [f"{key}={value}" for key, value in demand.labels.items()])


def unplaced(waiting: Sequence[Demand]) -> str:
    """`2 trainers (4 CPU, 1 GPU each)`: the demands that are not placed, equal ones grouped."""
    counts = Counter((demand.role, describe(demand)) for demand in waiting)
    parts = []
    for (role, needs), count in counts.items():
        roles = f"{role}s" if count > 1 else role
        parts.append(f"{count} {roles} ({needs} each)")
    return ", ".join(parts)


def _reason(demand: Demand, nodes: Sequence[Node]) -> str:
    """Why this demand does not fit: the first condition that no node satisfies."""
    if not nodes:
        return "the cluster has no node"
    labelled = [node for node in nodes if matches(node.labels, demand.labels)]
    if not labelled:
        present = [f"{key}: {', '.join(sorted({n.labels.get(key, '(none)') for n in nodes}))}" for key in demand.labels]
        return f"no node has these labels; the nodes have {'; '.join(present)}"
    eligible = _eligible(demand, nodes)
    if not eligible:
        kinds = sorted({node.accelerator or "none" for node in labelled})
        return f"no such node has accelerator {demand.accelerator}; they have {', '.join(kinds)}"
    if not any(_FreeResources(node).fits(demand) for node in eligible):
        largest = max(eligible, key=lambda node: (node.gpus, node.cpus))
        return f"the largest node for it has {largest.cpus:g} CPU and {largest.gpus} GPU"
    return f"its {len(eligible)} node(s) are occupied by the rest of the trial"


def _inventory(nodes: Sequence[Node]) -> str:
    """`2 x (8 CPU, 1 GPU, pool=separators)`: the nodes, equal ones grouped."""
    kinds = Counter(
        describe(Demand("", node.cpus, float(node.gpus), dict(sorted(node.labels.items())), node.accelerator))
        for node in nodes
    )
    return "; ".join(f"{count} x ({kind})" for kind, count in kinds.items()) or "none"


def cluster_nodes() -> list[Node]:
    """The nodes available to a run: the live ones, or all nodes in the description that SEPSCENE_CLUSTER names.

    In an autoscaling cluster, only nodes that have already been requested are live.

    Raises:
        SepsceneError: if the description cannot be read.
    """
    description = os.environ.get(CLUSTER_VARIABLE)
    if description:
        from sepscene.clusters.descriptions import read_pools

        return [node for pool in read_pools(Path(description)) for node in pool.nodes(pool.most)]
    return live_nodes()


def live_nodes() -> list[Node]:
    """The live nodes of the connected Ray."""
    import ray

    return [node_from_ray(entry) for entry in ray.nodes() if entry["Alive"]]


def is_local() -> bool:
    """Whether the connected Ray was started by one of our commands and ends with it."""
    import ray

    return any(LOCAL_LABEL in entry["Labels"] for entry in ray.nodes())


def node_from_ray(entry: Mapping[str, Any]) -> Node:
    """One entry of `ray.nodes()` as a Node, with its labels except Ray's node id and `LOCAL_LABEL`."""
    labels = {key: value for key, value in entry["Labels"].items() if key not in ("ray.io/node-id", LOCAL_LABEL)}
    return Node.offering(entry["NodeManagerAddress"], entry["Resources"], labels)
