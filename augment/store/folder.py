"""Where shards live: one folder on any filesystem that pyarrow reaches, where a shard appears whole or not at all.

ROOT/shards/<time>-<unique>.shard     published, never changed again; names sort by the time of publication
ROOT/incoming/                        half-written shards of filesystems that can rename
ROOT/filled/<name>                    empty; a prefill that came to its end, while nothing was removed since
"""

import re
import threading
import time
import uuid
from collections import OrderedDict
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import pyarrow as pa
from pyarrow import fs

from sepscene.models.config import SepsceneError

# Here an open file is visible while it grows, and a rename is atomic. Object stores are the reverse: an
# object appears when its upload is complete, and a rename would copy it.
_RENAMING = ("local", "hdfs", "mock")
_OPEN_FILES = 64

FILESYSTEM_ERRORS = (OSError, pa.ArrowException)
"""What a filesystem raises when it refuses."""


class StoreError(SepsceneError):
    """A store that cannot be opened or read at all."""


class StoreFolder:
    """The shard files of one store. Safe to share between threads; open one per process."""

    def __init__(self, uri: str) -> None:
        """Args: uri: a path or a URI such as s3://bucket/prefix, gs://..., file:///...

        Raises:
            StoreError: when no filesystem belongs to the URI.
        """
        try:
            location = uri if "://" in uri else str(Path(uri).expanduser().absolute())
            self.filesystem, root = fs.FileSystem.from_uri(location)
        except (pa.ArrowException, ValueError, OSError, ImportError) as error:
            message = f"cannot open the store {without_secrets(uri)!r}: {error}; give a path or a URI such as s3://bucket/folder"
            raise StoreError(message) from None
        self.uri = without_secrets(uri)
        self.shards_path = root.rstrip("/") + "/shards"
        self.incoming_path = root.rstrip("/") + "/incoming"
        self.filled_path = root.rstrip("/") + "/filled"
        self._files: OrderedDict[str, pa.NativeFile] = OrderedDict()
        self._lock = threading.Lock()

    def create(self) -> None:
        """Make the folders.

        Raises:
            StoreError: when they cannot be made.
        """
        try:
            self.filesystem.create_dir(self.shards_path, recursive=True)
            if self._renames:
                self.filesystem.create_dir(self.incoming_path, recursive=True)
        except FILESYSTEM_ERRORS as error:
            raise StoreError(f"cannot write to the store {self.uri!r}: {error}; set store.uri elsewhere") from None

    def must_exist(self) -> None:
        """Raises: StoreError: when no store was ever made here, or the filesystem does not answer."""
        try:
            found = self.filesystem.get_file_info(self.shards_path).type != fs.FileType.NotFound
        except FILESYSTEM_ERRORS as error:
            raise StoreError(f"cannot reach the store {self.uri!r}: {error}; check address and access") from None
        if not found:
            raise StoreError(f"there is no store at {self.uri!r}; check the address (store.uri of the run)")

    @property
    def _renames(self) -> bool:
        return self.filesystem.type_name in _RENAMING

    def shards(self) -> list[fs.FileInfo]:
        """The published shards with their sizes, oldest name first; empty when there is no such folder yet.

        Raises:
            StoreError: when the filesystem does not answer.
        """
        try:
            listed = self.filesystem.get_file_info(fs.FileSelector(self.shards_path, allow_not_found=True))
        except FILESYSTEM_ERRORS as error:
            raise StoreError(f"cannot list the store {self.uri!r}: {error}; check the address and access") from None
        shards = [info for info in listed if info.is_file and info.extension == "shard"]
        return sorted(shards, key=lambda info: info.base_name)

    def publish(self, pieces: Sequence[bytes]) -> str:
        """Write a shard so that other processes see all of it or nothing.

        Returns:
            the shard's file name, unique among all writers.

        Raises:
            OSError: when the filesystem refuses; then nothing of it is left.
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
            with suppress(*FILESYSTEM_ERRORS):  # half a shard would fill a disk that the run needs for other things
                self.filesystem.delete_file(path)
            raise
        return name

    def open(self, name: str) -> pa.NativeFile:
        """A shard for reads at any offset; the newest few stay open.

        Raises:
            OSError: FileNotFoundError when it was removed meanwhile.
        """
        with self._lock:
            if name in self._files:
                self._files.move_to_end(name)
                return self._files[name]
        file = self.filesystem.open_input_file(f"{self.shards_path}/{name}")
        with self._lock:
            self._files[name] = file
            if len(self._files) > _OPEN_FILES:
                self._files.popitem(last=False)  # closed when its last reader lets go of it
        return file

    def holds(self, name: str) -> bool:
        """Whether a shard is still there."""
        return self.filesystem.get_file_info(f"{self.shards_path}/{name}").is_file

    def forget(self, name: str) -> None:
        """Close a shard that is gone."""
        with self._lock:
            self._files.pop(name, None)

    def remove(self, name: str) -> None:
        """Delete a shard, after which no prefill can be relied on; one that is gone already is as good."""
        self.forget(name)
        self.filesystem.delete_dir_contents(self.filled_path, missing_dir_ok=True)
        with suppress(FileNotFoundError):
            self.filesystem.delete_file(f"{self.shards_path}/{name}")

    def remove_leftovers(self, older_than_seconds: float) -> tuple[int, int]:
        """Delete what killed writers left half-written.

        Returns:
            (files, bytes) removed.
        """
        selector = fs.FileSelector(self.incoming_path, allow_not_found=True)
        deadline = (time.time() - older_than_seconds) * 1e9
        old = [i for i in self.filesystem.get_file_info(selector) if i.is_file and (i.mtime_ns or 0) < deadline]
        for info in old:
            self.filesystem.delete_file(info.path)
        return len(old), sum(info.size for info in old)

    def note_filled(self, name: str) -> None:
        """Remember that the prefill of this name has come to its end."""
        self.filesystem.create_dir(self.filled_path, recursive=True)
        with self.filesystem.open_output_stream(f"{self.filled_path}/{name}"):
            pass

    def is_filled(self, name: str) -> bool:
        """Whether the prefill of this name has come to its end and nothing was removed since."""
        return self.filesystem.get_file_info(f"{self.filled_path}/{name}").is_file

    def close(self) -> None:
        """Close all files."""
        with self._lock:
            self._files.clear()


def without_secrets(uri: str) -> str:
    """The URI as it may be shown: s3://key:secret@bucket becomes s3://bucket, and secrets among its options go."""
    uri = re.sub(r"//[^/?]*@", "//", uri)
    return re.sub(r"((?:secret|token|password|key)[^=&]*=)[^&]*", r"\1...", uri, flags=re.IGNORECASE)
