"""Does a trial fit the cluster? Answered before anything starts: Ray waits forever for what no node can give.

A trial asks for its trainers (one placement group), its separation actors and readers (actors both, which hold
their CPUs), one CPU in which Ray Data's own tasks take turns, and the task that validates, where there is one.
Everything else that Ray 2.60 starts for it is free: the Train controller, the data coordinator, the preemption watcher,
the checkpoint synchroniser and the job's own supervisor are actors with `num_cpus=0`, and so is the splitting of
blocks.

The answer is a packing by best fit, the most constrained demand first. Like every greedy packing it can in
rare cases refuse what an exhaustive search would place; it never promises what does not fit.
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
"""Names the description of an autoscaling cluster: nodes that may still come then count as being there."""

LOCAL_LABEL = "sepscene-local"
"""Marks the node of a Ray that a command of ours has started for itself."""

DATA_TASK_CPUS = 1.0
"""CPUs of Ray Data's own tasks (reading ranges, cutting blocks): its default, out of our reach.

Measured on 2.60: with 0.5 CPU left over, `range` and `repartition` wait forever."""

TRIALS_PER_DATA_TASK = 4
"""Trials whose data tasks share one CPU: each is short and none waits for another trial."""

_LIST = re.compile(r"in\((?P<values>[^)]*)\)")
_ROUNDING = 1e-6  # Ray counts resources in units of 1e-4


@dataclass(frozen=True)
class Demand:
    """One bundle that must lie on one node.

    Attributes:
        role: "trainer", "separation actor", "reader", "data task", "validation task" or "trial driver".
        gpus: below 1 a share of one GPU, from 1 upwards whole GPUs.
        labels: label selector, e.g. {"pool": "trainers"}, {"pool": "!spot"}, {"pool": "in(a,b)"}.
        knobs: the configuration fields that set this demand, for messages.
    """

    role: str
    cpus: float
    gpus: float = 0.0
    labels: Mapping[str, str] = field(default_factory=dict)
    accelerator: str | None = None
    knobs: str = ""

    def ray_options(self) -> dict[str, Any]:
        """The same demand as options of a Ray task, actor or `map_batches`: asked for exactly as checked."""
        options: dict[str, Any] = {"num_cpus": self.cpus}
        if self.gpus:
            options["num_gpus"] = self.gpus
        if self.labels:
            options["label_selector"] = dict(self.labels)
        if self.accelerator:
            options["accelerator_type"] = self.accelerator
        return options


def actor_demand(resources: Resources) -> Demand:
    """What one separation actor asks for."""
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
    """What one reader asks for."""
    return Demand("reader", resources.reader_cpus, knobs="resources.readers, .reader_cpus")


def separates_live(experiment: Experiment) -> bool:
    """Whether clips are separated while the trainers train.

    Mix-mix separates nothing, and with `store.mode=prefill` all is separated before: then the readers alone make the
    views, and no separation actor is asked for.
    """
    return experiment.views.separates and experiment.store.mode != "prefill"


def phases(experiment: Experiment, driver_cpus: float = 0.0) -> list[list[Demand]]:
    """What a run asks for at one time and another; each phase must fit the cluster on its own."""
    validates = experiment.training.validation_every_steps > 0
    separates = experiment.views.separates
    asked = demands(experiment.resources, separates=separates, driver_cpus=driver_cpus, validates=validates)
    if separates_live(experiment):
        return [asked]
    training = [demand for demand in asked if demand.role != "separation actor"]
    prefill = [demand for demand in asked if demand.role not in ("trainer", "validation task")]
    # Where nothing is separated, the clips to evaluate are still embedded where separation actors would stand.
    embedding = [actor_demand(experiment.resources)]
    return [prefill, training] if separates else [training, embedding]


def demands(
    resources: Resources, *, separates: bool = True, driver_cpus: float = 0.0, validates: bool = False
) -> list[Demand]:
    """Everything one trial asks for at once, one entry a bundle.

    Of trainers and separation actors it counts the fewest that the trial goes on with: the rest may come later or
    never, and nothing waits for it.

    Args:
        separates: where clips are not separated, the readers crop the views themselves.
        driver_cpus: none for a job's driver, what Tune is given for a Tune trial's.
        validates: checkpoints are validated while training goes on, one at a time.

    Raises:
        SepsceneError: for GPUs that Ray cannot give: above one only whole numbers.
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
        knobs="resources.validation_cpus, .validation_gpus, training.validation_every_steps",
    )
    for demand in (trainer, actor, validation):
        if demand.gpus > 1 and demand.gpus != int(demand.gpus):
            raise SepsceneError(
                f"a {demand.role} asks for {demand.gpus:g} GPUs, but above one only whole GPUs can be given: "
                f"set a share below 1 or a whole number ({demand.knobs})"
            )
    own = Demand("data task", max(DATA_TASK_CPUS, resources.reader_cpus), knobs="the others: this is Ray Data's own")
    driver = [Demand("trial driver", driver_cpus, knobs="the CPUs of the trial's driver")] if driver_cpus else []
    return (
        [trainer] * resources.trainer_counts[0]
        + [actor] * (resources.separation_counts[0] if separates else 0)
        + [reader_demand(resources)] * resources.readers
        + [own]
        + [validation] * validates
        + driver
    )


