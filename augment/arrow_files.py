"""Rows of Arrow files that hold sound, as written by Hugging Face `datasets.save_to_disk`. Files are memory-mapped.

The sound is in the column of type Audio according to the schema, or else in the column `audio`.

Shapes: N record batches of a file.
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
    """The features of a Hugging Face schema: column name -> description; empty for any other schema."""
    try:
        found = parse_json((schema.metadata or {}).get(b"huggingface", b"{}"))["info"]["features"]
    except (KeyError, ValueError, TypeError):
        return {}
    return found if isinstance(found, dict) else {}


def audio_column(schema: pa.Schema) -> str:
    """Name of the column that holds the sound.

    Raises:
        ValueError: there is no such column, or more than one.
    """
    kinds = {name: kind.get("_type") for name, kind in features_of(schema).items() if isinstance(kind, dict)}
    named = [name for name in schema.names if kinds.get(name) == "Audio"] or [
        name for name in schema.names if name == AUDIO_COLUMN
    ]
    if len(named) != 1:
        columns = ", ".join(schema.names)
        raise ValueError(
            f"has {len(named) or 'no'} audio columns (type Audio, or name `{AUDIO_COLUMN}`); its columns are {columns}"
        )
    return named[0]


def batches_of(path: str) -> Iterator[pa.RecordBatch]:
    """The record batches of a local Arrow stream, memory-mapped.

    Raises:
        ValueError: the batches are larger than the file, which is compressed or damaged.
        OSError, pyarrow.ArrowException: the file is missing or not an Arrow stream.
    """
    size = 0
    most = os.path.getsize(path)
    with pa.ipc.open_stream(pa.memory_map(path)) as reader:
        for batch in reader:
            size += batch.get_total_buffer_size()
            if size > most:
                raise ValueError("its batches are larger than the file; write it again without compression")
            batch.validate(full=True)  # by default Arrow checks neither UTF-8 nor column offsets
            yield batch


def schema_of(path: str) -> pa.Schema:
    """The schema of a local Arrow stream. Raises the errors of `batches_of`."""
    with pa.ipc.open_stream(pa.memory_map(path)) as reader:
        return reader.schema


def audio_value(path: str, stamp: tuple[Any, ...], row: int) -> Any:
    """The sound of a row as stored: bytes, or a struct with a field `bytes`.

    Args:
        path: path of a local file.
        stamp: cache key of the file's batches; it must change when the file is replaced.
        row: row number in the file.

    Raises:
        IndexError: the file has fewer rows.
        ValueError, OSError, pyarrow.ArrowException: as `batches_of`, or the column is damaged.
    """
    columns, end_N = _audio_columns(path, stamp)
    batch = int(np.searchsorted(end_N, row, side="right"))
    if batch == len(columns):
        raise IndexError(row)
    return columns[batch][row - (int(end_N[batch - 1]) if batch else 0)].as_py()


@lru_cache(maxsize=64)
def _audio_columns(path: str, stamp: tuple[Any, ...]) -> tuple[list[pa.Array], np.ndarray]:
    """The audio column of each batch, and the cumulative number of rows."""
    name = audio_column(schema_of(path))
    columns = [batch.column(name) for batch in batches_of(path)]
    return columns, np.cumsum([len(column) for column in columns])
