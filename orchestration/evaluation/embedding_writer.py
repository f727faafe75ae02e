"""The output of `sepscene embed`: .npy or .parquet, written in parts, so that whatever is done stays done.

While it grows, `OUT.parts/` holds whole Parquet files; at the end they become OUT in one step. NAME.npy has
a companion NAME.names.json with the names of its rows.

Shapes: N files, D embedding.
"""

import json
import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, TypeAdapter

from sepscene.augment.locations import local_path, split_member
from sepscene.models.config import SepsceneError
from sepscene.models.files import write_atomically

ENCODER_KEY = b"sepscene.encoder"
SOURCES_KEY = b"sepscene.sources"


class _Companion(BaseModel):
    """What NAME.names.json holds."""

    names: list[str]
    encoder: str
    sources: dict[str, str] = {}


Rows = tuple[list[str], list[str], np.ndarray]
"""Names, sources and h (N, D)."""


def source_of(name: str) -> str:
    """Which file a name means, and which version of it: its absolute path, size and time; of a remote one the URI."""
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
    """Rows (name, h) on their way into one file.

    Opening it finds what an earlier call left, finished or not: `sources` holds the names of those rows. Rows
    that an existing OUT holds stay in it; new ones follow.

    Args:
        out: path that ends in .npy or .parquet.
        encoder: digest of the encoder; rows of another encoder are not mixed in.
        dim: size D of a row.

    Raises:
        SepsceneError: another suffix, or the rows found are damaged or of another encoder.
    """

    def __init__(self, out: Path, encoder: str, dim: int) -> None:
        if out.suffix not in (".npy", ".parquet"):
            raise SepsceneError(f"--out {out}: the name must end in .npy or .parquet")
        self.out = out
        self.encoder = encoder
        self.dim = dim
        self.parts = out.with_name(out.name + ".parts")
        self.names_file = out.with_suffix(".names.json")
        try:
            self.parts.mkdir(parents=True, exist_ok=True)
            self._finish_a_move()
        except OSError as error:
            raise SepsceneError(f"--out {out} cannot be written ({error.strerror}): choose another place") from None
        self.sources: dict[str, str] = {}
        """Name -> which file it was, as `source_of` says it; empty where an older version wrote the row."""
        for names, sources, _ in self._rows():
            self.sources.update(zip(names, sources, strict=True))
        self._next = 1 + max((int(path.stem) for path in self.parts.glob("*.parquet")), default=-1)

    def missing(self, names: Iterable[str]) -> list[str]:
        """Those of the names that have no row yet.

        Raises:
            SepsceneError: a row has the name of another file, or its file has changed since.
        """
        todo = []
        for name in names:
            known = self.sources.get(name)
            if known is None:
                todo.append(name)
            elif known and known != source_of(name):
                raise SepsceneError(
                    f"{self.out} holds a row for {name} of another file, or the file has changed since: choose another "
                    "--out, or give absolute names"
                )
        return todo

    def add(self, names: list[str], h_ND: np.ndarray) -> None:
        """Keep rows for good, as one part.

        Raises:
            SepsceneError: the disk is full, or the folder is gone.
        """
        sink = pa.BufferOutputStream()
        sources = {name: source_of(name) for name in names}
        pq.write_table(self._table(names, h_ND, sources), sink)
        part = self.parts / f"{self._next:08d}.parquet"
        try:
            write_atomically(part, sink.getvalue().to_pybytes())
        except OSError as error:
            raise SepsceneError(
                f"{part} cannot be written ({error.strerror}): make room, then give the same command again; what was "
                "done before is kept"
            ) from None
        self.sources |= sources
        self._next += 1

    def finish(self) -> None:
        """Make OUT of all rows and remove the parts. Without any row nothing is left behind."""
        if any(self.parts.glob("*.parquet")):
            self._merge_npy() if self.out.suffix == ".npy" else self._merge_parquet()
        shutil.rmtree(self.parts)

    def _table(self, names: list[str], h_ND: np.ndarray, sources: dict[str, str]) -> pa.Table:
        """The rows; which files they are of stands beside them, in the metadata."""
        flat = pa.array(np.ascontiguousarray(h_ND, dtype=np.float32).reshape(-1))
        columns = {"uri": pa.array(names, pa.string()), "h": pa.FixedSizeListArray.from_arrays(flat, self.dim)}
        return pa.table(columns, metadata={ENCODER_KEY: self.encoder.encode(), SOURCES_KEY: json.dumps(sources)})

    def _rows(self) -> Iterator[Rows]:
        """All rows there are, OUT's first, each name once."""
        seen: set[str] = set()
        for names, sources, h_ND in self._all_rows():
            new = [index for index, name in enumerate(names) if name not in seen]
            seen.update(names)
            yield [names[index] for index in new], [sources[index] for index in new], h_ND[new]

    def _all_rows(self) -> Iterator[Rows]:
        if self.out.exists() and self.out.suffix == ".npy":
            yield self._read_npy()
        elif self.out.exists():
            yield from self._read_parquet(self.out)
        for part in sorted(self.parts.glob("*.parquet")):
            yield from self._read_parquet(part)

    def _read_npy(self) -> Rows:
        try:
            h_ND = np.load(self.out, mmap_mode="r", allow_pickle=False)
            companion = _Companion.model_validate_json(self.names_file.read_bytes())
        except (OSError, ValueError) as error:
            raise SepsceneError(
                f"{self.out} with {self.names_file.name} cannot be continued ({error}): remove both "
                "or choose another --out"
            ) from None
        names = companion.names
        self._refuse_other(self.out, companion.encoder, h_ND.shape[1:] == (self.dim,) and len(names) == len(h_ND))
        return names, [companion.sources.get(name, "") for name in names], h_ND

    def _read_parquet(self, path: Path) -> Iterator[Rows]:
        try:
            with pq.ParquetFile(path) as file:
                schema = file.schema_arrow
                encoder = (schema.metadata or {}).get(ENCODER_KEY, b"").decode()
                fits = schema.names == ["uri", "h"] and schema.field("h").type == pa.list_(pa.float32(), self.dim)
                self._refuse_other(path, encoder, fits)
                known = TypeAdapter(dict[str, str]).validate_json((schema.metadata or {}).get(SOURCES_KEY, b"{}"))
                for batch in file.iter_batches():
                    h_ND = batch["h"].flatten().to_numpy().reshape(-1, self.dim)
                    names = batch["uri"].to_pylist()
                    yield names, [known.get(name, "") for name in names], h_ND
        except (OSError, ValueError, pa.ArrowException) as error:
            raise SepsceneError(f"{path} cannot be continued ({error}): remove it, or choose another --out") from None

    def _refuse_other(self, path: Path, encoder: str, fits: bool) -> None:
        if encoder != self.encoder or not fits:
            raise SepsceneError(f"{path} holds rows of another encoder: remove it, or choose another --out")

    def _merge_parquet(self) -> None:
        merged = self.parts / "merged"
        with pq.ParquetWriter(merged, self._table([], np.zeros((0, self.dim)), self.sources).schema) as writer:
            for names, _, h_ND in self._rows():
                writer.write_table(self._table(names, h_ND, {}))
        merged.replace(self.out)

    def _merge_npy(self) -> None:
        merged = self.parts / "merged.npy"
        names_file = self.parts / "merged.names.json"
        names: list[str] = []
        h_ND = np.lib.format.open_memmap(merged, mode="w+", dtype=np.float32, shape=(len(self.sources), self.dim))
        for some, _, rows_ND in self._rows():
            h_ND[len(names) : len(names) + len(some)] = rows_ND
            names += some
        h_ND.flush()
        companion = {"encoder": self.encoder, "names": names, "sources": self.sources}
        write_atomically(names_file, json.dumps(companion, indent=0).encode())
        merged.replace(self.out)
        names_file.replace(self.names_file)

    def _finish_a_move(self) -> None:
        """An earlier call may have died between moving the rows and moving their names, or before either."""
        merged = self.parts / "merged.npy"
        names_file = self.parts / "merged.names.json"
        if names_file.exists() and not merged.exists():
            names_file.replace(self.names_file)
        for leftover in (merged, names_file, self.parts / "merged"):
            leftover.unlink(missing_ok=True)
