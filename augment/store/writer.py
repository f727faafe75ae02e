"""The writing half of the SeparatedStore: entries wait in memory until they make a shard."""

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
    """How a store is written and how often it is looked at again; readers and writers may differ in it."""

    shard_bytes: int = Field(128 * 2**20, ge=1, description="a writer publishes when it holds this much")
    publish_seconds: float = Field(
        10.0, ge=0, description="... or when its oldest entry is this old; each shard published doubles it"
    )
    publish_max_seconds: float = Field(
        600.0, ge=0, description="end of the doubling: so short runs share early and long runs make large shards"
    )
    refresh_seconds: float = Field(10.0, ge=0, description="a miss looks for new shards if the last look is this old")
    segment_samples: int = Field(4096, ge=1, description="samples under one checksum; crops are read in whole segments")
    max_bytes: int | None = Field(
        None,
        ge=0,
        description="writers keep nothing more once the store is this large; each looks before it publishes a shard, "
        "so that at worst the shards that are on their way at the same moment, one a writer, come on top",
    )


class ShardWriter:
    """Gathers entries and publishes them from a thread of its own. Memory: two shards at most. Thread-safe."""

    def __init__(
        self,
        folder: StoreFolder,
        settings: StoreSettings,
        published: Callable[[str, pa.Table], None],
        count: Callable[..., None],
    ) -> None:
        """Args:
        folder: where shards are published.
        settings: when, and up to which size of the store.
        published: called with name and footer of each shard before its entries leave the memory.
        count: called with what to add to `dropped` and `bytes_written` of the store's counters.
        """
        self._folder = folder
        self._settings = settings
        self._limit = math.inf if settings.max_bytes is None else settings.max_bytes
        self._published = published
        self._count = count
        self._lock = threading.Lock()  # the entries, and the bytes of the store
        self._starting = threading.Lock()  # one shard after another
        self._pending: dict[bytes, Entry] = {}  # entries of the shard to come
        self._leaving: dict[bytes, Entry] = {}  # entries of the shard on its way
        self._since = 0.0
        self._publish_seconds = settings.publish_seconds
        self._upload: Future[None] | None = None
        self._thread: ThreadPoolExecutor | None = None
        self._pending_bytes = 0
        self._stored_bytes = 0  # of all shards in the folder, others' too, as far as known

    def __len__(self) -> int:
        """Entries that are not published yet."""
        with self._lock:
            return len(self._pending) + len(self._leaving)

    def saw_stored(self, size: int) -> None:
        """Learn how many bytes all shards in the folder have."""
        with self._lock:
            self._stored_bytes = size

    def find(self, digest: bytes) -> Entry | None:
        """An entry that is not published yet."""
        with self._lock:
            return self._leaving.get(digest) or self._pending.get(digest)

    def add(self, digest: bytes, entry: Entry) -> None:
        """Keep an entry for the next shard, or count it as dropped where the store is full."""
        with self._lock:
            leaving_bytes = sum(len(leaving.data) for leaving in self._leaving.values())
            full = self._stored_bytes + leaving_bytes + self._pending_bytes + len(entry.data) > self._limit
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
        """Start a shard when the entries are many or old enough."""
        if not self._pending:
            return
        age = time.monotonic() - self._since
        if self._pending_bytes >= self._settings.shard_bytes or age >= self._publish_seconds:
            self.start()

    def start(self) -> None:
        """Hand the pending entries to the thread; the shard before them is waited for."""
        with self._starting:
            self.wait()
            with self._lock:
                if not self._pending:
                    return
                self._leaving = self._pending
                self._pending = {}
                self._pending_bytes = 0
                self._publish_seconds = min(2 * self._publish_seconds, self._settings.publish_max_seconds)
                self._thread = self._thread or ThreadPoolExecutor(1, thread_name_prefix="separated-store")
            try:
                self._upload = self._thread.submit(self._publish)
            except RuntimeError:  # the process is ending and starts no threads any more
                self._publish()

    def wait(self) -> None:
        """Wait for the shard that is on its way."""
        upload = self._upload
        if upload is not None:
            upload.result()

    def flush(self) -> None:
        """Publish everything and wait for it."""
        self.start()
        self.wait()

    def close(self) -> None:
        """Publish everything and end the thread."""
        self.flush()
        if self._thread is not None:
            self._thread.shutdown()
            self._thread = None

    def _publish(self) -> None:
        entries = list(self._leaving.values())
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
            # a full disk must not end a training run that can separate live
            _log.warning("store %s: %d entries were not kept: %s", self._folder.uri, len(entries), error)
            kept = []
        if len(kept) < len(entries):
            self._count(dropped=len(entries) - len(kept))
        with self._lock:
            self._leaving = {}

    def _room(self) -> float:
        """Bytes that the limit leaves after all that is in the folder now, others' shards too.

        Raises:
            StoreError: when the filesystem does not answer.
        """
        if self._limit == math.inf:
            return math.inf
        stored = sum(info.size for info in self._folder.shards())
        self.saw_stored(stored)
        return self._limit - stored
