"""The private parts of Ray that we use still exist and work, in a real stream and a real trainer.

These tests detect an upgrade of Ray that breaks one of them.
"""

import asyncio
import json
import os
import subprocess
import sys
import threading
import time
import warnings
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import ray
import ray.train
import torch
from ray.dashboard.modules.job.common import JobErrorType
from ray.data import DataContext
from ray.data._internal.execution.execution_callback import ExecutionCallback
from ray.train.v2._internal.constants import CHECKPOINT_MANAGER_SNAPSHOT_FILENAME
from ray.train.v2._internal.execution import context as train_context
from ray.train.v2._internal.execution.controller.placement_group_cleaner import PlacementGroupCleaner
from ray.train.v2._internal.execution.preemption import PreemptionContext
from ray.train.v2.api.preemption import PreemptionInfo

from sepscene.orchestration.records.run_folder import RunFolder
from sepscene.orchestration.runtime import jobs
from sepscene.orchestration.runtime.ray_compat import (
    BLOCKS_PER_TASK,
    PAUSE_SECONDS,
    blocks_of,
    configure_data,
    kill_actor,
    leaving_nodes,
    trainer_class,
)
from sepscene.orchestration.runtime.run_processes import command_of
from sepscene.orchestration.training.stream import finite_retries

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("local_ray")]


class ManyRows:
    """Turns each row into `count` rows; an actor, whose constructor's arguments Ray mentions on the terminal."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __call__(self, columns: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {"id": (columns["id"][:, None] * self.count + np.arange(self.count)).ravel()}


def test_one_task_of_a_stream_can_produce_many_blocks_and_prints_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    """Like our own stream: many more blocks per task than Ray buffers by default, each of the requested size."""
    assert "_max_num_blocks_in_streaming_gen_buffer" in vars(DataContext()), "our setting would have no effect"
    configure_data(ordered=True)
    assert BLOCKS_PER_TASK > 40 > 2 * (DataContext()._max_num_blocks_in_streaming_gen_buffer or 0)
    rows = ray.data.range(2, override_num_blocks=1).map_batches(
        ManyRows, fn_constructor_args=(20,), batch_size=None, compute=ray.data.ActorPoolStrategy(size=1)
    )
    blocks = blocks_of(rows.repartition(target_num_rows_per_block=1))
    assert [block["id"].tolist() for block in blocks] == [[n] for n in range(40)]
    assert capfd.readouterr().err == ""


def test_limits_of_restarts_cause_no_warning() -> None:
    """Ray's warning is caused first, so that a version without it is noticed."""

    def warned() -> list[str]:
        with warnings.catch_warnings(record=True) as found:
            warnings.simplefilter("always")
            if filtered:
                configure_data(ordered=True)
            ray.data.range(1).map_batches(ManyRows, fn_constructor_args=(1,), ray_remote_args_fn=finite_retries)
        return [str(each.message) for each in found if "ray_remote_args" in str(each.message)]

    filtered = False
    assert warned()
    filtered = True
    assert warned() == []


def test_nodes_to_be_removed_are_read_from_the_context_of_the_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    info = PreemptionInfo(deadline_ms=None, preempted_node_to_ranks={"one": [0, 1], "other": [3]})
    empty: Any = None
    context = train_context.TrainContext(empty, empty, empty, empty, PreemptionContext(info), empty, empty)
    monkeypatch.setattr(train_context, "_train_context", context)
    assert leaving_nodes() == {"one", "other"}


def test_names_that_are_copied_from_ray_are_still_those_of_ray() -> None:
    assert RunFolder(Path("run")).stage("separator").ray_snapshot.name == CHECKPOINT_MANAGER_SNAPSHOT_FILENAME
    assert {each.value for each in JobErrorType} >= jobs.CLUSTER_ERRORS


class CountIterations(ExecutionCallback):
    """Counts the iterations of the loop that drives a stream in this process."""

    count = 0

    def on_execution_step(self, executor: Any) -> None:
        """Called by Ray Data at the end of each iteration."""
        CountIterations.count += 1


def test_the_loop_of_a_stream_pauses_while_its_consumer_is_slow() -> None:
    """With blocks ready and none consumed, Ray's loop alone would run thousands of times per second."""
    configure_data(ordered=True)
    context = DataContext.get_current()
    context.custom_execution_callback_classes.append(CountIterations)
    limits = ray.data.ExecutionResources.for_limits(object_store_memory=2**20)
    context.execution_options.resource_limits = limits
    try:
        large = ray.data.range(64, override_num_blocks=64).map_batches(lambda columns: {"x": np.zeros((1, 2**16))})
        blocks = iter(large.iter_batches(batch_size=None))
        next(blocks)
        before = CountIterations.count
        begin = time.monotonic()
        time.sleep(2)
        made = CountIterations.count - before
        assert 0 < made <= (time.monotonic() - begin) / PAUSE_SECONDS + 1
        assert sum(1 for _ in blocks) == 63
    finally:
        context.execution_options.resource_limits = ray.data.ExecutionResources()
        context.custom_execution_callback_classes.remove(CountIterations)


@ray.remote(num_cpus=0)
class Endless:
    """An actor whose task never ends, like that of a Train controller."""

    async def run(self) -> None:
        """Wait forever."""
        await asyncio.Event().wait()

    def actor_id(self) -> str:
        """Its id in hexadecimal."""
        return str(ray.get_runtime_context().get_actor_id())


