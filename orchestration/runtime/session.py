"""Connecting to Ray: to a cluster if an address is given, otherwise to a Ray that is started on this machine."""

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
from sepscene.orchestration.runtime.ray_compat import (
    IN_A_JOB,
    LOCAL_SWITCHES,
    address_of_auto,
    on_loopback,
    own_process_groups,
)
from sepscene.orchestration.runtime.reachable import check_address, check_temp_folder
from sepscene.orchestration.runtime.run_processes import core_is_alive, core_processes, is_alive, service_processes
from sepscene.orchestration.runtime.signals import exit_immediately
from sepscene.orchestration.source import code_to_send

IMPORT_SECONDS = 300.0
"""How long a node may take to import custom code, including its start."""

EXIT_SECONDS = 10.0
"""How long the workers of a Ray that was started here may take to end after it; most take less than a second."""


@contextmanager
def connected(
    address: str | None = None, verbose: bool = False, dashboard: bool = False, code: Sequence[str] = ()
) -> Iterator[None]:
    """Connect to Ray while the block runs (see `connect`); an existing connection is used and stays open."""
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
    """Connect to a cluster, or start Ray on this machine; Ray's messages are only in its log files.

    Args:
        address: a cluster's address; None: RAY_ADDRESS, or a Ray started on this machine if that is not set.
        verbose: print Ray's own messages.
        cpus: logical CPUs of a Ray that is started; None: the number of cores.
        dashboard: start Ray's dashboard on loopback and print its address; a cluster has its own.
        code: import paths of custom code that all processes need; code that is not installed is sent along.

    Raises:
        SepsceneError: if no cluster responds at the address, or the path of the folder for temporary files is too long.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_TRAIN_V2_ENABLED", "1")
    level = logging.INFO if verbose else logging.ERROR
    for name in ("ray", "ray.train", "ray.data", "ray.tune"):
        logging.getLogger(name).setLevel(level)
    sent = {"env_vars": trust_variables(), "py_modules": [str(path) for path in code_to_send(code)]}
    runtime_env = {name: part for name, part in sent.items() if part} or None
    options: dict[str, Any] = {"logging_level": level, "log_to_driver": verbose, "runtime_env": runtime_env}
    address = address or os.environ.get("RAY_ADDRESS")
    if address == "auto":
        address = address_of_auto()
    if address:
        if dashboard:
            print(f"--dashboard has no effect: the cluster at {address} has its own dashboard")
        check_address(address)
        try:
            with _environment(IN_A_JOB):
                ray.init(address=address, **options)
        except ray.exceptions.AuthenticationError as error:
            raise SepsceneError(
                f"the cluster at {address} requires a token: export RAY_AUTH_MODE=token, and store its token in "
                "~/.ray/auth_token or RAY_AUTH_TOKEN (docs/clusters.md, Safety)"
            ) from error
    else:
        folder = private_temp_folder()
        check_temp_folder(folder)
        make_token()
        with on_loopback(), own_process_groups(), _environment(LOCAL_SWITCHES | {"RAY_TMPDIR": folder}):
            context = ray.init(
                address="local",
                include_dashboard=dashboard,
                num_cpus=cpus or os.cpu_count(),
                labels={LOCAL_LABEL: "1"},
                **options,
            )
        if dashboard:
            print(f"Ray's dashboard  http://{context.dashboard_url} (it may require the token in ~/.ray/auth_token)")


def check_custom_code(names: Sequence[str]) -> None:
    """Check that each node can import the custom code, before anything is started that needs it.

    Raises:
        SepsceneError: if a node cannot import it.
    """
    if not names:
        return

    @ray.remote(num_cpus=0)
    def import_error(names: Sequence[str]) -> str:
        try:
            for name in names:
                resolve(name, {}, "class or function")
        except SepsceneError as error:
            return str(error)
        return ""

    nodes = [node["NodeID"] for node in ray.nodes() if node["Alive"]]
    strategies = [NodeAffinitySchedulingStrategy(node, soft=True) for node in nodes]
    pending = [import_error.options(scheduling_strategy=strategy).remote(names) for strategy in strategies]
    for error in ray.get(pending, timeout=IMPORT_SECONDS):
        if error:
            raise SepsceneError(
                f"{error}. Code that is not installed is sent along when a command connects to Ray; if you connect to "
                "Ray yourself, pass runtime_env={'py_modules': […]} to ray.init"
            )


def disconnect() -> None:
    """Disconnect from Ray; a Ray that was started here is ended together with workers that hang.

    A worker of Ray 2.60 can deadlock at its exit (docs/reliability.md). After its raylet has ended, no other process
    would find and kill it.

    If Ray's core processes have died, `ray.shutdown` would wait for them, and Ray would end this process a minute later
    without a message. So the remaining processes of such a Ray are killed, and this process then exits with code 2.
    """
    workers = [worker for each in core_processes() if is_alive(each) for worker in each.children(recursive=True)]
    if not core_is_alive():
        atexit.unregister(ray.shutdown)
        atexit.register(exit_immediately)
        _kill([*workers, *service_processes()])
        return
    ray.shutdown()
    _, hanging = psutil.wait_procs(workers, timeout=EXIT_SECONDS)
    _kill(hanging)


def _kill(processes: Sequence[psutil.Process]) -> None:
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.kill()


@contextmanager
def _environment(settings: Mapping[str, str]) -> Iterator[None]:
    """While the block runs, set these environment variables, except those that the user has set."""
    added = {name: value for name, value in settings.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            del os.environ[name]
