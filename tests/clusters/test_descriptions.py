"""Pools are read from all templates, and invalid descriptions are refused with a message."""

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml

from sepscene.clusters.descriptions import read_pools, write_pools
from sepscene.clusters.kuberay import read_manifest_pools
from sepscene.models.config import SepsceneError

CLUSTERS = Path(__file__).resolve().parents[2] / "clusters"
TEMPLATES = (
    "aws.yaml",
    "gcp.yaml",
    "onprem.yaml",
    "raycluster.yaml",
    "rayjob.yaml",
    "skypilot.yaml",
    "slurm.sh",
)


def test_pools_with_the_same_name_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "pools.yaml"
    path.write_text("pools:\n- {name: a, nodes: 2, cpus: 8}\n- {name: a, nodes: 1, cpus: 4}\n")
    with pytest.raises(SepsceneError, match=r"pools\.yaml: pools: .*two pools are called a: give each a unique name"):
        read_pools(path)


def test_aliases_are_accepted_unless_they_expand_to_too_many_values(tmp_path: Path) -> None:
    path = tmp_path / "pools.yaml"
    labels = "{name: a, nodes: 2, cpus: 8, labels: &l {pool: trainers}}"
    path.write_text(f"pools:\n- {labels}\n- {{name: b, nodes: 1, cpus: 8, labels: *l}}\n")
    assert [pool.node.labels for pool in read_pools(path)] == [{"pool": "trainers"}] * 2
    steps = zip("abcdefgh", "bcdefghi", strict=True)
    bomb = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(f"{b}: &{b} [{','.join([f'*{a}'] * 9)}]\n" for a, b in steps)
    for content in (f"{bomb}pools: *i\n", "pools: &p [*p]\n"):
        path.write_text(content)
        with pytest.raises(SepsceneError, match=r"pools\.yaml: its aliases .* expand to more than 100,000 values"):
            read_pools(path)
    for content in (b"\xff\xfe", b"[" * 100_000, b"#" * 2**21):
        path.write_bytes(content)
        with pytest.raises(SepsceneError, match=r"pools\.yaml"):
            read_pools(path)


@pytest.mark.parametrize("name", TEMPLATES)
def test_every_template_has_the_two_pools(name: str) -> None:
    pools = {pool.name: pool for pool in read_pools(CLUSTERS / name)}
    for kind in ("trainers", "separators"):
        assert pools[kind].node.labels["pool"] == kind
        assert pools[kind].node.gpus >= 1
        assert 0 <= pools[kind].least <= pools[kind].most
        assert pools[kind].spot == (pools[kind].node.labels.get("market") == "spot" or name == "skypilot.yaml")


@pytest.mark.parametrize("name", TEMPLATES)
def test_written_pools_are_read_back_unchanged(name: str, tmp_path: Path) -> None:
    pools = read_pools(CLUSTERS / name)
    (tmp_path / "copy.pools.yaml").write_text(write_pools(pools))
    again = read_pools(tmp_path / "copy.pools.yaml")
    assert [(p.name, p.least, p.most, p.spot) for p in again] == [(p.name, p.least, p.most, p.spot) for p in pools]
    assert [(p.node.cpus, p.node.gpus, p.node.labels, p.node.accelerator) for p in again] == [
        (p.node.cpus, p.node.gpus, p.node.labels, p.node.accelerator) for p in pools
    ]


def test_the_pool_list_of_the_slurm_script_agrees_with_the_script() -> None:
    script = (CLUSTERS / "slurm.sh").read_text()
    parts = script.split("#SBATCH hetjob")
    for part, pool in zip(parts, read_pools(CLUSTERS / "slurm.sh"), strict=True):
        asked = dict(
            line.removeprefix("#SBATCH --").split("=", 1)
            for line in part.splitlines()
            if line.startswith("#SBATCH --") and "=" in line
        )
        kind, count = asked["gpus-per-node"].split(":")
        assert (pool.most, pool.node.cpus, pool.node.gpus, pool.node.accelerator) == (
            int(asked["nodes"]),
            float(asked["cpus-per-task"]),
            int(count),
            kind,
        )
        assert f"{pool.name.removesuffix('s').upper()}_CPUS={asked['cpus-per-task']}" in script


def test_the_other_pool_lists_agree_with_their_templates() -> None:
    onprem = yaml.safe_load((CLUSTERS / "onprem.yaml").read_text())
    workers = sum(pool.most for pool in read_pools(CLUSTERS / "onprem.yaml") if pool.name != "head")
    assert workers == len(onprem["provider"]["worker_ips"]) == onprem["min_workers"] == onprem["max_workers"]
    sky = yaml.safe_load((CLUSTERS / "skypilot.yaml").read_text())
    pools = read_pools(CLUSTERS / "skypilot.yaml")
    assert sum(pool.most for pool in pools) == sky["num_nodes"]
    assert {f"{pool.node.accelerator}:{pool.node.gpus}" for pool in pools} == {sky["resources"]["accelerators"]}


