"""A real run on a head and two labelled nodes, in a process of its own.

Run as `python -m tests.orchestration.runtime.placed_run FOLDER`.

FOLDER holds experiment.yaml; the run goes to FOLDER/run. A separation actor is stopped in its middle.
FOLDER/outcome.json says on which node each kind of actor was seen, how far the ledger came, what was said of the
stopped process, what a label that no node has is answered, and how many trials fit.
"""

import json
import os
import signal
import sys
import threading
import time
from pathlib import Path

import ray
from ray._private.state import actors
from ray.cluster_utils import Cluster

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
    """Everything, in order."""
    # The state API, which knows the processes of a job, is the dashboard's.
    head = {"num_cpus": 2, "include_dashboard": True, "dashboard_port": 0, "object_store_memory": 100_000_000}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    nodes = {cluster.head_node.node_id: "head"}
    for pool in ("separators", "trainers"):
        node = cluster.add_node(num_cpus=1, labels={"pool": pool}, object_store_memory=100_000_000)
        nodes[node.node_id] = pool
    trust_code("placedlab.nets:MelNet")
    os.environ["RAY_JOB_CONFIG_JSON_ENV_VAR"] = json.dumps({"runtime_env": {"env_vars": trust_variables()}})
    connect(cluster.address)  # as the driver of a submitted job does, which has brought the user's trust with it
    try:
        (folder / "outcome.json").write_text(json.dumps(_outcome(folder, nodes)))
    finally:
        ray.shutdown()
        cluster.shutdown()


def _promised(folder: Path) -> str:
    """What is said when a node that a description promises does not join in time."""
    (folder / "promised.pools.yaml").write_text("pools: [{name: late, nodes: 1, cpus: 8, labels: {pool: late}}]")
    os.environ |= {CLUSTER_VARIABLE: str(folder / "promised.pools.yaml"), WAIT_VARIABLE: "3"}
    try:
        wait_for_nodes([Demand("trainer", 1.0, labels={"pool": "late"})] * 2)
    except SepsceneError as error:
        return str(error)
    finally:
        del os.environ[CLUSTER_VARIABLE], os.environ[WAIT_VARIABLE]
    return "started"


def _outcome(folder: Path, nodes: dict[str, str]) -> dict[str, object]:
    experiment = load_experiment(folder / "experiment.yaml")
    asked = demands(experiment.resources, separates=experiment.views.separates)
    check_placement(asked, cluster_nodes())
    elsewhere = experiment.changed({"resources.separation_labels": {"pool": "nowhere"}})
    refusal = ""
    try:
        check_placement(demands(elsewhere.resources), cluster_nodes())
    except SepsceneError as error:
        refusal = str(error)
    never_came = _promised(folder)
    seen: dict[str, set[str]] = {kind: set() for kind in KINDS.values()}
    over = threading.Event()

    def watch() -> None:
        while not over.wait(0.3):
            for actor in actors().values():
                for title, kind in KINDS.items():
                    if title in actor["ActorClassName"] and actor["State"] == "ALIVE":
                        seen[kind].add(nodes[actor["Address"]["NodeID"]])

    def stop_a_separator() -> None:
        while not over.wait(0.3):
            separators = [one for one in actors().values() if "SeparationService" in one["ActorClassName"]]
            if read_metrics(folder / "run") and separators:
                os.kill(separators[0]["Pid"], signal.SIGSTOP)
                return

    watcher = threading.Thread(target=watch, daemon=True)
    threading.Thread(target=stop_a_separator, daemon=True).start()
    # This process has started the cluster's processes, which a job of a real cluster has not.
    stage.processes_of_run = ClusterProcesses
    watchdog.EVERY_SECONDS, watchdog.SILENT_SECONDS, watchdog.RESTART_SECONDS = 1.0, 3.0, 8.0
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
        "never_came": never_came,
        "trials": concurrent_trials(asked, cluster_nodes()),
        "sampled": _sampled(),
        "events": [str(record["event"]) for record in read_metrics(folder / "run") if "event" in record],
    }


def _sampled() -> list[str]:
    """The names under which the machines of the cluster are sampled; the actors may need a moment to start."""
    machines, names, deadline = Machines(), set[str](), time.monotonic() + 60
    while len({name.count("/") for name in names}) < 2 and time.monotonic() < deadline:
        names = {name for name in machines.sample() if name.endswith("cpu_utilization_percentage")}
    return sorted(names)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
