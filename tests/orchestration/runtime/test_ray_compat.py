"""What we take from Ray's private parts is still there and still does what it is for: a real stream, a real trainer.

An upgrade of Ray that breaks one of them is seen here.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import ray
import ray.train
import torch
from ray.data import DataContext

from sepscene.orchestration.runtime.ray_compat import (
    BLOCKS_A_TASK,
    configure_data,
    leaving_nodes,
    trainer_class,
)

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("ray_of_our_own")]


def many_rows(columns: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Twenty rows for each."""
    return {"id": (columns["id"][:, None] * 20 + np.arange(20)).ravel()}


def test_one_task_of_a_stream_makes_many_blocks() -> None:
    """In the shape of our own: far more blocks a task than Ray holds by default, each as small as it was asked for."""
    assert "_max_num_blocks_in_streaming_gen_buffer" in vars(DataContext()), "our setting would change nothing"
    configure_data(ordered=True)
    assert BLOCKS_A_TASK > 40 > 2 * (DataContext()._max_num_blocks_in_streaming_gen_buffer or 0)
    rows = ray.data.range(2, override_num_blocks=1).map_batches(many_rows, batch_size=None)
    (shard,) = rows.repartition(target_num_rows_per_block=1).streaming_split(1)
    blocks = shard.iter_batches(batch_size=None, batch_format="numpy")  # type: ignore[arg-type]
    assert [block["id"].tolist() for block in blocks] == [[n] for n in range(40)]


def listening(process: psutil.Process) -> list[str]:
    """The addresses on which a process takes connections; one of IPv4 is written as such."""
    found = [each for each in process.net_connections("inet") if each.status == psutil.CONN_LISTEN]
    return [each.laddr.ip.removeprefix("::ffff:") for each in found]


def worker(settings: dict[str, Any]) -> None:
    """Consumes its part of the stream and notes what the private parts say."""
    rows = sum(len(batch["id"]) for batch in ray.train.get_dataset_shard("views").iter_batches(batch_size=4))
    found = {"rows": rows, "leaving": sorted(leaving_nodes()), "listens": listening(psutil.Process())}
    total = torch.ones(1)
    torch.distributed.all_reduce(total)
    found["total"] = int(total)
    rank = ray.train.get_context().get_world_rank()
    (Path(settings["folder"]) / f"worker-{rank}.json").write_text(json.dumps(found))
    ray.train.report({})


def test_a_ray_of_this_machine_listens_on_loopback_alone() -> None:
    """GCS, raylet, agents, workers and this process; other machines reach none of them."""
    assert ray.get(ray.remote(lambda: 1).remote(), timeout=60) == 1
    family = [psutil.Process(), *psutil.Process().children(recursive=True)]
    found = {f"{one.name()} {one.pid}": listening(one) for one in family}
    assert {name.split()[0] for name, addresses in found.items() if addresses} >= {"gcs_server", "raylet"}
    assert {address for addresses in found.values() for address in addresses} == {"127.0.0.1"}, found


def test_auto_does_not_wait_for_a_ray_that_listens_on_loopback(tmp_path: Path) -> None:
    """It is that of another command: nothing answers at this machine's own address, and that is said at once.

    With several on a machine, as where tests run side by side, Ray takes the one that its note names.
    """
    note = tmp_path / "ray" / "ray_current_cluster"
    note.parent.mkdir()
    note.write_text(ray.get_runtime_context().gcs_address)
    variables = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    done = subprocess.run(
        [sys.executable, "-c", "from sepscene.orchestration.runtime.session import connect; connect('auto')"],
        env=variables | {"RAY_TMPDIR": str(tmp_path)}, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert "SepsceneError: no Ray cluster answers at" in done.stderr


def test_a_trainer_on_this_machine_starts_nothing_that_tidies_up_and_hears_of_nodes_that_leave(tmp_path: Path) -> None:
    kind = trainer_class()
    kind(
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
    public = ray.train.torch.TorchTrainer
    ours, theirs = ({type(each).__name__ for each in one(worker)._create_default_callbacks()} for one in (kind, public))
    assert theirs - ours == {"PlacementGroupCleanerCallback"}
