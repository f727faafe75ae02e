"""The parts of KubeRay's RayCluster and RayJob that our manifests use, as strict models.

The operator's own schema (ray.io/v1, operator 1.5 to 1.7) is more than two megabytes, most of it Kubernetes'
pod. Here stands what we use of it and nothing else, so that a misspelt field is an error before `kubectl apply`
and not a default afterwards; and the rules that the operator checks in code, which no schema holds.
`kubectl apply --dry-run=server` has the last word.
"""

import re
from typing import Any, Literal

from pydantic import ConfigDict, Field, ValidationError, model_validator
from pydantic.alias_generators import to_camel

from sepscene.clusters.pools import Node, Pool
from sepscene.models.config import Config, SepsceneError

_DNS_1035 = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
_LONGEST_CLUSTER_NAME = 53
_LONGEST_JOB_NAME = 47  # the operator appends to it for the cluster
_LABEL_VALUE = re.compile(r"([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?")
_OLDEST_RAY_WITH_TOKENS = (2, 52)
_OWN_RESOURCE_FLAGS = {"num-cpus", "num-gpus", "memory", "resources"}


class _Manifest(Config):
    """Kubernetes writes camelCase."""

    model_config = ConfigDict(alias_generator=to_camel)


class SecretKey(_Manifest):
    """A value in a Kubernetes Secret."""

    name: str
    key: str


class ValueFrom(_Manifest):
    """Where a variable's value is kept."""

    secret_key_ref: SecretKey


class Variable(_Manifest):
    """An environment variable: a plain value, or a reference to a secret."""

    name: str
    value: str | None = None
    value_from: ValueFrom | None = None

    @model_validator(mode="after")
    def _secrets_by_reference(self) -> "Variable":
        if (self.value is None) == (self.value_from is None):
            raise ValueError(f"variable {self.name} needs either value or valueFrom")
        if self.value is not None and re.search("TOKEN|PASSWORD|SECRET", self.name):
            raise ValueError(f"variable {self.name} holds a secret in plain text: use valueFrom.secretKeyRef")
        return self


class Amounts(_Manifest):
    """Requested and allowed amounts, e.g. {"cpu": "7", "nvidia.com/gpu": "1"}."""

    requests: dict[str, str] = {}
    limits: dict[str, str] = {}


class Mount(_Manifest):
    """Where a volume appears."""

    name: str
    mount_path: str


class Container(_Manifest):
    """One container of a pod."""

    name: str
    image: str
    command: list[str] = []
    env: list[Variable] = []
    resources: Amounts
    volume_mounts: list[Mount] = []


class EmptyDir(_Manifest):
    """A folder in memory."""

    medium: Literal["Memory"]
    size_limit: str


class Claim(_Manifest):
    """A disk that outlives the pod."""

    claim_name: str


class Volume(_Manifest):
    """Storage of a pod."""

    name: str
    empty_dir: EmptyDir | None = None
    persistent_volume_claim: Claim | None = None


class Toleration(_Manifest):
    """A taint that the pod accepts."""

    key: str
    operator: Literal["Exists"]
    effect: Literal["NoSchedule"]


class PodSpec(_Manifest):
    """What runs in a pod, and on which machines."""

    restart_policy: str = "Never"
    service_account_name: str | None = None
    node_selector: dict[str, str] = {}
    tolerations: list[Toleration] = []
    containers: list[Container] = Field(min_length=1)
    volumes: list[Volume] = []

    @model_validator(mode="after")
    def _mounts_exist(self) -> "PodSpec":
        volumes = {volume.name for volume in self.volumes}
        for container in self.containers:
            missing = {mount.name for mount in container.volume_mounts} - volumes
            if missing:
                raise ValueError(f"container {container.name} mounts {', '.join(missing)}, which `volumes` lacks")
        return self


class Metadata(_Manifest):
    """Name and labels of a Kubernetes object."""

    name: str | None = None
    labels: dict[str, str] = {}


class PodTemplate(_Manifest):
    """A pod of a group."""

    metadata: Metadata = Metadata()
    spec: PodSpec


class Group(_Manifest):
    """Equal pods: the head, or one group of workers."""

    labels: dict[str, str] = {}
    ray_start_params: dict[str, str] = {}
    resources: dict[str, str] = {}
    template: PodTemplate

    @model_validator(mode="after")
    def _operator_rules(self) -> "Group":
        if self.resources and _OWN_RESOURCE_FLAGS & self.ray_start_params.keys():
            raise ValueError("resources stand in both rayStartParams and `resources`: use one of them")
        if "labels" in self.ray_start_params:
            raise ValueError("rayStartParams.labels is not supported: use the group's `labels`")
        bad = [value for value in self.labels.values() if not _LABEL_VALUE.fullmatch(value)]
        if bad:
            raise ValueError(f"label value {bad[0]!r} is not a Kubernetes label (63 letters, digits, '-', '_', '.')")
        return self

    def node(self) -> Node:
        """What Ray finds in a pod: its first container's limits, unless the start command says otherwise."""
        limits = self.template.spec.containers[0].resources.limits
        return Node(
            name="pod",
            cpus=float(self.ray_start_params.get("num-cpus") or _cpus(limits.get("cpu", "1"))),
            gpus=int(self.ray_start_params.get("num-gpus") or limits.get("nvidia.com/gpu", "0")),
            labels=self.labels,
        )


