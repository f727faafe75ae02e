"""Where a clip's bytes are: a local file, a remote object, a member of a tar shard or a row of Parquet.

A clip's URI is one of
    /data/dog.wav, dog.wav, file:///data/dog.wav     a local file
    s3://bucket/dog.wav, gs://bucket/dog.wav         whatever `pyarrow.fs` reaches
    <any of these>.tar#folder/dog.wav                a member of an uncompressed tar archive
    <any of these>.parquet#12                        row 12, column `audio` (bytes, or a struct with `bytes`)
    <a local file>.arrow#12                          row 12 of a data set of Hugging Face's (`augment.arrow_files`)

Members are read in memory and never extracted, so that a hostile name cannot write anywhere; names that would
leave the archive (absolute, or with `..`) and links are refused all the same.
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

PASSING = "cannot be read at present"
"""Begins the cause of a clip that may be readable later: its disk or its server does not answer."""

NO_SUCH_FILE = "no such file"
"""The cause of a `ClipError` whose clip is not there at all, rather than broken."""

_SHARD = re.compile(r"^(.+?\.(?:tar|parquet|arrow)(?:\?[^#]*)?)#(.*)$", re.DOTALL)
_RACY_NS = 2 * 10**9
MOST_BYTES = 1 << 30
"""Of a clip that is read into memory as it is stored: an object, a member of an archive, a value of Parquet."""
MOST_ROWS = 20_000_000
"""Of a table, or members of an archive: a file of some hundred bytes can claim any number."""
_LEAVES = re.compile(r"^[/\\]|^[A-Za-z]:|(?:^|[/\\])\.\.(?:[/\\]|$)|\0")
_SCHEME = re.compile(r"^[A-Za-z][A-Za-z0-9+.-]*://")


class ClipError(SepsceneError):
    """A clip that cannot be used: it is to be quarantined, with its name and the reason.

    Attributes:
        uri: the clip, as the manifest names it.
        cause: what is wrong with it, a phrase in plain words.
        refused: the number of the system's error (errno) where the system did not give the clip, 0 where it has no
            number; None where the clip itself is at fault.
    """

    def __init__(self, uri: str, cause: str, refused: int | None = None) -> None:
        cause = written_out(cause)  # it is kept in the ledger
        super().__init__(uri, cause, refused)  # all arguments, so that the error survives pickling between processes
        self.uri = uri
        self.cause = cause
        self.refused = refused

    def __str__(self) -> str:
        return f"{self.uri}: {self.cause}"


def is_utf8(name: str) -> bool:
    """Whether a name can be written into a table or a text file; Linux allows any bytes."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def written_out(name: str) -> str:
    """A name as text, whatever its bytes are: those that are not UTF-8 as e.g. `\\udce9`."""
    return name.encode("utf-8", "backslashreplace").decode()


@dataclass(frozen=True)
class Member:
    """A regular file inside a tar archive: where its bytes begin and how many there are."""

    start: int
    size: int


def open_location(uri: str) -> str | BytesIO:
    """The path of a local file (so that a decoder can seek in it), or the bytes of anything else in memory.

    Raises:
        ClipError: missing, not a regular file, unreadable, or a member that is absent or leaves its archive.
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
                data = stream.read(MOST_BYTES + 1)
            if len(data) > MOST_BYTES:
                raise ClipError(uri, f"has more than {MOST_BYTES} bytes, which are not read at once; split it")
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
        raise ClipError(uri, "needs more memory than there is; split it") from error
    except (OSError, ValueError, OverflowError, pa.ArrowException, tarfile.TarError) as error:
        raise unreadable(uri, error) from error


def unreadable(uri: str, error: BaseException) -> ClipError:
    """What to raise where a clip's bytes could not be had.

    Of a local file the system numbers its errors; one without a number is the complaint of a decoder of Parquet or tar
    about what is in the file. A remote filesystem numbers none.
    """
    refused = None
    if isinstance(error, OSError):
        refused = error.errno or (0 if local_path(split_member(uri)[0]) is None else None)
    return ClipError(uri, f"cannot be read ({first_line(error)})", refused)


def split_member(uri: str) -> tuple[str, str | None]:
    """The archive and the member (or row) of a shard's URI; any other URI and None."""
    shard = _SHARD.match(uri)
    return (uri, None) if shard is None else (shard[1], shard[2])


def local_path(uri: str) -> str | None:
    """The path of a URI on this machine, or None where it lies elsewhere."""
    if uri.startswith("file://"):
        return unquote(urlsplit(uri).path)
    return None if _SCHEME.match(uri) else uri


