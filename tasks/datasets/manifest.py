"""The manifest: which clips a data set has, where each lies, what is heard in it, and which split it is in."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sepscene.models.spelling import unknown
from sepscene.tasks.datasets.labels import ManifestError
from sepscene.tasks.datasets.root import Root
from sepscene.tasks.datasets.survey import Skipped
from sepscene.tasks.datasets.tables import ROWS_AT_ONCE

ONE_CLASS = "there is one class"
"""Begins the note about a data set that says nothing about an encoder."""

CLIP_COLUMNS = pa.schema(
    [
        ("clip_id", pa.string()),
        ("uri", pa.string()),
        ("labels", pa.list_(pa.dictionary(pa.int32(), pa.string()))),
        ("split", pa.dictionary(pa.int16(), pa.string())),
        ("offset_seconds", pa.float64()),
    ]
)
"""Labels and splits are numbers into a dictionary: 21 bytes less for a clip of AudioSet, of 114."""


@dataclass(frozen=True)
class Clip:
    """One row of a manifest before it is a column; `clip_id` is its name inside the root.

    Example:
        >>> clips = [sepscene.Clip("0001", "street/0001.wav", ("siren",), "train", offset_seconds=10.0)]
        >>> run = sepscene.pretrain("demo", clips=clips)
    """

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
        skipped: files and members of archives that were left out, by reason; files only where they were listed.
        notes: what else a user should know of how it was read.

    A clip without a label has an empty list: nobody has said what is heard in it. That is not "none of the classes".
    """

    clips: pa.Table
    classes: tuple[str, ...]
    absent: tuple[str, ...] = ()
    skipped: tuple[Skipped, ...] = ()
    notes: tuple[str, ...] = ()

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
        wrong = sorted(set(split) - set(self.splits))
        if wrong or not split:
            said = "; ".join(unknown(name, self.splits, "split") for name in wrong) or "name a split"
            raise ManifestError(f"no clip is chosen: {said}")
        kept = pc.is_in(self.clips["split"], value_set=pa.array(split, pa.string()))
        return replace(self, clips=self.clips.filter(kept))

    @property
    def unlabelled(self) -> int:
        """How many clips have no label."""
        return int(pc.sum(pc.equal(pc.list_value_length(self.clips["labels"]), 0)).as_py() or 0)

    def remarks(self) -> list[str]:
        """What was left out when it was read, and what else a user should know, in plain lines."""
        absent = [f"clips that are listed, but whose sound is not there: {len(self.absent)}"] if self.absent else []
        said = any(note.startswith(ONE_CLASS) for note in self.notes)
        one = [] if said or len(self.classes) != 1 else [f"{ONE_CLASS}, {self.classes[0]!r}: nothing can be told apart"]
        return [*(f"left out: {entry}" for entry in self.skipped), *absent, *one, *self.notes]

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
        encode = json.JSONEncoder().encode
        for batch in self.clips.select(["clip_id", "labels", "split", "offset_seconds"]).to_batches(4096):
            rows = zip(*(column.to_pylist() for column in batch.columns), strict=True)
            digest.update("".join(map(encode, rows)).encode())
        return digest.hexdigest()


def make_manifest(
    clips: Iterable[Clip] | pa.Table,
    source: str,
    classes: Sequence[str] | None = None,
    absent: Iterable[str] = (),
    notes: Iterable[str] = (),
    skipped: tuple[Skipped, ...] = (),
) -> Manifest:
    """A manifest of the clips, or of a table of them; the classes are the sorted labels unless given.

    Raises:
        ManifestError: no clips, or two with one clip_id.
    """
    table = clips if isinstance(clips, pa.Table) else pa.Table.from_pylist([vars(clip) for clip in clips], CLIP_COLUMNS)
    if not len(table):
        hints = "".join(f"; left out: {entry}" for entry in skipped)
        raise ManifestError(f"{source}: the data set is empty; no clip was found{hints}")
    twice = _twice(table["clip_id"])
    if twice:
        raise ManifestError(f"{source}: listed twice: {len(twice)}, e.g. {twice[0]!r}; list each once")
    if classes is None:
        classes = sorted(pc.unique(pc.list_flatten(table["labels"])).to_pylist())
    return Manifest(table, tuple(classes), tuple(absent), skipped, tuple(notes))


def read_from(
    root: Root,
    clips: Iterable[Clip],
    unused: str = "no table names it",
    classes: Sequence[str] | None = None,
    absent: Iterable[str] = (),
    notes: Iterable[str] = (),
) -> Manifest:
    """As `make_manifest`, with what is left out of the root; `unused` is the reason of a sound file without a clip."""
    rows = list(clips)  # only then does the root know which files are used
    return make_manifest(rows, root.location, classes, absent, notes, root.left_out(unused))


def _twice(names: pa.ChunkedArray) -> list[str]:
    """The names that occur more than once, compared by their hashes first."""
    hash_N = text_hashes(names)
    alike = names.filter(pa.array(np.isin(hash_N, repeated(hash_N))))
    times = pc.value_counts(alike.combine_chunks())
    return list(times.filter(pc.greater(times.field("counts"), 1)).field("values").to_pylist())


def text_hashes(texts: pa.ChunkedArray) -> np.ndarray:
    """A hash of each text, int64 (N,), the same for equal ones in this process.

    To find out whether ten million texts differ takes Arrow's own tables 0.8 GB and more, their hashes 0.08.
    """
    return np.concatenate([np.fromiter(map(hash, some), np.int64, len(some)) for some in in_parts(texts)])


def in_parts(texts: pa.ChunkedArray) -> Iterator[list[str]]:
    """The texts as objects of Python, not all of them at one time."""
    for batch in pa.table([texts], ["text"]).to_batches(max_chunksize=ROWS_AT_ONCE):
        yield batch["text"].to_pylist()


def repeated(numbers: np.ndarray) -> np.ndarray:
    """The numbers that occur more than once."""
    ordered = np.sort(numbers)
    return np.unique(ordered[1:][ordered[1:] == ordered[:-1]])
