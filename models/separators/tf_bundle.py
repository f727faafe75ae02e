"""Reads TensorFlow's checkpoint bundles (PREFIX.index, PREFIX.data-*) without TensorFlow.

There is no small maintained reader for Python, and TensorFlow is a large dependency for importing a checkpoint. This
file reads the format of `tf.train.Saver`: the index is a LevelDB table whose values are protocol buffers
(tensor_bundle.proto), and the shards are raw little-endian tensors. All checksums are verified.
"""

from __future__ import annotations

import math
import struct
from collections import defaultdict
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numba
import numpy as np

from sepscene.models.config import CheckpointError

_TABLE_MAGIC = bytes.fromhex("57fb808b247547db")
"""Last eight bytes of a table file of TensorFlow (the format is that of LevelDB)."""
_FOOTER_BYTES = 48  # two block handles of at most 20 bytes each, and the magic number
_DTYPES = {1: "<f4", 2: "<f8", 3: "<i4", 4: "u1", 6: "i1", 9: "<i8", 10: "?", 19: "<f2"}
"""Numpy types by the numbers of TensorFlow's DataType."""


class _Damaged(Exception):
    """The index is damaged; the caller adds the name of the file."""


@dataclass(frozen=True)
class BundleEntry:
    """Location and type of one variable. `dtype` is TensorFlow's number; a `sliced` variable has several entries."""

    dtype: int
    shape: tuple[int, ...]
    shard: int
    offset: int
    size: int
    crc32c: int
    sliced: bool


class TFBundle:
    """A checkpoint bundle: `entries` by variable name, and `read` for their values."""

    def __init__(self, prefix: str | Path):
        """Read the index of a bundle.

        Args:
            prefix: prefix of the files (`…/model.ckpt-1234`), or the name of one of them.

        Raises:
            CheckpointError: the index is missing, damaged or of another format.
        """
        text = str(prefix).removesuffix(".index").removesuffix(".meta")
        self.prefix = Path(text.split(".data-")[0])
        self.index = Path(f"{self.prefix}.index")
        if not self.index.is_file():
            raise CheckpointError(
                f"{self.index} is missing: give the prefix of a TensorFlow checkpoint (model.ckpt-1234 for "
                "model.ckpt-1234.index and model.ckpt-1234.data-00000-of-00001)"
            )
        try:
            rows = _table(self.index.read_bytes())
            header = _fields(rows.pop(b"", b""))
            if not header:
                raise _Damaged("it has no header")
            self.entries = {name.decode(): _entry(value) for name, value in rows.items()}
            self.shards = _number(header, 1)
            big_endian = _number(header, 2)
        except (_Damaged, IndexError, OverflowError, TypeError, struct.error, UnicodeDecodeError) as error:
            message = f"{self.index} is damaged or not a checkpoint index: {error}; copy it again"
            raise CheckpointError(message) from error
        if big_endian:
            raise CheckpointError(f"{self.index} was written on a big-endian machine, which is not supported")

    def read(self, name: str) -> np.ndarray:
        """The value of a variable.

        Raises:
            CheckpointError: the variable is unknown, not numeric, or its shard is missing or damaged.
        """
        if name not in self.entries:
            raise CheckpointError(f"{self.index} has no variable {name}")
        entry = self.entries[name]
        if entry.sliced or entry.dtype not in _DTYPES:
            kind = "partitioned" if entry.sliced else f"of TensorFlow's type {entry.dtype}"
            raise CheckpointError(f"variable {name} in {self.index} is {kind}, which is not supported")
        shard = Path(f"{self.prefix}.data-{entry.shard:05d}-of-{self.shards:05d}")
        if not shard.is_file():
            raise CheckpointError(f"{shard} is missing: copy all files of the checkpoint together")
        dtype = np.dtype(_DTYPES[entry.dtype])
        whole = entry.offset + entry.size <= shard.stat().st_size  # before reading: the index can claim any size
        if not whole or entry.size != dtype.itemsize * math.prod(entry.shape):
            raise CheckpointError(f"{shard} is truncated: variable {name} is not complete; copy it again")
        with shard.open("rb") as file:
            file.seek(entry.offset)
            content = file.read(entry.size)
        if mask(crc32c(content)) != entry.crc32c:
            raise CheckpointError(f"{shard} is damaged: the checksum of variable {name} differs; copy it again")
        return np.frombuffer(content, dtype).reshape(entry.shape)


