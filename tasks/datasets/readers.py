"""Readers of the plain data-set layouts, and the one entry to all of them.

    scenes     synthetic scenes, as `augment.synthetic.scenes.write_scenes` writes them
    directory  one folder for each class, or folders `train` and `test` that hold those
    table      CSV or Parquet with the columns uri, labels (separated by ';'), split and, if wanted, offset_seconds
    esc50      ESC-50 and ESC-10: meta/esc50.csv and audio/; the split is the fold
    urbansound8k  UrbanSound8K: metadata/UrbanSound8K.csv and audio/fold1 … fold10; the split is the fold

The formats audioset, fsd50k, shards, parquet and folder are read by `tasks.datasets.public`.
"""

import hashlib
from collections.abc import Callable, Iterator

from sepscene.augment.locations import exact_seconds
from sepscene.tasks.datasets.manifest import (
    SPLIT_NAMES,
    Clip,
    Manifest,
    ManifestError,
    Root,
    make_manifest,
    parse_offset,
    split_labels,
)
from sepscene.tasks.datasets.public import read_audioset, read_folder, read_fsd50k, read_parquet, read_shards

__all__ = ["Manifest", "ManifestError", "read_manifest"]

TEST_SHARE = 0.2
"""Share of each class that becomes the test split where a directory tree names no splits."""


def read_manifest(format: str, root: str) -> Manifest:
    """Read the manifest of a data set.

    Args:
        format: one of the layouts above, as `data.format` of an experiment names it.
        root: its folder or URI; for `table` the file itself, or a folder with manifest.csv or manifest.parquet.

    Raises:
        ManifestError: unknown format, no such root, missing column, a path that leaves the root, no clips, …
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
    }
    if format not in readers:
        raise ManifestError(f"data.format {format!r} is unknown; choose from {', '.join(readers)}")
    return readers[format](Root(root))


def _read_scenes(root: Root) -> Manifest:
    tables = [path for path in root.files(suffixes=[".csv"]) if "/" not in path]
    if not tables:
        raise ManifestError(f"{root.location}: holds no scenes; generate some with `sepscene scenes`")
    return make_manifest((clip for path in tables for clip in _table_clips(root, path)), root.location)


def _read_table(root: Root) -> Manifest:
    if root.is_file:
        root, name = root.folder()
    else:
        names = [name for name in ("manifest.csv", "manifest.parquet") if root.holds(name)]
        if not names:
            raise ManifestError(f"{root.location}: has no manifest.csv or manifest.parquet; name the table itself")
        name = names[0]
    return make_manifest(_table_clips(root, name), f"{root.location}/{name}")


def _table_clips(root: Root, table: str) -> Iterator[Clip]:
    """The clips of a declared table; several may lie in one recording, at different offsets."""
    rows = root.table(table, ["uri", "labels", "split"])
    offsets = [
        parse_offset(row.get("offset_seconds"), f"{root.location}/{table} row {n}") for n, row in enumerate(rows, 2)
    ]
    for row, offset in zip(rows, offsets, strict=True):
        name = root.relative(str(row["uri"]).strip())
        clip_id = f"{name}@{exact_seconds(offset)}" if offset else name
        yield Clip(clip_id, root.uri(name), split_labels(row["labels"]), str(row["split"]).strip(), offset)


def _read_esc50(root: Root) -> Manifest:
    rows = root.table("meta/esc50.csv", ["filename", "fold", "category"])
    clips = (
        Clip(row["filename"], root.uri(f"audio/{row['filename']}"), (row["category"],), str(row["fold"]))
        for row in rows
    )
    return make_manifest(clips, f"{root.location}/meta/esc50.csv")


def _read_urbansound8k(root: Root) -> Manifest:
    table = "metadata/UrbanSound8K.csv"
    clips = []
    for row in root.table(table, ["slice_file_name", "fold", "class"]):
        path = f"audio/fold{row['fold']}/{row['slice_file_name']}"
        clips.append(Clip(path, root.uri(path), (row["class"],), str(row["fold"])))
    return make_manifest(clips, f"{root.location}/{table}")


def _read_directory(root: Root) -> Manifest:
    paths = root.files()
    with_splits = bool(paths) and all(path.split("/")[0].lower() in SPLIT_NAMES for path in paths)
    clips = []
    for path in paths:
        parts = path.split("/")
        folders = parts[1:-1] if with_splits else parts[:-1]
        clips.append(Clip(path, root.uri(path), tuple(folders[:1]), parts[0] if with_splits else ""))
    return make_manifest(clips if with_splits else _with_drawn_splits(clips), root.location)


def _with_drawn_splits(clips: list[Clip]) -> Iterator[Clip]:
    """The clips with a split: of each class the fifth whose hashed names come first is for testing."""
    order = sorted(clips, key=lambda clip: hashlib.sha256(clip.clip_id.encode()).digest())
    test: set[str] = set()
    for labels in {clip.labels for clip in clips}:
        names = [clip.clip_id for clip in order if clip.labels == labels]
        test.update(names[: max(round(TEST_SHARE * len(names)), int(len(names) > 1))])
    for clip in clips:
        yield Clip(clip.clip_id, clip.uri, clip.labels, "test" if clip.clip_id in test else "train")
