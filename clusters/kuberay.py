"""Validates KubeRay's RayCluster and RayJob, and reads their pools.

`kuberay.schema.json` is the operator's own schema (KubeRay 1.7.0, Apache License 2.0), reduced to names and types. It
also refuses unknown fields, which the API server silently drops. Further rules are those that the operator checks in
code, and our own for security. Only `kubectl apply --dry-run=server` is a complete check.
"""

import json
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator

from sepscene.clusters.pools import Node, Pool
from sepscene.models.config import SepsceneError

_NAME = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
_LONGEST_NAME = {"RayCluster": 53, "RayJob": 47}  # the operator appends to a job's name for its cluster
_LABEL_VALUE = re.compile(r"([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?")
_OLDEST_RAY_WITH_TOKENS = (2, 52)
_OWN_RESOURCE_FLAGS = {"num-cpus", "num-gpus", "memory", "resources"}


def read_manifest_pools(tree: dict[str, Any], source: str) -> list[Pool]:
    """The head and the worker groups of a RayCluster or RayJob, read from the file `source`.

    Raises:
        SepsceneError: names the invalid fields and what is wrong with them.
    """
    faults = [
        f"{'.'.join(map(str, fault.absolute_path)) or 'the manifest'}: {fault.message[:300]}"
        for fault in _validator(tree["kind"]).iter_errors(tree)
    ]
    faults = faults or list(_broken_rules(tree))
    if faults:
        raise SepsceneError(f"bad manifest {source}:\n" + "\n".join(f"  {fault}" for fault in faults))
    spec = _cluster_spec(tree)
    head = Pool("head", _node(spec["headGroupSpec"]), least=1, most=1)
    workers = [
        Pool(
            group["groupName"],
            _node(group),
            group.get("minReplicas", 0),
            group["maxReplicas"],
            spot=group.get("labels", {}).get("market") == "spot",
        )
        for group in spec.get("workerGroupSpecs", [])
    ]
    return [head, *workers]


@cache
def _validator(kind: str) -> Draft202012Validator:
    schemas = json.loads((Path(__file__).parent / "kuberay.schema.json").read_text())
    return Draft202012Validator({"$defs": schemas["$defs"], **schemas[kind]})


def _cluster_spec(tree: dict[str, Any]) -> dict[str, Any]:
    spec: dict[str, Any] = tree["spec"]["rayClusterSpec"] if tree["kind"] == "RayJob" else tree["spec"]
    return spec


def _broken_rules(tree: dict[str, Any]) -> Iterator[str]:
    """Violations of rules that the schema does not contain: the operator's rules, and ours for security."""
    name = str(tree["metadata"].get("name", ""))
    longest = _LONGEST_NAME[tree["kind"]]
    if len(name) > longest or not _NAME.fullmatch(name):
        yield (
            f"metadata.name {name!r} must begin with a letter, have only lowercase letters, digits and '-', and at "
            f"most {longest} characters"
        )
    spec = _cluster_spec(tree)
    version = re.fullmatch(r"(\d+)\.(\d+)\.\d+", spec.get("rayVersion", ""))
    if not version or (int(version[1]), int(version[2])) < _OLDEST_RAY_WITH_TOKENS:
        yield f"rayVersion {spec.get('rayVersion')!r}: tokens need 2.52.0 or later, written as x.y.z"
    if spec.get("authOptions", {}).get("mode") != "token":
        yield "authOptions.mode must be token: without it, Ray runs any code that is sent to its ports"
    if spec["headGroupSpec"].get("serviceType", "ClusterIP") != "ClusterIP":
        yield "headGroupSpec.serviceType must be ClusterIP: the head must not be reachable from outside the cluster"
    workers = spec.get("workerGroupSpecs", [])
    names = [group["groupName"] for group in workers]
    if len(set(names)) < len(names):
        yield f"worker groups need different names, not {', '.join(names)}"
    newer = spec.get("autoscalerOptions", {}).get("version") == "v2"
    for group in (spec["headGroupSpec"], *workers):
        yield from _group_faults(group, newer)


def _group_faults(group: dict[str, Any], newer_autoscaler: bool) -> Iterator[str]:
    name = group.get("groupName", "head")
    start = group.get("rayStartParams", {})
    pod = group["template"]["spec"]
    if group.get("resources") and _OWN_RESOURCE_FLAGS & start.keys():
        yield f"{name}: both rayStartParams and `resources` set resources: use one of them"
    if "labels" in start:
        yield f"{name}: rayStartParams.labels is not supported: use the group's `labels`"
    for value in group.get("labels", {}).values():
        if not _LABEL_VALUE.fullmatch(value):
            yield f"{name}: label value {value!r} is not a Kubernetes label (up to 63 letters, digits, '-', '_', '.')"
    if newer_autoscaler and pod.get("restartPolicy") != "Never":
        yield f"{name}: restartPolicy must be Never with version v2 of the autoscaler"
    if name != "head":
        counts = [group.get("minReplicas", 0), group.get("replicas", 0), group.get("maxReplicas", 0)]
        if counts != sorted(counts):
            yield f"{name}: minReplicas {counts[0]}, replicas {counts[1]}, maxReplicas {counts[2]} must not decrease"
    if not pod["containers"]:
        yield f"{name}: template.spec.containers is empty"
    volumes = {volume["name"] for volume in pod.get("volumes", [])}
    for container in pod["containers"]:
        missing = {mount["name"] for mount in container.get("volumeMounts", [])} - volumes
        if missing:
            yield f"{name}: container {container['name']} mounts {', '.join(missing)}, missing in `volumes`"
        for variable in container.get("env", []):
            if "value" in variable and re.search("TOKEN|PASSWORD|SECRET", variable["name"]):
                yield f"{name}: {variable['name']} contains a secret in plain text: use valueFrom.secretKeyRef"


def _node(group: dict[str, Any]) -> Node:
    """The resources that Ray detects in a pod: the limits of its first container, unless rayStartParams set others."""
    limits = group["template"]["spec"]["containers"][0].get("resources", {}).get("limits", {})
    start = group.get("rayStartParams", {})
    return Node(
        name="pod",
        cpus=float(start.get("num-cpus") or _cpus(str(limits.get("cpu", "1")))),
        gpus=int(start.get("num-gpus") or limits.get("nvidia.com/gpu", "0")),
        labels=group.get("labels", {}),
    )


def _cpus(quantity: str) -> float:
    """CPUs of a Kubernetes quantity such as `7` or `500m`."""
    return float(quantity.removesuffix("m")) / 1000 if quantity.endswith("m") else float(quantity)
