"""Workarounds for this version of Ray, and all uses of its private parts; `tests/test_layers.py` finds other uses.

All were written for Ray 2.60, which pyproject.toml requires. `tests/orchestration/runtime/test_ray_compat.py` runs a
real stream and a real trainer through this file, to detect an upgrade that breaks one of them.

`leaving_nodes` (ray#65183; ray#66225 is open). `get_preemption_info` waits for all workers, but a worker that waits for
    data never calls it. Buys the last checkpoint before a node is removed. Remove when that call no longer waits for
    the other workers.
`trainer_class` (ray#58515; ray#65447 is open). The process that cleans up after a dead controller connects to any Ray
    on this machine. If ours has no dashboard, that can be another Ray, which does not know our controller; the trainers
    of a healthy run then lose their resources. Buys runs that another Ray cannot end, and four CPU seconds per stage.
    Remove when that process connects to the Ray to which it belongs.
`trainer_class` also gives the trainers of such a Ray a torch store on loopback (no issue found): torch's own store
    listens on all interfaces without a password, and Ray Train has no setting for it. `loopback_group.py` uses the
    methods of Ray's worker group for it, which are not documented. Buys that no other machine can write to the store.
    Remove when torch or Ray Train has a setting.
`BLOCKS_PER_TASK` (no issue found; the limit came with ray#40387). Buys the CPU of a task that draws rows, which waits
    for minutes otherwise (see below). Remove when the limit is a public setting.
`Pause` (no issue found). The loop that drives a stream waits in `ray.wait` for running tasks, at most 100 ms. If
    readers are faster than trainers, every task always has a block that must wait for the trainers. Then `ray.wait`
    returns immediately, and the loop occupies a core. Buys 21 % more rows per second from a filled store that is read
    through, and 36 % from a prefilled one, on two cores (docs/scaling.md); on a cluster, a core of the node with the
    coordinator. Remove when Ray's loop waits in this case.
`kill_actor` (ray#31145; closed without a change). A thread that waits for a result while Ray is shut down reads freed
    memory, so a driver that a signal ends before its stage crashed (SIGSEGV) in one of eight cases. `ray.kill` needs a
    handle, and Ray Train keeps that of its controller to itself. Buys the exit code that belongs to the signal. Remove
    when such a thread is interrupted, or Ray Train can be stopped from another thread.
`on_loopback` (ray#18730 has the setting, for Windows and macOS only). Ray replaces 127.0.0.1 as a node's address by the
    machine's address, and then listens on all interfaces. Its public switch, `RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER=0`,
    also works on Linux, but is read when Ray is imported. Buys that other machines cannot reach a local Ray. Remove
    when `ray.init` accepts 127.0.0.1 unchanged.
`own_process_groups` (no issue found). `ray.init` starts Ray's processes in the process group of its caller. A terminal
    that is closed sends SIGHUP to the whole group, and `timeout` SIGTERM; they would end Ray before the driver has its
    checkpoint. Buys the checkpoint. Remove when Ray starts its processes in a group of their own.
`address_of_auto` (no issue found). `auto` also finds a Ray of ours, which listens on loopback, assumes the machine's
    address for it, and waits there for six minutes without a message. Buys an error within 15 seconds, because a known
    address can be checked first. Remove when Ray checks it.
`blocks_of` (ray#53727). If a stream is consumed in the driver, Ray prints messages about its actors on our terminal
    ("constructor arguments in the object store"). Buys a terminal without them. Remove when Ray no longer prints them.
The filter of a warning (no issue found). Ray deprecates the only way to limit restarts without a replacement. Buys a
    terminal without the warning. Remove when there is a replacement.
`LOCAL_SWITCHES`, for a Ray that is started on this machine:
    `RAY_worker_maximum_startup_concurrency` (ray#63800). Ray warns if there are more processes than four times this
    number (default: its CPUs). Most of our processes only wait. Buys a terminal without the warning. Remove when the
    warning can be switched off.
    `RAY_prestart_worker_first_driver` (ray#40131). By default, Ray starts a worker per CPU in advance. Our tasks have
    their own runtime environments and cannot use them. Buys 0.4 CPU seconds and 42 MB per CPU (measured 2026-12-01).
    Remove when Ray starts none, or ones that our tasks can use.
    `RAY_TRAIN_ENABLE_PREEMPTION_WATCHER` (no issue found). Ray Train starts a process per stage that checks for nodes
    to be removed; this machine is the only node. Buys 4.4 CPU seconds per stage (docs/log/2026-11.md). Remove when Ray
    Train does not start it for a single node.
`IN_A_JOB` (no issue found; Ray's error message names the variable). A submitted job already has its trusted code in its
    runtime environment, and Ray refuses the same settings from its driver. Buys custom code in submitted jobs. Remove
    when Ray accepts settings that are equal.

Elsewhere, because the code belongs there; each also for Ray 2.60:

`stage.Stage._remove_leftovers` (no issue found) deletes Ray Train's file `checkpoint_manager_snapshot.json`, which
    names folders that Ray Train would delete, and ends every later controller if it is truncated. Buys a continuation
    after a kill. Remove when Ray Train has a setting for it.
`stage.Stage._free_reserved` (no issue found) removes the placement group of a dead controller, as the process that
    `trainer_class` omits would. Buys a second controller that does not wait forever. Remove with `trainer_class`.
`session.disconnect` (no issue found) kills workers that deadlock at their exit (docs/reliability.md), and exits without
    `ray.shutdown` if Ray has died, because that ends in a crash (SIGSEGV). Buys commands that end, with a message and
    without processes left behind. Remove when `test_session.py` passes with `ray.shutdown` alone.
`run_processes.py` (no issue found) recognizes processes by the names `raylet`, `gcs_server` and `ray::…`, because the
    state API does not list them without a dashboard. Buys that stopped processes are found and killed. Remove when it
    does.
`reachable.check_temp_folder` (no issue found) knows the layout of Ray's socket paths. Buys a message with the maximum
    length before the start. Remove when Ray's message gives it.
`jobs.py` (no issue found) lists the values of `JobErrorType`, which `ray.job_submission` does not export, that mean a
    failure of the cluster, and finds "try again later" and "does not exist" in messages, which have no types. Buys
    resubmission after a failure of the cluster only. Remove when Ray exports types for both.

`RAY_worker_niceness=0` in Makefile, benchmarks and tests only gives Ray's workers their share of a busy machine
(docs/clusters.md); no code depends on it.
"""