class HeadGroup(Group):
    """The pod with Ray's head."""

    service_type: Literal["ClusterIP"] = "ClusterIP"


class WorkerGroup(Group):
    """Pods that autoscaling starts and stops."""

    group_name: str
    replicas: int = 0
    min_replicas: int = Field(ge=0)
    max_replicas: int = Field(ge=0)

    @model_validator(mode="after")
    def _least_not_above_most(self) -> "WorkerGroup":
        if not self.min_replicas <= self.replicas <= self.max_replicas:
            raise ValueError(
                f"worker group {self.group_name}: minReplicas {self.min_replicas}, replicas {self.replicas}, "
                f"maxReplicas {self.max_replicas} must not fall"
            )
        return self


class AuthOptions(_Manifest):
    """Token authentication is not optional here: Ray runs any code that reaches its ports."""

    mode: Literal["token"]
    secret_name: str


class AutoscalerOptions(_Manifest):
    """The autoscaler beside the head."""

    version: Literal["v1", "v2"] = "v1"
    idle_timeout_seconds: int = Field(ge=0)
    resources: Amounts


class ClusterSpec(_Manifest):
    """A RayCluster's spec."""

    ray_version: str
    auth_options: AuthOptions
    enable_in_tree_autoscaling: bool = False
    autoscaler_options: AutoscalerOptions
    head_group_spec: HeadGroup
    worker_group_specs: list[WorkerGroup]

    @model_validator(mode="after")
    def _operator_rules(self) -> "ClusterSpec":
        numbers = re.fullmatch(r"(\d+)\.(\d+)\.\d+", self.ray_version)
        if not numbers or (int(numbers[1]), int(numbers[2])) < _OLDEST_RAY_WITH_TOKENS:
            raise ValueError(f"rayVersion {self.ray_version!r}: tokens need 2.52.0 or later, written as x.y.z")
        for group in (self.head_group_spec, *self.worker_group_specs):
            if self.autoscaler_options.version == "v2" and group.template.spec.restart_policy != "Never":
                raise ValueError("restartPolicy must be Never with the autoscaler's version v2")
        names = [group.group_name for group in self.worker_group_specs]
        if len(set(names)) < len(names):
            raise ValueError(f"worker groups need different names, not {', '.join(names)}")
        return self

    def pools(self) -> list[Pool]:
        """The head and the worker groups."""
        head = Pool("head", self.head_group_spec.node(), least=1, most=1)
        workers = [
            Pool(
                group.group_name,
                group.node(),
                group.min_replicas,
                group.max_replicas,
                spot=group.labels.get("market") == "spot",
            )
            for group in self.worker_group_specs
        ]
        return [head, *workers]


class RayCluster(_Manifest):
    """A cluster that stays."""

    api_version: Literal["ray.io/v1"]
    kind: Literal["RayCluster"]
    metadata: Metadata
    spec: ClusterSpec


class JobSpec(_Manifest):
    """A RayJob's spec. The entry point takes no GPU and no CPU: it only steers."""

    entrypoint: str
    submission_mode: Literal["HTTPMode", "K8sJobMode"]
    backoff_limit: int = Field(ge=0)
    shutdown_after_job_finishes: bool
    ttl_seconds_after_finished: int = Field(ge=0)
    active_deadline_seconds: int = Field(gt=0)
    ray_cluster_spec: ClusterSpec


class RayJob(_Manifest):
    """One run with a cluster of its own."""

    api_version: Literal["ray.io/v1"]
    kind: Literal["RayJob"]
    metadata: Metadata
    spec: JobSpec


def parse_kuberay(tree: dict[str, Any], source: str) -> ClusterSpec:
    """The cluster of a RayCluster or a RayJob.

    Args:
        tree: the manifest, read from YAML.
        source: what a message calls it.

    Raises:
        SepsceneError: names the field and what is wrong with it.
    """
    try:
        if tree["kind"] == "RayJob":
            job = RayJob.model_validate(tree)
            _check_name(job.metadata.name, _LONGEST_JOB_NAME, source)
            return job.spec.ray_cluster_spec
        cluster = RayCluster.model_validate(tree)
        _check_name(cluster.metadata.name, _LONGEST_CLUSTER_NAME, source)
        return cluster.spec
    except ValidationError as error:
        faults = [
            f"  {'.'.join(str(part) for part in fault['loc'])}: {fault['msg'].removeprefix('Value error, ')}"
            for fault in error.errors()
        ]
        raise SepsceneError(f"bad manifest {source}:\n" + "\n".join(faults)) from None


def _check_name(name: str | None, longest: int, source: str) -> None:
    if not name or len(name) > longest or not _DNS_1035.fullmatch(name):
        raise SepsceneError(
            f"bad manifest {source}: metadata.name {name!r} must begin with a letter, hold small letters, "
            f"digits and '-' only, and have at most {longest} characters"
        )


def _cpus(quantity: str) -> float:
    """`7` or `500m`."""
    return float(quantity.removesuffix("m")) / 1000 if quantity.endswith("m") else float(quantity)
