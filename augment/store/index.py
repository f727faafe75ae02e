"""The index of a store: maps the key of a clip to the shards that hold it.

The index consists of blocks of sorted rows in memory. A dictionary of six million keys (AudioSet, three processors)
would take over a gigabyte per process; the rows take 41 bytes per entry with two channels. A new shard is added as a
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


class StoreIndex:
    """Entries of all known shards by their 16-byte key. Not thread-safe."""

    def __init__(self) -> None:
        self._blocks: list[np.ndarray] = []  # see `_block`; sorted by key
        self._names: list[str] = []
        self._segments: list[int] = []
        self._numbers: dict[str, int] = {}

    def __len__(self) -> int:
        """Number of entries, including those of removed shards until the next merge."""
        return sum(map(len, self._blocks))

    @property
    def nbytes(self) -> int:
        """Size of the blocks in bytes."""
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
        block = _block(list(new.values()), len(self._names))
        for name, footer in new.items():
            self._numbers[name] = len(self._names)
            self._names.append(name)
            self._segments.append(segment_samples_of(footer))
        while self._blocks and len(self._blocks[-1]) <= 2 * len(block):
            live = np.array([name in self._numbers for name in self._names])
            block = _merged([part[live[part["shard"]]] for part in (self._blocks.pop(), block)])
        self._blocks.append(block)

    def remove(self, shard: str) -> None:
        """Remove a shard. Its rows stay in memory, hidden, until their block is merged."""
        self._numbers.pop(shard, None)

    def find(self, digest: bytes) -> list[Found]:
        """All copies of an entry in order of publication; empty if there is none."""
        found = []
        for block in self._blocks:
            first = np.searchsorted(block["key"], digest)
            last = np.searchsorted(block["key"], digest, side="right")
            for _, shard, offset, samples, channels, levels in block[first:last]:
                location = EntryLocation(int(offset), int(channels), int(samples), self._segments[shard])
                found.append(Found(self._names[shard], location, levels[:channels].copy()))
        return sorted((copy for copy in found if copy.shard in self._numbers), key=lambda copy: copy.shard)


def _row_type(most_channels: int) -> np.dtype[np.void]:
    """A row of a block; the levels are padded with NaN."""
    # numpy strips trailing zeros of S16, which is harmless because all keys have 16 bytes
    numbers = [("key", "S16"), ("shard", "u4"), ("offset", "u8"), ("samples", "u4"), ("channels", "u1")]
    return np.dtype([*numbers, ("levels", "f4", (most_channels,))])


def _block(footers: list[pa.Table], first: int) -> np.ndarray:
    """The entries of shards with the numbers `first`, `first` + 1, … as one block."""
    table = pa.concat_tables([footer.select(COLUMNS) for footer in footers])
    channels_N = table["channels"].to_numpy()
    block = np.empty(len(table), _row_type(int(channels_N.max(initial=0))))
    block["key"] = table["key"].to_pylist()
    block["shard"] = np.repeat(np.arange(first, first + len(footers)), [len(footer) for footer in footers])
    for name in ("offset", "samples", "channels"):
        block[name] = table[name].to_numpy()
    block["levels"] = np.nan
    is_level = np.arange(block["levels"].shape[1]) < channels_N[:, None]
    block["levels"][is_level] = table["levels"].combine_chunks().flatten().to_numpy()
    return _merged([block])


def _merged(parts: list[np.ndarray]) -> np.ndarray:
    """The parts as one block, sorted by key. Each row is copied to its place, to save memory."""
    order = np.argsort(np.concatenate([part["key"] for part in parts]), kind="stable")
    place = np.empty_like(order)
    place[order] = np.arange(len(order))
    block = np.empty(len(order), _row_type(max(part["levels"].shape[1] for part in parts)))
    block["levels"] = np.nan
    for part, place_N in zip(parts, np.split(place, np.cumsum([len(part) for part in parts])[:-1]), strict=True):
        for name in ("key", "shard", "offset", "samples", "channels"):
            block[name][place_N] = part[name]
        block["levels"][place_N, : part["levels"].shape[1]] = part["levels"]
    return block
