"""Readers of public data sets and of sharded layouts.

    audioset  segments CSVs with three header lines, class_labels_indices.csv, and the audio anywhere below the root
    fsd50k    the ground truth (dev.csv, eval.csv, vocabulary.csv) or, where only that is there, the collection
    shards    WebDataset tar files: <key>.wav beside <key>.json, .cls or .txt
    parquet   Parquet files with a column `audio` (bytes, or a struct with `bytes`) and labels
    folder    Hugging Face audio folders: metadata.csv or metadata.jsonl with file_name, in one or several folders

Sources: https://research.google.com/audioset/download.html, https://zenodo.org/records/4060432,
https://github.com/webdataset/webdataset, https://huggingface.co/docs/datasets/audio_dataset.
"""

import csv
import json
import posixpath
import re
import tarfile
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from sepscene.augment.locations import AUDIO_COLUMN, ClipError, tar_members
from sepscene.tasks.datasets.manifest import (
    AUDIO_SUFFIXES,
    Clip,
    Manifest,
    ManifestError,
    Root,
    make_manifest,
    parse_offset,
    split_labels,
    split_of,
)

_YOUTUBE_ID = re.compile(r"^[A-Za-z0-9_-]{11}$")
_LARGEST_LABEL_FILE = 1 << 20  # bytes; a label file beside a clip is far smaller


def read_audioset(root: Root) -> Manifest:
    """AudioSet. A clip's split is its segments file's name without `_segments.csv`: balanced_train, eval, ….

    The audio files hold the segment alone (as all downloaders store it) and are found by their YouTube id:
    `<id>.wav`, `Y<id>.wav`, `<id>_30.000.flac`, `<id>_30000_40000.wav`, in any folder. Segments without a
    file are `absent`, and so is all but the first segment of one recording (as `<id>_<start in ms>`).
    """
    index = root.table("class_labels_indices.csv", ["index", "mid", "display_name"])
    names = {row["mid"]: row["display_name"] for row in sorted(index, key=lambda row: int(row["index"]))}
    tables = [path for path in root.files(suffixes=[".csv"]) if path.endswith("_segments.csv")]
    if not tables:
        raise ManifestError(f"{root.location}: has no *_segments.csv, e.g. balanced_train_segments.csv")
    files = _by_youtube_id(root.files())
    clips, absent = [], []
    seen: dict[str, float] = {}  # id -> where its segment begins
    for table in tables:
        split = posixpath.basename(table).removesuffix("_segments.csv")
        for name, start, labels in _segments(root, table, names):
            if name in seen:  # the strongly labelled lists repeat segments of the others
                if start != seen[name]:
                    absent.append(f"{name}_{round(1000 * start)}")
                continue
            seen[name] = start
            if name in files:
                clips.append(Clip(name, root.uri(files[name]), labels, split))
            else:
                absent.append(name)
    return make_manifest(clips, root.location, tuple(names.values()), absent)


def read_fsd50k(root: Root) -> Manifest:
    """FSD50K: the development set's splits are `train` and `val`, the evaluation set's is `test`."""
    truth, collection = "FSD50K.ground_truth", "FSD50K.metadata/collection"
    if root.holds(f"{truth}/dev.csv"):
        tables = {"dev": f"{truth}/dev.csv", "eval": f"{truth}/eval.csv"}
    else:
        tables = {part: f"{collection}/collection_{part}.csv" for part in ("dev", "eval")}
    clips, absent = [], []
    for part, table in tables.items():
        folder = f"FSD50K.{part}_audio"
        there = set(root.files(folder))
        for row in root.table(table, ["fname", "labels"]):
            path = f"{folder}/{row['fname']}.wav"
            split = "test" if part == "eval" else row.get("split") or "train"
            clip = Clip(path, root.uri(path), split_labels(row["labels"], ","), split)
            if path in there:
                clips.append(clip)
            else:
                absent.append(path)
    return make_manifest(clips, root.location, absent=absent)


def read_shards(root: Root) -> Manifest:
    """WebDataset shards, in a folder or one alone.

    The labels come from the clip's `.json` (labels or label), `.cls` or `.txt`; the split from that `.json`,
    a folder (`train/000.tar`) or the shard's name (`train-000.tar`).
    """
    root, shards = root.members(".tar")
    return make_manifest((clip for shard in shards for clip in _shard_clips(root, shard)), root.location)


def read_parquet(root: Root) -> Manifest:
    """Parquet files with audio bytes, in a folder or one alone.

    Labels: column `labels` or `label` (list, text, or class numbers that the Hugging Face schema names).
    Split: column `split`, a folder or the file's name. `offset_seconds` is read if it is there.
    """
    root, files = root.members(".parquet")
    return make_manifest((clip for file in files for clip in _parquet_clips(root, file)), root.location)


def read_folder(root: Root) -> Manifest:
    """A Hugging Face audio folder: each metadata file names files relative to its own folder."""
    tables = [
        path
        for path in root.files(suffixes=[".csv", ".jsonl"])
        if posixpath.basename(path) in ("metadata.csv", "metadata.jsonl")
    ]
    if not tables:
        raise ManifestError(
            f"{root.location}: has no metadata.csv or metadata.jsonl; for plain folders use `directory`"
        )
    clips = []
    for table in tables:
        folder = posixpath.dirname(table)
        for line, row in enumerate(root.table(table, ["file_name"]), 2):
            root.relative(row["file_name"])  # may not leave its own folder either
            path = posixpath.join(folder, row["file_name"])
            split = str(row.get("split") or split_of(path))
            offset = parse_offset(row.get("offset_seconds"), f"{root.location}/{table} row {line}")
            clips.append(Clip(path, root.uri(path), _row_labels(row), split, offset))
    return make_manifest(clips, root.location)


