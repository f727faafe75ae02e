"""Read tables of data sets: CSV as text, and Parquet with a check of its size before it is decoded."""

import csv
import io

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.fs
import pyarrow.parquet as pq

from sepscene.augment.locations import MAX_BYTES, MAX_ROWS

ROWS_AT_ONCE = 65_536
"""Rows of a table that are Python objects at the same time."""


def first_row(name: str) -> int:
    """The number of a table's first row in messages; line 1 of a CSV is its header."""
    return 1 if name.lower().endswith((".parquet", ".jsonl")) else 2


def read_csv(text: str) -> pa.Table:
    """Parse a CSV table; all its cells are text.

    Raises:
        ValueError: there is no header, or a row has too many or too few cells; the message names the row.
    """
    try:
        return pyarrow.csv.read_csv(
            io.BytesIO(text.encode()),
            read_options=pyarrow.csv.ReadOptions(use_threads=False),  # with threads, errors do not name the row
            parse_options=pyarrow.csv.ParseOptions(newlines_in_values=True),
            convert_options=pyarrow.csv.ConvertOptions(
                column_types={name: pa.string() for name in next(csv.reader(io.StringIO(text, newline="")), [])},
                strings_can_be_null=False,
            ),
        )
    except pa.ArrowException as error:
        raise ValueError(f"{error}; a table needs a header, and the same number of cells in every row") from None


def read_parquet_columns(path: str, filesystem: pyarrow.fs.FileSystem, columns: list[str] | None = None) -> pa.Table:
    """Read a Parquet table, after a check of its size.

    Repeated values take few bytes in the file but can be huge in memory, so text stays dictionary-encoded until its
    size is known.

    Raises:
        ValueError: more than `MAX_ROWS` rows or `MAX_BYTES` of text, or text that is not UTF-8.
        OSError, pyarrow.ArrowException: not readable.
    """
    with pq.ParquetFile(path, filesystem=filesystem) as file:
        if file.metadata.num_rows > MAX_ROWS:
            raise ValueError(f"it has {file.metadata.num_rows} rows; at most {MAX_ROWS} can be read; split it")
        leaves = [file.schema.column(n) for n in range(len(file.schema))]
        texts = [leaf.path for leaf in leaves if leaf.physical_type == "BYTE_ARRAY"]
    with pq.ParquetFile(path, filesystem=filesystem, read_dictionary=texts) as file:
        batches = []
        size = 0
        for batch in file.iter_batches(batch_size=ROWS_AT_ONCE, columns=columns):
            size += sum(_bytes_of(column) for column in batch.columns)
            if size > MAX_BYTES:
                raise ValueError(f"its values have more than {MAX_BYTES} bytes; split it")
            batches.append(pa.record_batch([_plain(column) for column in batch.columns], names=batch.schema.names))
        names = file.schema_arrow.names if columns is None else columns
    table = pa.Table.from_batches(batches) if batches else pa.table({name: [] for name in names})
    table.validate(full=True)  # Arrow does not check that text is UTF-8
    return table


def _bytes_of(column: pa.Array) -> int:
    """Size of a column in bytes after its dictionaries are decoded."""
    if pa.types.is_dictionary(column.type):
        lengths = pc.fill_null(pc.binary_length(column.dictionary), 0)
        return int(pc.sum(pc.take(lengths, column.indices)).as_py() or 0)
    if pa.types.is_struct(column.type):
        return sum(_bytes_of(column.field(n)) for n in range(column.type.num_fields))
    if pa.types.is_list(column.type) or pa.types.is_large_list(column.type):
        return _bytes_of(column.flatten())
    return int(column.nbytes)


def _plain(column: pa.Array) -> pa.Array:
    return column.dictionary_decode() if pa.types.is_dictionary(column.type) else column
