"""Nodes, and pools of equal nodes, of a running cluster or of a template."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

_ACCELERATOR = "accelerator_type:"


@dataclass(frozen=True)
class Node:
    """One machine of a cluster, with labels such as {"pool": "separators"} and Ray's accelerator type, e.g. "L4"."""

    name: str
    cpus: float
    gpus: int = 0
    labels: Mapping[str, str] = field(default_factory=dict)
    accelerator: str | None = None

    @classmethod
    def offering(cls, name: str, resources: Mapping[str, float], labels: Mapping[str, str]) -> "Node":
        """A node from Ray's resources, e.g. {"CPU": 8, "GPU": 1, "accelerator_type:L4": 1}."""
        kinds = [key.removeprefix(_ACCELERATOR) for key in resources if key.startswith(_ACCELERATOR)]
        gpus = int(resources.get("GPU", 0))
        return cls(name, float(resources.get("CPU", 0)), gpus, labels, kinds[0] if kinds else None)


@dataclass(frozen=True)
class Pool:
    """A group of equal nodes: a node type, a worker group, or on-premise machines.

    Autoscaling keeps between `least` and `most` of them. `spot` nodes can be reclaimed at any time.
    """

    name: str
    node: Node
    least: int
    most: int
    spot: bool = False

    def nodes(self, count: int) -> list[Node]:
        """`count` nodes of this pool, named `<pool>-<number>`."""
        return [replace(self.node, name=f"{self.name}-{number}") for number in range(count)]
