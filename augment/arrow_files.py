"""Rows of Arrow files with sound, as `datasets.save_to_disk` of Hugging Face writes them: mapped, never copied.

A row's sound lies in the column that the schema calls Audio, else in `audio`.
"""

import os
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa

from sepscene.models.files import parse_json

AUDIO_COLUMN = "audio"


def features_of(schema: pa.Schema) -> dict[str, Any]:
    """What Hugging Face's schema says of the columns: name -> description; empty where there is no such schema."""
    try:
        found = parse_json((schema.metadata or {}).get(b"huggingface", b"{}"))["info"]["features"]
    except (KeyError, ValueError, TypeError):
        return {}
    return found if isinstance(found, dict) else {}


def audio_column(schema: pa.Schema) -> str:
    """The column with the sound.

    Raises:
        ValueError: there is none, or several.
    """
    kinds = {name: kind.get("_type") for name, kind in features_of(schema).items() if isinstance(kind, dict)}
    named = [name for name in schema.names if kinds.get(name) == "Audio"] or [
        name for name in schema.names if name == AUDIO_COLUMN
    ]
    if len(named) != 1:
        there = ", ".join(schema.names)
        raise ValueError(f"has {len(named) or 'no'} columns of sound (Audio, or `{AUDIO_COLUMN}`); it has {there}")
    return named[0]


def batches_of(path: str) -> Iterator[pa.RecordBatch]:
    """The record batches of a local Arrow stream, mapped into memory.

    Raises:
        ValueError: they claim more bytes than the file has: it is packed or damaged.
        OSError, pyarrow.ArrowException: no such file, or no Arrow stream.
    """
    size = 0
    most = os.path.getsize(path)
    with pa.ipc.open_stream(pa.memory_map(path)) as reader:
        for batch in reader:
            size += batch.get_total_buffer_size()
            if size > most:
                raise ValueError("its batches are larger than the file; write it again, not packed")
            batch.validate(full=True)  # Arrow neither looks whether text is UTF-8 nor where a column points
            yield batch


def schema_of(path: str) -> pa.Schema:
    """The schema of a local Arrow stream; errors as of `batches_of`."""
    with pa.ipc.open_stream(pa.memory_map(path)) as reader:
        return reader.schema


def audio_value(path: str, stamp: tuple[Any, ...], row: int) -> Any:
    """The sound of a row as it is stored: bytes, or a struct with `bytes`.

    Args:
        path: of a local file.
        stamp: what changes when the file is replaced: the key under which its batches are remembered.
        row: counted over the file.

    Raises:
        IndexError: the file has fewer rows.
        ValueError, OSError, pyarrow.ArrowException: as `batches_of`, or the column's bytes are damaged.
    """
    columns, end_N = _audio_columns(path, stamp)
    batch = int(np.searchsorted(end_N, row, side="right"))
    if batch == len(columns):
        raise IndexError(row)
    return columns[batch][row - (int(end_N[batch - 1]) if batch else 0)].as_py()


@lru_cache(maxsize=64)
def _audio_columns(path: str, stamp: tuple[Any, ...]) -> tuple[list[pa.Array], np.ndarray]:
    """The column with the sound of each batch, and how many rows there are up to the end of each."""
    name = audio_column(schema_of(path))
    columns = [batch.column(name) for batch in batches_of(path)]
    return columns, np.cumsum([len(column) for column in columns])
