"""The folder of a store, on any filesystem supported by pyarrow. Shards are published atomically.

ROOT/shards/<time>-<unique>.shard     published shards, immutable; sorted by name, they are in order of publication
ROOT/incoming/                        incomplete shards, only on filesystems with atomic renames
ROOT/filled/<name>                    empty file: the prefill of this name is complete, and nothing was removed since
"""

import re
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path

import pyarrow as pa
from pyarrow import fs

from sepscene.models.config import SepsceneError

# On these filesystems, a file is visible while it is written, and renames are atomic. On object stores, an object is
# visible only after its upload is complete, and a rename is a copy.
_RENAMING = ("local", "hdfs", "mock")
_OPEN_FILES = 64  # shards that a process keeps open; 1024 files are a usual limit of a process

FILESYSTEM_ERRORS = (OSError, pa.ArrowException)
"""Errors raised by filesystems."""


class StoreError(SepsceneError):
    """The store cannot be opened or read."""


class StoreFolder:
    """The shard files of a store. Thread-safe; each process must open its own instance."""

    def __init__(self, uri: str) -> None:
        """Args: uri: a path or a URI such as s3://bucket/prefix, gs://..., file:///...

        Raises:
            StoreError: the URI is invalid or its filesystem is not supported.
        """
        self.uri = without_secrets(uri)
        try:
            location = uri if "://" in uri else str(Path(uri).expanduser().absolute())
            self.filesystem, root = fs.FileSystem.from_uri(location)
        except (pa.ArrowException, ValueError, OSError, ImportError) as error:
            cause = str(error).replace(uri, self.uri)
            raise StoreError(
                f"cannot open the store {self.uri!r}: {cause}; give a path or a URI such as s3://bucket/folder"
            ) from None
        self.shards_path = root.rstrip("/") + "/shards"
        self.incoming_path = root.rstrip("/") + "/incoming"
        self.filled_path = root.rstrip("/") + "/filled"
        self._opened = lru_cache(_OPEN_FILES)(self.filesystem.open_input_file)

    def create(self) -> None:
        """Create the folders.

        Raises:
            StoreError: they cannot be created.
        """
        with self.errors_named("write to", "choose another store.uri"):
            self.filesystem.create_dir(self.shards_path, recursive=True)
            if self._renames:
                self.filesystem.create_dir(self.incoming_path, recursive=True)

    def check_exists(self) -> None:
        """Check that there is a store.

        Raises:
            StoreError: there is no store here, or the filesystem does not respond.
        """
        with self.errors_named("reach"):
            found = self.filesystem.get_file_info(self.shards_path).type != fs.FileType.NotFound
        if not found:
            raise StoreError(f"there is no store at {self.uri!r}; check the address (store.uri of the run)")

    @contextmanager
    def errors_named(self, action: str, advice: str = "check the address and access") -> Iterator[None]:
        """Convert errors of the filesystem inside the `with` block to a `StoreError` with the address and advice."""
        try:
            yield
        except FILESYSTEM_ERRORS as error:
            raise StoreError(f"cannot {action} the store {self.uri!r}: {error}; {advice}") from error

    @property
    def _renames(self) -> bool:
        return self.filesystem.type_name in _RENAMING

    def shards(self) -> list[fs.FileInfo]:
        """The published shards with their sizes, sorted by name; empty if the folder does not exist yet.

        Raises:
            StoreError: the filesystem does not respond.
        """
        with self.errors_named("list"):
            listed = self.filesystem.get_file_info(fs.FileSelector(self.shards_path, allow_not_found=True))
        shards = [info for info in listed if info.is_file and info.extension == "shard"]
        return sorted(shards, key=lambda info: info.base_name)

    def publish(self, pieces: Sequence[bytes]) -> str:
        """Write a shard atomically: other processes see either the complete shard or nothing.

        Returns:
            File name of the shard, unique among all writers.

        Raises:
            OSError: the filesystem refuses; partial files are removed.
        """
        name = f"{time.time_ns():020d}-{uuid.uuid4().hex[:12]}.shard"
        final = f"{self.shards_path}/{name}"
        path = f"{self.incoming_path}/{name}" if self._renames else final
        try:
            with self.filesystem.open_output_stream(path) as stream:
                for piece in pieces:
                    stream.write(piece)
            if self._renames:
                self.filesystem.move(path, final)
        except BaseException:
            with suppress(*FILESYSTEM_ERRORS):  # free the disk space for the rest of the run
                self.filesystem.delete_file(path)
            raise
        return name

    def open(self, name: str) -> pa.NativeFile:
        """Open a shard for reads at any offset. The most recently used shards stay open.

        Raises:
            OSError: the shard cannot be opened; FileNotFoundError if it has been removed.
        """
        return self._opened(f"{self.shards_path}/{name}")

    def exists(self, name: str) -> bool:
        """Whether a shard still exists."""
        return self.filesystem.get_file_info(f"{self.shards_path}/{name}").is_file

    def remove(self, name: str) -> None:
        """Delete a shard, if it exists, and the marks of completed prefills."""
        self.close()  # an open file would keep its space on the disk
        self.filesystem.delete_dir_contents(self.filled_path, missing_dir_ok=True)
        with suppress(FileNotFoundError):
            self.filesystem.delete_file(f"{self.shards_path}/{name}")

    def remove_leftovers(self, older_than_seconds: float) -> tuple[int, int]:
        """Delete incomplete shards of killed writers.

        Returns:
            Number of files and of bytes removed.
        """
        selector = fs.FileSelector(self.incoming_path, allow_not_found=True)
        deadline = (time.time() - older_than_seconds) * 1e9
        old = [i for i in self.filesystem.get_file_info(selector) if i.is_file and (i.mtime_ns or 0) < deadline]
        for info in old:
            self.filesystem.delete_file(info.path)
        return len(old), sum(info.size for info in old)

    def mark_filled(self, name: str) -> None:
        """Mark the prefill of this name as complete.

        Raises:
            StoreError: the filesystem refuses.
        """
        with self.errors_named("write to"):
            self.filesystem.create_dir(self.filled_path, recursive=True)
            self.filesystem.open_output_stream(f"{self.filled_path}/{name}").close()

    def is_filled(self, name: str) -> bool:
        """Whether the prefill of this name is complete and nothing was removed since.

        Raises:
            StoreError: the filesystem does not respond.
        """
        with self.errors_named("reach"):
            return self.filesystem.get_file_info(f"{self.filled_path}/{name}").is_file

    def close(self) -> None:
        """Close all shards, each when its last reader releases it; they are opened again when they are read."""
        self._opened.cache_clear()


def without_secrets(uri: str) -> str:
    """The URI without credentials: s3://key:secret@bucket becomes s3://bucket; secret options are masked."""
    uri = re.sub(r"//(?:[^/?@:]*:[^?]*|[^/?]*)@", "//", uri)  # a key that is not percent-encoded can have slashes
    return re.sub(r"((?:secret|token|password|key)[^=&]*=)[^&]*", r"\1...", uri, flags=re.IGNORECASE)
