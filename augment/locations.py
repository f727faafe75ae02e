"""Reads a clip's bytes from a local file, a remote object, a member of a tar archive, or a row of a table.

A clip's URI is one of
    /data/dog.wav, dog.wav, file:///data/dog.wav     a local file
    s3://bucket/dog.wav, gs://bucket/dog.wav         any filesystem supported by `pyarrow.fs`
    <any of these>.tar#folder/dog.wav                a member of an uncompressed tar archive
    <any of these>.parquet#12                        row 12, column `audio` (bytes, or a struct with `bytes`)
    <a local file>.arrow#12                          row 12 of a Hugging Face data set (`augment.arrow_files`)

Members are read in memory and never extracted, so that a malicious name cannot write anywhere. Names that would leave
the archive (absolute, or with `..`) and links are rejected nevertheless.
"""

import os
import posixpath
import re
import tarfile
import time
from dataclasses import dataclass
from functools import lru_cache
from io import BytesIO
from typing import Any
from urllib.parse import unquote, urlsplit

import pyarrow as pa
import pyarrow.fs
import pyarrow.parquet as pq

from sepscene.augment.arrow_files import AUDIO_COLUMN, audio_value
from sepscene.models.config import SepsceneError, first_line

TEMPORARY = "temporarily unreadable"
"""Prefix of the cause for a clip that may be readable later: its disk or server does not respond."""

_EARLIER_TEMPORARY = "cannot be read at present"  # the prefix in ledgers of earlier versions

NO_SUCH_FILE = "no such file"
"""Cause of a `ClipError` for a missing clip, as opposed to a damaged one."""

_SHARD = re.compile(r"^(.+?\.(?:tar|parquet|arrow)(?:\?[^#]*)?)#(.*)$", re.DOTALL)
_RACY_NS = 2 * 10**9
MAX_BYTES = 1 << 30
"""Largest clip that is read into memory as stored: a remote object, a member of an archive, a Parquet value."""
MAX_ROWS = 20_000_000
"""Most rows of a table, or members of an archive: a file of a few hundred bytes can state any number."""
_LEAVES = re.compile(r"^[/\\]|^[A-Za-z]:|(?:^|[/\\])\.\.(?:[/\\]|$)|\0")
_SCHEME = re.compile(r"^[A-Za-z][A-Za-z0-9+.-]*://")


class ClipError(SepsceneError):
    """A clip that cannot be used and must be quarantined.

    Attributes:
        uri: the clip, as in the manifest.
        cause: what is wrong with it, as a phrase.
        refused: if the operating system or the server refused the clip, its error number (errno), or 0 if there is
            none; None if the clip itself is at fault.
    """

    def __init__(self, uri: str, cause: str, refused: int | None = None) -> None:
        cause = as_utf8(cause)  # the ledger must be valid UTF-8
        super().__init__(uri, cause, refused)  # all arguments, so that the error can be pickled
        self.uri = uri
        self.cause = cause
        self.refused = refused

    def __str__(self) -> str:
        return f"{self.uri}: {self.cause}"


def is_temporary(cause: str) -> bool:
    """Whether a clip with this cause may be readable later."""
    return cause.startswith((TEMPORARY, _EARLIER_TEMPORARY))


