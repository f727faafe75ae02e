"""The SeparatedStore: every clip is separated once, for all trials.

A read-through cache of separated channels, 16-bit, on any filesystem that pyarrow reaches. Writers gather
entries in memory and publish them as immutable shards (augment/shards.py); readers list the folder now and
then and learn the shards that are new. Nothing that exists is ever changed, so any number of processes may
read and write at once without a lock, and a killed writer loses only what it had not published.

What cannot be read is a miss, never an error: the caller separates the clip anew and puts it again.

Shape suffixes: S channels (separated outputs), T samples.
"""

import logging
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from types import TracebackType

import numpy as np
import pyarrow as pa
from pyarrow import fs
from pydantic import Field

from augment.shards import (
    Entry,
    Place,
    ShardDamage,
    StoreKey,
    decode_crop,
    encode_entry,
    read_footer,
    shard_pieces,
)
from augment.store_folder import StoreFolder
from augment.store_index import Found, StoreIndex
from augment.store_upkeep import Removed, StoreListing, Verification, collect, list_entries, verify_entries
from models.config import Config

__all__ = ["SeparatedStore", "StoreCounters", "StoreKey", "StoreSettings"]

_log = logging.getLogger(__name__)
_FOOTERS_AT_ONCE = 16
_REFRESH_SHARE = 0.05  # refreshes take at most this share of a process's time, however slow listing is


class StoreSettings(Config):
    """How a store is written and how often it is looked at again; readers and writers may differ in it."""

    shard_bytes: int = Field(128 * 2**20, ge=1, description="a writer publishes when it holds this much")
    publish_seconds: float = Field(
        10.0, ge=0, description="... or when its oldest entry is this old; each shard published doubles it"
    )
    publish_max_seconds: float = Field(
        600.0,
        ge=0,
        description="end of the doubling: so short runs share early and long runs make large shards",
    )
    refresh_seconds: float = Field(
        10.0, ge=0, description="a miss looks for new shards if the last look is this old"
    )
    segment_samples: int = Field(
        4096, ge=1, description="samples under one checksum; crops are read in whole segments"
    )
    max_bytes: int | None = Field(
        None, ge=0, description="writers keep nothing more once the store is this large"
    )


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

    def plus(self, **counts: int) -> "StoreCounters":
        """A copy with `counts` added."""
        return replace(self, **{name: getattr(self, name) + count for name, count in counts.items()})


