"""The index of a store: maps the key of a clip to the shards that hold it.

The index consists of blocks of sorted columns in memory. A dictionary of six million keys (AudioSet, three processors)
would take over a gigabyte per process; the columns take 41 bytes per entry with two channels. A new shard is added as a
small block, and blocks of similar size are merged. So a lookup searches few blocks, and an entry is moved only a
logarithmic number of times.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from sepscene.augment.store.shards import EntryLocation, segment_samples_of

COLUMNS = ["key", "offset", "samples", "channels", "levels"]
"""The columns of a shard's footer that the index needs. Most of a footer is the names of the clips, not needed here."""


@dataclass(frozen=True)
class Found:
    """One copy of an entry: its shard, its location in the shard, and the levels of its channels."""

    shard: str
    location: EntryLocation
    levels: np.ndarray


@dataclass(frozen=True)
class _Block:
    """Columns of equal length, sorted by key, then by shard."""

    key: np.ndarray  # S16: numpy strips trailing zeros, which is harmless because all keys have 16 bytes
    shard: np.ndarray
    offset: np.ndarray
    samples: np.ndarray
    channels: np.ndarray
    levels: np.ndarray  # (entries, most channels), padded with NaN

    def __len__(self) -> int:
        return len(self.key)

    @property
    def nbytes(self) -> int:
        return sum(column.nbytes for column in vars(self).values())


class StoreIndex:
    """Entries of all known shards by their 16-byte key. Not thread-safe."""

    def __init__(self) -> None:
        self._blocks: list[_Block] = []
        self._names: list[str] = []
        self._segments: list[int] = []
        self._numbers: dict[str, int] = {}

    def __len__(self) -> int:
        """Number of entries, including those of removed shards until the next merge."""
        return sum(len(block) for block in self._blocks)

    @property
    def nbytes(self) -> int:
        """Size of the columns in bytes."""
        return sum(block.nbytes for block in self._blocks)

    @property
    def shards(self) -> set[str]:
        """Names of the known shards."""
        return set(self._numbers)

    def add(self, footers: Mapping[str, pa.Table]) -> None:
        """Add the entries of shards, given by name. Adding many shards in one call sorts only once."""
        new = {name: footer for name, footer in footers.items() if name not in self._numbers}
        if not new:
            return
        first = len(self._names)
        for name, footer in new.items():
            self._numbers[name] = len(self._names)
            self._names.append(name)
            self._segments.append(segment_samples_of(footer))
        block = _block(list(new.values()), first)
        while self._blocks and len(self._blocks[-1]) <= 2 * len(block):
            live = np.array([name in self._numbers for name in self._names])
            block = _sorted([self._blocks.pop(), block], live)
        self._blocks.append(block)

    def remove(self, shard: str) -> None:
        """Remove a shard. Its rows stay in memory, hidden, until their block is merged."""
        self._numbers.pop(shard, None)

    def find(self, digest: bytes) -> list[Found]:
        """All copies of an entry in order of publication; empty if there is none."""
        found = []
        for block in self._blocks:
            first = np.searchsorted(block.key, digest)
            last = np.searchsorted(block.key, digest, side="right")
            found += [self._found(block, row) for row in range(int(first), int(last))]
        return sorted((copy for copy in found if copy.shard in self._numbers), key=lambda copy: copy.shard)

    def _found(self, block: _Block, row: int) -> Found:
        shard = block.shard[row]
        channels = int(block.channels[row])
        location = EntryLocation(int(block.offset[row]), channels, int(block.samples[row]), self._segments[shard])
        return Found(self._names[shard], location, block.levels[row, :channels].copy())


def _block(footers: list[pa.Table], first: int) -> _Block:
    """The entries of shards with the numbers `first`, `first` + 1, … as one block."""
    table = pa.concat_tables([footer.select(COLUMNS) for footer in footers])
    channels = table["channels"].to_numpy().astype(np.uint8)
    levels = np.full((len(table), int(channels.max(initial=0))), np.nan, np.float32)
    flat = table["levels"].combine_chunks().flatten().to_numpy()
    levels[np.arange(levels.shape[1]) < channels[:, None]] = flat
    numbers = np.arange(first, first + len(footers), dtype=np.uint32)
    block = _Block(
        np.frombuffer(b"".join(table["key"].to_pylist()), "S16"),
        np.repeat(numbers, [len(footer) for footer in footers]),
        table["offset"].to_numpy(),
        table["samples"].to_numpy(),
        channels,
        levels,
    )
    return _sorted([block], np.ones(first + len(footers), bool))


def _sorted(blocks: list[_Block], live: np.ndarray) -> _Block:
    """Merge blocks into one, keeping the shards with `live[number]`. Built column by column, to save memory."""
    order = np.argsort(np.concatenate([block.key for block in blocks]), kind="stable")
    order = order[live[np.concatenate([block.shard for block in blocks])[order]]]
    width = max(block.levels.shape[1] for block in blocks)

    def sorted_column(name: str) -> np.ndarray:
        parts = [getattr(block, name) for block in blocks]
        if name == "levels":
            parts = [np.pad(x, ((0, 0), (0, width - x.shape[1])), constant_values=np.nan) for x in parts]
        return np.concatenate(parts)[order]

    return _Block(**{name: sorted_column(name) for name in vars(blocks[0])})
