"""Looking after a store: what is in it, whether it is whole, making room. Safe beside readers and writers."""

import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from pyarrow import fs

from sepscene.augment.store.folder import StoreFolder
from sepscene.augment.store.shards import Place, ShardDamage, decode_crop, read_footer, segment_samples_of

_LEFTOVER_SECONDS = 3600.0  # a half-written shard this old has no writer any more


@dataclass(frozen=True)
class StoreGroup:
    """The entries of one processor under one set of settings."""

    processor: str
    settings: str
    entries: int
    channels: int
    samples: int
    """Samples of all channels together; two bytes each."""


@dataclass(frozen=True)
class StoreListing:
    """What `sepscene store ls` shows."""

    uri: str
    shards: int
    entries: int
    bytes: int
    groups: tuple[StoreGroup, ...]
    damaged_shards: tuple[str, ...]


@dataclass(frozen=True)
class DamagedEntry:
    """One entry that a reader would pass over."""

    shard: str
    content: str
    processor: str
    settings: str
    channel: int


@dataclass(frozen=True)
class Verification:
    """What `sepscene store verify` shows."""

    uri: str
    shards: int
    entries: int
    bytes_read: int
    seconds: float
    damaged_shards: tuple[tuple[str, str], ...]
    """(file name, what is wrong with it)"""
    damaged_entries: tuple[DamagedEntry, ...]

    @property
    def whole(self) -> bool:
        """Whether no shard and no entry is damaged."""
        return not self.damaged_shards and not self.damaged_entries


@dataclass(frozen=True)
class Removed:
    """What `sepscene store gc` shows."""

    uri: str
    old_shards: int
    damaged_shards: int
    leftovers: int
    bytes_freed: int
    bytes_left: int


def list_store(uri: str) -> StoreListing:
    """`sepscene store ls URI`. Raises: StoreError: when there is no store."""
    return list_entries(_existing(uri))


def verify_store(uri: str) -> Verification:
    """`sepscene store verify URI`. Raises: StoreError: when there is no store."""
    return verify_entries(_existing(uri))


def collect_store(uri: str, max_bytes: int | None = None) -> Removed:
    """`sepscene store gc URI [--max-bytes N]`. Raises: StoreError: when there is no store."""
    return collect(_existing(uri), max_bytes)


def _existing(uri: str) -> StoreFolder:
    folder = StoreFolder(uri)
    folder.must_exist()
    return folder


def list_entries(folder: StoreFolder) -> StoreListing:
    """Read all footers and add up what they name."""
    totals: dict[tuple[str, str], np.ndarray] = {}
    damaged = []
    shards = 0
    size = 0
    for info, footer in _footers(folder):
        shards += 1
        size += info.size
        if isinstance(footer, str):
            damaged.append(info.base_name)
            continue
        for group, counts in _counts(footer).items():
            totals[group] = totals.get(group, np.zeros(3, np.int64)) + counts
    groups = tuple(StoreGroup(*group, *totals[group].tolist()) for group in sorted(totals))
    entries = sum(group.entries for group in groups)
    return StoreListing(folder.uri, shards, entries, size, groups, tuple(damaged))


def _counts(footer: pa.Table) -> dict[tuple[str, str], np.ndarray]:
    """(processor, settings) -> entries, channels, and samples of all channels.

    By columns: a store of AudioSet's size has millions of rows, and a table of a hundred rows is too small for Arrow's
    own groups to pay.
    """
    processor, settings = (footer[name].combine_chunks() for name in ("processor", "settings"))
    groups, group_N = np.unique(
        np.stack([column.indices.to_numpy() for column in (processor, settings)]), axis=1, return_inverse=True
    )
    channels_N = footer["channels"].to_numpy().astype(np.int64)
    weights = (None, channels_N, channels_N * footer["samples"].to_numpy())
    counts = np.stack([np.bincount(group_N.ravel(), each) for each in weights], axis=1).astype(np.int64)
    names = zip(
        processor.dictionary.take(pa.array(groups[0])), settings.dictionary.take(pa.array(groups[1])), strict=True
    )
    return {(p.as_py(), s.as_py()): row for (p, s), row in zip(names, counts, strict=True)}


def verify_entries(folder: StoreFolder) -> Verification:
    """Read every sample of every shard and check its checksum."""
    begin = time.monotonic()
    damaged_shards = []
    damaged_entries = []
    shards = 0
    entries = 0
    size = 0
    for info, footer in _footers(folder):
        if isinstance(footer, str):
            damaged_shards.append((info.base_name, footer))
        else:
            try:
                damaged_entries += _damaged(folder, info.base_name, footer)
            except OSError:
                if folder.holds(info.base_name):
                    raise
                continue
            finally:
                folder.forget(info.base_name)
            entries += len(footer)
        shards += 1
        size += info.size
    return Verification(
        folder.uri,
        shards,
        entries,
        size,
        time.monotonic() - begin,
        tuple(damaged_shards),
        tuple(damaged_entries),
    )


def collect(folder: StoreFolder, max_bytes: int | None) -> Removed:
    """Make room: damaged shards first, then leftovers, then the oldest shards until `max_bytes` are left."""
    sound = []
    damaged = 0
    freed = 0
    for info, footer in _footers(folder):
        if isinstance(footer, str):
            folder.remove(info.base_name)
            damaged += 1
            freed += info.size
        else:
            sound.append(info)
    leftovers, leftover_bytes = folder.remove_leftovers(_LEFTOVER_SECONDS)
    sizes = np.array([info.size for info in sound], np.int64)
    newer = sizes[::-1].cumsum()[::-1]  # bytes of a shard and all that are newer
    old = 0 if max_bytes is None else int(np.count_nonzero(newer > max_bytes))
    for info in sound[:old]:
        folder.remove(info.base_name)
    freed += leftover_bytes + int(sizes[:old].sum())
    return Removed(folder.uri, old, damaged, leftovers, freed, int(sizes[old:].sum()))


def _footers(folder: StoreFolder) -> Iterator[tuple[fs.FileInfo, pa.Table | str]]:
    """Each shard with its footer, or with what is wrong with it; without those that another gc removes meanwhile."""
    for info in folder.shards():
        footer: pa.Table | str
        try:
            with folder.filesystem.open_input_file(info.path) as file:
                footer = read_footer(file, info.size)
        except OSError:  # S3 has no special one for an object that went after it was opened
            if folder.holds(info.base_name):
                raise
            continue
        except ShardDamage as error:
            footer = str(error)
        yield info, footer


def _damaged(folder: StoreFolder, name: str, footer: pa.Table) -> list[DamagedEntry]:
    """At most one finding for each entry: its first damaged channel."""
    file = folder.open(name)
    segment_samples = segment_samples_of(footer)
    damaged = []
    for row in footer.to_pylist():
        place = Place(row["offset"], row["channels"], row["samples"], segment_samples)
        for channel in range(place.channels):
            offset, count, _ = place.crop_range(channel, 0, place.samples)
            raw = file.read_at(count, offset)
            if decode_crop(raw, row["key"], place, channel, 0, place.samples) is None:
                damaged.append(DamagedEntry(name, row["content"], row["processor"], row["settings"], channel))
                break
    return damaged
