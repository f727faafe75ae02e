"""The manifest: the clips of a data set, with their locations, labels and splits.

Shapes: N clips.
"""

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

CLIP_COLUMNS = pa.schema(
    [
        ("clip_id", pa.string()),
        ("uri", pa.string()),
        ("labels", pa.list_(pa.dictionary(pa.int32(), pa.string()))),
        ("split", pa.dictionary(pa.int16(), pa.string())),
        ("offset_seconds", pa.float64()),
    ]
)
"""Labels and splits are dictionary-encoded, which saves 21 of 114 bytes per clip of AudioSet."""

MAX_SPLITS = 2**15 - 1  # the index of a split has 16 bits, with a sign


@dataclass(frozen=True)
class Clip:
    """A clip, one row of a manifest; `clip_id` is its name inside the root.

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
        clips: one row per clip, columns `CLIP_COLUMNS`: clip_id (unique; the path inside the root), uri (see
            `augment.locations`), labels, split, offset_seconds (where in the recording the clip begins).
        classes: all label names, in the data set's own order or sorted; the same for every selection.
        absent: clip_ids that the data set lists but whose audio is not in its folder (deleted videos, second segments
            of a recording).
        skipped: files and members of archives that were left out, by reason; files only if they were listed.
        notes: other notes for the user.

    A clip without a label has an empty list: its content is unknown. This does not mean "none of the classes".
    """

    clips: pa.Table
    classes: tuple[str, ...]
    absent: tuple[str, ...] = ()
    skipped: tuple[Skipped, ...] = ()
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.clips.schema != CLIP_COLUMNS:
            raise ManifestError(f"a manifest must have the columns and types of CLIP_COLUMNS: {CLIP_COLUMNS.names}")

    def __len__(self) -> int:
        return len(self.clips)

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits that occur, sorted."""
        return tuple(sorted(pc.unique(self.clips["split"]).to_pylist()))

    def select(self, *split: str) -> "Manifest":
        """The clips of the given splits, in order, with all classes.

        Raises:
            ManifestError: no split is given, or no clip is in one of them.
        """
        wrong = sorted(set(split) - set(self.splits))
        if wrong or not split:
            problem = "; ".join(unknown(name, self.splits, "split") for name in wrong) or "name a split"
            raise ManifestError(f"no clips are selected: {problem}")
        kept = pc.is_in(self.clips["split"], value_set=pa.array(split, pa.string()))
        return replace(self, clips=self.clips.filter(kept))

    @property
    def unlabelled(self) -> int:
        """Number of clips without a label."""
        return int(pc.sum(pc.equal(pc.list_value_length(self.clips["labels"]), 0)).as_py() or 0)

    def remarks(self) -> list[str]:
        """Notes for the user, including what was left out when the data set was read."""
        found = [f"left out: {entry}" for entry in self.skipped]
        if self.absent:
            found.append(f"listed clips without an audio file: {len(self.absent)}")
        if len(self.classes) == 1:
            found.append(f"there is one class, {self.classes[0]!r}: an encoder cannot be evaluated on it")
        return [*found, *self.notes]

    def targets(self) -> np.ndarray:
        """Which classes are heard in each clip: bool (clips, classes).

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
        """SHA-256 over clips, labels, splits, offsets and classes; it does not depend on the location of the data."""
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
    """Build a manifest from clips, or from a table of them; the default classes are the sorted labels.

    Raises:
        ManifestError: there are no clips, or two have the same clip_id.
    """
    if isinstance(clips, pa.Table):
        table = clips
        check_splits((text for chunk in table["split"].chunks for text in chunk.dictionary.to_pylist()), source)
    else:
        rows = [vars(clip) for clip in clips]
        check_splits((row["split"] for row in rows), source)
        table = pa.Table.from_pylist(rows, CLIP_COLUMNS)
    if not len(table):
        hints = "".join(f"; left out: {entry}" for entry in skipped)
        raise ManifestError(f"{source}: the data set is empty; no clip was found{hints}")
    twice = _repeated_texts(table["clip_id"])
    if twice:
        raise ManifestError(f"{source}: clips listed twice: {len(twice)}, e.g. {twice[0]!r}; list each once")
    if classes is None:
        classes = sorted(pc.unique(pc.list_flatten(table["labels"])).to_pylist())
    return Manifest(table, tuple(classes), tuple(absent), skipped, tuple(notes))


def check_splits(splits: Iterable[str], source: str) -> None:
    """Refuse more splits than `CLIP_COLUMNS` can number, e.g. if the column contains names of files.

    Raises:
        ManifestError: there are too many different splits.
    """
    count = len(set(splits))
    if count > MAX_SPLITS:
        raise ManifestError(f"{source}: has {count} different splits; `split` must be one of a few, e.g. train or test")


def read_from(
    root: Root,
    clips: Iterable[Clip],
    unused: str = "not listed in a table",
    classes: Sequence[str] | None = None,
    absent: Iterable[str] = (),
    notes: Iterable[str] = (),
) -> Manifest:
    """Like `make_manifest`, and count the unused files of the root; `unused` is the reason for audio files."""
    rows = list(clips)  # iterating marks the files that are used, before `left_out`
    return make_manifest(rows, root.location, classes, absent, notes, root.left_out(unused))


def _repeated_texts(names: pa.ChunkedArray) -> list[str]:
    """The names that occur more than once; hashes are compared first."""
    hash_N = text_hashes(names)
    alike = names.filter(pa.array(np.isin(hash_N, repeated(hash_N))))
    times = pc.value_counts(alike.combine_chunks())
    return list(times.filter(pc.greater(times.field("counts"), 1)).field("values").to_pylist())


def text_hashes(texts: pa.ChunkedArray) -> np.ndarray:
    """A hash of each text, int64 (N,); equal texts have equal hashes within this process.

    Searching ten million texts for duplicates takes at least 0.8 GB with Arrow's hash tables, and 0.08 GB with these.
    """
    return np.concatenate([np.fromiter(map(hash, some), np.int64, len(some)) for some in in_parts(texts)])


def in_parts(texts: pa.ChunkedArray) -> Iterator[list[str]]:
    """The texts as Python objects, in batches."""
    for batch in pa.table([texts], ["text"]).to_batches(max_chunksize=ROWS_AT_ONCE):
        yield batch["text"].to_pylist()


def repeated(numbers: np.ndarray) -> np.ndarray:
    """The numbers that occur more than once."""
    ordered = np.sort(numbers)
    return np.unique(ordered[1:][ordered[1:] == ordered[:-1]])
