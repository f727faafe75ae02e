"""Reads the pools of nodes from a description of a cluster.

Three formats are supported: the YAML of Ray's cluster launcher for a cloud (its node types), KubeRay's RayCluster and
RayJob, and a plain list of pools. Some formats do not contain the resources of their machines (the launcher's local
provider, Slurm, SkyPilot). Their list of pools is in a file next to them, e.g. `onprem.pools.yaml` for `onprem.yaml`.
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
from sepscene.models.config import Config, SepsceneError, validated

MAX_BYTES = 2**20
MAX_VALUES = 100_000
"""A description has a few hundred values, but a few lines of aliases can expand to more than fits into memory."""


class PoolEntry(Config):
    """One entry in a plain list of pools."""

    name: str
    nodes: int = Field(ge=0, description="maximum number of nodes")
    least: int | None = Field(None, ge=0, description="minimum number of nodes; none: the same as `nodes`")
    cpus: float = Field(gt=0, description="CPUs per node")
    gpus: int = Field(0, ge=0, description="GPUs per node")
    accelerator: str | None = Field(None, description="Ray's accelerator type, e.g. L4")
    labels: dict[str, str] = Field(default_factory=dict)
    spot: bool = False


class PoolList(Config):
    """A plain list of pools."""

    pools: list[PoolEntry] = Field(min_length=1)

    @field_validator("pools")
    @classmethod
    def _names_differ(cls, pools: list[PoolEntry]) -> list[PoolEntry]:
        twice = sorted(name for name, count in Counter(pool.name for pool in pools).items() if count > 1)
        if twice:
            raise ValueError(f"two pools are called {twice[0]}: give each a unique name")
        return pools


def read_pools(path: Path) -> list[Pool]:
    """The pools of a cluster description, including the head.

    Raises:
        SepsceneError: when the file is missing, has an unknown format, or is invalid.
    """
    pool_list = path.with_suffix(".pools.yaml")
    source = pool_list if pool_list.exists() else path
    tree = _read_yaml(source)
    if "pools" in tree:
        return _from_list(tree, str(source))
    if tree.get("kind") in ("RayCluster", "RayJob"):
        return read_manifest_pools(tree, str(source))
    if "available_node_types" in tree:
        return _from_launcher(tree, str(source))
    raise SepsceneError(
        f"{path} does not describe the resources of its machines: give the YAML of Ray's cluster launcher with node "
        f"types, a RayCluster or a RayJob, or create {pool_list.name} next to it (docs/clusters.md)"
    )


def write_pools(pools: list[Pool]) -> str:
    """The pools as a plain list in YAML, which `read_pools` reads back."""
    entries = [
        {**asdict(pool.node), "name": pool.name, "nodes": pool.most, "least": pool.least, "spot": pool.spot}
        for pool in pools
    ]
    return yaml.safe_dump(PoolList.model_validate({"pools": entries}).model_dump(), sort_keys=False)


def _read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file; empty if the file contains anything else."""
    if not path.exists():
        raise SepsceneError(f"{path} does not exist: give the path of a cluster description, e.g. clusters/aws.yaml")
    try:
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise SepsceneError(
                f"{path} has {size:,} bytes; a cluster description has at most {MAX_BYTES:,}: check the path"
            )
        text = path.read_text(encoding="utf-8")
        if _values(yaml.compose(text, yaml.SafeLoader), {}) > MAX_VALUES:
            raise SepsceneError(
                f"{path}: its aliases (*name) expand to more than {MAX_VALUES:,} values: replace them by their values"
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
    """The number of values in a YAML tree after expanding its aliases; infinite if it contains itself."""
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
    """The node types of the cluster launcher, each limited by its `max_workers`. Also checks the common limit."""
    head = tree.get("head_node_type")
    pools = []
    for name, kind in tree["available_node_types"].items():
        offered = kind.get("resources") or {}
        if "CPU" not in offered:
            raise SepsceneError(f"{source}: node type {name} has no number of CPUs: set resources, e.g. {{CPU: 8}}")
        least = 1 if name == head else kind.get("min_workers", 0)
        most = 1 if name == head else kind.get("max_workers", 0)
        if least > most:
            raise SepsceneError(
                f"{source}: node type {name} has min_workers {least} above max_workers {most}: raise max_workers"
            )
        node = Node.offering(name, offered, kind.get("labels", {}))
        pools.append(Pool(name, node, least, most, node.labels.get("market") == "spot"))
    workers = sum(pool.most for pool in pools if pool.name != head)
    bound = tree.get("max_workers", 0)
    if workers > bound:
        raise SepsceneError(
            f"{source}: the node types allow {workers} workers, but max_workers is {bound}: raise it, or lower the "
            "limits of the node types"
        )
    return pools
