"""The output of `sepscene embed`: .npy or .parquet, written in parts, so that an interrupted call keeps its rows.

During a call, the rows are written to complete Parquet files in `OUT.parts/`; at the end they are merged into OUT,
which is replaced atomically. NAME.npy has a companion file NAME.names.json with the names of its rows.

Shapes: N files, D embedding.
"""

import json
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, TypeAdapter

from sepscene.augment.locations import local_path, split_member
from sepscene.models.config import SepsceneError
from sepscene.models.files import replace_file, write_atomically
from sepscene.orchestration.records.arrays import create_array

ENCODER_KEY = b"sepscene.encoder"
SOURCES_KEY = b"sepscene.sources"


class _Companion(BaseModel):
    """The content of NAME.names.json."""

    names: list[str]
    encoder: str
    sources: dict[str, str] = {}


Rows = Iterator[tuple[list[str], np.ndarray, dict[str, str]]]
"""Names of N rows, their h (N, D), and the sources of their file by name."""


def source_of(name: str) -> str:
    """Identifies a file and its version: absolute path, size and time of modification; the URI of a remote file."""
    archive, member = split_member(name)
    local = local_path(archive)
    if local is None:
        return name
    try:
        found = os.stat(local)
    except OSError:
        return os.path.abspath(local)
    return f"{os.path.abspath(local)}#{member or ''} {found.st_size} {found.st_mtime_ns}"


