"""Readers of the plain data-set layouts, and the one entry to the readers of all formats (docs/data.md)."""

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import replace

import pyarrow as pa
import pyarrow.compute as pc

from sepscene.augment.locations import exact_seconds
from sepscene.models.spelling import unknown
from sepscene.tasks.datasets.huggingface import read_huggingface
from sepscene.tasks.datasets.labels import SPLIT_NAMES, ManifestError, parse_offset, split_labels
from sepscene.tasks.datasets.manifest import CLIP_COLUMNS, Clip, Manifest, check_splits, make_manifest, read_from
from sepscene.tasks.datasets.public import read_audioset, read_folder, read_fsd50k, read_parquet, read_shards
from sepscene.tasks.datasets.python_clips import read_clips
from sepscene.tasks.datasets.root import Root
from sepscene.tasks.datasets.tables import ROWS_AT_ONCE, first_row

__all__ = ["Manifest", "ManifestError", "read_manifest"]

TEST_SHARE = 0.2
"""Share of each class that becomes the test split if a directory tree has no folders for splits."""


def read_manifest(format: str, root: str, survey: bool = False) -> Manifest:
    """Read the manifest of a data set.

    Args:
        format: as `data.format` of an experiment names it.
        root: its folder or URI; for `table` the file itself, or a folder with manifest.csv or manifest.parquet.
        survey: list all files below the root, even if the format does not need it, to report what is left out.

    Raises:
        ManifestError: unknown format, no such root, missing column, a path outside of the root, no clips, …
    """
    readers: dict[str, Callable[[Root], Manifest]] = {
        "scenes": _read_scenes,
        "directory": _read_directory,
        "table": _read_table,
        "esc50": _read_esc50,
        "urbansound8k": _read_urbansound8k,
        "audioset": read_audioset,
        "fsd50k": read_fsd50k,
        "shards": read_shards,
        "parquet": read_parquet,
        "folder": read_folder,
        "huggingface": read_huggingface,
        "clips": read_clips,
    }
    if format not in readers:
        raise ManifestError(f"data.format: {unknown(format, readers, 'format')}")
    return readers[format](Root(root, survey))


def _read_scenes(root: Root) -> Manifest:
    tables = [path for path in root.files(suffixes=[".csv"]) if "/" not in path]
    if not tables:
        raise ManifestError(f"{root.location}: contains no scenes; generate some with `sepscene scenes`")
    return _from_tables(root, tables, root.location)


def _read_table(root: Root) -> Manifest:
    if root.is_file:
        root, name = root.folder()
    else:
        names = [name for name in ("manifest.csv", "manifest.parquet") if root.has_file(name)]
        if not names:  # a single table can have any name
            names = [path for path in root.files(suffixes=[".csv", ".parquet"]) if "/" not in path]
            if len(names) != 1:
                raise ManifestError(
                    f"{root.location}: has {len(names) or 'no'} tables (CSV, Parquet) and no manifest.csv or "
                    "manifest.parquet; name the table itself"
                )
        name = names[0]
    return _from_tables(root, [name], f"{root.location}/{name}")


def _from_tables(root: Root, tables: list[str], source: str) -> Manifest:
    clips = pa.concat_tables([_table_clips(root, table) for table in tables])
    skipped = root.left_out("not listed in a table") if root.survey else ()
    return make_manifest(clips, source, skipped=skipped)


def _table_clips(root: Root, name: str) -> pa.Table:
    """The clips of a table; several can be in one recording, at different offsets.

    Rows are converted in batches, because ten million names take over 1 GB as Python objects.
    """
    read = root.table(name, ["uri", "labels", "split"], empty=["labels"]).to_batches(max_chunksize=ROWS_AT_ONCE)
    read.reverse()
    first = first_row(name)
    clips = []
    while read:
        batch = read.pop()  # frees the batches that are done
        clips.append(_batch_clips(root, batch, f"{root.location}/{name}", first))
        first += len(batch)
    return pa.Table.from_batches(clips, CLIP_COLUMNS)