def crc32c(data: bytes) -> int:
    """CRC-32C (Castagnoli) of `data`, bit by bit as defined; with Numba this is fast enough."""
    return int(_crc32c(np.frombuffer(data, np.uint8)))


@numba.njit
def _crc32c(data: np.ndarray) -> int:
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = (crc >> 1) ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def mask(crc: int) -> int:
    """Mask a CRC as LevelDB and TensorFlow do, so that the CRC of data that contains CRCs is not degenerate."""
    return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF


def _table(content: bytes) -> dict[bytes, bytes]:
    """All rows of a LevelDB table."""
    if len(content) < _FOOTER_BYTES or not content.endswith(_TABLE_MAGIC):
        raise _Damaged("it does not end like a LevelDB table")
    footer = BytesIO(content[-_FOOTER_BYTES:])
    _handle(footer)  # the metaindex, which is empty in bundles
    rows = {}
    for handle in _rows(_block(content, *_handle(footer))).values():
        rows.update(_rows(_block(content, *_handle(BytesIO(handle)))))
    return rows


def _handle(stream: BytesIO) -> tuple[int, int]:
    """Offset and size of a block."""
    return _varint(stream), _varint(stream)


def _block(content: bytes, offset: int, size: int) -> bytes:
    trailer = content[offset + size : offset + size + 5]
    if len(trailer) < 5:
        raise _Damaged("it is truncated")
    if mask(crc32c(content[offset : offset + size + 1])) != struct.unpack("<I", trailer[1:])[0]:
        raise _Damaged(f"the checksum of the block at byte {offset} differs")
    if trailer[0] != 0:
        raise _Damaged("it is compressed, but TensorFlow writes no compressed blocks")
    return content[offset : offset + size]


def _rows(block: bytes) -> dict[bytes, bytes]:
    """Rows of a block; each key is stored as the length of the prefix shared with the previous key, and the rest."""
    end = len(block) - 4 - 4 * struct.unpack("<I", block[-4:])[0]
    stream = BytesIO(block)
    rows = {}
    key = b""
    while stream.tell() < end:
        shared = _varint(stream)
        unshared = _varint(stream)
        size = _varint(stream)
        key = key[:shared] + stream.read(unshared)
        rows[key] = stream.read(size)
    return rows


def _varint(stream: BytesIO) -> int:
    value = 0
    for shift in range(0, 64, 7):
        byte = stream.read(1)[0]
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value
    raise _Damaged(f"the number before byte {stream.tell()} is too long")


def _fields(message: bytes) -> dict[int, list[Any]]:
    """The fields of a protocol buffer: numbers as int, strings and messages as bytes."""
    found = defaultdict[int, list[Any]](list)
    stream = BytesIO(message)
    while stream.tell() < len(message):
        tag = _varint(stream)
        if tag & 7 == 0:
            found[tag >> 3].append(_varint(stream))
        elif tag & 7 == 2:
            found[tag >> 3].append(stream.read(_varint(stream)))
        elif tag & 7 == 5:
            found[tag >> 3] += struct.unpack("<I", stream.read(4))
        else:
            raise _Damaged(f"a field has the unexpected wire type {tag & 7}")
    return found


def _number(fields: dict[int, list[Any]], key: int) -> int:
    value = fields.get(key, [0])[-1]
    if not isinstance(value, int):
        raise _Damaged(f"field {key} is not a number")
    return value


def _entry(message: bytes) -> BundleEntry:
    fields = _fields(message)
    dimensions = [dimension for shape in fields.get(2, []) for dimension in _fields(shape).get(2, [])]
    return BundleEntry(
        dtype=_number(fields, 1),
        shape=tuple(_number(_fields(dimension), 1) for dimension in dimensions),
        shard=_number(fields, 3),
        offset=_number(fields, 4),
        size=_number(fields, 5),
        crc32c=_number(fields, 6),
        sliced=7 in fields,
    )
