"""The SeparatedStore: each clip is separated once, for all trials.

A read-through cache of separated 16-bit channels, on any filesystem supported by pyarrow. Writers collect entries in
memory and publish them as immutable shards (augment/store/shards.py). Readers list the folder from time to time and add
new shards to their index. Existing files are never changed, so any number of processes can read and write at the same
time without locks, and a killed writer loses only what it had not published.

An entry that cannot be read is a miss, not an error: the caller separates the clip again and puts it again.

Shape suffixes: S channels (separated outputs), T samples.
"""

import atexit
import logging
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
from pyarrow import fs

from sepscene.augment.store.folder import FILESYSTEM_ERRORS, StoreError, StoreFolder
from sepscene.augment.store.index import COLUMNS, Found, StoreIndex
from sepscene.augment.store.shards import ShardDamage, StoreKey, encode_entry, read_crop, read_footer
from sepscene.augment.store.writer import ShardWriter, StoreSettings

_log = logging.getLogger(__name__)
_FOOTER_THREADS = 16
"""Reading a footer is mostly waiting, on network storage for tens of milliseconds."""
_FOOTERS_PER_UPDATE = 1024  # footers per update of the index; as tables they take six times its memory
_REFRESH_SHARE = 0.05  # refreshes take at most this share of the time of a process, even if listing is slow


@dataclass(frozen=True)
class StoreCounters:
    """Counters of one handle since it was opened.

    Attributes:
        hits: crops returned.
        misses: lookups (of levels or crops) that found nothing readable.
        damaged: damaged entries and shards, each counted once.
        dropped: entries not stored, because the store was full or its filesystem refused them.
        bytes_read: bytes read for crops.
        bytes_written: bytes of published shards.
    """

    hits: int = 0
    misses: int = 0
    damaged: int = 0
    dropped: int = 0
    bytes_read: int = 0
    bytes_written: int = 0


