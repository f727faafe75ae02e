"""Maintenance of a store: list, verify, and free space. Safe while other processes read and write."""

import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import fs

from sepscene.augment.store.folder import StoreFolder
from sepscene.augment.store.shards import FOOTER, EntryLocation, ShardDamage, read_crop, read_footer, segment_samples_of

_GROUPED = ["processor", "settings", "channels", "samples"]  # columns of a footer that `list_store` needs
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
    footers = [FOOTER.empty_table().select(_GROUPED)]
    damaged = []
    shards = 0
    size = 0
    with folder.errors_named("list"):
        for info, footer in _footers(folder):
            shards += 1
            size += info.size
            if isinstance(footer, str):
                damaged.append(info.base_name)
            else:
                footers.append(footer.select(_GROUPED))
    groups = _groups(pa.concat_tables(footers).unify_dictionaries())
    entries = sum(group.entries for group in groups)
    return StoreListing(folder.uri, shards, entries, size, groups, tuple(damaged))


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


def _existing(store: str | StoreFolder) -> StoreFolder:
    folder = StoreFolder(store) if isinstance(store, str) else store
    folder.check_exists()
    return folder


def verify_store(store: str | StoreFolder) -> Verification:
    """`sepscene store verify URI`: read all samples of all shards and verify their checksums.

    Raises:
        StoreError: there is no store, or the filesystem fails.
    """
    folder = _existing(store)
    begin = time.monotonic()
    damaged_shards = []
    damaged_entries = []
    shards = 0
    entries = 0
    size = 0
    with folder.errors_named("verify"):
        for info, footer in _footers(folder):
            if isinstance(footer, str):
                damaged_shards.append((info.base_name, footer))
            else:
                try:
                    damaged_entries += _damaged(folder, info.base_name, footer)
                except OSError:
                    if folder.exists(info.base_name):
                        raise
                    continue
                finally:
                    folder.close_shard(info.base_name)
                entries += len(footer)
            shards += 1
            size += info.size
    seconds = time.monotonic() - begin
    return Verification(folder.uri, shards, entries, size, seconds, tuple(damaged_shards), tuple(damaged_entries))


def collect_store(store: str | StoreFolder, max_bytes: int | None = None) -> Removed:
    """`sepscene store gc URI`: free space.

    Removes damaged shards, incomplete shards of killed writers, and then the oldest shards, until at most `max_bytes`
    are left.

    Raises:
        StoreError: there is no store, or the filesystem fails.
    """
    folder = _existing(store)
    intact = []
    damaged = 0
    freed = 0
    with folder.errors_named("remove shards of"):
        for info, footer in _footers(folder):
            if isinstance(footer, str):
                folder.remove(info.base_name)
                damaged += 1
                freed += info.size
            else:
                intact.append(info)
        leftovers, leftover_bytes = folder.remove_leftovers(_LEFTOVER_SECONDS)
        sizes = np.array([info.size for info in intact], np.int64)
        newer = sizes[::-1].cumsum()[::-1]  # bytes of each shard and all newer ones
        old = 0 if max_bytes is None else int(np.count_nonzero(newer > max_bytes))
        for info in intact[:old]:
            folder.remove(info.base_name)
    freed += leftover_bytes + int(sizes[:old].sum())
    return Removed(folder.uri, old, damaged, leftovers, freed, int(sizes[old:].sum()))


def _footers(folder: StoreFolder) -> Iterator[tuple[fs.FileInfo, pa.Table | str]]:
    """Each shard with its footer or its damage. Shards that another gc removes in the meantime are skipped."""
    for info in folder.shards():
        footer: pa.Table | str
        try:
            with folder.filesystem.open_input_file(info.path) as file:
                footer = read_footer(file, info.size)
        except OSError:  # S3 has no specific error for an object that is removed while open
            if folder.exists(info.base_name):
                raise
            continue
        except ShardDamage as error:
            footer = str(error)
        yield info, footer


def _damaged(folder: StoreFolder, name: str, footer: pa.Table) -> list[DamagedEntry]:
    """The damaged entries of a shard, each with its first damaged channel."""
    file = folder.open(name)
    segment_samples = segment_samples_of(footer)
    damaged = []
    for row in footer.to_pylist():
        location = EntryLocation(row["offset"], row["channels"], row["samples"], segment_samples)
        for channel in range(location.channels):
            if read_crop(file.read_at, row["key"], location, channel, 0, location.samples) is None:
                damaged.append(DamagedEntry(name, row["content"], row["processor"], row["settings"], channel))
                break
    return damaged
