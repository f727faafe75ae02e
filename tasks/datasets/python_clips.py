"""Clips from Python: written once as a table, which every command then reads like any other data set.

The table holds where the sound is, never the sound. A clip may lie anywhere: whoever lists clips names each place.
"""

import hashlib
import io
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from sepscene.augment.locations import exact_seconds, is_utf8, local_path, split_member
from sepscene.models.files import parse_json, write_atomically
from sepscene.tasks.datasets.labels import ManifestError, parse_offset, split_labels
from sepscene.tasks.datasets.manifest import CLIP_COLUMNS, Clip, Manifest, make_manifest
from sepscene.tasks.datasets.root import Root
from sepscene.tasks.datasets.tables import read_parquet_columns

NAMES = {"offset": "offset_seconds", "label": "labels"}
"""Other names of fields that are understood."""

_NOTES = b"sepscene.notes"


def write_clips(clips: Iterable[Clip | Mapping[str, Any]], folder: Path | str) -> Path:
    """Write a manifest of clips, to be read as `data.format=clips` with `data.root` set to the file.

    Example:
        >>> clips = [{"uri": f"recordings/{n}.flac", "labels": "dog", "split": "train"} for n in range(3)]
        >>> table = sepscene.write_clips(clips, "clips")
        >>> sepscene.pretrain("demo", changes={"data.format": "clips", "data.root": str(table)})

    Args:
        clips: each a `Clip`, or a mapping with `uri` (a path, or what `augment.locations` describes) and, if wanted,
            `labels` (a list, or text separated by ";"), `split` ("train" where it is missing), `offset_seconds` (where
            in the recording the clip begins), `clip_id` (unique; the URI where it is missing). Anything else is not
            read, and a note says so. A clip is as long as `audio.clip_seconds` from its offset.
        folder: the file is written there, under a name that its content gives: the same clips have the same file.

    Returns:
        The file, absolute.

    Raises:
        SepsceneError: names the clip whose fields cannot be used; there is none, or one is there twice.
    """
    unread: set[str] = set()
    rows = [_clip(clip, number, unread) for number, clip in enumerate(clips)]
    manifest = make_manifest(rows, "the clips")
    notes = [f"fields of the clips that are not read: {', '.join(sorted(unread))}"] if unread else []
    table = manifest.clips.replace_schema_metadata({_NOTES: json.dumps(notes).encode()})
    sink = io.BytesIO()
    pq.write_table(table, sink)
    places = "\n".join(manifest.clips["uri"].to_pylist())
    name = hashlib.sha256(f"{manifest.digest()}\n{json.dumps(notes)}\n{places}".encode()).hexdigest()[:16]
    file = Path(folder).absolute() / f"{name}.parquet"
    file.parent.mkdir(parents=True, exist_ok=True)
    if not file.exists():
        write_atomically(file, sink.getvalue())
    return file


def read_clips(root: Root) -> Manifest:
    """The manifest in a file of `write_clips`.

    Raises:
        ManifestError: it is not such a file.
    """
    if not root.is_file:
        raise ManifestError(f"{root.location}: is no file; give the table that sepscene.write_clips wrote")
    try:
        table = read_parquet_columns(root.path, root.filesystem, CLIP_COLUMNS.names).cast(CLIP_COLUMNS)
        metadata = pq.read_schema(root.path, filesystem=root.filesystem).metadata or {}
        notes = [str(note) for note in parse_json(metadata.get(_NOTES, b"[]"))]
    except (OSError, ValueError, TypeError, KeyError, pa.ArrowException) as error:
        raise ManifestError(f"{root.location}: is no table of sepscene.write_clips ({error})") from error
    empty = [name for name in CLIP_COLUMNS.names if table[name].null_count]
    if empty:
        raise ManifestError(f"{root.location}: column {', '.join(empty)} has rows that are not filled")
    return make_manifest(table, root.location, notes=notes)


def _clip(given: Clip | Mapping[str, Any], number: int, unread: set[str]) -> Clip:
    """One clip, its place absolute; names of fields that are not read go to `unread`."""
    where = f"clip {number}"
    if isinstance(given, Clip):
        given = vars(given)
    if not isinstance(given, Mapping):
        raise ManifestError(
            f"{where} is a {type(given).__name__}: give a mapping with `uri`, or sepscene.Clip. A data set of Hugging "
            "Face: write it with save_to_disk, then data.format=huggingface and data.root=FOLDER"
        )
    row = {NAMES.get(str(name), str(name)): value for name, value in given.items()}
    unread |= row.keys() - set(CLIP_COLUMNS.names)
    if not row.get("uri"):
        raise ManifestError(f"{where} has no uri; it has {', '.join(row) or 'nothing'}")
    uri = _absolute(os.fspath(row["uri"]))
    offset = parse_offset(row.get("offset_seconds"), where)
    name = str(row.get("clip_id") or (f"{uri}@{exact_seconds(offset)}" if offset else uri))
    if not is_utf8(name) or not is_utf8(uri):
        raise ManifestError(f"{where}: the name of its file is not UTF-8: rename it")
    return Clip(name, uri, split_labels(row.get("labels")), str(row.get("split") or "train"), offset)


def _absolute(uri: str) -> str:
    """A local place from any folder, also of a member of an archive; a URI as it is."""
    archive, member = split_member(uri)
    local = local_path(archive)
    if local is None:
        return uri
    place = os.path.abspath(os.path.expanduser(local))
    return place if member is None else f"{place}#{member}"