class SeparatedStore:
    """A handle to a store. Thread-safe; unpickling a handle opens the store in the receiving process."""

    def __init__(self, uri: str, settings: StoreSettings | None = None) -> None:
        """Open the store and index its shards. The folder is created if it is missing.

        Args:
            uri: a path, or a URI such as s3://bucket/prefix or gs://bucket/prefix.
            settings: how to write the store, and when to search for new shards.

        Raises:
            StoreError: the store cannot be reached, or its folder cannot be created.
        """
        self.uri = uri
        self.settings = settings or StoreSettings()
        self.folder = StoreFolder(uri)
        self.folder.create()
        self.counters = StoreCounters()
        self._lock = threading.RLock()
        self._index = StoreIndex()
        self._writer = ShardWriter(self.folder, self.settings, self._on_published, self._count)
        self._bad_shards: set[str] = set()
        self._bad_entries: dict[bytes, set[str]] = {}  # digest -> the shards whose copy is damaged
        self._next_refresh = 0.0
        self.refresh()
        _open_stores.add(self)

    def __reduce__(self) -> "tuple[type[SeparatedStore], tuple[str, StoreSettings]]":
        """Pickle only the address and the settings."""
        return SeparatedStore, (self.uri, self.settings)

    def __enter__(self) -> "SeparatedStore":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __len__(self) -> int:
        """Number of entries known to this handle, including duplicates."""
        with self._lock:
            return len(self._index) + len(self._writer)

    # ---- reading ----

    def __contains__(self, key: StoreKey) -> bool:
        """Whether a lookup would find the entry; does not change the counters."""
        digest = key.digest()
        return self._writer.find(digest) is not None or bool(self._copies(digest))

    def damaged_copies(self, key: StoreKey) -> int:
        """Number of copies of an entry that this handle has found damaged."""
        with self._lock:
            return len(self._bad_entries.get(key.digest(), ()))

    def levels(self, key: StoreKey) -> np.ndarray | None:
        """Level of each channel, RMS in dBFS, float32 (S,); None if the entry is missing."""
        self._writer.publish_if_due()
        digest = key.digest()
        entry = self._writer.find(digest)
        if entry is not None:
            return entry.levels.copy()
        copies = self._copies(digest)
        if not copies:
            self._count(misses=1)
            return None
        return copies[0].levels

    def get_crop(self, key: StoreKey, channel: int, start: int, samples: int) -> np.ndarray | None:
        """Read `samples` samples of one channel from sample `start` on, and only the segments that hold them.

        Returns:
            int16 (samples,), exactly as it was put; None if there is no readable copy.

        Raises:
            ValueError: the entry exists but has no such channel, or is too short.
        """
        self._writer.publish_if_due()
        digest = key.digest()
        entry = self._writer.find(digest)
        if entry is not None:
            data = entry.data
            crop = read_crop(lambda count, at: data[at : at + count], digest, entry.location, channel, start, samples)
        else:
            copies = (self._read_crop(found, digest, channel, start, samples) for found in self._copies(digest))
            crop = next((crop for crop in copies if crop is not None), None)
        self._count(hits=crop is not None, misses=crop is None)
        return crop

    def _copies(self, digest: bytes) -> list[Found]:
        """Published copies not known to be damaged. If there are none, search for new shards."""
        for attempt in range(2):
            with self._lock:
                bad = self._bad_entries.get(digest, set())
                found = [copy for copy in self._index.find(digest) if copy.shard not in bad]
            if found or attempt or time.monotonic() < self._next_refresh:
                return found
            self._try_refresh()
        return []

    def _try_refresh(self) -> None:
        """Refresh; on failure, log a warning and wait as long as after a success before the next attempt."""
        try:
            self.refresh()
        except StoreError as error:
            _log.warning("%s", error)
            self._next_refresh = time.monotonic() + max(1.0, self.settings.refresh_seconds)

    def _read_crop(self, found: Found, digest: bytes, channel: int, start: int, samples: int) -> np.ndarray | None:
        def read_at(count: int, offset: int) -> bytes:
            raw = self.folder.open(found.shard).read_at(count, offset)
            self._count(bytes_read=len(raw))
            return raw

        try:
            crop = read_crop(read_at, digest, found.location, channel, start, samples)
        except FileNotFoundError:  # removed by gc since the last refresh
            self._remove_shard(found.shard)
            return None
        except FILESYSTEM_ERRORS as error:
            _log.warning("store %s: cannot read %s: %s", self.folder.uri, found.shard, error)
            return None
        if crop is None:
            with self._lock:
                self._bad_entries.setdefault(digest, set()).add(found.shard)
            self._count(damaged=1)
            _log.warning("store %s: skipping a damaged entry in %s", self.folder.uri, found.shard)
        return crop

    # ---- writing ----

    def put(self, key: StoreKey, wave_ST: np.ndarray, levels: np.ndarray) -> None:
        """Store a separated clip, unless the entry already exists. It is published later, see `StoreSettings`.

        Args:
            key: identifies the clip, the separator and the settings.
            wave_ST: int16 (S, T), S at most 255.
            levels: RMS of each channel in dBFS, (S,).

        Raises:
            ValueError: an array has another type or shape.
        """
        if wave_ST.dtype != np.int16 or wave_ST.ndim != 2 or not 1 <= len(wave_ST) <= 255 or not wave_ST.shape[1]:
            raise ValueError(
                f"an entry must be int16 (S, T) with 1 to 255 channels, not {wave_ST.dtype} {wave_ST.shape}"
            )
        if np.shape(levels) != wave_ST.shape[:1]:
            raise ValueError(f"levels of shape {np.shape(levels)} for {len(wave_ST)} channels: give one per channel")
        if key in self:
            return
        entry = encode_entry(key, wave_ST, levels, self.settings.segment_samples)
        self._writer.add(key.digest(), entry)

    def flush(self) -> None:
        """Publish all pending entries, and wait until other processes can see them."""
        self._writer.flush()

    def _on_published(self, name: str, footer: pa.Table) -> None:
        with self._lock:
            self._index.add({name: footer})

    # ---- index of shards ----

    def refresh(self) -> None:
        """Update the index with shards that other processes have published or removed.

        Only the footers of new shards are read.

        Raises:
            StoreError: the filesystem does not respond.
        """
        begin = time.monotonic()
        listed = {info.base_name: info for info in self.folder.shards()}
        with self._lock:
            known = self._index.shards
        self._writer.set_stored_bytes(sum(info.size for info in listed.values()))
        for name in known - listed.keys():
            self._remove_shard(name)
        new = [info for name, info in listed.items() if name not in known and name not in self._bad_shards]
        if new:
            self._add_shards(new)
        elapsed = time.monotonic() - begin
        self._next_refresh = time.monotonic() + max(self.settings.refresh_seconds, elapsed / _REFRESH_SHARE)

    def _add_shards(self, new: list[fs.FileInfo]) -> None:
        """Add new shards to the index, and warn about unreadable ones in a single line."""
        unread: list[str] = []
        with ThreadPoolExecutor(min(len(new), _FOOTER_THREADS)) as pool:
            for start in range(0, len(new), _FOOTERS_PER_UPDATE):
                batch = new[start : start + _FOOTERS_PER_UPDATE]
                footers = dict(zip([info.base_name for info in batch], pool.map(self._footer, batch), strict=True))
                unread += [f"{name}: {error}" for name, error in footers.items() if isinstance(error, str)]
                with self._lock:
                    self._index.add({name: table for name, table in footers.items() if isinstance(table, pa.Table)})
        if unread:
            more = f"; and {len(unread) - 3:,} more, see `sepscene store verify`" if len(unread) > 3 else ""
            _log.warning("store %s: skipping unreadable shards: %s", self.folder.uri, "; ".join(unread[:3]) + more)

    def _footer(self, info: fs.FileInfo) -> pa.Table | str:
        """The index columns of a shard's footer, or an error message. A damaged shard is counted and not read again."""
        try:
            with self.folder.filesystem.open_input_file(info.path) as file:
                return read_footer(file, info.size).select(COLUMNS)
        except ShardDamage as error:
            self._bad_shards.add(info.base_name)
            self._count(damaged=1)
            return str(error)
        except FILESYSTEM_ERRORS as error:
            return f"cannot be read: {error}"

    def _remove_shard(self, name: str) -> None:
        with self._lock:
            self._index.remove(name)
        self.folder.close()  # an open file of a removed shard would keep its space on the disk

    def _count(self, **counts: int) -> None:
        with self._lock:
            sums = {name: getattr(self.counters, name) + count for name, count in counts.items()}
            self.counters = replace(self.counters, **sums)

    def close(self) -> None:
        """Publish all pending entries and close all files."""
        self._writer.close()
        self.folder.close()


_open_stores: weakref.WeakSet[SeparatedStore] = weakref.WeakSet()


@atexit.register
def _close_open_stores() -> None:
    """Close the handles that the user has not closed, so that a process that exits normally loses no entries."""
    for store in list(_open_stores):
        store.close()