def test_killing_an_actor_ends_the_wait_of_another_thread() -> None:
    raised: list[BaseException] = []
    actor = Endless.remote()
    actor_id = ray.get(actor.actor_id.remote())

    def wait() -> None:
        try:
            ray.get(actor.run.remote())
        except ray.exceptions.RayActorError as error:
            raised.append(error)

    thread = threading.Thread(target=wait)
    thread.start()
    time.sleep(0.5)
    assert thread.is_alive()
    kill_actor(actor_id)
    thread.join(30)
    assert not thread.is_alive() and len(raised) == 1
    kill_actor(actor_id)  # without effect
    kill_actor("0" * len(actor_id))  # of another job


def listening(processes: list[psutil.Process]) -> dict[str, list[str]]:
    """For each process that still runs, by name and PID, the addresses on which it listens; IPv4 is written as such."""
    found = {}
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            sockets = [each for each in process.net_connections("inet") if each.status == psutil.CONN_LISTEN]
            found[f"{process.name()} {process.pid}"] = [each.laddr.ip.removeprefix("::ffff:") for each in sockets]
    return found


def cleaners() -> list[str]:
    """Ray's processes that clean up after a controller, among those of this worker's Ray."""
    siblings = [command_of(process) for process in psutil.Process().parent().children()]
    assert any("TrainController" in title for title in siblings), siblings
    return [title for title in siblings if PlacementGroupCleaner.__name__ in title]


def worker_of_public_trainer(settings: dict[str, Any]) -> None:
    """Record the processes that clean up. Ray starts them beside the workers, which may take a moment."""
    deadline = time.monotonic() + 30
    while not (found := cleaners()) and time.monotonic() < deadline:
        time.sleep(0.1)
    (Path(settings["folder"]) / "cleaners.json").write_text(json.dumps(found))
    ray.train.report({})


def worker(settings: dict[str, Any]) -> None:
    """Consume a part of the stream and record the results of the private parts."""
    rows = sum(len(batch["id"]) for batch in ray.train.get_dataset_shard("views").iter_batches(batch_size=4))
    found = {"rows": rows, "leaving": sorted(leaving_nodes())}
    (found["listens"],) = listening([psutil.Process()]).values()
    found["cleaners"] = cleaners()
    total = torch.ones(1)
    torch.distributed.all_reduce(total)
    found["total"] = int(total)
    rank = ray.train.get_context().get_world_rank()
    (Path(settings["folder"]) / f"worker-{rank}.json").write_text(json.dumps(found))
    ray.train.report({})


def test_a_local_ray_listens_only_on_loopback() -> None:
    """GCS, raylet, agents, workers and this process: other machines can reach none of them."""
    assert ray.get(ray.remote(lambda: 1).remote(), timeout=60) == 1
    found = listening([psutil.Process(), *psutil.Process().children(recursive=True)])
    assert {name.split()[0] for name, addresses in found.items() if addresses} >= {"gcs_server", "raylet"}
    assert {address for addresses in found.values() for address in addresses} == {"127.0.0.1"}, found


def test_auto_does_not_wait_for_a_ray_that_listens_on_loopback(tmp_path: Path) -> None:
    """The Ray of another command does not listen on this machine's address, which is reported immediately.

    If several run on a machine, as in parallel tests, Ray chooses the one in its file `ray_current_cluster`.
    """
    current = tmp_path / "ray" / "ray_current_cluster"
    current.parent.mkdir()
    current.write_text(ray.get_runtime_context().gcs_address)
    variables = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    done = subprocess.run(
        [sys.executable, "-c", "from sepscene.orchestration.runtime.session import connect; connect('auto')"],
        env=variables | {"RAY_TMPDIR": str(tmp_path)}, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert "SepsceneError: no Ray cluster responds at" in done.stderr


def test_a_local_trainer_starts_no_cleanup_process_and_can_read_the_leaving_nodes(tmp_path: Path) -> None:
    trainer_class()(
        worker,
        train_loop_config={"folder": str(tmp_path)},
        datasets={"views": lambda: ray.data.range(64)},
        scaling_config=ray.train.ScalingConfig(num_workers=2, resources_per_worker={"CPU": 0.25}),
        run_config=ray.train.RunConfig(name="compat", storage_path=str(tmp_path)),
    ).fit()
    found = [json.loads((tmp_path / f"worker-{rank}.json").read_text()) for rank in range(2)]
    assert sum(each["rows"] for each in found) == 64
    assert all(each["leaving"] == [] and each["total"] == 2 for each in found)
    assert all(each["listens"] and set(each["listens"]) == {"127.0.0.1"} for each in found), found
    assert not any(each["cleaners"] for each in found)


def test_the_public_trainer_starts_the_cleanup_process_that_ours_leaves_out(tmp_path: Path) -> None:
    """Otherwise, the test above would find none under any name, and `trainer_class` could leave nothing out."""
    ray.train.torch.TorchTrainer(
        worker_of_public_trainer,
        train_loop_config={"folder": str(tmp_path)},
        scaling_config=ray.train.ScalingConfig(num_workers=1, resources_per_worker={"CPU": 0.25}),
        run_config=ray.train.RunConfig(name="public", storage_path=str(tmp_path)),
    ).fit()
    assert json.loads((tmp_path / "cleaners.json").read_text())
