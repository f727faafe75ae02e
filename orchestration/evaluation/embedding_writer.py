"""The output of `sepscene embed`: .npy or .parquet, written in parts, so that whatever is done stays done.

While it grows, `OUT.parts/` holds whole Parquet files; at the end they become OUT in one step. NAME.npy has
a companion NAME.names.json with the names of its rows.

Shapes: N files, D embedding.
"""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from sepscene.models.config import SepsceneError
from sepscene.models.files import write_atomically

ENCODER_KEY = b"sepscene.encoder"
Rows = tuple[list[str], np.ndarray]


class EmbeddingOutput:
    """Rows (name, h) on their way into one file.

    Opening it finds what an earlier call left, finished or not: `done` holds the names of those rows. Rows
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
        self.out, self.encoder, self.dim = out, encoder, dim
        self.parts = out.with_name(out.name + ".parts")
        self.names_file = out.with_suffix(".names.json")
        self.parts.mkdir(parents=True, exist_ok=True)
        self._finish_a_move()
        self.done = {name for names, _ in self._rows() for name in names}
        self._next = 1 + max((int(path.stem) for path in self.parts.glob("*.parquet")), default=-1)

    def add(self, names: list[str], h_ND: np.ndarray) -> None:
        """Keep rows for good, as one part."""
        if names:
            sink = pa.BufferOutputStream()
            pq.write_table(self._table(names, h_ND), sink)
            write_atomically(self.parts / f"{self._next:08d}.parquet", sink.getvalue().to_pybytes())
            self.done.update(names)
            self._next += 1

    def finish(self) -> None:
        """Make OUT of all rows and remove the parts. Without any row nothing is left behind."""
        if any(self.parts.glob("*.parquet")):
            self._merge_npy() if self.out.suffix == ".npy" else self._merge_parquet()
        shutil.rmtree(self.parts)

    def _table(self, names: list[str], h_ND: np.ndarray) -> pa.Table:
        flat = pa.array(np.ascontiguousarray(h_ND, dtype=np.float32).reshape(-1))
        columns = {
            "uri": pa.array(names, pa.string()),
            "h": pa.FixedSizeListArray.from_arrays(flat, self.dim),
        }
        return pa.table(columns).replace_schema_metadata({ENCODER_KEY: self.encoder.encode()})

    def _rows(self) -> Iterator[Rows]:
        """All rows there are, OUT's first, each name once."""
        seen: set[str] = set()
        for names, h_ND in self._all_rows():
            new = [index for index, name in enumerate(names) if name not in seen]
            seen.update(names)
            yield [names[index] for index in new], h_ND[new]

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
            companion = json.loads(self.names_file.read_text())
            names, encoder = companion["names"], companion["encoder"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise SepsceneError(
                f"{self.out} with {self.names_file.name} cannot be continued ({error}): remove both "
                "or choose another --out"
            ) from None
        self._refuse_other(self.out, encoder, h_ND.shape[1:] == (self.dim,) and len(names) == len(h_ND))
        return names, h_ND

    def _read_parquet(self, path: Path) -> Iterator[Rows]:
        try:
            with pq.ParquetFile(path) as file:
                schema = file.schema_arrow
                encoder = (schema.metadata or {}).get(ENCODER_KEY, b"").decode()
                fits = schema.names == ["uri", "h"] and schema.field("h").type == pa.list_(pa.float32(), self.dim)
                self._refuse_other(path, encoder, fits)
                for batch in file.iter_batches():
                    h_ND = batch["h"].flatten().to_numpy().reshape(-1, self.dim)
                    yield batch["uri"].to_pylist(), h_ND
        except (OSError, pa.ArrowException) as error:
            raise SepsceneError(f"{path} cannot be continued ({error}): remove it, or choose another --out") from None

    def _refuse_other(self, path: Path, encoder: str, fits: bool) -> None:
        if encoder != self.encoder or not fits:
            raise SepsceneError(f"{path} holds rows of another encoder: remove it, or choose another --out")

    def _merge_parquet(self) -> None:
        merged = self.parts / "merged"
        with pq.ParquetWriter(merged, self._table([], np.zeros((0, self.dim))).schema) as writer:
            for names, h_ND in self._rows():
                writer.write_table(self._table(names, h_ND))
        merged.replace(self.out)

    def _merge_npy(self) -> None:
        merged, names_file = self.parts / "merged.npy", self.parts / "merged.names.json"
        names: list[str] = []
        h_ND = np.lib.format.open_memmap(merged, mode="w+", dtype=np.float32, shape=(len(self.done), self.dim))
        for some, rows_ND in self._rows():
            h_ND[len(names) : len(names) + len(some)] = rows_ND
            names += some
        h_ND.flush()
        write_atomically(names_file, json.dumps({"encoder": self.encoder, "names": names}, indent=0).encode())
        merged.replace(self.out)
        names_file.replace(self.names_file)

    def _finish_a_move(self) -> None:
        """An earlier call may have died between moving the rows and moving their names, or before either."""
        merged, names_file = self.parts / "merged.npy", self.parts / "merged.names.json"
        if names_file.exists() and not merged.exists():
            names_file.replace(self.names_file)
        for leftover in (merged, names_file, self.parts / "merged"):
            leftover.unlink(missing_ok=True)
