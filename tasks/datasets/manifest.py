"""The manifest: which clips a data set has, where each lies, what is heard in it, and which split it is in.

Also what every reader of a data set's format needs: its root (a folder here, or on any filesystem that
pyarrow reaches), its tables, and the law that nothing named inside a data set may lie outside of its root.
"""

import csv
import hashlib
import io
import json
import math
import os
import posixpath
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs
import pyarrow.parquet as pq

from sepscene.augment.locations import filesystem_of, leaves_root, local_path, split_member
from sepscene.models.config import SepsceneError

CLIP_COLUMNS = pa.schema(
    [
        ("clip_id", pa.string()),
        ("uri", pa.string()),
        ("labels", pa.list_(pa.string())),
        ("split", pa.string()),
        ("offset_seconds", pa.float64()),
    ]
)
AUDIO_SUFFIXES = (
    *(".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3"),
    *(".aiff", ".aif", ".au", ".caf", ".w64", ".rf64"),
)
SPLIT_NAMES = (
    *("train", "training", "val", "valid", "validation", "dev"),
    *("test", "testing", "eval", "evaluation"),
)
"""Names of folders and shard prefixes that are understood as splits."""


class ManifestError(SepsceneError):
    """A data set that cannot be used as it is; the message names the file, the fault and the remedy."""


@dataclass(frozen=True)
class Clip:
    """One row of a manifest before it is a column; `clip_id` is its name inside the root."""

    clip_id: str
    uri: str
    labels: tuple[str, ...]
    split: str
    offset_seconds: float = 0.0


