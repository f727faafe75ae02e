"""Connecting to Ray: a cluster where one is named, this machine otherwise, and quietly."""

import atexit
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import psutil
import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from sepscene.models.config import SepsceneError
from sepscene.models.names import resolve
from sepscene.models.trust import trust_variables
from sepscene.orchestration.runtime.placement import LOCAL_LABEL
from sepscene.orchestration.runtime.private_files import make_token, private_temp_folder
from sepscene.orchestration.runtime.ray_compat import address_of_auto, on_loopback
from sepscene.orchestration.runtime.reachable import check_address, check_temp_folder
from sepscene.orchestration.runtime.run_processes import is_alive, processes_of_ray, ray_itself
from sepscene.orchestration.runtime.signals import end_at_once
from sepscene.orchestration.source import code_to_send

LOCAL = {
    # Ray advises against more processes than a few times this number (default: its CPUs), but most of ours wait for
    # each other, so on two cores that is how it should be (ray#63800: the advice has no switch).
    "RAY_worker_maximum_startup_concurrency": "1000",
    # A worker for each CPU, started in advance: ours have runtime environments of their own and can't use them.
    "RAY_prestart_worker_first_driver": "0",
    # A process for each training stage that asks whether nodes will leave: the only one is this machine.
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
}
"""For a Ray of this machine alone."""

IN_A_JOB = {"RAY_OVERRIDE_JOB_RUNTIME_ENV": "1"}
"""A submitted job has brought trust and code with it; Ray refuses to be given them again, even where they are equal."""

IMPORT_SECONDS = 300.0
"""How long a node may take to import custom code, its start included."""

EXIT_SECONDS = 10.0
"""How long the workers of a Ray that was started here may take to end, once it has ended; most take less than one."""


@contextmanager
def connected(
    address: str | None = None, verbose: bool = False, dashboard: bool = False, code: Sequence[str] = ()
) -> Iterator[None]:
    """Ray for the length of a block, by `connect`; a Ray that this process is connected to already stays connected."""
    if ray.is_initialized():
        yield
        return
    connect(address, verbose, dashboard=dashboard, code=code)
    try:
        yield
    finally:
        disconnect()


def connect(
    address: str | None,
    verbose: bool = False,
    cpus: int | None = None,
    dashboard: bool = False,
    code: Sequence[str] = (),
) -> None:
    """Connect to a cluster, or start Ray on this machine with its messages in its log files.

    Args:
        address: a cluster's address; none takes RAY_ADDRESS, and without that starts Ray on this machine.
        verbose: let Ray's own messages through.
        cpus: logical CPUs of a Ray that is started; none takes this machine's number of cores.
        dashboard: start Ray's dashboard with it, on loopback, and say where; a cluster has its own.
        code: import paths of custom code that all processes will need; it travels unless it is installed.

    Raises:
        SepsceneError: when no cluster answers at the address, or Ray's sockets do not fit the temporary folder.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_TRAIN_V2_ENABLED", "1")
    level = logging.INFO if verbose else logging.ERROR
    for name in ("ray", "ray.train", "ray.data", "ray.tune"):
        logging.getLogger(name).setLevel(level)
    travelling = {"env_vars": trust_variables(), "py_modules": [str(path) for path in code_to_send(code)]}
    runtime_env = {name: part for name, part in travelling.items() if part} or None
    how: dict[str, Any] = {"logging_level": level, "log_to_driver": verbose, "runtime_env": runtime_env}
    address = address or os.environ.get("RAY_ADDRESS")
    if address == "auto":
        address = address_of_auto()
    if address:
        check_address(address)
        try:
            with _environment(IN_A_JOB):
                ray.init(address=address, **how)
        except ray.exceptions.AuthenticationError as error:
            raise SepsceneError(
                f"the cluster at {address} asks for a token: export RAY_AUTH_MODE=token, and keep its token in "
                "~/.ray/auth_token or RAY_AUTH_TOKEN (docs/clusters.md, Safety)"
            ) from error
    else:
        folder = private_temp_folder()
        check_temp_folder(folder)
        make_token()
        with on_loopback(), _environment(LOCAL | {"RAY_TMPDIR": folder}):
            context = ray.init(
                address="local",
                include_dashboard=dashboard,
                num_cpus=cpus or os.cpu_count(),
                labels={LOCAL_LABEL: "1"},
                **how,
            )
        if dashboard:
            print(f"Ray's dashboard  http://{context.dashboard_url} (it may ask for the token in ~/.ray/auth_token)")


def check_custom_code(names: Sequence[str]) -> None:
    """Import custom code on each node, before anything is built on it.

    Raises:
        SepsceneError: names the node that cannot import it.
    """
    if not names:
        return

    @ray.remote(num_cpus=0)
    def fault(names: Sequence[str]) -> str:
        try:
            for name in names:
                resolve(name, {}, "class or function")
        except SepsceneError as error:
            return str(error)
        return ""

    nodes = [node["NodeID"] for node in ray.nodes() if node["Alive"]]
    places = [NodeAffinitySchedulingStrategy(node, soft=True) for node in nodes]
    answers = [fault.options(scheduling_strategy=place).remote(names) for place in places]
    for answer in ray.get(answers, timeout=IMPORT_SECONDS):
        if answer:
            raise SepsceneError(
                f"{answer}. Code that is not installed is sent along when a command connects to Ray; to one that is "
                "connected already give runtime_env={'py_modules': […]}"
            )


def disconnect() -> None:
    """Disconnect from Ray, and end one that was started here together with workers that never end by themselves.

    A worker of Ray 2.60 may lock itself out at its very end (docs/reliability.md). As long as its raylet lives it does
    no harm; with it goes what would ever find it.

    Where Ray's own processes have died, `ray.shutdown` would wait for them, and Ray would end this process a minute
    later without a word. So what is left of such a Ray is killed, and not asked; this process then ends with code 2.
    """
    itself = ray_itself()
    workers = [worker for each in itself if is_alive(each) for worker in each.children(recursive=True)]
    if not all(is_alive(each) for each in itself):
        atexit.unregister(ray.shutdown)
        atexit.register(end_at_once)
        for left in (*workers, *processes_of_ray()):
            with suppress(psutil.NoSuchProcess):
                left.kill()
        return
    ray.shutdown()
    for hanging in psutil.wait_procs(workers, timeout=EXIT_SECONDS)[1]:
        with suppress(psutil.NoSuchProcess):
            hanging.kill()


@contextmanager
def _environment(settings: Mapping[str, str]) -> Iterator[None]:
    """While the block runs, what starts finds these settings, unless the user has set them otherwise."""
    added = {name: value for name, value in settings.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            del os.environ[name]
