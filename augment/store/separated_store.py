"""The SeparatedStore: every clip is separated once, for all trials.

A read-through cache of separated channels, 16-bit, on any filesystem that pyarrow reaches. Writers gather
entries in memory and publish them as immutable shards (augment/store/shards.py); readers list the folder now and
then and learn the shards that are new. Nothing that exists is ever changed, so any number of processes may
read and write at once without a lock, and a killed writer loses only what it had not published.

What cannot be read is a miss, never an error: the caller separates the clip anew and puts it again.

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
from sepscene.augment.store.shards import Place, ShardDamage, StoreKey, encode_entry, read_crop, read_footer
from sepscene.augment.store.writer import ShardWriter, StoreSettings

_log = logging.getLogger(__name__)
_FOOTERS_AT_ONCE = 16
_FOOTERS_KEPT = 1024  # read before they are sorted into the index; as tables they take six times its bytes
_REFRESH_SHARE = 0.05  # refreshes take at most this share of a process's time, however slow listing is


@dataclass(frozen=True)
class StoreCounters:
    """What one handle has done since it was opened.

    Attributes:
        hits: crops served.
        misses: look-ups (of levels or crops) that found nothing readable.
        damaged: entries and shards found torn or altered, each counted once.
        dropped: entries not kept, because the store was full or its filesystem refused them.
        bytes_read: bytes fetched for crops.
        bytes_written: bytes of published shards.
    """

    hits: int = 0
    misses: int = 0
    damaged: int = 0
    dropped: int = 0
    bytes_read: int = 0
    bytes_written: int = 0


class SeparatedStore:
    """A handle on one store. Threads may share it; a pickled handle opens the store anew where it arrives."""

    def __init__(self, uri: str, settings: StoreSettings | None = None) -> None:
        """Open the store and learn its shards; the folder is made where it is missing.

        Args:
            uri: a path, or a URI such as s3://bucket/prefix or gs://bucket/prefix.

        Raises:
            StoreError: when the store cannot be reached or its folder cannot be made.
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
        """Another process opens the store anew."""
        return SeparatedStore, (self.uri, self.settings)

    def __enter__(self) -> "SeparatedStore":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __len__(self) -> int:
        """Entries known to this handle, duplicates counted."""
        with self._lock:
            return len(self._index) + len(self._writer)

    # ---- reading ----

    def __contains__(self, key: StoreKey) -> bool:
        """Whether a look-up would find the entry; counts nothing."""
        digest = key.digest()
        return self._writer.find(digest) is not None or bool(self._copies(digest))

    def damaged_copies(self, key: StoreKey) -> int:
        """Copies of an entry that this handle has found torn or altered."""
        with self._lock:
            return len(self._bad_entries.get(key.digest(), ()))

    def levels(self, key: StoreKey) -> np.ndarray | None:
        """Level of each channel, RMS in dBFS, float32 (S,); None when the entry is not there."""
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
        """`samples` samples of one channel from sample `start` on; only the segments that hold them are read.

        Returns:
            int16 (samples,), exactly as it was put; None when no readable copy is there.

        Raises:
            ValueError: when the entry is there and has no such channel or is too short.
        """
        self._writer.publish_if_due()
        digest = key.digest()
        crop = self._unpublished_crop(digest, channel, start, samples)
        for found in self._copies(digest) if crop is None else ():
            crop = self._read_crop(found, digest, channel, start, samples)
            if crop is not None:
                break
        self._count(**({"misses": 1} if crop is None else {"hits": 1}))
        return crop

    def _copies(self, digest: bytes) -> list[Found]:
        """Published copies not known to be damaged; where there is none, new shards are looked for."""
        for attempt in range(2):
            with self._lock:
                bad = self._bad_entries.get(digest, set())
                found = [copy for copy in self._index.find(digest) if copy.shard not in bad]
            if found or attempt or time.monotonic() < self._next_refresh:
                return found
            self._refresh_in_passing()
        return []

    def _refresh_in_passing(self) -> None:
        """A look at the folder that may fail: then the next one is as far away as after a good one."""
        try:
            self.refresh()
        except StoreError as error:
            _log.warning("%s", error)
            self._next_refresh = time.monotonic() + max(1.0, self.settings.refresh_seconds)

    def _unpublished_crop(self, digest: bytes, channel: int, start: int, samples: int) -> np.ndarray | None:
        entry = self._writer.find(digest)
        if entry is None:
            return None
        place = Place(0, entry.channels, entry.samples, self.settings.segment_samples)
        _check_crop(place, channel, start, samples)
        data = entry.data
        return read_crop(lambda count, at: data[at : at + count], digest, place, channel, start, samples)

    def _read_crop(self, found: Found, digest: bytes, channel: int, start: int, samples: int) -> np.ndarray | None:
        _check_crop(found.place, channel, start, samples)

        def read_at(count: int, offset: int) -> bytes:
            raw = self.folder.open(found.shard).read_at(count, offset)
            self._count(bytes_read=len(raw))
            return raw

        try:
            crop = read_crop(read_at, digest, found.place, channel, start, samples)
        except FileNotFoundError:  # removed by gc since the last refresh
            self._forget(found.shard)
            return None
        except FILESYSTEM_ERRORS as error:
            _log.warning("store %s: cannot read %s: %s", self.folder.uri, found.shard, error)
            return None
        if crop is None:
            with self._lock:
                self._bad_entries.setdefault(digest, set()).add(found.shard)
            self._count(damaged=1)
            _log.warning("store %s: a damaged entry in %s is passed over", self.folder.uri, found.shard)
        return crop

    # ---- writing ----

    def put(self, key: StoreKey, wave_ST: np.ndarray, levels: np.ndarray) -> None:
        """Keep a separated clip. What is there already stays; the entry is published later, see `StoreSettings`.

        Args:
            wave_ST: int16 (S, T), S at most 255.
            levels: RMS of each channel in dBFS, (S,).

        Raises:
            ValueError: for another type or shape.
        """
        if wave_ST.dtype != np.int16 or wave_ST.ndim != 2 or not 1 <= len(wave_ST) <= 255 or not wave_ST.shape[1]:
            raise ValueError(f"a store entry is int16 (S, T), 1 to 255 channels, not {wave_ST.dtype} {wave_ST.shape}")
        if np.shape(levels) != wave_ST.shape[:1]:
            raise ValueError(f"{np.shape(levels)} levels for {len(wave_ST)} channels: give one a channel")
        if key in self:
            return
        entry = encode_entry(key, wave_ST, levels, self.settings.segment_samples)
        self._writer.add(key.digest(), entry)

    def flush(self) -> None:
        """Publish all that was put, and wait until other processes can see it."""
        self._writer.flush()

    def _on_published(self, name: str, footer: pa.Table) -> None:
        with self._lock:
            self._index.add({name: footer})

    # ---- knowing the shards ----

    def refresh(self) -> None:
        """Learn the shards that others have published or removed. Reads the footers of new shards only."""
        begin = time.monotonic()
        listed = {info.base_name: info for info in self.folder.shards()}
        with self._lock:
            known = self._index.shards
        self._writer.saw_stored(sum(info.size for info in listed.values()))
        for name in known - listed.keys():
            self._forget(name)
        new = [info for name, info in listed.items() if name not in known and name not in self._bad_shards]
        if new:
            self._learn(new)
        took = time.monotonic() - begin
        self._next_refresh = time.monotonic() + max(self.settings.refresh_seconds, took / _REFRESH_SHARE)

    def _learn(self, new: list[fs.FileInfo]) -> None:
        """Enter new shards into the index, and tell of those that cannot be read in one line, however many."""
        unread: list[str] = []
        with ThreadPoolExecutor(min(len(new), _FOOTERS_AT_ONCE)) as pool:
            for start in range(0, len(new), _FOOTERS_KEPT):
                few = new[start : start + _FOOTERS_KEPT]
                footers = dict(zip([info.base_name for info in few], pool.map(self._footer, few), strict=True))
                unread += [f"{name}: {why}" for name, why in footers.items() if isinstance(why, str)]
                with self._lock:
                    self._index.add({name: each for name, each in footers.items() if isinstance(each, pa.Table)})
        if unread:
            more = f"; and {len(unread) - 3:,} more, see `sepscene store verify`" if len(unread) > 3 else ""
            _log.warning("store %s: passed over: %s", self.folder.uri, "; ".join(unread[:3]) + more)

    def _footer(self, info: fs.FileInfo) -> pa.Table | str:
        """What the index needs of a footer, or why it has none: a damaged shard is counted, another is tried again."""
        try:
            with self.folder.filesystem.open_input_file(info.path) as file:
                return read_footer(file, info.size).select(COLUMNS)
        except ShardDamage as error:
            self._bad_shards.add(info.base_name)
            self._count(damaged=1)
            return str(error)
        except FILESYSTEM_ERRORS as error:
            return f"cannot be read: {error}"

    def _forget(self, name: str) -> None:
        with self._lock:
            self._index.remove(name)
        self.folder.forget(name)

    def _count(self, **counts: int) -> None:
        with self._lock:
            sums = {name: getattr(self.counters, name) + count for name, count in counts.items()}
            self.counters = replace(self.counters, **sums)

    def close(self) -> None:
        """Publish what is pending and let go of all files."""
        self._writer.close()
        self.folder.close()


_open_stores: weakref.WeakSet[SeparatedStore] = weakref.WeakSet()


@atexit.register
def _close_open_stores() -> None:
    """A process that ends in peace loses nothing, even if nobody closed its handles."""
    for store in list(_open_stores):
        store.close()


def _check_crop(place: Place, channel: int, start: int, samples: int) -> None:
    if not (0 <= channel < place.channels and start >= 0 and 1 <= samples <= place.samples - start):
        raise ValueError(
            f"channel {channel}, samples {start} to {start + samples} are outside of an entry with "
            f"{place.channels} channels of {place.samples} samples: StoreKey.settings must tell clip lengths "
            "and sources apart"
        )
