"""Readers of public data sets and of sharded layouts; docs/data.md says where labels and splits come from.

Sources: https://research.google.com/audioset/download.html, https://zenodo.org/records/4060432,
https://github.com/webdataset/webdataset, https://huggingface.co/docs/datasets/audio_dataset.
"""

import csv
import posixpath
import re
import tarfile
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from sepscene.augment.arrow_files import features_of
from sepscene.augment.locations import AUDIO_COLUMN, ClipError, tar_members
from sepscene.models.files import parse_json
from sepscene.tasks.datasets.labels import (
    ManifestError,
    class_labels,
    parse_offset,
    split_labels,
    split_of_folder,
    split_of_shard,
)
from sepscene.tasks.datasets.manifest import Clip, Manifest, read_from
from sepscene.tasks.datasets.root import AUDIO_SUFFIXES, Root
from sepscene.tasks.datasets.tables import first_row, read_parquet_columns

_YOUTUBE_ID = re.compile(r"^[A-Za-z0-9_-]{11}$")
_START = re.compile(r"^_(\d+(?:\.\d+)?)(?:_(\d+(?:\.\d+)?))?$")
_LARGEST_LABEL_FILE = 1 << 20  # bytes; label files of clips are much smaller
LABEL_COLUMNS = ("labels", "label", "split", "offset_seconds")
"""The columns of a row that are read in addition to its sound."""
_LABEL_SUFFIXES = (".json", ".cls", ".txt")


def read_audioset(root: Root) -> Manifest:
    """AudioSet: `*_segments.csv` with three header lines, class_labels_indices.csv, and audio files in any folder.

    An audio file contains only its segment (as all downloaders store it). Segments without a file are `absent`. The
    first segment of a recording has its id as clip_id, the others `<id>_<start in ms>`.
    """
    index = root.rows("class_labels_indices.csv", ["index", "mid", "display_name"])
    try:
        names = {row["mid"]: row["display_name"] for row in sorted(index, key=lambda row: int(row["index"]))}
    except ValueError as error:
        raise ManifestError(f"{root.location}/class_labels_indices.csv: {error}; `index` must be a number") from error
    tables = [path for path in root.files(suffixes=[".csv"]) if path.endswith("_segments.csv")]
    if not tables:
        raise ManifestError(f"{root.location}: has no *_segments.csv, e.g. balanced_train_segments.csv")
    files = _by_youtube_id(root.files())
    clips = []
    absent = []
    seen: dict[str, set[float]] = defaultdict(set)  # id -> starts of its segments
    for table in tables:
        split = posixpath.basename(table).removesuffix("_segments.csv")
        for name, start, labels in _segments(root, table, names):
            if start in seen[name]:  # the strongly labelled lists repeat segments of the others
                continue
            clip_id = f"{name}_{round(1000 * start)}" if seen[name] else name
            path = _file_of_segment(files.get(name, {}), start, first=not seen[name])
            seen[name].add(start)
            if path is None:
                absent.append(clip_id)
            else:
                clips.append(Clip(clip_id, root.uri(path), labels, split))
    return read_from(root, clips, "its name does not match a segment", tuple(names.values()), absent)


def read_fsd50k(root: Root) -> Manifest:
    """FSD50K: the ground truth (dev.csv, eval.csv) or, if that is missing, the collection."""
    has_truth = root.has_file("FSD50K.ground_truth/dev.csv")
    tables = "FSD50K.ground_truth/" if has_truth else "FSD50K.metadata/collection/collection_"
    clips = []
    absent = []
    for part in ("dev", "eval"):
        folder = f"FSD50K.{part}_audio"
        paths = {posixpath.splitext(path)[0]: path for path in reversed(root.files(folder))}
        for row in root.rows(f"{tables}{part}.csv", ["fname", "labels"], empty=["labels"]):
            name = root.relative(f"{folder}/{row['fname']}").removesuffix(".wav")
            path = paths.get(name)
            if path is None:
                absent.append(f"{name}.wav")
                continue
            split = "test" if part == "eval" else row.get("split") or "train"
            clips.append(Clip(path, root.uri(path), split_labels(row["labels"], ","), split))
    return read_from(root, clips, absent=absent)


def read_shards(root: Root) -> Manifest:
    """WebDataset shards: a folder of them, or a single one."""
    root, shards = root.members(".tar")
    return read_from(root, (clip for shard in shards for clip in _shard_clips(root, shard)), "not inside a shard")