def _batch_clips(root: Root, batch: pa.RecordBatch, where: str, first: int) -> pa.RecordBatch:
    """The clips of some rows of a table; `first` is the number of the first row, for messages."""
    names, uris = root.uris(_texts(batch["uri"]))
    offsets = _offsets(batch, where, first)
    if any(offsets):
        pairs = zip(names, offsets, strict=True)
        names = [f"{name}@{exact_seconds(offset)}" if offset else name for name, offset in pairs]
    splits = _texts(batch["split"])
    check_splits(splits, where)
    columns = [names, uris, _labels(batch["labels"]), splits, offsets]
    arrays = [pa.array(column, field.type) for column, field in zip(columns, CLIP_COLUMNS, strict=True)]
    return pa.record_batch(arrays, schema=CLIP_COLUMNS)


def _texts(column: pa.Array) -> list[str]:
    return list(pc.utf8_trim_whitespace(column.cast(pa.string())).to_pylist())


def _offsets(batch: pa.RecordBatch, where: str, first: int) -> list[float]:
    if "offset_seconds" not in batch.schema.names:
        return [0.0] * len(batch)
    return [parse_offset(cell, f"{where} row {n}") for n, cell in enumerate(batch["offset_seconds"].to_pylist(), first)]


def _labels(column: pa.Array) -> pa.Array:
    """The labels of every row; each distinct text is split only once."""
    kind = CLIP_COLUMNS.field("labels").type
    if not pa.types.is_string(column.type):
        return pa.array([split_labels(cell) for cell in column.to_pylist()], kind)
    coded = column.dictionary_encode()
    different = pa.array([split_labels(text) for text in coded.dictionary.to_pylist()] + [()], kind)
    return different.take(pc.fill_null(coded.indices, len(different) - 1))


def _read_esc50(root: Root) -> Manifest:
    clips = [
        Clip(row["filename"], root.uri(f"audio/{row['filename']}"), split_labels(row["category"]), str(row["fold"]))
        for row in root.rows("meta/esc50.csv", ["filename", "fold", "category"])
    ]
    return read_from(root, clips)


def _read_urbansound8k(root: Root) -> Manifest:
    clips = []
    for row in root.rows("metadata/UrbanSound8K.csv", ["slice_file_name", "fold", "class"]):
        path = f"audio/fold{row['fold']}/{row['slice_file_name']}"
        clips.append(Clip(path, root.uri(path), split_labels(row["class"]), str(row["fold"])))
    return read_from(root, clips)


def _read_directory(root: Root) -> Manifest:
    paths = root.files()
    tops = {path.split("/")[0] for path in paths if "/" in path}
    splits = {top for top in tops if top.lower() in SPLIT_NAMES}
    if len(splits) > 1 and tops != splits:
        raise ManifestError(
            f"{root.location}: the folders {', '.join(sorted(splits))} are splits, but "
            f"{', '.join(sorted(tops - splits))} are not: move these away, or list the clips in a table"
        )
    with_splits = bool(splits) and tops == splits
    used = [path for path in paths if "/" in path] if with_splits else paths
    _, uris = root.uris(used)
    clips = []
    for path, uri in zip(used, uris, strict=True):
        parts = path.split("/")
        folders = parts[1:-1] if with_splits else parts[:-1]
        clips.append(Clip(path, uri, tuple(folders[:1]), parts[0] if with_splits else ""))
    notes = _too_high(clips, depth=2 if with_splits else 1)
    clips_with_split = clips if with_splits else _with_drawn_splits(clips)
    return read_from(root, clips_with_split, "not inside a folder of a split", notes=notes)


def _too_high(clips: list[Clip], depth: int) -> list[str]:
    """A note if all clips have the same class, and its folder contains folders."""
    classes = {label for clip in clips for label in clip.labels}
    below = sorted({clip.clip_id.split("/")[depth] for clip in clips if clip.clip_id.count("/") > depth})
    if len(classes) != 1 or not below:
        return []
    note = f"all clips are of class {min(classes)!r}, and its folder contains folders ({', '.join(below[:3])})"
    return [f"{note}; is the root one level too high?"]


def _with_drawn_splits(clips: list[Clip]) -> Iterator[Clip]:
    """The clips with a split: the test split is the fifth of each class whose hashed names come first."""
    order = sorted(clips, key=lambda clip: hashlib.sha256(clip.clip_id.encode()).digest())
    by_labels: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for clip in order:
        by_labels[clip.labels].append(clip.clip_id)
    test: set[str] = set()
    for names in by_labels.values():
        test.update(names[: max(round(TEST_SHARE * len(names)), int(len(names) > 1))])
    for clip in clips:
        yield replace(clip, split="test" if clip.clip_id in test else "train")