class SeparatedStore:
    """A handle on one store. Threads may share it; a pickled handle opens the store anew where it arrives."""

    def __init__(self, uri: str, settings: StoreSettings | None = None) -> None:
        """Open the store and learn its shards; the folder is made where it is missing.

        Args:
            uri: a path, or a URI such as s3://bucket/prefix or gs://bucket/prefix.

        Raises:
            StoreError: when the store cannot be reached or its folder cannot be made.
        """
        self.uri, self.settings = uri, settings or StoreSettings()
        self.folder = StoreFolder(uri)
        self.folder.create()
        self.counters = StoreCounters()
        self._lock = threading.RLock()
        self._index = StoreIndex()
        self._pending: dict[bytes, Entry] = {}  # entries of the shard to come
        self._publishing: dict[bytes, Entry] = {}  # entries of the shard on its way
        self._pending_bytes, self._pending_since = 0, 0.0
        self._publish_seconds = self.settings.publish_seconds
        self._upload: Future[None] | None = None
        self._uploader: ThreadPoolExecutor | None = None
        self._bad_shards: set[str] = set()
        self._bad_entries: set[tuple[str, bytes]] = set()
        self._stored_bytes = 0
        self._next_refresh = 0.0
        self.refresh()

    def __getstate__(self) -> dict[str, object]:
        return {"uri": self.uri, "settings": self.settings}

    def __setstate__(self, state: dict) -> None:
        self.__init__(state["uri"], state["settings"])  # type: ignore[misc]

    def __enter__(self) -> "SeparatedStore":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __len__(self) -> int:
        """Entries known to this handle, duplicates counted."""
        with self._lock:
            return len(self._index) + len(self._pending) + len(self._publishing)

    # ---- reading ----

    def __contains__(self, key: StoreKey) -> bool:
        """Whether a look-up would find the entry; counts nothing."""
        digest = key.digest()
        return self._unpublished(digest) is not None or bool(self._copies(digest))

    def levels(self, key: StoreKey) -> np.ndarray | None:
        """Level of each channel, RMS in dBFS, float32 (S,); None when the entry is not there."""
        self._publish_if_due()
        digest = key.digest()
        entry = self._unpublished(digest)
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
        self._publish_if_due()
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
                found = [
                    copy for copy in self._index.find(digest) if (copy.shard, digest) not in self._bad_entries
                ]
            if found or attempt or time.monotonic() < self._next_refresh:
                return found
            self.refresh()
        return []

    def _unpublished(self, digest: bytes) -> Entry | None:
        with self._lock:
            return self._publishing.get(digest) or self._pending.get(digest)

    def _unpublished_crop(self, digest: bytes, channel: int, start: int, samples: int) -> np.ndarray | None:
        entry = self._unpublished(digest)
        if entry is None:
            return None
        place = Place(0, entry.channels, entry.samples, self.settings.segment_samples)
        _check_crop(place, channel, start, samples)
        offset, count, _ = place.crop_range(channel, start, samples)
        return decode_crop(entry.data[offset : offset + count], digest, place, channel, start, samples)

    def _read_crop(
        self, found: Found, digest: bytes, channel: int, start: int, samples: int
    ) -> np.ndarray | None:
        _check_crop(found.place, channel, start, samples)
        offset, count, _ = found.place.crop_range(channel, start, samples)
        try:
            raw = self.folder.open(found.shard).read_at(count, offset)
        except FileNotFoundError:  # removed by gc since the last refresh
            self._forget(found.shard)
            return None
        except OSError as error:
            _log.warning("store %s: cannot read %s: %s", self.uri, found.shard, error)
            return None
        self._count(bytes_read=len(raw))
        crop = decode_crop(raw, digest, found.place, channel, start, samples)
        if crop is None:
            with self._lock:
                self._bad_entries.add((found.shard, digest))
            self._count(damaged=1)
            _log.warning("store %s: a damaged entry in %s is passed over", self.uri, found.shard)
        return crop

    # ---- writing ----

    def put(self, key: StoreKey, wave_ST: np.ndarray, levels: np.ndarray) -> None:
        """Keep a separated clip. What is there already stays; the entry is published later, see
        StoreSettings.

        Args:
            wave_ST: int16 (S, T), S at most 255.
            levels: RMS of each channel in dBFS, (S,).

        Raises:
            ValueError: for another type or shape.
        """
        if (
            wave_ST.dtype != np.int16
            or wave_ST.ndim != 2
            or not 1 <= len(wave_ST) <= 255
            or not wave_ST.shape[1]
        ):
            raise ValueError(
                f"a store entry is int16 (S, T), 1 to 255 channels, not {wave_ST.dtype} {wave_ST.shape}"
            )
        if np.shape(levels) != wave_ST.shape[:1]:
            raise ValueError(f"{np.shape(levels)} levels for {len(wave_ST)} channels: give one a channel")
        if key in self:
            return
        entry = encode_entry(key, wave_ST, levels, self.settings.segment_samples)
        limit = self.settings.max_bytes
        with self._lock:
            if limit is not None and self._stored_bytes + self._pending_bytes + len(entry.data) > limit:
                self._count(dropped=1)
                return
            if not self._pending:
                self._pending_since = time.monotonic()
            self._pending[key.digest()] = entry
            self._pending_bytes += len(entry.data)
        self._publish_if_due()

    def flush(self) -> None:
        """Publish all that was put, and wait until other processes can see it."""
        self._start_publishing()
        self._wait_for_upload()

    def _publish_if_due(self) -> None:
        with self._lock:
            age = time.monotonic() - self._pending_since
            due = self._pending and (
                self._pending_bytes >= self.settings.shard_bytes or age >= self._publish_seconds
            )
        if due:
            self._start_publishing()

    def _start_publishing(self) -> None:
        """Hand the pending entries to the uploading thread; one shard at a time bounds the memory."""
        self._wait_for_upload()
        with self._lock:
            if not self._pending or self._publishing:
                return
            self._publishing, self._pending = self._pending, {}
            self._pending_bytes = 0
            self._publish_seconds = min(2 * self._publish_seconds, self.settings.publish_max_seconds)
            if self._uploader is None:
                self._uploader = ThreadPoolExecutor(1, thread_name_prefix="separated-store")
            self._upload = self._uploader.submit(self._publish, list(self._publishing.values()))

    def _wait_for_upload(self) -> None:
        upload = self._upload
        if upload is not None:
            upload.result()

    def _publish(self, entries: list[Entry]) -> None:
        pieces, footer = shard_pieces(entries, self.settings.segment_samples)
        size = sum(map(len, pieces))
        try:
            name = self.folder.publish(pieces)
        except OSError as error:  # a full disk must not end a training run that can separate live
            _log.warning("store %s: %d entries were not kept: %s", self.uri, len(entries), error)
            with self._lock:
                self._publishing = {}
            self._count(dropped=len(entries))
            return
        with self._lock:
            self._index.add({name: footer})
            self._publishing = {}
            self._stored_bytes += size
        self._count(bytes_written=size)

    # ---- knowing the shards ----

    def refresh(self) -> None:
        """Learn the shards that others have published or removed. Reads the footers of new shards only."""
        begin = time.monotonic()
        listed = {info.base_name: info for info in self.folder.shards()}
        with self._lock:
            known = self._index.shards
            self._stored_bytes = sum(info.size for info in listed.values())
        for name in known - listed.keys():
            self._forget(name)
        new = [info for name, info in listed.items() if name not in known and name not in self._bad_shards]
        if new:
            with ThreadPoolExecutor(min(len(new), _FOOTERS_AT_ONCE)) as pool:
                footers = dict(
                    zip([info.base_name for info in new], pool.map(self._footer, new), strict=True)
                )
            with self._lock:
                self._index.add({name: footer for name, footer in footers.items() if footer is not None})
        took = time.monotonic() - begin
        self._next_refresh = time.monotonic() + max(self.settings.refresh_seconds, took / _REFRESH_SHARE)

    def _footer(self, info: fs.FileInfo) -> pa.Table | None:
        """A shard's footer; None where it is damaged, which is counted, or cannot be read just now."""
        try:
            with self.folder.filesystem.open_input_file(info.path) as file:
                return read_footer(file, info.size)
        except ShardDamage as error:
            _log.warning("store %s: %s is passed over: %s", self.uri, info.base_name, error)
            self._bad_shards.add(info.base_name)
            self._count(damaged=1)
        except OSError as error:
            _log.warning("store %s: cannot read %s: %s", self.uri, info.base_name, error)
        return None

    def _forget(self, name: str) -> None:
        with self._lock:
            self._index.remove(name)
        self.folder.forget(name)

    def _count(self, **counts: int) -> None:
        with self._lock:
            self.counters = self.counters.plus(**counts)

    # ---- upkeep ----

    def ls(self) -> StoreListing:
        """What the store holds, by processor and settings."""
        return list_entries(self.folder)

    def verify(self) -> Verification:
        """Read everything and check every checksum."""
        return verify_entries(self.folder)

    def gc(self, max_bytes: int | None = None) -> Removed:
        """Delete damaged shards, leftovers of killed writers, and the oldest shards beyond `max_bytes`."""
        removed = collect(self.folder, max_bytes)
        self.refresh()
        return removed

    def close(self) -> None:
        """Publish what is pending and let go of all files."""
        self.flush()
        if self._uploader is not None:
            self._uploader.shutdown()
            self._uploader = None
        self.folder.close()


def _check_crop(place: Place, channel: int, start: int, samples: int) -> None:
    if not (0 <= channel < place.channels and start >= 0 and 1 <= samples <= place.samples - start):
        raise ValueError(
            f"channel {channel}, samples {start} to {start + samples} are outside of an entry with "
            f"{place.channels} channels of {place.samples} samples: StoreKey.settings must tell clip lengths "
            "and sources apart"
        )