def _segments(root: Root, table: str, names: dict[str, str]) -> Iterator[tuple[str, float, tuple[str, ...]]]:
    """(YouTube id, start in seconds, class names) of each line; ids may begin with '-', labels are quoted."""
    lines = [line for line in root.text(table).splitlines() if line.strip() and not line.startswith("#")]
    for row in csv.reader(lines, skipinitialspace=True):
        if len(row) != 4 or not _YOUTUBE_ID.match(row[0]):
            raise ManifestError(f'{root.location}/{table}: {row!r} is not `YTID, start, end, "labels"`')
        mids = split_labels(row[3], ",")
        unknown = [mid for mid in mids if mid not in names]
        if unknown:
            raise ManifestError(f"{root.location}/{table}: {row[0]} has label {unknown[0]!r}, which the index lacks")
        yield row[0], parse_offset(row[1], f"{root.location}/{table}: {row[0]}"), tuple(names[mid] for mid in mids)


def _by_youtube_id(paths: list[str]) -> dict[str, str]:
    """Files by the id that their name stands for; of several, the one with the shortest name.

    `Y` may be PANNs' prefix or the id's first letter: it is the prefix where what follows can be an id.
    """
    files: dict[str, str] = {}
    stems = [(posixpath.splitext(posixpath.basename(path))[0], path) for path in paths]
    for stem, path in sorted(stems, key=lambda item: len(item[0])):
        for bare in ([stem[1:]] if stem.startswith("Y") else []) + [stem]:
            name, rest = bare[:11], bare[11:]
            if _YOUTUBE_ID.match(name) and rest[:1] in ("", "_"):
                files.setdefault(name, path)
                break
    return files


def _shard_clips(root: Root, shard: str) -> Iterator[Clip]:
    members: dict[str, dict[str, str]] = defaultdict(dict)  # key -> suffix -> member
    texts: dict[str, bytes] = {}
    uri = root.uri(shard)
    try:
        names = tar_members(uri)
        with root.filesystem.open_input_file(f"{root.path}/{shard}") as file:
            for name, member in names.items():
                folder, base = posixpath.split(name)
                key, dot, suffix = base.partition(".")
                if not dot or base.startswith("."):
                    continue
                members[posixpath.join(folder, key)][f".{suffix.lower()}"] = name
                if suffix.lower() in ("json", "cls", "txt") and member.size <= _LARGEST_LABEL_FILE:
                    texts[name] = file.read_at(member.size, member.start)
    except ClipError as error:
        raise ManifestError(str(error)) from error
    except (OSError, tarfile.TarError) as error:
        raise ManifestError(f"{uri}: is not a readable tar archive ({error})") from error
    for key, parts in members.items():
        audio = [name for suffix, name in parts.items() if suffix in AUDIO_SUFFIXES]
        if audio:
            row = _sample_row(parts, texts, f"{uri}#{key}")
            split = str(row.get("split") or split_of(shard))
            offset = parse_offset(row.get("offset_seconds"), f"{uri}#{key}")
            yield Clip(f"{shard}#{audio[0]}", f"{uri}#{audio[0]}", _row_labels(row), split, offset)


def _sample_row(parts: dict[str, str], texts: dict[str, bytes], where: str) -> dict[str, Any]:
    try:
        if ".json" in parts:
            row = json.loads(texts.get(parts[".json"], b"{}"))
            if not isinstance(row, dict):
                raise ValueError("not an object")
            return row
        for suffix in (".cls", ".txt"):
            if suffix in parts:
                return {"labels": texts.get(parts[suffix], b"").decode().strip().replace("\n", ";")}
    except ValueError as error:  # malformed JSON and malformed UTF-8 alike
        raise ManifestError(f"{where}: its labels cannot be read ({error})") from error
    return {}


def _parquet_clips(root: Root, file: str) -> Iterator[Clip]:
    uri = root.uri(file)
    try:
        with pq.ParquetFile(f"{root.path}/{file}", filesystem=root.filesystem) as parquet:
            schema = parquet.schema_arrow
            wanted = [n for n in ("labels", "label", "split", "offset_seconds") if n in schema.names]
            rows = parquet.read(columns=wanted).to_pylist() if wanted else [{}] * parquet.metadata.num_rows
    except (OSError, pa.ArrowException) as error:
        raise ManifestError(f"{uri}: cannot be read as Parquet ({error})") from error
    if AUDIO_COLUMN not in schema.names:
        raise ManifestError(f"{uri}: has no column `{AUDIO_COLUMN}`; it has {', '.join(schema.names)}")
    names = _class_names(schema, "labels" if "labels" in wanted else "label")
    for number, row in enumerate(rows):
        split = str(row.get("split") or split_of(file))
        offset = parse_offset(row.get("offset_seconds"), f"{uri}#{number}")
        yield Clip(f"{file}#{number}", f"{uri}#{number}", _row_labels(row, names), split, offset)


def _class_names(schema: pa.Schema, column: str) -> list[str]:
    """The names of a Hugging Face ClassLabel column, or none."""
    try:
        feature = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))["info"]["features"][column]
        feature = feature[0] if isinstance(feature, list) else feature.get("feature", feature)
        return list(feature.get("names", []))
    except (KeyError, ValueError, AttributeError, IndexError):
        return []


def _row_labels(row: dict[str, Any], names: list[str] | None = None) -> tuple[str, ...]:
    value = row.get("labels")
    labels = split_labels(row.get("label") if value is None else value)
    if not names:
        return labels
    return tuple(names[int(label)] if label.isdigit() and int(label) < len(names) else label for label in labels)
