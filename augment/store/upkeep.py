"""Maintenance of a store: list, verify, and free space. Safe while other processes read and write."""

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import fs

from sepscene.augment.store.folder import StoreFolder
from sepscene.augment.store.shards import FOOTER, EntryLocation, ShardDamage, read_crop, read_footer, segment_samples_of

_GROUPED = ["processor", "settings", "channels", "samples"]  # columns of a footer that `list_store` needs
Found = TypeVar("Found")
_LEFTOVER_SECONDS = 3600.0  # a shard that is still incomplete at this age was abandoned by its writer


@dataclass(frozen=True)
class StoreGroup:
    """The entries of one processor under one set of settings."""

    processor: str
    settings: str
    entries: int
    channels: int
    samples: int
    """Samples over all channels, two bytes each."""


@dataclass(frozen=True)
class StoreListing:
    """Result of `sepscene store ls`."""

    uri: str
    shards: int
    entries: int
    bytes: int
    groups: tuple[StoreGroup, ...]
    damaged_shards: tuple[str, ...]


@dataclass(frozen=True)
class DamagedEntry:
    """A damaged entry, which readers skip."""

    shard: str
    content: str
    processor: str
    settings: str
    channel: int


@dataclass(frozen=True)
class Verification:
    """Result of `sepscene store verify`."""

    uri: str
    shards: int
    entries: int
    bytes_read: int
    seconds: float
    damaged_shards: tuple[tuple[str, str], ...]
    """(file name, cause)"""
    damaged_entries: tuple[DamagedEntry, ...]

    @property
    def whole(self) -> bool:
        """Whether no shard and no entry is damaged."""
        return not self.damaged_shards and not self.damaged_entries


@dataclass(frozen=True)
class Removed:
    """Result of `sepscene store gc`."""

    uri: str
    old_shards: int
    damaged_shards: int
    leftovers: int
    bytes_freed: int
    bytes_left: int


def list_store(store: str | StoreFolder) -> StoreListing:
    """`sepscene store ls URI`: read all footers and summarise their entries.

    Raises:
        StoreError: there is no store, or the filesystem fails.
    """
    folder = _existing(store)
    with folder.errors_named("list"):
        shards = list(_shards(folder, lambda _, footer: footer.select(_GROUPED)))
    footers = [found for _, found in shards if not isinstance(found, str)]
    groups = _groups(pa.concat_tables([FOOTER.empty_table().select(_GROUPED), *footers]).unify_dictionaries())
    return StoreListing(
        folder.uri,
        len(shards),
        sum(group.entries for group in groups),
        _bytes(info for info, _ in shards),
        groups,
        tuple(info.base_name for info, found in shards if isinstance(found, str)),
    )


def _groups(entries: pa.Table) -> tuple[StoreGroup, ...]:
    """Sums of the entries by processor and settings, sorted by these."""
    samples = pc.multiply(entries["channels"].cast(pa.int64()), entries["samples"].cast(pa.int64()))
    sums = (
        entries.append_column("all_samples", samples)
        .group_by(["processor", "settings"])
        .aggregate([([], "count_all"), ("channels", "sum"), ("all_samples", "sum")])
    )
    rows = sums.select(["processor", "settings", "count_all", "channels_sum", "all_samples_sum"]).to_pylist()
    groups = [StoreGroup(*row.values()) for row in rows]
    return tuple(sorted(groups, key=lambda group: (group.processor, group.settings)))


def verify_store(store: str | StoreFolder) -> Verification:
    """`sepscene store verify URI`: read all samples of all shards and verify their checksums.

    Raises:
        StoreError: there is no store, or the filesystem fails.
    """
    folder = _existing(store)
    begin = time.monotonic()
    with folder.errors_named("verify"):
        shards = list(_shards(folder, partial(_damaged, folder)))
    checked = [found for _, found in shards if not isinstance(found, str)]
    return Verification(
        folder.uri,
        len(shards),
        sum(entries for entries, _ in checked),
        _bytes(info for info, _ in shards),
        time.monotonic() - begin,
        tuple((info.base_name, found) for info, found in shards if isinstance(found, str)),
        tuple(entry for _, damaged in checked for entry in damaged),
    )


def collect_store(store: str | StoreFolder, max_bytes: int | None = None) -> Removed:
    """`sepscene store gc URI`: free space.

    Removes damaged shards, incomplete shards of killed writers, and then the oldest shards, until at most `max_bytes`
    are left.

    Raises:
        StoreError: there is no store, or the filesystem fails.
    """
    folder = _existing(store)
    with folder.errors_named("remove shards of"):
        shards = list(_shards(folder, lambda info, footer: None))
        damaged = [info for info, found in shards if found is not None]
        intact = [info for info, found in shards if found is None]
        newer = np.cumsum([info.size for info in reversed(intact)])[::-1]  # bytes of each shard and all newer ones
        old = 0 if max_bytes is None else int(np.count_nonzero(newer > max_bytes))
        for info in [*damaged, *intact[:old]]:
            folder.remove(info.base_name)
        leftovers, leftover_bytes = folder.remove_leftovers(_LEFTOVER_SECONDS)
    freed = _bytes([*damaged, *intact[:old]]) + leftover_bytes
    return Removed(folder.uri, old, len(damaged), leftovers, freed, _bytes(intact[old:]))


def _existing(store: str | StoreFolder) -> StoreFolder:
    folder = StoreFolder(store) if isinstance(store, str) else store
    folder.check_exists()
    return folder


def _bytes(shards: Iterable[fs.FileInfo]) -> int:
    return sum(info.size for info in shards)


def _shards(
    folder: StoreFolder, read: Callable[[fs.FileInfo, pa.Table], Found]
) -> Iterator[tuple[fs.FileInfo, Found | str]]:
    """Each shard, and what `read` finds in it and its footer, or its damage.

    Shards that another gc removes in the meantime are skipped.
    """
    for info in folder.shards():
        try:
            with folder.filesystem.open_input_file(info.path) as file:
                footer = read_footer(file, info.size)
            yield info, read(info, footer)
        except ShardDamage as error:
            yield info, str(error)
        except OSError:  # S3 has no specific error for an object that is removed while open
            if folder.exists(info.base_name):
                raise


def _damaged(folder: StoreFolder, info: fs.FileInfo, footer: pa.Table) -> tuple[int, list[DamagedEntry]]:
    """The number of entries of a shard, and the damaged ones, each with its first damaged channel."""
    file = folder.open(info.base_name)
    segment_samples = segment_samples_of(footer)
    damaged = []
    for row in footer.to_pylist():
        location = EntryLocation(row["offset"], row["channels"], row["samples"], segment_samples)
        for channel in range(location.channels):
            if read_crop(file.read_at, row["key"], location, channel, 0, location.samples) is None:
                damaged.append(DamagedEntry(info.base_name, row["content"], row["processor"], row["settings"], channel))
                break
    return len(footer), damaged