def is_utf8(name: str) -> bool:
    """Whether a name can be encoded as UTF-8; Linux allows any bytes in file names."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def as_utf8(name: str) -> str:
    """A name as valid UTF-8, with other bytes escaped, e.g. as `\\udce9`."""
    return name.encode("utf-8", "backslashreplace").decode()


@dataclass(frozen=True)
class Member:
    """A regular file in a tar archive: offset and number of its bytes."""

    start: int
    size: int


def open_location(uri: str) -> str | BytesIO:
    """The path of a local file (so that a decoder can seek in it), or the bytes of any other location in memory.

    Raises:
        ClipError: the clip is missing, unreadable or not a regular file, or the name of a member leaves its archive.
    """
    try:
        archive, member = split_member(uri)
        if member is not None:
            kind = archive.partition("?")[0].rpartition(".")[2]
            return BytesIO(_tar_member(uri, archive, member) if kind == "tar" else _row(uri, archive, kind, member))
        local = local_path(uri)
        if local is None:
            filesystem, path = filesystem_of(uri)
            with filesystem.open_input_stream(path) as stream:
                data = stream.read(MAX_BYTES + 1)
            if len(data) > MAX_BYTES:
                raise ClipError(uri, f"has more than {MAX_BYTES} bytes; split it")
            return BytesIO(data)
        if not os.path.isfile(local):  # a pipe or a device would block forever
            raise ClipError(uri, "is not a regular file" if os.path.exists(local) else NO_SUCH_FILE)
        with open(local, "rb"):
            return local
    except ClipError:
        raise
    except (FileNotFoundError, NotADirectoryError):
        raise ClipError(uri, NO_SUCH_FILE) from None
    except MemoryError as error:
        raise ClipError(uri, "does not fit into memory; split it") from error
    except (OSError, ValueError, OverflowError, pa.ArrowException, tarfile.TarError) as error:
        raise unreadable(uri, error) from error


def unreadable(uri: str, error: BaseException) -> ClipError:
    """The `ClipError` for an error while reading a clip's bytes.

    Errors of the operating system have a number. For a local file, an error without a number comes from the Parquet or
    tar decoder and means that the content is damaged. Errors of remote filesystems have no number.
    """
    refused = None
    if isinstance(error, OSError):
        refused = error.errno or (0 if local_path(split_member(uri)[0]) is None else None)
    return ClipError(uri, f"cannot be read ({first_line(error)})", refused)


def split_member(uri: str) -> tuple[str, str | None]:
    """Split the URI of a member or row into archive and member; any other URI is returned with None."""
    shard = _SHARD.match(uri)
    return (uri, None) if shard is None else (shard[1], shard[2])


def local_path(uri: str) -> str | None:
    """The path of a URI on this machine, or None for a remote URI."""
    if uri.startswith("file://"):
        return unquote(urlsplit(uri).path)
    return None if _SCHEME.match(uri) else uri


def filesystem_of(uri: str) -> tuple[pyarrow.fs.FileSystem, str]:
    """The filesystem of a URI, and the path in it. There is one connection per remote bucket.

    Raises:
        OSError, pyarrow.ArrowException: the scheme is unknown, or the server cannot be reached.
    """
    local = local_path(uri)
    if local is not None:
        return pyarrow.fs.LocalFileSystem(), os.path.abspath(local)
    parts = urlsplit(uri)
    query = f"?{parts.query}" if parts.query else ""
    filesystem, base = _connection(f"{parts.scheme}://{parts.netloc}{query}")
    inner = parts.path + (f"#{parts.fragment}" if parts.fragment else "")
    return filesystem, f"{base.rstrip('/')}/{unquote(inner).lstrip('/')}".rstrip("/")


def tar_members(uri: str) -> dict[str, Member]:
    """The regular files of an uncompressed tar archive by name. The result is cached until the archive changes.

    Raises:
        ClipError: a name leaves the archive (absolute, or with `..`).
        OSError, tarfile.TarError: the archive is missing, damaged or truncated.
    """
    return _tar_index(uri, _stamp(uri))


def version_of(uri: str) -> tuple[int, ...] | None:
    """A value that changes when a clip's bytes change, found without reading them; None if that is not certain.

    It belongs to the clip's file or archive. A file that changed within the last two seconds can change again within
    the resolution of its filesystem's time stamps (git calls it racy), so the result is None.
    """
    archive, _ = split_member(uri)
    try:
        stamp = _stamp(archive)
    except (OSError, pa.ArrowException, ValueError):
        return None
    times_ns = stamp[1:3]
    settled = None not in times_ns and time.time_ns() - max(times_ns) > _RACY_NS
    return stamp if settled else None


def exact_seconds(seconds: float) -> str:
    """An offset in seconds as text, unique for each float; whole seconds have no decimal point."""
    return repr(float(seconds)).removesuffix(".0")


def leaves_root(relative: str) -> bool:
    """Whether a relative name in a manifest or an archive leads outside its root."""
    return _LEAVES.search(relative) is not None


def _tar_member(uri: str, archive: str, name: str) -> bytes:
    members = tar_members(archive)
    if name not in members:
        raise ClipError(uri, f"the archive has no regular file with this name ({len(members)} members)")
    member = members[name]
    if member.size > MAX_BYTES:
        raise ClipError(uri, f"has {member.size} bytes, more than {MAX_BYTES}; split it")
    filesystem, path = filesystem_of(archive)
    with filesystem.open_input_file(path) as file:
        data = file.read_at(member.size, member.start)
    if len(data) < member.size:
        raise ClipError(uri, f"truncated: its archive ends after {len(data)} of {member.size} bytes")
    return data


def _row(uri: str, archive: str, kind: str, text: str) -> bytes:
    """The sound of a row of an Arrow or Parquet file: the value itself, or the field `bytes` of a struct."""
    if not text.isascii() or not text.isdigit():
        raise ClipError(uri, f"{text!r} is not a row number; write e.g. {posixpath.basename(archive)}#12")
    path = local_path(archive)
    try:
        if kind == "parquet":
            value = _parquet_value(archive, int(text))
        elif path is not None:
            value = audio_value(path, _stamp(archive), int(text))
        else:
            raise ClipError(uri, "Arrow files are only read from a local folder; copy it there")
    except IndexError:
        raise ClipError(uri, "the file has fewer rows") from None
    data = value.get("bytes") if isinstance(value, dict) else value
    if not isinstance(data, bytes):
        raise ClipError(uri, "the audio column holds no bytes in this row")
    return data


def _parquet_value(uri: str, row: int) -> Any:
    """The audio value of a row of a Parquet file. Raises IndexError like `audio_value`."""
    stamp = _stamp(uri)
    for group, rows in enumerate(_parquet_groups(uri, stamp)):
        if row < rows:
            return _parquet_audio(uri, stamp, group)[row].as_py()
        row -= rows
    raise IndexError(row)


@lru_cache(maxsize=64)
def _tar_index(uri: str, stamp: tuple[Any, ...]) -> dict[str, Member]:
    filesystem, path = filesystem_of(uri)
    members = {}
    with filesystem.open_input_file(path) as file, tarfile.open(fileobj=file, mode="r:") as archive:
        for entry in archive:
            if leaves_root(entry.name):
                raise ClipError(f"{uri}#{entry.name}", "the member's name leaves the archive; pack it again")
            if entry.isreg() and not entry.issparse():
                members[entry.name.removeprefix("./")] = Member(entry.offset_data, entry.size)
        if file.read_at(tarfile.BLOCKSIZE, archive.offset) != tarfile.NUL * tarfile.BLOCKSIZE:
            raise tarfile.ReadError("its end is missing or altered; copy or pack it again")
    return members


@lru_cache(maxsize=64)
def _parquet_groups(uri: str, stamp: tuple[Any, ...]) -> tuple[int, ...]:
    filesystem, path = filesystem_of(uri)
    metadata = pq.read_metadata(path, filesystem=filesystem)
    return tuple(metadata.row_group(group).num_rows for group in range(metadata.num_row_groups))


@lru_cache(maxsize=2)  # row groups of audio are large: keep the current and the previous one
def _parquet_audio(uri: str, stamp: tuple[Any, ...], group: int) -> pa.ChunkedArray:
    filesystem, path = filesystem_of(uri)
    with pq.ParquetFile(path, filesystem=filesystem) as file:
        if AUDIO_COLUMN not in file.schema_arrow.names:
            raise ValueError(f"has no column `{AUDIO_COLUMN}`; it has {', '.join(file.schema_arrow.names)}")
        batches = []
        size = 0
        # Row by row, because the file does not state the uncompressed size of compressed or repeated values.
        for batch in file.iter_batches(batch_size=1, row_groups=[group], columns=[AUDIO_COLUMN]):
            batches.append(batch.column(0))
            size += batch.nbytes
            if size > 2 * MAX_BYTES:
                raise ValueError(f"a row group holds more than {2 * MAX_BYTES} bytes; write smaller row groups")
        return pa.chunked_array(batches)


def _stamp(uri: str) -> tuple[Any, ...]:
    """A cache key that changes when a file or object is replaced.

    It holds size and modification time; for a local file also the change time, which cannot be set, and the inode.
    """
    local = local_path(uri)
    if local is not None:
        found = os.stat(local)
        return found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino
    filesystem, path = filesystem_of(uri)
    info = filesystem.get_file_info(path)
    if info.type == pyarrow.fs.FileType.NotFound:
        raise FileNotFoundError(path)
    return info.size, info.mtime_ns


@lru_cache(maxsize=64)
def _connection(root: str) -> tuple[pyarrow.fs.FileSystem, str]:
    return pyarrow.fs.FileSystem.from_uri(root)
