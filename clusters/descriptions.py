"""From a cluster's description to the pools that it can bring up.

Three forms are read: YAML of Ray's cluster launcher for a cloud (its node types), KubeRay's RayCluster and
RayJob, and our own plain list of pools. Where a form does not say what its machines offer (the launcher's
local provider, Slurm, SkyPilot), the list stands beside it: `onprem.pools.yaml` beside `onprem.yaml`.
"""

import math
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field, field_validator

from sepscene.clusters.kuberay import read_manifest_pools
from sepscene.clusters.pools import Node, Pool
from sepscene.models.card import validated
from sepscene.models.config import Config, SepsceneError

MOST_BYTES = 2**20
MOST_VALUES = 100_000
"""A description has some hundred; a few lines of aliases can stand for more than memory holds."""


class PoolEntry(Config):
    """One line of a plain list of pools."""

    name: str
    nodes: int = Field(ge=0, description="largest number of nodes")
    least: int | None = Field(None, ge=0, description="nodes that are always there; none means all of them")
    cpus: float = Field(gt=0, description="CPUs of one node")
    gpus: int = Field(0, ge=0, description="GPUs of one node")
    accelerator: str | None = Field(None, description="Ray's accelerator type, e.g. L4")
    labels: dict[str, str] = Field(default_factory=dict)
    spot: bool = False


class PoolList(Config):
    """A plain list of pools."""

    pools: list[PoolEntry] = Field(min_length=1)

    @field_validator("pools")
    @classmethod
    def _named_apart(cls, pools: list[PoolEntry]) -> list[PoolEntry]:
        twice = sorted(name for name, count in Counter(pool.name for pool in pools).items() if count > 1)
        if twice:
            raise ValueError(f"two pools are called {twice[0]}: give each a name of its own")
        return pools


def read_pools(path: Path) -> list[Pool]:
    """The pools of a cluster description, the head among them.

    Raises:
        SepsceneError: when the file is missing, is of no known form, or says something that cannot be.
    """
    beside = path.with_suffix(".pools.yaml")
    source = beside if beside.exists() else path
    tree = _read_yaml(source)
    if "pools" in tree:
        return _from_list(tree, str(source))
    if tree.get("kind") in ("RayCluster", "RayJob"):
        return read_manifest_pools(tree, str(source))
    if "available_node_types" in tree:
        return _from_launcher(tree, str(source))
    raise SepsceneError(
        f"{path} does not say what its machines offer: give a cluster launcher's YAML with node types, a "
        f"RayCluster, a RayJob, or write {beside.name} beside it (docs/clusters.md)"
    )


def write_pools(pools: list[Pool]) -> str:
    """The pools as a plain list in YAML, which `read_pools` reads back."""
    entries = [
        {**asdict(pool.node), "name": pool.name, "nodes": pool.most, "least": pool.least, "spot": pool.spot}
        for pool in pools
    ]
    return yaml.safe_dump(PoolList.model_validate({"pools": entries}).model_dump(), sort_keys=False)


def _read_yaml(path: Path) -> dict[str, Any]:
    """One YAML document that is a mapping; anything else gives an empty one."""
    if not path.exists():
        raise SepsceneError(f"{path} does not exist: give the path of a cluster description, e.g. clusters/aws.yaml")
    try:
        size = path.stat().st_size
        if size > MOST_BYTES:
            raise SepsceneError(f"{path} has {size:,} bytes, more than the {MOST_BYTES:,} of a cluster description")
        text = path.read_text(encoding="utf-8")
        if _values(yaml.compose(text, yaml.SafeLoader), {}) > MOST_VALUES:
            raise SepsceneError(
                f"{path}: its aliases (*name) stand for more than {MOST_VALUES:,} values: write them out"
            )
        tree = yaml.safe_load(text)
    except (OSError, UnicodeDecodeError) as error:
        raise SepsceneError(f"{path} cannot be read: {error}") from None
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        if path.suffix not in (".yaml", ".yml"):
            return {}
        raise SepsceneError(f"{path} is not YAML: {error}") from None
    return tree if isinstance(tree, dict) else {}


def _values(node: yaml.Node | None, known: dict[yaml.Node, float]) -> float:
    """How many values a YAML tree has when each alias is written out; endless for one that holds itself."""
    if not isinstance(node, yaml.CollectionNode):
        return 1
    if node not in known:
        known[node] = math.inf
        below = [part for pair in node.value for part in (pair if isinstance(pair, tuple) else (pair,))]
        known[node] = 1 + sum(_values(part, known) for part in below)
    return known[node]


def _from_list(tree: dict[str, Any], source: str) -> list[Pool]:
    return [
        Pool(
            entry.name,
            Node(entry.name, entry.cpus, entry.gpus, entry.labels, entry.accelerator),
            entry.nodes if entry.least is None else entry.least,
            entry.nodes,
            entry.spot,
        )
        for entry in validated(PoolList, tree, f"bad list of pools {source}").pools
    ]


def _from_launcher(tree: dict[str, Any], source: str) -> list[Pool]:
    """Node types of the cluster launcher, each bounded by its `max_workers`; the common bound is checked."""
    head = tree.get("head_node_type")
    pools = []
    for name, kind in tree["available_node_types"].items():
        offered = kind.get("resources") or {}
        if "CPU" not in offered:
            raise SepsceneError(f"{source}: node type {name} does not say its CPUs: set resources, e.g. {{CPU: 8}}")
        least, most = (1, 1) if name == head else (kind.get("min_workers", 0), kind.get("max_workers", 0))
        if least > most:
            raise SepsceneError(f"{source}: node type {name} has min_workers {least} above max_workers {most}")
        node = Node.offering(name, offered, kind.get("labels", {}))
        pools.append(Pool(name, node, least, most, node.labels.get("market") == "spot"))
    workers = sum(pool.most for pool in pools if pool.name != head)
    bound = tree.get("max_workers", 0)
    if workers > bound:
        raise SepsceneError(
            f"{source}: the node types may reach {workers} workers, but max_workers is {bound}: raise it, or lower "
            "theirs"
        )
    return pools