@dataclass(frozen=True)
class Manifest:
    """A data set, or a part of it.

    Attributes:
        clips: one row a clip, columns `CLIP_COLUMNS`: clip_id (unique; the path inside the root), uri (see
            `augment.locations`), labels, split, offset_seconds (where in the recording the clip begins).
        classes: all label names, in the data set's own order or sorted; the same for every selection.
        absent: clip_ids which the data set lists but whose audio its folder does not hold (deleted videos, second
            segments of a recording).
    """

    clips: pa.Table
    classes: tuple[str, ...]
    absent: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.clips.schema != CLIP_COLUMNS:
            raise ManifestError(f"a manifest has the columns {CLIP_COLUMNS.names} with their types; see `Manifest`")

    def __len__(self) -> int:
        return len(self.clips)

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits that occur, sorted."""
        return tuple(sorted(pc.unique(self.clips["split"]).to_pylist()))

    def select(self, *split: str) -> "Manifest":
        """The clips of the given splits, in order, with all classes.

        Raises:
            ManifestError: a split that no clip is in.
        """
        unknown = sorted(set(split) - set(self.splits))
        if unknown or not split:
            raise ManifestError(f"no clip is in split {', '.join(unknown)!r}; the data has {', '.join(self.splits)}")
        kept = pc.is_in(self.clips["split"], value_set=pa.array(split, pa.string()))
        return Manifest(self.clips.filter(kept), self.classes, self.absent)

    def targets(self) -> np.ndarray:
        """What is heard where: bool (clips, classes).

        Raises:
            ManifestError: a label that is not among the classes.
        """
        labels = self.clips["labels"].combine_chunks()
        column = pc.index_in(labels.flatten(), value_set=pa.array(self.classes, pa.string()))
        if column.null_count:
            raise ManifestError("a clip has a label that is not among the manifest's classes")
        row = np.repeat(np.arange(len(self)), np.diff(labels.offsets.to_numpy()))
        heard = np.zeros((len(self), len(self.classes)), bool)
        heard[row, column.to_numpy(zero_copy_only=False).astype(np.int64)] = True
        return heard

    def digest(self) -> str:
        """SHA-256 over clips, labels, splits, offsets and classes; data moved elsewhere keeps it."""
        digest = hashlib.sha256(json.dumps([CLIP_COLUMNS.names, self.classes]).encode())
        for batch in self.clips.select(["clip_id", "labels", "split", "offset_seconds"]).to_batches(4096):
            for row in batch.to_pylist():
                digest.update(json.dumps(list(row.values()), ensure_ascii=True).encode())
        return digest.hexdigest()


def make_manifest(
    clips: Iterable[Clip], source: str, classes: Sequence[str] | None = None, absent: Iterable[str] = ()
) -> Manifest:
    """A manifest of the clips; the classes are the sorted labels unless given.

    Raises:
        ManifestError: no clips, or two with one clip_id.
    """
    rows = list(clips)
    if not rows:
        raise ManifestError(f"{source}: the data set is empty; no clip was found")
    twice = [name for name, times in Counter(clip.clip_id for clip in rows).items() if times > 1]
    if twice:
        raise ManifestError(f"{source}: {len(twice)} clips are listed twice, e.g. {twice[0]!r}; list each once")
    columns = [
        [clip.clip_id for clip in rows],
        [clip.uri for clip in rows],
        [clip.labels for clip in rows],
        [clip.split for clip in rows],
        [clip.offset_seconds for clip in rows],
    ]
    table = pa.table(columns, schema=CLIP_COLUMNS)
    names = sorted({label for clip in rows for label in clip.labels}) if classes is None else classes
    return Manifest(table, tuple(names), tuple(absent))


class Root:
    """The folder of a data set, local or remote."""

    def __init__(self, location: str) -> None:
        """Raises ManifestError where there is no such folder, or its filesystem cannot be reached."""
        local = local_path(location)
        self.is_local = local is not None
        bare, mark, query = (location, "", "") if local is not None else location.partition("?")
        self._query = mark + query  # of a remote filesystem, e.g. ?region=eu-west-1
        self.location = bare.rstrip("/") if local is None else os.path.abspath(local)
        try:
            self.filesystem, self.path = filesystem_of(self.location + self._query)
            info = self.filesystem.get_file_info(self.path)
        except (OSError, ValueError, pa.ArrowException) as error:
            raise ManifestError(f"{location}: cannot be reached ({error})") from error
        if info.type == pyarrow.fs.FileType.NotFound:
            raise ManifestError(f"{location}: no such folder; set data.root to where the data lies")
        self.is_file = info.type == pyarrow.fs.FileType.File
        self._named = ""  # the file that the user named as root: it may be a link to anywhere
        self._real_folders: dict[str, str] = {}

    def relative(self, name: str) -> str:
        """What a data set names, relative to the root.

        Raises:
            ManifestError: the name leads outside of the root.
        """
        relative = name.removeprefix(f"{self.location}/")
        archive, member = split_member(relative)
        if not relative or "://" in relative or leaves_root(archive) or leaves_root(member or ""):
            raise ManifestError(f"{self.location}: {name!r} leaves the data set's root; name files relative to it")
        return relative

    def uri(self, name: str) -> str:
        """The URI of what a data set names.

        Raises:
            ManifestError: as `relative`, or a symbolic link leads outside of the root.
        """
        relative = self.relative(name)
        archive, member = split_member(relative)
        if self.is_local:
            if archive != self._named and not self._holds_in_truth(f"{self.location}/{archive}"):
                raise ManifestError(
                    f"{self.location}: {name!r} leads out of the data set's root by a symbolic link; put the file "
                    "itself there, or set data.root to a folder that holds the link and the file"
                )
            return f"{self.location}/{relative}"
        return f"{self.location}/{quote(archive)}{self._query}" + ("" if member is None else f"#{member}")

    def _holds_in_truth(self, path: str) -> bool:
        """Whether a local path lies below the root once all links are followed."""
        folder = os.path.dirname(path)
        for known in (self.location, folder):  # one look a clip, not one for each folder above it
            if known not in self._real_folders:
                self._real_folders[known] = os.path.realpath(known)
        real = os.path.realpath(path) if os.path.islink(path) else self._real_folders[folder]
        root = self._real_folders[self.location]
        return os.path.commonpath([root, real]) == root

    def folder(self) -> tuple["Root", str]:
        """The folder and the name of a root that is a file."""
        folder, name = posixpath.split(self.location)
        root = Root(folder + self._query)
        root._named = name
        return root, name

    def files(self, under: str = "", suffixes: Iterable[str] = AUDIO_SUFFIXES) -> list[str]:
        """Paths below the root, sorted, of the files with one of the suffixes, without hidden ones."""
        selector = pyarrow.fs.FileSelector(f"{self.path}/{under}".rstrip("/"), allow_not_found=True, recursive=True)
        wanted, found = frozenset(suffixes), []
        for info in self.filesystem.get_file_info(selector):
            relative = posixpath.relpath(info.path, self.path)
            hidden = any(part.startswith(".") for part in relative.split("/"))
            if (
                info.type == pyarrow.fs.FileType.File
                and not hidden
                and posixpath.splitext(relative)[1].lower() in wanted
            ):
                found.append(relative)
        return sorted(found)

    def members(self, suffix: str) -> tuple["Root", list[str]]:
        """The files with a suffix below the root; for a root that is such a file, its folder and it."""
        if self.is_file:
            folder, name = self.folder()
            return folder, [name]
        return self, self.files(suffixes=[suffix])

    def holds(self, relative: str) -> bool:
        """Whether there is a file of that name."""
        info = self.filesystem.get_file_info(f"{self.path}/{relative}")
        return info.type == pyarrow.fs.FileType.File

    def text(self, relative: str) -> str:
        """A text file below the root, UTF-8 with or without byte order mark.

        Raises:
            ManifestError: missing or not text.
        """
        name = f"{self.location}/{relative}"
        try:
            with self.filesystem.open_input_stream(f"{self.path}/{relative}") as stream:
                return stream.read().decode("utf-8-sig")
        except FileNotFoundError:
            raise ManifestError(f"{name}: no such file; is this the root of such a data set?") from None
        except UnicodeDecodeError:
            raise ManifestError(f"{name}: is not UTF-8 text") from None
        except (OSError, pa.ArrowException) as error:
            raise ManifestError(f"{name}: cannot be read ({error})") from error

    def table(self, relative: str, needed: Sequence[str]) -> list[dict[str, Any]]:
        """The rows of a CSV, JSON-lines or Parquet table.

        Raises:
            ManifestError: missing, malformed, or without one of the needed columns.
        """
        name = f"{self.location}/{relative}"
        suffix = posixpath.splitext(relative)[1].lower()
        try:
            if suffix == ".parquet":
                table = pq.read_table(f"{self.path}/{relative}", filesystem=self.filesystem)
                columns, rows = table.column_names, table.to_pylist()
            elif suffix == ".jsonl":
                rows = [json.loads(line) for line in self.text(relative).splitlines() if line.strip()]
                columns = sorted({key for row in rows for key in row})
            else:
                reader = csv.DictReader(io.StringIO(self.text(relative), newline=""), strict=True)
                columns, rows = list(reader.fieldnames or ()), list(reader)
        except (OSError, ValueError, AttributeError, TypeError, csv.Error, pa.ArrowException) as error:
            raise ManifestError(f"{name}: cannot be read as a table ({error})") from error
        missing = [column for column in needed if column not in columns]
        if missing:
            has = ", ".join(map(str, columns)) or "nothing"
            raise ManifestError(f"{name}: column {', '.join(missing)} is missing; the table has {has}")
        ragged = [line for line, row in enumerate(rows, 2) if None in row or any(row.get(k) is None for k in needed)]
        if ragged:
            raise ManifestError(f"{name}: row {ragged[0]} does not fill the columns {', '.join(needed)}")
        return rows


def split_labels(value: Any, separator: str = ";") -> tuple[str, ...]:
    """Labels from a cell: a list, or text with separators; blanks fall away, repetitions too."""
    parts = value if isinstance(value, list | tuple) else str("" if value is None else value).split(separator)
    return tuple(dict.fromkeys(str(part).strip() for part in parts if str(part).strip()))


def parse_offset(value: Any, where: str) -> float:
    """An offset in seconds from a cell; an empty one is 0.

    Raises:
        ManifestError: not a number, negative, NaN or infinite.
    """
    try:
        seconds = float(value or 0)
    except (TypeError, ValueError):
        seconds = math.nan
    if not (math.isfinite(seconds) and seconds >= 0):
        raise ManifestError(f"{where}: offset_seconds is {value!r}; give seconds from 0")
    return seconds


def split_of(relative: str) -> str:
    """The split that a path tells: a folder named so, or a file name that begins so; else "train"."""
    *folders, name = relative.split("/")
    for part in (*folders, name.split(".")[0].split("-")[0].split("_")[0]):
        if part.lower() in SPLIT_NAMES:
            return part
    return "train"
