"""Workarounds of this Ray, and every use of a part that Ray keeps private; `tests/test_layers.py` finds other uses.

All were written for Ray 2.60, to which pyproject.toml holds. `tests/orchestration/runtime/test_ray_compat.py` starts a
real stream and a real trainer through this file, so that an upgrade that breaks one of them is seen.

`leaving_nodes` (ray#65183; ray#66225 is open). `get_preemption_info` waits for all workers, and one that waits for data
    never asks. Without this, the last checkpoint before a node leaves would not be written. It goes when that call
    no longer waits for the others.
`trainer_class` (ray#58515; ray#65447 is open). The process that tidies up after a dead controller looks for some Ray on
    this machine. Where ours has no dashboard that may be another one, which does not know our controller; then the
    trainers of a healthy run lose their places. It goes when that process asks the Ray that it belongs to.
`BLOCKS_A_TASK` (no issue found; the limit came with ray#40387). It goes when the limit is a public setting.
`on_loopback` (ray#18730 has the setting, for Windows and macOS only). Ray replaces 127.0.0.1 as a node's address by the
    machine's own, and then listens on all interfaces. Its public switch, `RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER=0`, works
    on Linux, too, but is read when Ray is imported. It goes when `ray.init` takes 127.0.0.1 as it is.
`address_of_auto` (no issue found). `auto` also finds a Ray of ours, which listens on loopback, takes this machine's own
    address for it, and waits there for six minutes without a word. With the address it can be tried first. It goes when
    Ray tries it itself.
`trainer_class` also gives the trainers of such a Ray a store of torch on loopback: torch's own listens on all
    interfaces, asks nobody for a password, and Ray Train has no setting for it. It goes when one of both has one.
`blocks_of` (ray#53727). Where a stream is taken in the driver, Ray writes on our terminal what concerns its actors
    alone ("constructor arguments in the object store"). It goes when Ray no longer does.
The filter of a warning (no issue found). Ray deprecates the one way to make restarts finite before there is another. It
    goes with that other way.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
from ray._private import ray_constants, services
from ray.data import DataContext, Dataset

from sepscene.models.config import SepsceneError
from sepscene.orchestration.runtime.placement import is_local

if TYPE_CHECKING:  # these imports bring torch, which most processes do without
    from ray.train.torch import TorchTrainer

BLOCKS_A_TASK = 256
"""Blocks that a task may have made before the first is taken; Ray's default is two. But a task that draws the rows of
many would then hold its CPU, which trials share, until the last is taken: minutes, where clips are separated live. Only
such blocks come many a task, and they are small."""


def configure_data(ordered: bool) -> None:
    """Set this process's Ray Data context: order, no progress bars of its own, and errors that stop the run."""
    context = DataContext.get_current()
    context.execution_options.preserve_order = ordered
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.enable_rich_progress_bars = False
    context.max_errored_blocks = 0
    context._max_num_blocks_in_streaming_gen_buffer = BLOCKS_A_TASK
    warnings.filterwarnings("ignore", message=".*ray_remote_args")


def blocks_of(rows: Dataset) -> Iterator[dict[str, np.ndarray]]:
    """The blocks of a stream as columns. The stream runs in an actor of Ray Data, as it does for training."""
    (shard,) = rows.streaming_split(1)
    yield from shard.iter_batches(batch_size=None, batch_format="numpy")  # type: ignore[arg-type]  # blocks as they are


@contextmanager
def on_loopback() -> Iterator[None]:
    """While the block runs, a Ray that is started listens on this machine's loopback alone, with all its processes."""
    before = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before


def address_of_auto() -> str:
    """The HOST:PORT that Ray takes `auto` for: of the Ray that `ray start` has started here, else of any other here.

    Raises:
        SepsceneError: no Ray runs here.
    """
    try:
        return str(services.canonicalize_bootstrap_address("auto"))
    except ConnectionError:
        raise SepsceneError(
            "--address or RAY_ADDRESS `auto`: no Ray runs on this machine; start it (`ray start --head`), or leave the "
            "address away to have one started"
        ) from None


def leaving_nodes() -> set[str]:
    """The nodes of this worker group that are being drained, as Ray Train has told this worker; it never waits."""
    from ray.train.v2._internal.execution.context import get_train_context

    info = get_train_context().preemption_context.preemption_info
    return set(info.preempted_node_ids) if info else set()


def trainer_class() -> "type[TorchTrainer]":
    """The trainer for the Ray that this process is connected to.

    On a Ray of this machine alone it starts no process that tidies up after a controller that died: `stage.Stage` gives
    back what that one had reserved. And its trainers meet on loopback.
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