import functools
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

import numpy as np
import ray
from ray._private import ray_constants, services
from ray._private.worker import global_worker
from ray.data import DataContext, Dataset
from ray.data._internal.execution.execution_callback import ExecutionCallback

from sepscene.models.config import SepsceneError
from sepscene.orchestration.runtime.placement import is_local

if TYPE_CHECKING:  # this imports torch, which most processes do not need
    from ray.train.torch import TorchTrainer

LOCAL_SWITCHES = {
    "RAY_worker_maximum_startup_concurrency": "1000",
    "RAY_prestart_worker_first_driver": "0",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
}
"""Environment variables for a Ray that is started on this machine."""

IN_A_JOB = {"RAY_OVERRIDE_JOB_RUNTIME_ENV": "1"}
"""Environment variables for connecting to a cluster, which can happen in a submitted job."""

BLOCKS_PER_TASK = 256
"""Maximum number of blocks that a task may produce before the first is consumed; Ray's default is two. By default, a
task that draws the rows of many blocks would hold its CPU, which trials share, until the last is consumed: for minutes,
if clips are separated live. Only tasks that draw rows produce many blocks, and these are small."""

PAUSE_SECONDS = 0.02
"""A fifth of the time that Ray's loop itself waits for tasks."""


class Pause(ExecutionCallback):
    """A pause in each iteration of the loop that drives a stream."""

    def on_execution_step(self, executor: Any) -> None:
        """Called by Ray Data at the end of each iteration."""
        time.sleep(PAUSE_SECONDS)