def read_parquet(root: Root) -> Manifest:
    """Parquet files with audio bytes: a folder of them, or a single one."""
    root, files = root.members(".parquet")
    return read_from(root, (clip for file in files for clip in _parquet_clips(root, file)), "not inside a Parquet file")


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
    rows = []
    for table in tables:
        for line, row in enumerate(root.rows(table, ["file_name"]), first_row(table)):
            name = str(row["file_name"])
            root.relative(name)  # must not leave its own folder either
            rows.append((posixpath.join(posixpath.dirname(table), name), f"{root.location}/{table} row {line}", row))
    undecided = [split_of_folder(path) for path, _, row in rows if not row.get("split")]
    by_folder = all(undecided)
    clips = []
    for path, where, row in rows:
        split = str(row.get("split") or (split_of_folder(path) if by_folder else "train"))
        offset = parse_offset(row.get("offset_seconds"), where)
        clips.append(Clip(path, root.uri(path), split_labels(_label_cell(row)), split, offset))
    some = not by_folder and any(undecided)
    notes = ["some clips are in folders named like splits, others are not: all are in split train"] if some else []
    return read_from(root, clips, notes=notes)


def _segments(root: Root, table: str, names: dict[str, str]) -> Iterator[tuple[str, float, tuple[str, ...]]]:
    """(YouTube id, start in seconds, class names) of each line; ids can begin with '-', labels are quoted."""
    lines = [line for line in root.text(table).splitlines() if line.strip() and not line.startswith("#")]
    for row in _csv_rows(lines, f"{root.location}/{table}"):
        if len(row) != 4 or not _YOUTUBE_ID.match(row[0]):
            raise ManifestError(
                f'{root.location}/{table}: {row!r} is not `YTID, start, end, "labels"`; download it again'
            )
        mids = split_labels(row[3], ",")
        unknown = [mid for mid in mids if mid not in names]
        if unknown:
            raise ManifestError(
                f"{root.location}/{table}: {row[0]} has label {unknown[0]!r}, which class_labels_indices.csv lacks: "
                "use the file of the same release"
            )
        yield row[0], parse_offset(row[1], f"{root.location}/{table}: {row[0]}"), tuple(names[mid] for mid in mids)


def _csv_rows(lines: list[str], where: str) -> Iterator[list[str]]:
    try:
        yield from csv.reader(lines, skipinitialspace=True)
    except csv.Error as error:
        raise ManifestError(f"{where}: cannot be read as CSV ({error}); check its quotes") from error


def _by_youtube_id(paths: list[str]) -> dict[str, dict[float | None, str]]:
    """Files by the id in their name, and by the start of their segment in seconds (None if the name does not have it).

    Of several files for one segment, the one with the shortest name. A leading `Y` can be PANNs' prefix or the first
    letter of the id: it is taken as the prefix if the rest can be an id.
    """
    files: dict[str, dict[float | None, str]] = defaultdict(dict)
    stems = [(posixpath.splitext(posixpath.basename(path))[0], path) for path in paths]
    for stem, path in sorted(stems, key=lambda item: len(item[0])):
        for bare in ([stem[1:]] if stem.startswith("Y") else []) + [stem]:
            name = bare[:11]
            rest = bare[11:]
            if _YOUTUBE_ID.match(name) and rest[:1] in ("", "_"):
                files[name].setdefault(_start_in_name(rest), path)
                break
    return files


def _start_in_name(rest: str) -> float | None:
    """The start in seconds, from `_30.000` or `_30.000_40.000`, or in ms `_30000_40000`; None for anything else."""
    found = _START.match(rest)
    if found is None:
        return None
    begin = found[1]
    end = found[2]
    if "." in begin or (end is not None and "." in end):
        return float(begin)
    if end is not None:  # segments have about 10 s, so start and end differ by about 10 or 10,000
        return float(begin) / (1000 if int(end) - int(begin) > 100 else 1)
    return float(begin) / (1000 if int(begin) % 1000 == 0 and int(begin) > 0 else 1)


def _file_of_segment(files: dict[float | None, str], start: float, first: bool) -> str | None:
    """The file of the segment at `start`; a file without a start in its name belongs to the first segment."""
    named = next((path for at, path in files.items() if at is not None and abs(at - start) < 0.01), None)
    return named or (files.get(None) if first else None)


def _shard_clips(root: Root, shard: str) -> Iterator[Clip]:
    uri = root.uri(shard)
    try:
        members = tar_members(uri)
        with root.filesystem.open_input_file(f"{root.path}/{shard}") as file:
            texts = {
                name: file.read_at(member.size, member.start)
                for name, member in members.items()
                if name.lower().endswith(_LABEL_SUFFIXES) and member.size <= _LARGEST_LABEL_FILE
            }
    except ClipError as error:
        raise ManifestError(str(error)) from error
    except (OSError, OverflowError, tarfile.TarError) as error:
        raise ManifestError(f"{uri}: is not a readable tar archive ({error})") from error
    label_files = {}
    for name in sorted(texts):  # of a.JSON and a.json, the latter counts
        stem, suffix = posixpath.splitext(name)
        label_files[stem + suffix.lower()] = name
    keys: set[str] = set()
    used: set[str] = set()
    for name in members:
        key, suffix = posixpath.splitext(name)
        if _is_hidden_member(name) or suffix.lower() not in AUDIO_SUFFIXES or key in keys:
            continue
        keys.add(key)
        where = f"{uri}#{key}"
        label_file = _label_file(key, label_files)
        used |= {name, label_file}
        row = _label_row(label_file, texts[label_file], where) if label_file else {}
        split = str(row.get("split") or split_of_shard(shard))
        offset = parse_offset(row.get("offset_seconds"), where)
        yield Clip(f"{shard}#{name}", f"{uri}#{name}", split_labels(_label_cell(row)), split, offset)
    for name in members:
        if name not in used:
            too_large = members[name].size > _LARGEST_LABEL_FILE
            root.skipped.add(_reason_for_member(name, keys, too_large), f"{shard}#{name}")


