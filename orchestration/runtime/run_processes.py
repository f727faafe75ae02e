"""The processes of a run: find those that are stopped (SIGSTOP, a debugger) and kill them.

The processes of a local Ray are inspected directly, as all of them belong to this command. On a cluster, which can be
shared, Ray's state API lists the actors and tasks of this job, and a task on each node inspects them.
"""

from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from sepscene.orchestration.runtime.placement import is_local

TIMEOUT_SECONDS = 10
"""Time limit for the state API, and again for the tasks on all nodes together."""

MAX_LISTED = 10_000
"""Maximum number of actors, and of tasks, that are inspected: Ray's limit for one request."""

CORE_PROGRAMS = ("gcs_server", "raylet")
"""Processes without which a Ray that was started here cannot continue."""


@dataclass(frozen=True)
class RunProcess:
    """A process of the run, with Ray's name for it; it is identified by its process id and its node's id.

    For this machine, `node` and `address` are empty.
    """

    pid: int
    name: str = field(compare=False)
    node: str = ""
    address: str = field(default="", compare=False)

    @property
    def description(self) -> str:
        """Name, process id and machine."""
        return f"{self.name} (process {self.pid}{f' on {self.address}' if self.address else ''})"


class LocalProcesses:
    """The processes that this process has started; if it is a worker itself, the processes of its Ray."""

    cheap = True
    """Inspecting them costs nothing."""

    def stopped(self) -> set[RunProcess]:
        """The processes that are stopped."""
        own = psutil.Process()
        parent = own.parent()
        root = parent if parent is not None and parent.name() == "raylet" else own
        return {RunProcess(each.pid, _name(each)) for each in root.children(recursive=True) if is_stopped(each.pid)}

    def kill(self, process: RunProcess) -> None:
        """Kill a process that is still stopped."""
        kill_stopped(process.pid)


class ClusterProcesses:
    """The processes of this job on all nodes of a cluster."""

    cheap = False
    """Inspecting them sends requests to the head and to every node."""

    def __init__(self) -> None:
        self._found: set[RunProcess] = set()

    def stopped(self) -> set[RunProcess]:
        """The processes that are stopped, as far as is known.

        If a node or the head does not respond in time, its previous result is used. Without a state API the result is
        empty.
        """
        listed = _processes_of_job()
        if listed is None:
            return self._found
        pending = {_on(_stopped_of, node).remote(list(pids)): node for node, pids in listed.items()}
        ready: list[Any] = []
        late: list[Any] = []
        if pending:
            ready, late = ray.wait(list(pending), num_returns=len(pending), timeout=TIMEOUT_SECONDS)
        for reference in late:
            ray.cancel(reference, force=True)
        addresses = {node["NodeID"]: node["NodeManagerAddress"] for node in ray.nodes()}
        late_nodes = {pending[reference] for reference in late}
        found = {process for process in self._found if process.node in late_nodes}
        for reference in ready:
            node = pending[reference]
            with suppress(ray.exceptions.RayError):  # the node has just been removed
                for pid in ray.get(reference):
                    found.add(RunProcess(pid, listed[node][pid], node, addresses.get(node, node)))
        self._found = found
        return found

    def kill(self, process: RunProcess) -> None:
        """Kill a process that is still stopped, without waiting for it."""
        _on(kill_stopped, process.node).remote(process.pid)


def processes_of_run() -> LocalProcesses | ClusterProcesses:
    """The processes of the connected Ray, which can have been started by this process."""
    return LocalProcesses() if core_processes() or is_local() else ClusterProcesses()


def kill_stopped(pid: int) -> None:
    """Kill a process of this machine if it is still stopped: its process id may have been reused."""
    if is_stopped(pid):
        with suppress(psutil.Error):
            psutil.Process(pid).kill()


def _processes_of_job() -> dict[str, dict[int, str]] | None:
    """Node -> process id -> name of the job's living actors and running tasks; None if there is no response."""
    from ray.util.state import list_actors, list_tasks  # imported late: not needed at the start of a run
    from ray.util.state.exception import RayStateApiException

    of_job = ("job_id", "=", ray.get_runtime_context().get_job_id())
    options: dict[str, Any] = {"limit": MAX_LISTED, "timeout": TIMEOUT_SECONDS, "raise_on_missing_output": False}
    try:
        tasks = list_tasks(filters=[of_job, ("state", "=", "RUNNING")], **options)
        actors = list_actors(filters=[of_job, ("state", "=", "ALIVE")], **options)
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
    """The function as a task on a node that reserves no resources."""
    strategy = NodeAffinitySchedulingStrategy(node, soft=False)
    return ray.remote(function).options(num_cpus=0, scheduling_strategy=strategy, max_retries=0)


def _stopped_of(pids: list[int]) -> list[int]:
    return [pid for pid in pids if is_stopped(pid)]


def is_stopped(pid: int) -> bool:
    """Whether a process of this machine exists and is stopped."""
    with suppress(psutil.Error):
        return bool(psutil.Process(pid).status() == psutil.STATUS_STOPPED)
    return False


def _name(process: psutil.Process) -> str:
    """Ray's name for the process."""
    return (command_of(process).strip() or program_of(process) or "a process").removeprefix("ray::")[:60]


def core_processes() -> list[psutil.Process]:
    """GCS and raylet of a Ray that this process has started, also if they have ended since."""
    return [child for child in psutil.Process().children() if program_of(child) in CORE_PROGRAMS]


def core_is_alive() -> bool:
    """Whether no core process of a Ray that this process has started has ended; true if it has started no Ray."""
    return all(map(is_alive, core_processes()))


def service_processes() -> list[psutil.Process]:
    """All processes of a Ray that this process has started, except workers: core processes, monitors and agents."""
    package = str(Path(ray.__file__).parent)
    return [child for child in psutil.Process().children() if package in command_of(child)]


def command_of(process: psutil.Process) -> str:
    """The command line of a process, or the title that it has set; empty if it has ended."""
    with suppress(psutil.Error):
        return " ".join(process.cmdline())
    return ""


def program_of(process: psutil.Process) -> str:
    """The name of the program of a process; empty if it has ended."""
    with suppress(psutil.Error):
        return process.name()
    return ""


def is_alive(process: psutil.Process) -> bool:
    """Whether a process is still running."""
    with suppress(psutil.Error):
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    return False
