"""The processes of a run, to find those that are stopped (SIGSTOP, a debugger) and to kill them.

A Ray of this machine alone is looked at directly: all that it has started is this command's. On a cluster, which
others use as well, Ray's state API says which actors and tasks are this job's, and a task on each node looks at them.
"""

from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from sepscene.orchestration.runtime.placement import is_local

ANSWER_SECONDS = 10
"""How long the state API, and then all nodes together, may take."""

MOST_LISTED = 10_000
"""Actors, and tasks, of a job that are looked at; as many as Ray lists at once."""

RAY_ITSELF = ("gcs_server", "raylet")
"""Processes of a Ray that was started here, without which it is at its end."""


@dataclass(frozen=True)
class RunProcess:
    """A process of the run, by what Ray calls it and its node's id; two with the same number and node are the same.

    For this machine `node` and `address` are empty.
    """

    pid: int
    name: str = field(compare=False)
    node: str = ""
    address: str = field(default="", compare=False)

    @property
    def described(self) -> str:
        """Name, number and machine."""
        return f"{self.name} (process {self.pid}{f' on {self.address}' if self.address else ''})"


class LocalProcesses:
    """Processes that this one has started, or, where it is a worker itself, those of its Ray."""

    free = True
    """They may be looked at as often as one likes."""

    def stopped(self) -> set[RunProcess]:
        """Those that are stopped."""
        own = psutil.Process()
        parent = own.parent()
        root = parent if parent is not None and parent.name() == "raylet" else own
        return {RunProcess(each.pid, _name(each)) for each in root.children(recursive=True) if is_stopped(each.pid)}

    def kill(self, process: RunProcess) -> None:
        """Kill a process that is still stopped."""
        kill_stopped(process.pid)


class ClusterProcesses:
    """Processes of this job on all nodes of a cluster."""

    free = False
    """A look asks the head and every node."""

    def __init__(self) -> None:
        self._found: set[RunProcess] = set()

    def stopped(self) -> set[RunProcess]:
        """Those that are stopped, as far as is known.

        Of a node, or a head, that does not answer in time, those that were found last; none without a state API.
        """
        listed = _processes_of_job()
        if listed is None:
            return self._found
        asked = {_on(_stopped_of, node).remote(list(pids)): node for node, pids in listed.items()}
        answered, late = ray.wait(list(asked), num_returns=len(asked), timeout=ANSWER_SECONDS) if asked else ([], [])
        for reference in late:
            ray.cancel(reference, force=True)
        addresses = {node["NodeID"]: node["NodeManagerAddress"] for node in ray.nodes()}
        found = {process for process in self._found if process.node in {asked[reference] for reference in late}}
        for reference in answered:
            node = asked[reference]
            with suppress(ray.exceptions.RayError):  # the node has just gone
                for pid in ray.get(reference):
                    found.add(RunProcess(pid, listed[node][pid], node, addresses.get(node, node)))
        self._found = found
        return found

    def kill(self, process: RunProcess) -> None:
        """Kill a process that is still stopped, without waiting for it."""
        _on(kill_stopped, process.node).remote(process.pid)


def processes_of_run() -> LocalProcesses | ClusterProcesses:
    """The processes of the Ray that this process is connected to, which it may have started itself."""
    return LocalProcesses() if ray_itself() or is_local() else ClusterProcesses()


def kill_stopped(pid: int) -> None:
    """Kill a process of this machine that is stopped; another one that has its number by now goes on."""
    if is_stopped(pid):
        with suppress(psutil.Error):
            psutil.Process(pid).kill()


def _processes_of_job() -> dict[str, dict[int, str]] | None:
    """Node -> process number -> name, of the actors that live and the tasks that run; None without an answer."""
    from ray.util.state import list_actors, list_tasks  # its client is no part of a start
    from ray.util.state.exception import RayStateApiException

    of_job = ("job_id", "=", ray.get_runtime_context().get_job_id())
    how: dict[str, Any] = {"limit": MOST_LISTED, "timeout": ANSWER_SECONDS, "raise_on_missing_output": False}
    try:
        tasks = list_tasks(filters=[of_job, ("state", "=", "RUNNING")], **how)
        actors = list_actors(filters=[of_job, ("state", "=", "ALIVE")], **how)
    except (RayStateApiException, OSError, ValueError):  # no dashboard, or one that is overloaded
        return None
    processes = [(task.node_id, task.worker_pid, task.name) for task in tasks]
    processes += [(actor.node_id, actor.pid, actor.class_name) for actor in actors]
    found: dict[str, dict[int, str]] = {}
    for node, pid, name in processes:
        if node and pid:
            found.setdefault(node, {})[pid] = name
    return found


def _on(function: Any, node: str) -> Any:
    """The function as a task on a node that takes nothing of it."""
    place = NodeAffinitySchedulingStrategy(node, soft=False)
    return ray.remote(function).options(num_cpus=0, scheduling_strategy=place, max_retries=0)


def _stopped_of(pids: list[int]) -> list[int]:
    return [pid for pid in pids if is_stopped(pid)]


def is_stopped(pid: int) -> bool:
    """Whether a process of this machine is there and stopped."""
    with suppress(psutil.Error):
        return bool(psutil.Process(pid).status() == psutil.STATUS_STOPPED)
    return False


def _name(process: psutil.Process) -> str:
    """What Ray calls the process."""
    return (_command(process).strip() or _program(process) or "a process").removeprefix("ray::")[:60]


def ray_itself() -> list[psutil.Process]:
    """GCS and raylet of a Ray that this process has started, also those that have died since."""
    return [child for child in psutil.Process().children() if _program(child) in RAY_ITSELF]


def processes_of_ray() -> list[psutil.Process]:
    """All that a Ray of this process has started beside its workers: also its monitors and agents."""
    package = str(Path(ray.__file__).parent)
    return [child for child in psutil.Process().children() if package in _command(child)]


def _command(process: psutil.Process) -> str:
    with suppress(psutil.Error):
        return " ".join(process.cmdline())
    return ""


def _program(process: psutil.Process) -> str:
    with suppress(psutil.Error):
        return process.name()
    return ""


def is_alive(process: psutil.Process) -> bool:
    """Whether a process still runs."""
    with suppress(psutil.Error):
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    return False