def _is_hidden_member(name: str) -> bool:
    return posixpath.basename(name).startswith(".")


def _reason_for_member(name: str, keys: set[str], too_large: bool) -> str:
    if _is_hidden_member(name):
        return "hidden: a name in its path begins with a dot"
    stem, suffix = posixpath.splitext(name)
    if suffix.lower() in AUDIO_SUFFIXES:
        return "another sound has the same key"
    if suffix.lower() in _LABEL_SUFFIXES:
        if too_large:
            return f"a label file can have {_LARGEST_LABEL_FILE} bytes"
        return "its clip has another label file, which is used" if stem in keys else "no sound has the same key"
    return f"suffix {suffix or 'missing'} is not read"


def _label_file(key: str, label_files: dict[str, str]) -> str:
    """The name of a clip's label file; empty if there is none. The keys of `label_files` have lowercase suffixes.

    WebDataset's own keys end at the first dot (`a.left.wav` belongs to `a.json`): such a file is used only if there is
    none with the full key.
    """
    folder, base = posixpath.split(key)
    stems = (key, posixpath.join(folder, base.partition(".")[0]))
    candidates = (stem + suffix for stem in stems for suffix in _LABEL_SUFFIXES)
    return next((label_files[name] for name in candidates if name in label_files), "")


def _label_row(name: str, text: bytes, where: str) -> dict[str, Any]:
    """The content of a label file."""
    suffix = posixpath.splitext(name)[1].lower()
    try:
        if suffix == ".json":
            row = parse_json(text)
            if not isinstance(row, dict):
                raise ValueError("not an object")
            return row
        lines = text.decode().strip().replace("\n", ";")
    except ValueError as error:  # malformed JSON or malformed UTF-8
        raise ManifestError(f"{where}: its labels cannot be read ({error}); correct the file") from error
    return {"labels": class_labels(split_labels(lines), (), where) if suffix == ".cls" else split_labels(lines)}


def _parquet_clips(root: Root, file: str) -> Iterator[Clip]:
    uri = root.uri(file)
    path = f"{root.path}/{file}"
    try:
        with pq.ParquetFile(path, filesystem=root.filesystem) as parquet:
            schema = parquet.schema_arrow
            count = parquet.metadata.num_rows
        columns = [name for name in LABEL_COLUMNS if name in schema.names]
        table = read_parquet_columns(path, root.filesystem, columns)
        rows = table.to_pylist() if columns else [{}] * count
    except (OSError, ValueError, OverflowError, pa.ArrowException) as error:
        raise ManifestError(
            f"{uri}: cannot be read as Parquet ({error}); check that the file is complete and can be read"
        ) from error
    if AUDIO_COLUMN not in schema.names:
        raise ManifestError(
            f"{uri}: has no column `{AUDIO_COLUMN}`; it has {', '.join(schema.names)}: rename its column of sounds"
        )
    yield from clips_of_rows(file, uri, schema, rows, split_of_shard(file))


def clips_of_rows(file: str, uri: str, schema: pa.Schema, rows: list[dict[str, Any]], split: str) -> Iterator[Clip]:
    """The clips of a file whose rows are clips.

    Args:
        file: its name below the root.
        uri: of the file.
        schema: of its columns.
        rows: their `LABEL_COLUMNS`.
        split: of rows without a value in column `split`.
    """
    names = _class_names(schema, "labels" if "labels" in schema.names else "label")
    numbers = [n for n in ("labels", "label") if n in schema.names and not _is_text(schema.field(n).type)]
    for number, row in enumerate(rows):
        where = f"{uri}#{number}"
        cell = _label_cell(row)
        labels = class_labels(cell, names, where) if names or numbers else split_labels(cell)
        offset = parse_offset(row.get("offset_seconds"), where)
        yield Clip(f"{file}#{number}", where, labels, str(row.get("split") or split), offset)


def _is_text(kind: pa.DataType) -> bool:
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_dictionary(kind):
        return _is_text(kind.value_type)
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def _class_names(schema: pa.Schema, column: str) -> list[str]:
    """The class names of a Hugging Face ClassLabel column; empty for other columns."""
    try:
        feature = features_of(schema)[column]
        feature = feature[0] if isinstance(feature, list) else feature.get("feature", feature)
        return [str(name) for name in feature.get("names", [])]
    except (KeyError, ValueError, TypeError, AttributeError, IndexError):
        return []


def _label_cell(row: dict[str, Any]) -> Any:
    return row.get("label") if row.get("labels") is None else row["labels"]
