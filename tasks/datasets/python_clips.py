"""Clips listed in Python: written to a table, which every command reads like any other data set.

The table contains the locations of the sounds, not the sounds. Clips can be anywhere, because the user lists each
location.
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

ALIASES = {"offset": "offset_seconds", "label": "labels"}
"""Alternative names of fields."""

_NOTES = b"sepscene.notes"


def write_clips(clips: Iterable[Clip | Mapping[str, Any]], folder: Path | str) -> Path:
    """Write a manifest of clips, which a run uses with `data.format=clips` and `data.root` set to the file.

    Example:
        >>> clips = [{"uri": f"recordings/{n}.flac", "labels": "dog", "split": "train"} for n in range(3)]
        >>> table = sepscene.write_clips(clips, "clips")
        >>> sepscene.pretrain("demo", changes={"data.format": "clips", "data.root": str(table)})

    Args:
        clips: each a `Clip`, or a mapping with `uri` (a path, or what `augment.locations` describes) and optionally
            `labels` (a list, or text separated by ";"), `split` (default: "train"), `offset_seconds` (where in the
            recording the clip begins) and `clip_id` (unique; default: the URI). Other fields are not read, and a note
            lists them. A clip has `audio.clip_seconds` from its offset.
        folder: where the file is written. Its name depends on its content: the same clips have the same file.

    Returns:
        The absolute path of the file.

    Raises:
        SepsceneError: a clip has fields that cannot be used, there are no clips, or one is listed twice.
    """
    unread: set[str] = set()
    rows = [_clip(clip, number, unread) for number, clip in enumerate(clips)]
    manifest = make_manifest(rows, "the clips")
    notes = [f"fields of the clips that are not read: {', '.join(sorted(unread))}"] if unread else []
    table = manifest.clips.replace_schema_metadata({_NOTES: json.dumps(notes).encode()})
    sink = io.BytesIO()
    pq.write_table(table, sink)
    uris = "\n".join(manifest.clips["uri"].to_pylist())
    name = hashlib.sha256(f"{manifest.digest()}\n{json.dumps(notes)}\n{uris}".encode()).hexdigest()[:16]
    file = Path(folder).absolute() / f"{name}.parquet"
    file.parent.mkdir(parents=True, exist_ok=True)
    if not file.exists():
        write_atomically(file, sink.getvalue())
    return file


def read_clips(root: Root) -> Manifest:
    """The manifest in a file of `write_clips`.

    Raises:
        ManifestError: the root is not such a file.
    """
    if not root.is_file:
        raise ManifestError(f"{root.location}: is not a file; give the table that sepscene.write_clips has written")
    try:
        table = read_parquet_columns(root.path, root.filesystem, CLIP_COLUMNS.names).cast(CLIP_COLUMNS)
        metadata = pq.read_schema(root.path, filesystem=root.filesystem).metadata or {}
        notes = [str(note) for note in parse_json(metadata.get(_NOTES, b"[]"))]
    except (OSError, ValueError, TypeError, KeyError, pa.ArrowException) as error:
        raise ManifestError(f"{root.location}: is not a table of sepscene.write_clips ({error})") from error
    empty = [name for name in CLIP_COLUMNS.names if table[name].null_count]
    if empty:
        raise ManifestError(f"{root.location}: column {', '.join(empty)} has empty cells")
    return make_manifest(table, root.location, notes=notes)


def _clip(given: Clip | Mapping[str, Any], number: int, unread: set[str]) -> Clip:
    """One clip with an absolute location; names of fields that are not read are added to `unread`."""
    where = f"clip {number}"
    if isinstance(given, Clip):
        given = vars(given)
    if not isinstance(given, Mapping):
        raise ManifestError(
            f"{where} is a {type(given).__name__}: give a mapping with `uri`, or sepscene.Clip. For a Hugging "
            "Face data set, write it with save_to_disk and set data.format=huggingface and data.root=FOLDER"
        )
    row = {ALIASES.get(str(name), str(name)): value for name, value in given.items()}
    unread |= row.keys() - set(CLIP_COLUMNS.names)
    if not row.get("uri"):
        raise ManifestError(f"{where} has no uri; it has {', '.join(row) or 'nothing'}")
    uri = os.fspath(row["uri"]) if isinstance(row["uri"], os.PathLike) else row["uri"]
    if not isinstance(uri, str):
        raise ManifestError(f"{where}: uri has type {type(uri).__name__}; give a path or a URI as text")
    uri = _absolute(uri)
    offset = parse_offset(row.get("offset_seconds"), where)
    name = str(row.get("clip_id") or (f"{uri}@{exact_seconds(offset)}" if offset else uri))
    if not is_utf8(name) or not is_utf8(uri):
        raise ManifestError(f"{where}: its file name is not UTF-8: rename the file")
    return Clip(name, uri, split_labels(row.get("labels")), str(row.get("split") or "train"), offset)


def _absolute(uri: str) -> str:
    """A local path, also of a member of an archive, made absolute; a URI unchanged."""
    archive, member = split_member(uri)
    local = local_path(archive)
    if local is None:
        return uri
    path = os.path.abspath(os.path.expanduser(local))
    return path if member is None else f"{path}#{member}"
