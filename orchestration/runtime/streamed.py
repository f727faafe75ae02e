"""Taking a stream of Ray Data that is no training: its blocks, one after the other."""

from collections.abc import Iterator

import numpy as np
from ray.data import Dataset


def blocks_of(rows: Dataset) -> Iterator[dict[str, np.ndarray]]:
    """The blocks of a stream as columns.

    The stream runs in an actor of Ray Data, as it does for training, and not in this process: Ray would write on our
    terminal what concerns its actors alone ("constructor arguments in the object store", ray#53727).
    """
    (shard,) = rows.streaming_split(1)
    yield from shard.iter_batches(batch_size=None, batch_format="numpy")  # type: ignore[arg-type]  # blocks as they are