def configure_data(ordered: bool) -> None:
    """Set this process's Ray Data context: order of blocks, no progress bars, and errors that stop the run."""
    context = DataContext.get_current()
    context.execution_options.preserve_order = ordered
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.enable_rich_progress_bars = False
    context.max_errored_blocks = 0
    context._max_num_blocks_in_streaming_gen_buffer = BLOCKS_PER_TASK
    if Pause not in context.custom_execution_callback_classes:  # a user's own callbacks stay
        context.custom_execution_callback_classes.append(Pause)
    warnings.filterwarnings("ignore", message=".*ray_remote_args")


def blocks_of(rows: Dataset) -> Iterator[dict[str, np.ndarray]]:
    """The blocks of a stream as columns. The stream runs in an actor of Ray Data, as in training."""
    (shard,) = rows.streaming_split(1)
    yield from shard.iter_batches(batch_size=None, batch_format="numpy")  # type: ignore[arg-type]  # blocks as they are


@contextmanager
def on_loopback() -> Iterator[None]:
    """While the block runs, all processes of a Ray that is started listen only on loopback."""
    before = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before


@contextmanager
def own_process_groups() -> Iterator[None]:
    """While the block runs, each process of a Ray that is started gets a process group of its own.

    On other systems than Linux, Ray itself ends its processes by their group if the driver is killed.
    """
    popen = services.ConsolePopen
    if sys.platform == "linux":
        services.ConsolePopen = functools.partial(popen, process_group=0)  # type: ignore[misc, assignment]
    try:
        yield
    finally:
        services.ConsolePopen = popen  # type: ignore[misc]


def address_of_auto() -> str:
    """The HOST:PORT to which Ray resolves `auto`: a Ray on this machine, preferably one started with `ray start`.

    Raises:
        SepsceneError: if no Ray runs on this machine.
    """
    try:
        return str(services.canonicalize_bootstrap_address("auto"))
    except ConnectionError:
        raise SepsceneError(
            "--address or RAY_ADDRESS `auto`: no Ray runs on this machine; start one (`ray start --head`), or omit the "
            "address to start one automatically"
        ) from None


def kill_actor(actor_id: str) -> None:
    """Kill an actor of this job, given by its id in hexadecimal; without effect if this process has no handle of it."""
    with suppress(ray.exceptions.ActorHandleNotFoundError):
        global_worker.core_worker.kill_actor(ray.ActorID.from_hex(actor_id), True)  # type: ignore[attr-defined]


def leaving_nodes() -> set[str]:
    """The nodes of this worker group that are being drained, as far as this worker has been informed; never waits."""
    from ray.train.v2._internal.execution.context import get_train_context

    info = get_train_context().preemption_context.preemption_info
    return set(info.preempted_node_ids) if info else set()


def trainer_class() -> "type[TorchTrainer]":
    """The trainer class for the connected Ray.

    On a local Ray, it does not start the process that cleans up after a dead controller (`stage.Stage` releases the
    controller's resources), and its process group uses loopback.
    """
    from ray.train.torch import TorchTrainer
    from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback

    from sepscene.orchestration.runtime.loopback_group import LoopbackConfig

    class LocalTrainer(TorchTrainer):
        def __init__(self, *arguments: Any, **named: Any) -> None:
            super().__init__(*arguments, torch_config=LoopbackConfig(), **named)

        def _create_default_callbacks(self) -> list[Any]:
            callbacks = super()._create_default_callbacks()  # type: ignore[misc]
            return [each for each in callbacks if not isinstance(each, PlacementGroupCleanerCallback)]

    return LocalTrainer if is_local() else TorchTrainer