def changed(path: str, value: Any, name: str = "raycluster.yaml") -> dict[str, Any]:
    """The manifest with one field set; `path` is dotted, numbers index lists."""
    tree: dict[str, Any] = copy.deepcopy(yaml.safe_load((CLUSTERS / name).read_text()))
    *parents, leaf = path.split(".")
    node: Any = tree
    for key in parents:
        node = node[int(key)] if key.isdigit() else node[key]
    node[leaf] = value
    return tree


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("spec.workerGroupSpecs.0.template.spec.containers.0.imagee", "x", "'imagee' was unexpected"),
        ("spec.idleTimeoutSeconds", 5, "'idleTimeoutSeconds' was unexpected"),
        ("metadata.name", "Sepscene", "lowercase letters"),
        ("metadata.name", "s" * 54, "53 characters"),
        ("spec.rayVersion", "2.51.0", "tokens need 2.52.0"),
        ("spec.rayVersion", "2.60", "written as x.y.z"),
        ("spec.authOptions.mode", "disabled", "authOptions.mode must be token"),
        ("spec.workerGroupSpecs.0.minReplicas", 65, "maxReplicas 64 must not decrease"),
        ("spec.workerGroupSpecs.1.groupName", "separators", "different names"),
        ("spec.workerGroupSpecs.1.template.spec.restartPolicy", "Always", "restartPolicy must be Never"),
        ("spec.workerGroupSpecs.0.rayStartParams", {"labels": "pool=x"}, "rayStartParams.labels"),
        ("spec.headGroupSpec.resources", {"CPU": "4"}, "use one of them"),
        ("spec.headGroupSpec.labels", {"pool": "no blanks"}, "'no blanks' is not a Kubernetes label"),
        ("spec.headGroupSpec.serviceType", "LoadBalancer", "ClusterIP"),
        ("spec.headGroupSpec.template.spec.containers", [], "containers is empty"),
        ("spec.workerGroupSpecs.0.template.spec.volumes", [], "missing in `volumes`"),
        (
            "spec.workerGroupSpecs.0.template.spec.containers.0.env",
            [{"name": "MLFLOW_TRACKING_PASSWORD", "value": "swordfish"}],
            "contains a secret in plain text",
        ),
    ],
)
def test_manifests_that_the_operator_would_refuse_are_refused(path: str, value: Any, message: str) -> None:
    with pytest.raises(SepsceneError) as refusal:
        read_manifest_pools(changed(path, value), "raycluster.yaml")
    assert message in str(refusal.value), str(refusal.value)


def test_the_name_of_a_job_must_be_short_because_its_cluster_gets_a_longer_one() -> None:
    with pytest.raises(SepsceneError, match="47 characters"):
        read_manifest_pools(changed("metadata.name", "s" * 48, "rayjob.yaml"), "rayjob.yaml")


def test_the_two_kuberay_clusters_differ_only_where_they_must() -> None:
    cluster = yaml.safe_load((CLUSTERS / "raycluster.yaml").read_text())["spec"]
    job = yaml.safe_load((CLUSTERS / "rayjob.yaml").read_text())["spec"]["rayClusterSpec"]
    assert cluster["headGroupSpec"]["rayStartParams"].pop("dashboard-host") == "127.0.0.1"
    variable = cluster["headGroupSpec"]["template"]["spec"]["containers"][0]["env"][2]
    assert variable == {"name": "SEPSCENE_CLUSTER", "value": "/home/ray/sepscene/clusters/raycluster.yaml"}
    variable["value"] = "/home/ray/sepscene/clusters/rayjob.yaml"
    assert cluster == job


def test_the_two_clouds_differ_only_where_they_must() -> None:
    aws, gcp = (yaml.safe_load((CLUSTERS / name).read_text()) for name in ("aws.yaml", "gcp.yaml"))
    same = aws.keys() - {"provider", "available_node_types", "initialization_commands", "setup_commands"}
    assert {key: aws[key] for key in same} == {key: gcp[key] for key in same}
    assert aws["available_node_types"].keys() == gcp["available_node_types"].keys()
    for name, kind in aws["available_node_types"].items():
        for key in kind.keys() - {"node_config", "resources"}:
            assert kind[key] == gcp["available_node_types"][name][key], (name, key)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("pools: []", "bad list of pools"),
        ("pools: [{name: a, nodes: 1, cpus: 0}]", "greater than 0"),
        ("pools: [{name: a, nodes: 1, cpus: 1, gpu: 1}]", "pools.0.gpu: unknown field (did you mean gpus?)"),
        ("a: [", "is not YAML"),
        ("just: words", "does not describe the resources of its machines"),
        ("available_node_types: {a: {resources: {}, node_config: {}}}", "has no number of CPUs"),
        (
            "max_workers: 9\navailable_node_types: {a: {resources: {CPU: 1}, min_workers: 3, max_workers: 2}}",
            "min_workers 3 above max_workers 2",
        ),
        (
            "max_workers: 1\navailable_node_types: {a: {resources: {CPU: 1}, max_workers: 2}}",
            "allow 2 workers, but max_workers is 1",
        ),
    ],
)
def test_a_bad_description_is_refused_with_a_message(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(SepsceneError) as refusal:
        read_pools(tmp_path / "mine.yaml")
    assert message in str(refusal.value), str(refusal.value)


def test_a_missing_description_is_named(tmp_path: Path) -> None:
    with pytest.raises(SepsceneError, match=r"nothing\.yaml does not exist"):
        read_pools(tmp_path / "nothing.yaml")


def test_millicpus_are_converted_to_cpus() -> None:
    tree = changed("spec.workerGroupSpecs.0.template.spec.containers.0.resources.limits", {"cpu": "3500m"})
    assert read_manifest_pools(tree, "x")[1].node.cpus == 3.5