class EmbeddingOutput:
    """Writes rows (name, h) to one file.

    The constructor finds the rows of earlier calls, finished or not: `sources` has their names. The rows of an existing
    OUT are kept, and new ones are appended.

    Args:
        out: path that ends in .npy or .parquet.
        encoder: digest of the encoder; all rows must be of the same encoder.
        dim: size D of a row.

    Raises:
        SepsceneError: when the suffix is not supported, OUT cannot be written, or existing rows are damaged or of
            another encoder.
    """

    def __init__(self, out: Path, encoder: str, dim: int) -> None:
        if out.suffix not in (".npy", ".parquet"):
            raise SepsceneError(f"--out {out}: the name must end in .npy or .parquet")
        self.out = out
        self.encoder = encoder
        self.dim = dim
        self.parts = out.with_name(out.name + ".parts")
        self.names_file = out.with_suffix(".names.json")
        self._merged = self.parts / ("merged.npy" if out.suffix == ".npy" else "merged")  # no *.parquet: not a part
        self._merged_names = self.parts / "merged.names.json"
        try:
            self.parts.mkdir(parents=True, exist_ok=True)
            self._recover_merge()
        except OSError as error:
            raise SepsceneError(f"--out {out} cannot be written ({error.strerror}): choose another path") from None
        self.sources: dict[str, str] = {}
        """Name -> the file that was embedded, from `source_of`; empty if an older version wrote the row."""
        for names, _, sources in self._rows():
            self.sources.update((name, sources.get(name, "")) for name in names)
        self._next = 1 + max((int(path.stem) for path in self.parts.glob("*.parquet")), default=-1)

    def missing(self, names: Iterable[str]) -> list[str]:
        """The names that have no row yet.

        Raises:
            SepsceneError: when a row of the same name is of another file, or its file has changed since.
        """
        todo = []
        for name in names:
            known = self.sources.get(name)
            if known is None:
                todo.append(name)
            elif known and known != source_of(name):
                raise SepsceneError(
                    f"{self.out} contains a row for {name} of another file, or the file has changed since: choose "
                    "another --out, or give absolute paths"
                )
        return todo

    def add(self, names: list[str], h_ND: np.ndarray) -> None:
        """Write rows permanently, as one part.

        Raises:
            SepsceneError: when the disk is full, or the folder has been removed.
        """
        sink = pa.BufferOutputStream()
        sources = {name: source_of(name) for name in names}
        pq.write_table(self._table(names, h_ND, sources), sink)
        with self._writing():
            write_atomically(self.parts / f"{self._next:08d}.parquet", sink.getvalue().to_pybytes())
        self.sources |= sources
        self._next += 1

    def finish(self) -> None:
        """Merge all rows into OUT and remove the parts. Without rows, no file is written.

        Raises:
            SepsceneError: when the disk is full; the parts are kept.
        """
        if any(self.parts.glob("*.parquet")):
            merge = self._merge_npy if self.out.suffix == ".npy" else self._merge_parquet
            with self._writing():
                try:
                    merge()
                except OSError:
                    self._discard_merge()
                    raise
        shutil.rmtree(self.parts)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise SepsceneError(
                f"{self.out} cannot be written ({error.strerror}): free disk space, then run the same command again; "
                "finished rows are kept"
            ) from None

    def _table(self, names: list[str], h_ND: np.ndarray, sources: dict[str, str]) -> pa.Table:
        """The rows as a table; its metadata has the encoder and the sources."""
        flat = pa.array(np.ascontiguousarray(h_ND, dtype=np.float32).reshape(-1))
        columns = {"uri": pa.array(names, pa.string()), "h": pa.FixedSizeListArray.from_arrays(flat, self.dim)}
        return pa.table(columns, metadata={ENCODER_KEY: self.encoder.encode(), SOURCES_KEY: json.dumps(sources)})

    def _rows(self) -> Rows:
        """All rows, those of OUT first, without duplicate names."""
        seen: set[str] = set()
        read_out = self._read_npy if self.out.suffix == ".npy" else self._read_parquet
        parts = sorted(self.parts.glob("*.parquet"))
        for rows in (read_out(self.out) if self.out.exists() else (), *map(self._read_parquet, parts)):
            for names, h_ND, sources in rows:
                new = [index for index, name in enumerate(names) if name not in seen]
                seen.update(names)
                yield [names[index] for index in new], h_ND[new], sources

    def _read_npy(self, path: Path) -> Rows:
        try:
            h_ND = np.load(path, mmap_mode="r", allow_pickle=False)
            companion = _Companion.model_validate_json(self.names_file.read_bytes())
        except (OSError, ValueError) as error:
            raise SepsceneError(
                f"{path} with {self.names_file.name} cannot be continued ({error}): remove both, "
                "or choose another --out"
            ) from None
        fits = h_ND.shape[1:] == (self.dim,) and len(companion.names) == len(h_ND)
        self._check(path, companion.encoder, fits)
        yield companion.names, h_ND, companion.sources

    def _read_parquet(self, path: Path) -> Rows:
        try:
            with pq.ParquetFile(path) as file:
                schema = file.schema_arrow
                metadata = schema.metadata or {}
                fits = schema.names == ["uri", "h"] and schema.field("h").type == pa.list_(pa.float32(), self.dim)
                self._check(path, metadata.get(ENCODER_KEY, b"").decode(), fits)
                sources = TypeAdapter(dict[str, str]).validate_json(metadata.get(SOURCES_KEY, b"{}"))
                for batch in file.iter_batches():
                    yield batch["uri"].to_pylist(), batch["h"].flatten().to_numpy().reshape(-1, self.dim), sources
        except (OSError, ValueError, pa.ArrowException) as error:
            raise SepsceneError(f"{path} cannot be continued ({error}): remove it, or choose another --out") from None

    def _check(self, path: Path, encoder: str, fits: bool) -> None:
        if encoder != self.encoder or not fits:
            raise SepsceneError(f"{path} contains rows of another encoder: remove it, or choose another --out")

    def _merge_parquet(self) -> None:
        with pq.ParquetWriter(self._merged, self._table([], np.zeros((0, self.dim)), self.sources).schema) as writer:
            for names, h_ND, _ in self._rows():
                writer.write_table(self._table(names, h_ND, {}))
        replace_file(self._merged, self.out)

    def _merge_npy(self) -> None:
        names: list[str] = []
        h_ND = create_array(self._merged, (len(self.sources), self.dim), np.float32)
        for some, rows_ND, _ in self._rows():
            h_ND[len(names) : len(names) + len(some)] = rows_ND
            names += some
        h_ND.flush()
        companion = {"encoder": self.encoder, "names": names, "sources": self.sources}
        write_atomically(self._merged_names, json.dumps(companion, indent=0).encode())
        replace_file(self._merged, self.out)
        replace_file(self._merged_names, self.names_file)

    def _recover_merge(self) -> None:
        """Recover from a call that was killed while it merged: before the rows were moved, or before their names."""
        if self._merged_names.exists() and not self._merged.exists():
            replace_file(self._merged_names, self.names_file)
        self._discard_merge()

    def _discard_merge(self) -> None:
        """Remove an unfinished merge. Names without rows are kept: their rows are already in OUT."""
        if self._merged.exists():
            self._merged_names.unlink(missing_ok=True)  # first, because a call that is killed here would keep them
            self._merged.unlink()