def matches(labels: Mapping[str, str], selector: Mapping[str, str]) -> bool:
    """Whether a node's labels satisfy a selector, by Ray's rules.

    `x` and `in(a,b)` need the label to be there; `!x` and `!in(a,b)` are also true of a node that lacks it.
    """
    return all(_value_matches(labels.get(key), wanted) for key, wanted in selector.items())


def _value_matches(value: str | None, wanted: str) -> bool:
    plain = wanted.removeprefix("!")
    listed = _LIST.fullmatch(plain)
    allowed = {part.strip() for part in listed["values"].split(",")} if listed else {plain}
    return (value in allowed) != wanted.startswith("!")


class _Free:
    """What is left of one node. GPUs are kept one by one: three shares of 0.6 do not fit two GPUs."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self.cpus = float(node.cpus)
        self.gpus = [1.0] * int(node.gpus)

    def takes(self, demand: Demand) -> bool:
        if demand.cpus > self.cpus + _ROUNDING:
            return False
        if demand.gpus >= 1:
            return sum(left >= 1 - _ROUNDING for left in self.gpus) >= demand.gpus
        return demand.gpus == 0 or any(left >= demand.gpus - _ROUNDING for left in self.gpus)

    def take(self, demand: Demand) -> None:
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


def pack(asked: Sequence[Demand], nodes: Sequence[Node]) -> tuple[list[tuple[Demand, Node]], list[Demand]]:
    """Place what can be placed.

    The most constrained demand goes first (fewest eligible nodes, then most GPUs, then most CPUs), to the
    fitting node with the fewest GPUs and CPUs left, so that a reader does not take the place of a trainer.

    Returns:
        (placed, waiting): each placed demand with its node, and the demands that would wait forever.
    """
    free = [_Free(node) for node in nodes]
    placed: list[tuple[Demand, Node]] = []
    waiting: list[Demand] = []
    eligible = [(_eligible(demand, nodes), demand) for demand in asked]
    for hosts, demand in sorted(eligible, key=lambda one: (len(one[0]), -one[1].gpus, -one[1].cpus)):
        fitting = [left for left in free if left.node in hosts and left.takes(demand)]
        if not fitting:
            waiting.append(demand)
            continue
        best = min(fitting, key=lambda left: (sum(left.gpus), left.cpus))
        best.take(demand)
        placed.append((demand, best.node))
    return placed, waiting


def check_placement(asked: Sequence[Demand], nodes: Sequence[Node]) -> None:
    """Raise unless all of one trial fits the cluster at once.

    Raises:
        SepsceneError: names each kind of bundle that does not fit, the reason, and the fields to change.
    """
    _, waiting = pack(asked, nodes)
    if not waiting:
        return
    total = Counter(demand.role for demand in asked)
    unplaced = Counter(demand.role for demand in waiting)
    kinds = {demand.role: demand for demand in sorted(waiting, key=lambda one: one.cpus)}
    lines = [
        f"  {unplaced[role]} of {total[role]} {role}s ({describe(demand)} each): {_reason(demand, nodes)}; "
        f"change {demand.knobs}, or add nodes"
        for role, demand in kinds.items()
    ]
    raise SepsceneError(
        "the run does not fit the cluster and would wait forever:\n"
        + "\n".join(lines)
        + _on_cpus(asked, nodes)
        + f"\n  nodes: {_inventory(nodes)}"
    )


def _on_cpus(asked: Sequence[Demand], nodes: Sequence[Node]) -> str:
    """Where GPUs are asked for and no node has one: which fields make the run do without."""
    asking = {demand.role: demand for demand in asked if demand.gpus}
    fields = {"trainer": "trainer", "separation actor": "separation", "validation task": "validation"}
    # `sepscene embed` asks by options of its own, and its message names them.
    if not asking or not asking.keys() <= fields.keys() or any(node.gpus for node in nodes):
        return ""
    changes = [f"resources.{fields[role]}_gpus=0" for role in asking]
    changes += [f"resources.{fields[role]}_accelerator=null" for role, demand in asking.items() if demand.accelerator]
    said = f"\n  no node has a GPU; to run on CPUs, slowly: --set {' --set '.join(changes)}"
    if not pack([replace(demand, gpus=0.0, accelerator=None) for demand in asked], nodes)[1]:
        return said
    total = sum(demand.cpus for demand in asked)
    there = sum(node.cpus for node in nodes)
    return (
        f"{said}, and lower resources.readers, .reader_cpus, .separation_cpus or .trainer_cpus (shares of a CPU will "
        f"do): all together ask for {total:g} CPU, and there are {there:g}"
    )


def concurrent_trials(asked: Sequence[Demand], nodes: Sequence[Node], limit: int = 1024) -> int:
    """How many equal trials fit at once, at most `limit`; 0 when not even one does.

    The tasks of Ray Data come and go, so those of a few trials take turns in one CPU.
    """
    tasks = [demand for demand in asked if demand.role == "data task"]
    rest = [demand for demand in asked if demand.role != "data task"]
    fitting = 0
    refused = limit + 1
    while refused - fitting > 1:  # more trials never fit where fewer did not
        tried = min(2 * fitting + 1, (fitting + refused) // 2)
        if pack(rest * tried + tasks * -(-tried // TRIALS_PER_DATA_TASK), nodes)[1]:
            refused = tried
        else:
            fitting = tried
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
    """`2 trainers (4 CPU, 1 GPU each)`: demands without a place, equal ones together."""
    counts = Counter((demand.role, describe(demand)) for demand in waiting)
    return ", ".join(f"{n} {role}{'s' * (n > 1)} ({asks} each)" for (role, asks), n in counts.items())


def _reason(demand: Demand, nodes: Sequence[Node]) -> str:
    """Why this demand has no place: the first condition that leaves no node."""
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
    if not any(_Free(node).takes(demand) for node in eligible):
        largest = max(eligible, key=lambda node: (node.gpus, node.cpus))
        return f"the largest node for it has {largest.cpus:g} CPU and {largest.gpus} GPU"
    return f"its {len(eligible)} node(s) are full with the rest of the trial"


def _inventory(nodes: Sequence[Node]) -> str:
    """`2 x (8 CPU, 1 GPU, pool=separators)`: equal nodes together."""
    kinds = Counter(
        describe(Demand("", node.cpus, float(node.gpus), dict(sorted(node.labels.items())), node.accelerator))
        for node in nodes
    )
    return "; ".join(f"{count} x ({kind})" for kind, count in kinds.items()) or "none"


def cluster_nodes() -> list[Node]:
    """The nodes that a run may count on: the live ones, or all that SEPSCENE_CLUSTER promises.

    Of an autoscaling cluster only those are live that somebody has asked for so far.

    Raises:
        SepsceneError: when the description cannot be read.
    """
    description = os.environ.get(CLUSTER_VARIABLE)
    if description:
        from sepscene.clusters.descriptions import read_pools

        return [node for pool in read_pools(Path(description)) for node in pool.nodes(pool.most)]
    return live_nodes()


def live_nodes() -> list[Node]:
    """The nodes of the Ray that this process is connected to."""
    import ray

    return [node_from_ray(entry) for entry in ray.nodes() if entry["Alive"]]


def is_local() -> bool:
    """Whether the Ray that this process is connected to was started by a command of ours and ends with it."""
    import ray

    return any(LOCAL_LABEL in entry["Labels"] for entry in ray.nodes())


def node_from_ray(entry: Mapping[str, Any]) -> Node:
    """One entry of `ray.nodes()` as a Node, with its labels except Ray's own node id and our mark."""
    labels = {key: value for key, value in entry["Labels"].items() if key not in ("ray.io/node-id", LOCAL_LABEL)}
    return Node.offering(entry["NodeManagerAddress"], entry["Resources"], labels)
