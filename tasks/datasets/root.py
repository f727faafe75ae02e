"""The root of a data set: a local folder, or one on any filesystem that pyarrow supports, its files and its tables.

Names inside a data set must not refer to files outside of its root.

Shapes: N names.
"""

import csv
import os
import posixpath
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache, cached_property
from typing import Any
from urllib.parse import quote

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs

from sepscene.augment.locations import (
    MAX_BYTES,
    as_utf8,
    filesystem_of,
    is_utf8,
    leaves_root,
    local_path,
    split_member,
)
from sepscene.models.files import parse_json
from sepscene.tasks.datasets.labels import ManifestError
from sepscene.tasks.datasets.survey import NOT_UTF8, LeftOut, Skipped
from sepscene.tasks.datasets.tables import first_row, read_csv, read_parquet_columns

AUDIO_SUFFIXES = (
    *(".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3"),
    *(".aiff", ".aif", ".au", ".caf", ".w64", ".rf64"),
)
"""Suffixes of audio files, for the readers and for `sepscene embed`."""
_NOT_PLAIN = r"^$|^/|^[A-Za-z]:|\.\.|://|[\\#\x00]"
"""A regular expression (RE2) for names that need all checks."""


class Root:
    """The folder of a data set, local or remote."""

    def __init__(self, location: str, survey: bool = False) -> None:
        """`survey`: list all files even if the format does not need it, to report which are left out.

        Raises ManifestError if there is no such folder, or its filesystem cannot be reached.
        """
        self.survey = survey
        self.skipped = LeftOut()
        self.used: set[str] = set()
        """Files that clips come from, and tables that were read, relative to the root."""
        local = local_path(location)
        self.is_local = local is not None
        if local is None:
            bare, mark, query = location.partition("?")
            self.location = bare.rstrip("/")
            self._query = mark + query  # of a remote filesystem, e.g. ?region=eu-west-1
        else:
            self.location = os.path.abspath(local)
            self._query = ""
        if not is_utf8(self.location):
            raise ManifestError(f"{as_utf8(location)}: its path is not UTF-8 text: rename the folder")
        try:
            self.filesystem, self.path = filesystem_of(self.location + self._query)
            info = self.filesystem.get_file_info(self.path)
        except (OSError, ValueError, pa.ArrowException) as error:
            raise ManifestError(
                f"{location}: cannot be reached ({error}); check the address, the network and the credentials"
            ) from error
        if info.type == pyarrow.fs.FileType.NotFound:
            raise ManifestError(f"{location}: no such folder; set data.root to the folder of the data")
        self.is_file = info.type == pyarrow.fs.FileType.File
        self._named = ""  # the file that the user gave as root: it can be a link to anywhere
        self._real_folder: Callable[[str], str] = cache(os.path.realpath)  # once per folder, not per clip
        self._links_in = cache(_links_in)

    def relative(self, name: str) -> str:
        """A name from a data set, relative to the root.

        Raises:
            ManifestError: the name is outside of the root.
        """
        relative = name.removeprefix(f"{self.location}/")
        archive, member = split_member(relative)
        if not relative or "://" in relative or leaves_root(archive) or leaves_root(member or ""):
            raise ManifestError(
                f"{self.location}: {name!r} is outside of the data set's root; use names relative to the root"
            )
        return relative

    def uri(self, name: str) -> str:
        """The URI of a name from a data set.

        Raises:
            ManifestError: as for `relative`, or a symbolic link leads outside of the root.
        """
        relative = self.relative(name)
        archive, member = split_member(relative)
        self.used.add(archive)
        if self.is_local:
            if archive != self._named and not self._is_below_root(f"{self.location}/{archive}"):
                raise ManifestError(
                    f"{self.location}: {name!r} leads out of the data set's root through a symbolic link; move the "
                    "file into the root, or set data.root to a folder that contains both the link and the file"
                )
            return f"{self.location}/{relative}"
        return f"{self.location}/{quote(archive)}{self._query}" + ("" if member is None else f"#{member}")

    def uris(self, names: Sequence[str]) -> tuple[list[str], list[str]]:
        """The relative names and the URIs of many names, as from `relative` and `uri`, with one check per folder."""
        if not self.is_local:
            return [self.relative(name) for name in names], [self.uri(name) for name in names]
        relatives = []
        uris = []
        prefix = f"{self.location}/"
        safe: dict[str, set[str]] = {}  # folder below the root -> the links in it
        odd_N = pc.match_substring_regex(pa.array(names, pa.string()), _NOT_PLAIN).to_pylist()
        for name, odd in zip(names, odd_N, strict=True):
            folder, _, base = name.rpartition("/")
            if odd or folder not in safe or base in safe[folder]:
                relatives.append(self.relative(name))
                uris.append(self.uri(name))
                if not odd:
                    safe[folder] = self._links_in(os.path.dirname(prefix + name))
            else:
                relatives.append(name)
                uris.append(prefix + name)
        if self._is_surveyed():  # the names of ten million clips take 1 GB
            self.used.update(relatives)
        return relatives, uris

    def _is_below_root(self, path: str) -> bool:
        """Whether a local path is below the root after all links are resolved."""
        folder, name = os.path.split(path)
        real = os.path.realpath(path) if name in self._links_in(folder) else self._real_folder(folder)
        root = self._real_folder(self.location).rstrip("/")
        return real == root or real.startswith(f"{root}/")

    def folder(self) -> tuple["Root", str]:
        """The folder and the name of a root that is a file."""
        folder, name = posixpath.split(self.location)
        root = Root(folder + self._query)
        root._named = name
        return root, name

    def files(self, under: str = "", suffixes: Iterable[str] = AUDIO_SUFFIXES) -> list[str]:
        """Paths below the root, sorted, of the files with one of the suffixes, without hidden ones."""
        wanted = tuple(suffixes)
        prefix = f"{under}/" if under else ""
        return [
            name
            for name in self.all_files
            if name.startswith(prefix) and name.lower().endswith(wanted) and not is_hidden(name)
        ]

    @cached_property
    def all_files(self) -> list[str]:
        """Paths of all files below the root, sorted; listed once.

        Raises:
            ManifestError: the folder cannot be listed.
        """
        if self.is_local:
            return sorted(self._walk())
        selector = pyarrow.fs.FileSelector(self.path, allow_not_found=True, recursive=True)
        try:
            infos = self.filesystem.get_file_info(selector)
        except (OSError, pa.ArrowException) as error:
            raise ManifestError(
                f"{self.location}: cannot be listed ({error}); check the network and the permissions"
            ) from error
        return sorted(
            posixpath.relpath(info.path, self.path) for info in infos if info.type == pyarrow.fs.FileType.File
        )

    def _walk(self) -> Iterator[str]:
        """Regular files below a local folder; a link to a parent folder is not followed."""
        above = len(self.location.rstrip("/")) + 1
        todo = [(self.location, frozenset({os.path.realpath(self.location)}))]
        while todo:
            folder, parents = todo.pop()
            try:
                entries = list(os.scandir(folder))
            except OSError as error:
                raise ManifestError(f"{folder}: cannot be listed ({error.strerror}); check its permissions") from error
            for entry in entries:
                if entry.is_dir():
                    real = os.path.realpath(entry.path) if entry.is_symlink() else entry.path
                    if real not in parents:
                        todo.append((entry.path, parents | {real} if entry.is_symlink() else parents))
                elif entry.is_file():
                    name = entry.path[above:]
                    if name.isascii() or is_utf8(name):
                        yield name
                    else:
                        self.skipped.add(NOT_UTF8, as_utf8(name))

    def members(self, suffix: str) -> tuple["Root", list[str]]:
        """The root and its files with a suffix; if the root is a file, its folder and this file."""
        if self.is_file:
            folder, name = self.folder()
            return folder, [name]
        return self, self.files(suffixes=[suffix])

    def has_file(self, relative: str) -> bool:
        """Whether there is a file of that name."""
        info = self.filesystem.get_file_info(f"{self.path}/{relative}")
        return info.type == pyarrow.fs.FileType.File

    def text(self, relative: str) -> str:
        """A text file below the root, UTF-8 with or without byte order mark.

        Raises:
            ManifestError: missing or not text.
        """
        name = f"{self.location}/{relative}"
        self.used.add(relative)
        try:
            with self.filesystem.open_input_stream(f"{self.path}/{relative}") as stream:
                data = stream.read(MAX_BYTES + 1)
            if len(data) > MAX_BYTES:
                raise ManifestError(f"{name}: has more than {MAX_BYTES} bytes; split it, or write it as Parquet")
            return data.decode("utf-8-sig")
        except FileNotFoundError:
            raise ManifestError(f"{name}: no such file; is this the root of such a data set?") from None
        except UnicodeDecodeError:
            raise ManifestError(f"{name}: is not UTF-8 text: save it as UTF-8") from None
        except (OSError, pa.ArrowException) as error:
            raise ManifestError(f"{name}: cannot be read ({error}); check its permissions and the network") from error

    def table(self, relative: str, needed: Sequence[str], empty: Sequence[str] = ()) -> pa.Table:
        """A CSV or Parquet table; the cells of a CSV are text.

        Args:
            relative: its name below the root.
            needed: columns that it must have, with a value in every row.
            empty: those of them in which a cell can be null.

        Raises:
            ManifestError: the table is missing, malformed, or lacks a needed column or value.
        """
        name = f"{self.location}/{relative}"
        suffix = posixpath.splitext(relative)[1].lower()
        self.used.add(relative)
        try:
            if suffix == ".parquet":
                table = read_parquet_columns(f"{self.path}/{relative}", self.filesystem)
            else:
                table = read_csv(self.text(relative))
        except (OSError, ValueError, AttributeError, TypeError, RecursionError, csv.Error, pa.ArrowException) as error:
            raise ManifestError(
                f"{name}: cannot be read as a table ({error}); check that the file is complete and can be read"
            ) from error
        self._check_columns(name, table.column_names, needed)
        for column in needed:
            row = pc.index(pc.is_null(table[column]), True).as_py()
            if row >= 0 and column not in empty:
                number = row + first_row(relative)
                raise ManifestError(f"{name}: row {number} has no value for {column}: add it, or remove the row")
        return table

    def rows(self, relative: str, needed: Sequence[str], empty: Sequence[str] = ()) -> list[dict[str, Any]]:
        """The rows of a CSV, JSON-lines or Parquet table; arguments and errors as for `table`."""
        if not relative.lower().endswith(".jsonl"):
            return list(self.table(relative, needed, empty).to_pylist())
        name = f"{self.location}/{relative}"
        try:
            rows = [parse_json(line) for line in self.text(relative).splitlines() if line.strip()]
            columns = sorted({str(key) for row in rows for key, _ in row.items()})
        except (ValueError, AttributeError) as error:
            raise ManifestError(f"{name}: cannot be read as a table ({error}); correct it") from error
        self._check_columns(name, columns, needed)
        for number, row in enumerate(rows, first_row(relative)):
            for column in needed:
                if row.get(column) is None and column not in empty:
                    raise ManifestError(f"{name}: row {number} has no value for {column}: add it, or remove the row")
        return rows

    @staticmethod
    def _check_columns(name: str, columns: Sequence[str], needed: Sequence[str]) -> None:
        missing = [column for column in needed if column not in columns]
        repeated = sorted(column for column, count in Counter(columns).items() if count > 1 and column)
        if repeated:
            raise ManifestError(f"{name}: column {', '.join(map(repr, repeated))} is repeated; keep one")
        if missing:
            has = ", ".join(map(str, columns)) or "nothing"
            raise ManifestError(f"{name}: column {', '.join(missing)} is missing; the table has {has}")

    def leave_out(self, reason: str, relative: str) -> None:
        """Count a file as left out, for a reason that `left_out` would not find."""
        self.skipped.add(reason, relative)
        self.used.add(relative)

    def left_out(self, unused: str) -> tuple[Skipped, ...]:
        """What is not used, by reason: members of archives, and files below the root if they were listed.

        Args:
            unused: the reason for audio files without a clip.
        """
        for name in self.all_files if self._is_surveyed() else ():
            if name not in self.used:
                self.skipped.add(_reason(name, unused), name)
        return self.skipped.entries()

    def _is_surveyed(self) -> bool:
        """Whether unused files are counted: the caller has requested it, or the files were listed anyway."""
        return self.survey or "all_files" in self.__dict__


def _reason(name: str, unused: str) -> str:
    if is_hidden(name):
        return "hidden: a name in its path begins with a dot"
    if name.lower().endswith(AUDIO_SUFFIXES):
        return unused
    base = name.rsplit("/", 1)[-1].lower()
    packed = next((end for end in (".tar.gz", ".tgz", ".tar.zst", ".tar.xz", ".tar.bz2") if base.endswith(end)), None)
    if packed:
        return f"{packed} is not read: unpack it to .tar"
    return f"suffix {posixpath.splitext(base)[1] or 'missing'} is not read"


def is_hidden(relative: str) -> bool:
    """Whether a file, or a folder above it, has a name that begins with a dot."""
    return relative.startswith(".") or "/." in relative


def _links_in(folder: str) -> set[str]:
    """Names of the symbolic links in a folder."""
    try:
        with os.scandir(folder) as entries:
            return {entry.name for entry in entries if entry.is_symlink()}
    except OSError:
        return set()  # the audit reports clips of a missing folder
