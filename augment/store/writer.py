"""Writing to the SeparatedStore: entries are collected in memory and published as shards."""

import logging
import math
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import accumulate

import pyarrow as pa
from pydantic import Field

from sepscene.augment.store.folder import FILESYSTEM_ERRORS, StoreError, StoreFolder
from sepscene.augment.store.shards import Entry, shard_pieces
from sepscene.models.config import Config

_log = logging.getLogger(__name__)


class StoreSettings(Config):
    """How a store is written, and when it is searched for new shards. Each process can use different settings."""

    shard_bytes: int = Field(128 * 2**20, ge=1, description="a writer publishes a shard of at least this size")
    publish_seconds: float = Field(
        10.0, ge=0, description="… or once its oldest entry is this old; this time doubles after each shard"
    )
    publish_max_seconds: float = Field(
        600.0, ge=0, description="upper limit of the doubled time: short runs share early, long runs write large shards"
    )
    refresh_seconds: float = Field(10.0, ge=0, description="shortest time between searches for new shards after a miss")
    segment_samples: int = Field(4096, ge=1, description="samples per checksum; crops are read in whole segments")
    max_bytes: int | None = Field(
        None,
        ge=0,
        description="writers drop entries if the store is this large. Each writer checks the size before it publishes "
        "a shard, so that the limit can be exceeded by at most one shard per writer",
    )


class ShardWriter:
    """Collects entries and publishes them in a background thread. Holds at most two shards. Thread-safe."""

    def __init__(
        self,
        folder: StoreFolder,
        settings: StoreSettings,
        published: Callable[[str, pa.Table], None],
        count: Callable[..., None],
    ) -> None:
        """Args:
        folder: folder of the store.
        settings: when to publish, and the size limit of the store.
        published: called with name and footer of each published shard before its entries are released.
        count: called with increments of the store's counters `dropped` and `bytes_written`.
        """
        self._folder = folder
        self._settings = settings
        self._limit = math.inf if settings.max_bytes is None else settings.max_bytes
        self._published = published
        self._count = count
        self._lock = threading.Lock()  # for the entries and the byte counts
        self._starting = threading.Lock()  # one shard at a time
        self._pending: dict[bytes, Entry] = {}  # entries of the next shard
        self._uploading: dict[bytes, Entry] = {}  # entries of the shard that is being published
        self._since = 0.0
        self._publish_seconds = settings.publish_seconds
        self._upload: Future[None] | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="separated-store")
        self._pending_bytes = 0
        self._stored_bytes = 0  # of all shards in the folder, of all writers, as last listed

    def __len__(self) -> int:
        """Number of entries that are not published yet."""
        with self._lock:
            return len(self._pending) + len(self._uploading)

    def set_stored_bytes(self, size: int) -> None:
        """Set the size of all shards in the folder."""
        with self._lock:
            self._stored_bytes = size

    def find(self, digest: bytes) -> Entry | None:
        """An entry that is not published yet."""
        with self._lock:
            return self._uploading.get(digest) or self._pending.get(digest)

    def add(self, digest: bytes, entry: Entry) -> None:
        """Add an entry to the next shard, or count it as dropped if the store is full."""
        with self._lock:
            uploading_bytes = sum(len(uploading.data) for uploading in self._uploading.values())
            full = self._stored_bytes + uploading_bytes + self._pending_bytes + len(entry.data) > self._limit
            if not full:
                if not self._pending:
                    self._since = time.monotonic()
                self._pending[digest] = entry
                self._pending_bytes += len(entry.data)
        if full:
            self._count(dropped=1)
        else:
            self.publish_if_due()

    def publish_if_due(self) -> None:
        """Start publishing if the pending entries are large or old enough."""
        if not self._pending:
            return
        age = time.monotonic() - self._since
        if self._pending_bytes >= self._settings.shard_bytes or age >= self._publish_seconds:
            self.start()

    def start(self) -> None:
        """Start publishing the pending entries in the background, after waiting for the previous shard."""
        with self._starting:
            self.wait()
            with self._lock:
                if not self._pending:
                    return
                self._uploading = self._pending
                self._pending = {}
                self._pending_bytes = 0
                self._publish_seconds = min(2 * self._publish_seconds, self._settings.publish_max_seconds)
            try:
                self._upload = self._thread.submit(self._publish)
            except RuntimeError:  # after `close`, or the process is exiting and cannot start threads any more
                self._publish()

    def wait(self) -> None:
        """Wait for the shard that is being published."""
        upload = self._upload
        if upload is not None:
            upload.result()

    def flush(self) -> None:
        """Publish all entries and wait until they are published."""
        self.start()
        self.wait()

    def close(self) -> None:
        """Publish all entries and stop the thread."""
        self.flush()
        self._thread.shutdown()

    def _publish(self) -> None:
        entries = list(self._uploading.values())
        try:
            room = self._room()
            ends = accumulate(len(entry.data) for entry in entries)
            kept = [entry for entry, end in zip(entries, ends, strict=True) if end <= room]
            if kept:
                pieces, footer = shard_pieces(kept, self._settings.segment_samples)
                self._published(self._folder.publish(pieces), footer)
                size = sum(map(len, pieces))
                with self._lock:
                    self._stored_bytes += size
                self._count(bytes_written=size)
        except (StoreError, *FILESYSTEM_ERRORS) as error:
            # a full disk must not stop a training run, which can separate live
            _log.warning("store %s: %d entries were not stored: %s", self._folder.uri, len(entries), error)
            kept = []
        if len(kept) < len(entries):
            self._count(dropped=len(entries) - len(kept))
        with self._lock:
            self._uploading = {}

    def _room(self) -> float:
        """Free bytes below the size limit, after listing all shards in the folder."""
        if self._limit == math.inf:
            return math.inf
        stored = sum(info.size for info in self._folder.shards())
        self.set_stored_bytes(stored)
        return self._limit - stored
