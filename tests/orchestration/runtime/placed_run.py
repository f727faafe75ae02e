"""A real run on a head and two labelled nodes, in a separate process.

Run as `python -m tests.orchestration.runtime.placed_run FOLDER`.

FOLDER contains experiment.yaml; the run is written to FOLDER/run. A separation actor is stopped during the run.
FOLDER/outcome.json contains the nodes of each kind of actor, the consumed rows of the ledger, the reports about the
stopped process, the error for a label that no node has, and the number of trials that fit.
"""

import json
import os
import signal
import sys
import threading
import time
from pathlib import Path

import ray
from ray.cluster_utils import Cluster
from ray.util.state import list_actors

from sepscene.models.config import SepsceneError
from sepscene.models.names import trust_code
from sepscene.models.trust import trust_variables
from sepscene.orchestration.config import load_experiment
from sepscene.orchestration.records.checkpoints import read_ledger
from sepscene.orchestration.records.results import read_metrics
from sepscene.orchestration.records.system_metrics import Machines
from sepscene.orchestration.runtime import watchdog
from sepscene.orchestration.runtime.node_wait import WAIT_VARIABLE, wait_for_nodes
from sepscene.orchestration.runtime.placement import (
    CLUSTER_VARIABLE,
    Demand,
    check_placement,
    cluster_nodes,
    concurrent_trials,
    demands,
)
from sepscene.orchestration.runtime.ray_compat import configure_data
from sepscene.orchestration.runtime.run_processes import ClusterProcesses
from sepscene.orchestration.runtime.session import connect
from sepscene.orchestration.training import stage
from sepscene.orchestration.training.pretraining import pretrain
from sepscene.tasks.datasets.readers import read_manifest

KINDS = {"SeparationService": "separation actor", "TrainWorker": "trainer"}


def main(folder: Path) -> None:
    """Start the cluster, run and write outcome.json."""
    # The state API, which lists the processes of a job, is part of the dashboard.
    head = {"num_cpus": 2, "include_dashboard": True, "dashboard_port": 0, "object_store_memory": 100_000_000}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    nodes = {cluster.head_node.node_id: "head"}
    for pool in ("separators", "trainers"):
        node = cluster.add_node(num_cpus=1, labels={"pool": pool}, object_store_memory=100_000_000)
        nodes[node.node_id] = pool
    trust_code("placedlab.nets:MelNet")
    os.environ["RAY_JOB_CONFIG_JSON_ENV_VAR"] = json.dumps({"runtime_env": {"env_vars": trust_variables()}})
    connect(cluster.address)  # like the driver of a submitted job, whose environment already contains the trusted code
    try:
        (folder / "outcome.json").write_text(json.dumps(_outcome(folder, nodes)))
    finally:
        ray.shutdown()
        cluster.shutdown()


def _missing_node_error(folder: Path) -> str:
    """The error if a node of a cluster's description does not join in time."""
    (folder / "late.pools.yaml").write_text("pools: [{name: late, nodes: 1, cpus: 8, labels: {pool: late}}]")
    os.environ |= {CLUSTER_VARIABLE: str(folder / "late.pools.yaml"), WAIT_VARIABLE: "3"}
    try:
        wait_for_nodes([Demand("trainer", 1.0, labels={"pool": "late"})] * 2)
    except SepsceneError as error:
        return str(error)
    finally:
        del os.environ[CLUSTER_VARIABLE], os.environ[WAIT_VARIABLE]
    return "started"


def _outcome(folder: Path, nodes: dict[str, str]) -> dict[str, object]:
    experiment = load_experiment(folder / "experiment.yaml")
    requested = demands(experiment.resources, separates=experiment.views.separates)
    check_placement(requested, cluster_nodes())
    elsewhere = experiment.changed({"resources.separation_labels": {"pool": "nowhere"}})
    refusal = ""
    try:
        check_placement(demands(elsewhere.resources), cluster_nodes())
    except SepsceneError as error:
        refusal = str(error)
    missing_node = _missing_node_error(folder)
    seen: dict[str, set[str]] = {kind: set() for kind in KINDS.values()}
    over = threading.Event()

    def watch() -> None:
        while not over.wait(0.3):
            for actor in list_actors(filters=[("state", "=", "ALIVE")]):
                for title, kind in KINDS.items():
                    if title in actor.class_name:
                        seen[kind].add(nodes[actor.node_id])

    def stop_a_separator() -> None:
        while not over.wait(0.3):
            alive = list_actors(filters=[("state", "=", "ALIVE")])
            separators = [actor for actor in alive if "SeparationService" in actor.class_name]
            if read_metrics(folder / "run") and separators:
                os.kill(separators[0].pid, signal.SIGSTOP)
                return

    watcher = threading.Thread(target=watch, daemon=True)
    threading.Thread(target=stop_a_separator, daemon=True).start()
    # This process has started the cluster's processes, unlike a job on a real cluster.
    stage.processes_of_run = ClusterProcesses
    watchdog.CHECK_SECONDS = 1.0
    watchdog.REPORT_SECONDS = 3.0
    watchdog.RESTART_SECONDS = 8.0
    watcher.start()
    configure_data(ordered=True)
    clips = read_manifest("scenes", str(experiment.data.root)).select("train")
    newest = pretrain(experiment, clips, experiment.separator.checkpoints, folder / "run", "pretrain-mix-chan")
    over.set()
    watcher.join()
    ledger = read_ledger(newest)
    return {
        "where": {kind: sorted(where) for kind, where in seen.items()},
        "rows": ledger.rows,
        "consumed": ledger.intervals,
        "refusal": refusal,
        "missing_node": missing_node,
        "trials": concurrent_trials(requested, cluster_nodes()),
        "sampled": _sampled(),
        "events": [str(record["event"]) for record in read_metrics(folder / "run") if "event" in record],
    }


def _sampled() -> list[str]:
    """The names of the machines' CPU metrics; the actors may need a moment to start."""
    machines = Machines()
    names = set[str]()
    deadline = time.monotonic() + 60
    while len({name.count("/") for name in names}) < 2 and time.monotonic() < deadline:
        names = {name for name in machines.sample() if name.endswith("cpu_utilization_percentage")}
    return sorted(names)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
