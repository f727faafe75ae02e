"""Faults of whole nodes, each in a separate process: `python -m tests.faults.cluster_faults FOLDER FAULT`.

A head from `ray.cluster_utils.Cluster` runs the driver. Other nodes join with `ray start --block`, as real machines do,
so that they can be killed or stopped in the same way. FOLDER contains experiment.yaml and inputs.json; the run is
written to FOLDER/run, the time of the fault to FOLDER/outcome.json.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import ray
from ray.cluster_utils import Cluster

from sepscene.orchestration.config import load_experiment
from sepscene.orchestration.records.checkpoints import newest_intact
from sepscene.orchestration.runtime.ray_compat import configure_data
from sepscene.orchestration.runtime.run_processes import program_of
from sepscene.orchestration.training.pretraining import pretrain
from sepscene.tasks.datasets.readers import read_manifest
from tests.faults.faults import STAGE, after
from tests.faults.hosts import free_port

DRAIN_SECONDS = 12


class Nodes:
    """A head and the nodes that joined it."""

    def __init__(self, folder: Path, head_cpus: float) -> None:
        self.folder = folder
        head = {"num_cpus": head_cpus, "include_dashboard": False, "object_store_memory": 100_000_000}
        self.cluster = Cluster(initialize_head=True, head_node_args=head)
        self.joined: list[subprocess.Popen[bytes]] = []

    def join(self, pool: str, cpus: int = 1) -> subprocess.Popen[bytes]:
        """Start a node with a label and wait until it has joined; retried, as Ray's limit is 30 s."""
        alive = sum(node["Alive"] for node in ray.nodes())
        for _ in range(3):
            node = self._start(pool, cpus)
            while node.poll() is None:
                if sum(entry["Alive"] for entry in ray.nodes()) > alive:
                    return node
                time.sleep(0.2)
        raise AssertionError((self.folder / "nodes.log").read_text()[-2000:])

    def _start(self, pool: str, cpus: int) -> subprocess.Popen[bytes]:
        ports = f"--min-worker-port=0 --max-worker-port=0 --dashboard-agent-listen-port={free_port()}"
        options = f"--num-cpus={cpus} --labels=pool={pool} --object-store-memory=100000000 --block"
        options += f""" --resources='{{"accelerator_type:{pool}": 1}}'"""
        command = f"exec {Path(sys.executable).parent}/ray start --address={self.cluster.address} {ports} {options}"
        environment = {**os.environ, "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": str(DRAIN_SECONDS)}
        with (self.folder / "nodes.log").open("ab") as log:
            node = subprocess.Popen(command, shell=True, env=environment, stdout=log, stderr=log)
        self.joined.append(node)
        return node

    def end(self) -> None:
        """Stop everything that was started."""
        for node in self.joined:
            family = psutil.Process(node.pid).children(recursive=True) if node.poll() is None else []
            node.kill()
            for process in family:
                process.kill()
        ray.shutdown()
        self.cluster.shutdown()


def kill_raylet(node: subprocess.Popen[bytes]) -> None:
    """Kill -9 the node's raylet; its workers then end."""
    for process in psutil.Process(node.pid).children(recursive=True):
        if program_of(process) == "raylet":
            process.kill()
            return
    raise AssertionError("the node has no raylet")


def separators_lost(nodes: Nodes, _: Path) -> Callable[[], bool]:
    """The node of the separation actors is lost; another one joins."""
    node = nodes.join("separators")

    def inject() -> bool:
        kill_raylet(node)
        nodes.join("separators")
        return True

    return inject


def trainers_drained(nodes: Nodes, folder: Path) -> Callable[[], bool]:
    """The node of the trainers gets SIGTERM, as from a cloud or Kubernetes; another one has joined before."""
    node = nodes.join("trainers")

    def inject() -> bool:
        nodes.join("trainers")
        terminated = time.time()
        node.terminate()
        checkpoints = folder / "run" / "checkpoints" / STAGE
        while newest_intact(checkpoints) is None and time.time() < terminated + DRAIN_SECONDS:
            time.sleep(0.1)
        (folder / "checkpoint_seconds").write_text(str(time.time() - terminated))
        return True

    return inject


def trainers_fewer(nodes: Nodes, _: Path) -> Callable[[], bool]:
    """One of two nodes with one trainer each is lost and not replaced."""
    nodes.join("trainers")
    node = nodes.join("trainers")

    def inject() -> bool:
        kill_raylet(node)
        return True

    return inject


FAULTS = {fault.__name__: fault for fault in (separators_lost, trainers_drained, trainers_fewer)}


def main(folder: Path, fault: str) -> None:
    """Run the experiment with the fault."""
    inputs = json.loads((folder / "inputs.json").read_text())
    experiment = load_experiment(folder / "experiment.yaml")
    nodes = Nodes(folder, head_cpus=3)
    try:
        ray.init(address=nodes.cluster.address, log_to_driver=False, logging_level="ERROR")
        inject = FAULTS[fault](nodes, folder)
        configure_data(ordered=True)
        clips = read_manifest("scenes", inputs["scenes"]).select("train")
        run_dir = folder / "run"
        run_dir.mkdir()
        injection = after(10, run_dir, inject)
        pretrain(experiment, clips, inputs["ladder"], run_dir, STAGE)
        assert injection.happened
        (folder / "outcome.json").write_text(json.dumps({"injected": injection.times[0]}))
    finally:
        nodes.end()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
