"""What we take from Ray's private parts is still there and still does what it is for: a real stream, a real trainer.

An upgrade of Ray that breaks one of them is seen here.
"""

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
import ray.train

from sepscene.orchestration.runtime.ray_compat import BLOCKS_A_TASK, configure_data, leaving_nodes, trainer_class

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("ray_of_our_own")]

SECONDS = 60.0
"""Longest wait for anything here."""


def many_blocks(columns: dict[str, np.ndarray]) -> Any:
    """Far more blocks than Ray lets a task have ready by default; says when the last one is made."""
    for number in range(40):
        yield {"id": columns["id"] + number}
    Path(str(columns["done"][0])).touch()


def test_a_task_makes_all_of_its_blocks_before_anybody_takes_one(tmp_path: Path) -> None:
    """So it gives its CPU back. Without the setting the file never appears: the first block is never taken."""
    configure_data(ordered=True)
    done = tmp_path / "done"
    rows = ray.data.from_items([{"id": 0, "done": str(done)}]).map_batches(many_blocks, batch_size=None)
    (shard,) = rows.streaming_split(1)
    batches = iter(shard.iter_batches(batch_size=None, prefetch_batches=0))
    first = next(batches)  # starts the stream; one of 40 blocks is taken
    deadline = time.monotonic() + SECONDS
    while not done.exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert done.exists() and BLOCKS_A_TASK > 40
    assert [int(batch["id"][0]) for batch in [first, *batches]] == list(range(40))


def worker(settings: dict[str, Any]) -> None:
    """Consumes its part of the stream and notes what the private parts say."""
    rows = sum(len(batch["id"]) for batch in ray.train.get_dataset_shard("views").iter_batches(batch_size=4))
    found = {"rows": rows, "leaving": sorted(leaving_nodes())}
    rank = ray.train.get_context().get_world_rank()
    (Path(settings["folder"]) / f"worker-{rank}.json").write_text(json.dumps(found))
    ray.train.report({})


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
    assert all(each["leaving"] == [] for each in found)
    public = ray.train.torch.TorchTrainer
    ours, theirs = ({type(each).__name__ for each in one(worker)._create_default_callbacks()} for one in (kind, public))
    assert theirs - ours == {"PlacementGroupCleanerCallback"}
