"""System metrics of a run's machines: CPU, memory, disk, network and GPUs, sampled in a thread of the driver.

The samples are written to RUN/system.jsonl, which is mirrored to MLflow like the step metrics (see
`records.mlflow_mirror`), so nothing is lost while its server is unavailable. Names and sensors are those of MLflow, so
they appear in the tab "System metrics" of its UI. The driver's machine is sampled in this process, every other node by
an actor that reserves no CPU.
"""

import contextlib
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from sepscene.orchestration.records.files import append_lines
from sepscene.orchestration.records.run_folder import RunFolder

if TYPE_CHECKING:
    from mlflow.system_metrics.metrics.base_metrics_monitor import BaseMetricsMonitor

SAMPLE_SECONDS = 10.0  # between two samples; the interval of MLflow's own system metrics
_TIMEOUT_SECONDS = 5.0  # for the sensors of all nodes; a node that does not respond has no sample


class Machine:
    """The sensors of the machine that this process runs on."""

    def __init__(self) -> None:
        """Create the sensors; this imports MLflow, which takes seconds."""
        from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
        from mlflow.system_metrics.metrics.disk_monitor import DiskMonitor
        from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor
        from mlflow.system_metrics.metrics.network_monitor import NetworkMonitor

        self.sensors: list[BaseMetricsMonitor] = [CPUMonitor(), DiskMonitor(), NetworkMonitor()]
        self.sample()  # discarded: CPU readings are means since the previous reading
        with contextlib.suppress(ImportError, RuntimeError):  # no GPU, or no `nvidia-ml-py`
            self.sensors.append(GPUMonitor())

    def sample(self) -> dict[str, float]:
        """One reading of every sensor, e.g. cpu_utilization_percentage, gpu_0_memory_usage_megabytes."""
        readings: dict[str, float] = {}
        for sensor in self.sensors:
            sensor.collect_metrics()
            readings |= sensor.aggregate_metrics()
            sensor.clear_metrics()
        return readings


class Machines:
    """The machine of this process, and one actor on each other node of the connected Ray cluster."""

    def __init__(self) -> None:
        self.others: dict[str, Any] = {}

    @cached_property
    def here(self) -> Machine:
        """The sensors of this machine, created on first use."""
        return Machine()

    def sample(self) -> dict[str, float]:
        """All readings: `system/<name>` of this machine, `system/<address>/<name>` of the others."""
        readings = {f"system/{name}": value for name, value in self.here.sample().items()}
        if not ray.is_initialized():
            return readings
        here = ray.get_runtime_context().get_node_id()
        nodes = {node["NodeID"]: node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]}
        self.others = {node: self._actor(node) for node in nodes if node != here}
        pending: dict[Any, str] = {actor.sample.remote(): node for node, actor in self.others.items()}
        if not pending:
            return readings
        ready, _ = ray.wait(list(pending), num_returns=len(pending), timeout=_TIMEOUT_SECONDS)
        for reference in ready:
            node = pending[reference]
            try:
                values = ray.get(reference)
            except ray.exceptions.RayError:  # the node, or the run that started its actor, has just ended
                del self.others[node]
                continue
            readings |= {f"system/{nodes[node]}/{name}": value for name, value in values.items()}
        return readings

    def _actor(self, node: str) -> Any:
        """The actor on a node, shared by all runs of the cluster."""
        if node in self.others:
            return self.others[node]
        strategy = NodeAffinitySchedulingStrategy(node, soft=False)
        shared = {"name": f"machine-{node}", "namespace": "sepscene", "get_if_exists": True}
        return ray.remote(Machine).options(num_cpus=0, scheduling_strategy=strategy, max_restarts=0, **shared).remote()


@contextmanager
def sampled(run_dir: Path, stage: str) -> Iterator[None]:
    """While the block runs, write a sample to RUN/system.jsonl every `SAMPLE_SECONDS`, and one if it ends normally."""
    path = RunFolder(run_dir).system
    stop = threading.Event()
    machines = Machines()
    step = len(path.read_bytes().splitlines()) if path.exists() else 0

    def write() -> None:
        nonlocal step
        record = {"stage": stage, "step": step, "seconds": time.time(), **machines.sample()}
        append_lines(path, [json.dumps(record)])
        step += 1

    def repeat() -> None:
        _ = machines.here  # imports MLflow in this thread, so that the block need not wait
        while not stop.wait(SAMPLE_SECONDS):
            with contextlib.suppress(Exception):  # a failed sample (full disk, lost head) must not end the run
                write()

    thread = threading.Thread(target=repeat, name="system-metrics", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(2 * _TIMEOUT_SECONDS)
    if not thread.is_alive():  # otherwise Ray does not respond, and would not respond here either
        with contextlib.suppress(Exception):
            write()