def filesystem_of(uri: str) -> tuple[pyarrow.fs.FileSystem, str]:
    """The filesystem of a URI and the path inside it; remote connections are made once for each bucket.

    Raises:
        OSError, pyarrow.ArrowException: the scheme is unknown or the remote cannot be reached.
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
    """The regular files of an uncompressed tar archive by name, read once for each version of the archive.

    Raises:
        ClipError: a name that leaves the archive (absolute, or with `..`).
        OSError, tarfile.TarError: the archive is missing, broken or cut.
    """
    return _tar_index(uri, _stamp(uri))


def version_of(uri: str) -> tuple[int, ...] | None:
    """What changes when a clip's bytes are replaced, without reading them; None where nobody can say for sure.

    That of its file, or of the archive it lies in. A file that changed within the last two seconds may change again
    within one tick of its filesystem's clock, so nothing is said about it (git calls that a racy file).
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
    """Where in its recording a clip begins, as text: no two floats share one, and whole seconds have no point."""
    return repr(float(seconds)).removesuffix(".0")


def leaves_root(relative: str) -> bool:
    """Whether a relative name, as found in a manifest or an archive, would lead outside of its root."""
    return _LEAVES.search(relative) is not None


def _tar_member(uri: str, archive: str, name: str) -> bytes:
    members = tar_members(archive)
    if name not in members:
        raise ClipError(uri, f"the archive has no regular file of that name ({len(members)} members)")
    member = members[name]
    if member.size > MOST_BYTES:
        raise ClipError(uri, f"has {member.size} bytes; at most {MOST_BYTES} are read at once: split it")
    filesystem, path = filesystem_of(archive)
    with filesystem.open_input_file(path) as file:
        data = file.read_at(member.size, member.start)
    if len(data) < member.size:
        raise ClipError(uri, f"truncated: its archive ends after {len(data)} of {member.size} bytes")
    return data


def _row(uri: str, archive: str, kind: str, text: str) -> bytes:
    """The sound of a row of an Arrow or Parquet file: its cell, or the field `bytes` of a struct there."""
    if not text.isascii() or not text.isdigit():
        raise ClipError(uri, f"{text!r} is not a row number; write {posixpath.basename(archive)}#12")
    path = local_path(archive)
    try:
        if kind == "parquet":
            value = _parquet_value(archive, int(text))
        elif path is not None:
            value = audio_value(path, _stamp(archive), int(text))
        else:
            raise ClipError(uri, "an Arrow file is read from a folder of this machine alone; copy it there")
    except IndexError:
        raise ClipError(uri, "the file has fewer rows than that") from None
    data = value.get("bytes") if isinstance(value, dict) else value
    if not isinstance(data, bytes):
        raise ClipError(uri, "the column of sound holds no bytes in this row")
    return data


def _parquet_value(uri: str, row: int) -> Any:
    """As `audio_value`, with the same IndexError."""
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
            raise tarfile.ReadError("it has no end: it was cut, or altered there; copy or pack it again")
    return members


@lru_cache(maxsize=64)
def _parquet_groups(uri: str, stamp: tuple[Any, ...]) -> tuple[int, ...]:
    filesystem, path = filesystem_of(uri)
    metadata = pq.read_metadata(path, filesystem=filesystem)
    return tuple(metadata.row_group(group).num_rows for group in range(metadata.num_row_groups))


@lru_cache(maxsize=2)  # a row group of audio is large: the present one and the one before
def _parquet_audio(uri: str, stamp: tuple[Any, ...], group: int) -> pa.ChunkedArray:
    filesystem, path = filesystem_of(uri)
    with pq.ParquetFile(path, filesystem=filesystem) as file:
        if AUDIO_COLUMN not in file.schema_arrow.names:
            raise ValueError(f"has no column `{AUDIO_COLUMN}`; it has {', '.join(file.schema_arrow.names)}")
        batches = []
        size = 0
        # Row by row: of a packed or repeated value the file tells neither its size nor how often it comes.
        for batch in file.iter_batches(batch_size=1, row_groups=[group], columns=[AUDIO_COLUMN]):
            batches.append(batch.column(0))
            size += batch.nbytes
            if size > 2 * MOST_BYTES:
                raise ValueError(f"a row group holds more than {2 * MOST_BYTES} bytes; write smaller ones")
        return pa.chunked_array(batches)


def _stamp(uri: str) -> tuple[Any, ...]:
    """What changes when a file or an object is replaced, the key under which its index is remembered.

    Size and time of the last change; of a local file also the time that nobody can set, and the inode.
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
