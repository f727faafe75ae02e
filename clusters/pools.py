"""Plain descriptions of machines: what a node offers, and the pools a cluster is made of.

Nothing here knows of Ray: a node is CPUs, GPUs, labels and an accelerator type, whether it was read from a
running cluster (`orchestration.runtime.placement.cluster_nodes`) or from a template here (`clusters.descriptions`).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Node:
    """One machine of a cluster.

    Attributes:
        name: what a message calls it.
        cpus: logical CPUs that Ray may give away.
        gpus: whole GPUs.
        labels: node labels, e.g. {"pool": "separators"}.
        accelerator: Ray's accelerator type, e.g. "L4"; None without one.
    """

    name: str
    cpus: float
    gpus: int = 0
    labels: Mapping[str, str] = field(default_factory=dict)
    accelerator: str | None = None


@dataclass(frozen=True)
class Pool:
    """Equal nodes that come and go together: a node type, a worker group, or one on-premise machine.

    Attributes:
        least, most: number of nodes that are always there, and that autoscaling may reach.
        spot: may be taken away at any time.
    """

    name: str
    node: Node
    least: int
    most: int
    spot: bool = False

    def nodes(self, count: int) -> list[Node]:
        """`count` nodes of this pool, named `<pool>-<number>`."""
        numbered = (f"{self.name}-{number}" for number in range(count))
        return [
            Node(name, self.node.cpus, self.node.gpus, self.node.labels, self.node.accelerator) for name in numbered
        ]
