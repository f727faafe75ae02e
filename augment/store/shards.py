"""Shards: immutable files of many separated clips, and reading crops from them.

The sound is raw 16-bit PCM, so that the position of a crop can be computed: one range read, no codec, no table of
sizes. FLAC would halve the size, but make reading a crop twenty times slower (benchmarks/store.py).

Layout, little endian throughout:

    MAGIC                                        8 bytes
    entry, entry, ...                            channels one after another, each a sequence of segments:
        segment = crc32 (4) | int16 samples      segment_samples of them; the last of a channel is shorter
    footer                                       Arrow IPC stream with one row per entry, see FOOTER
    length of the footer (8) | its crc32 (4) | MAGIC (8)

The CRC of a segment includes (key, channel, segment number), so that sound stored under the wrong key is detected as
damage, like a flipped bit.

Shape suffixes: S channels (separated outputs), T samples.
"""

import hashlib
import math
import struct
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

MAGIC = b"SEPSHRD1"
FOOTER = pa.schema(
    [
        ("key", pa.binary(16)),  # StoreKey.digest()
        ("content", pa.string()),
        ("processor", pa.dictionary(pa.int32(), pa.string())),
        ("settings", pa.dictionary(pa.int32(), pa.string())),
        ("offset", pa.uint64()),  # of the entry's first byte in the shard
        ("channels", pa.uint16()),
        ("samples", pa.uint32()),  # of each channel
        ("levels", pa.list_(pa.float32())),  # RMS of each channel, dBFS
    ]
)
_CRC = struct.Struct("<I")
_TRAILER = struct.Struct("<QI8s")
_SEED = struct.Struct("<16sII")
_TAIL_BYTES = 64 * 1024  # first guess at trailer + footer: one read for small shards, two for large ones


class ShardDamage(Exception):
    """The footer of a shard is missing or damaged, so that no entry can be read."""


@dataclass(frozen=True)
class StoreKey:
    """Key of a stored clip.

    Attributes:
        content: content hash of the clip.
        processor: digest of the separator's checkpoint, or "mixture" for the clip itself.
        settings: everything else that changes the samples (sample rate, clip length, offset, …), as one string.
    """

    content: str
    processor: str
    settings: str

    def digest(self) -> bytes:
        """The key in the index, 16 bytes."""
        text = "\0".join((self.content, self.processor, self.settings))
        return hashlib.blake2b(text.encode(), digest_size=16).digest()


@dataclass(frozen=True)
class EntryLocation:
    """Offset of an entry in its shard, its shape, and its segment length."""

    offset: int
    channels: int
    samples: int
    segment_samples: int


@dataclass(frozen=True)
class Entry:
    """One separated clip, encoded."""

    key: StoreKey
    location: EntryLocation
    """In `data`, so its offset is 0."""
    levels: np.ndarray
    data: bytes


def encode_entry(key: StoreKey, wave_ST: np.ndarray, levels: np.ndarray, segment_samples: int) -> Entry:
    """Encode a separated clip as segments with checksums."""
    digest = key.digest()
    channels, samples = wave_ST.shape
    pieces: list[bytes | memoryview] = []
    for channel in range(channels):
        pcm = memoryview(wave_ST[channel].astype("<i2").tobytes())
        for number, begin in enumerate(range(0, 2 * samples, 2 * segment_samples)):
            payload = pcm[begin : begin + 2 * segment_samples]
            pieces += (_CRC.pack(_checksum(digest, channel, number, payload)), payload)
    location = EntryLocation(0, channels, samples, segment_samples)
    return Entry(key, location, np.asarray(levels, np.float32).copy(), b"".join(pieces))


def read_crop(
    read_at: Callable[[int, int], bytes], digest: bytes, location: EntryLocation, channel: int, start: int, samples: int
) -> np.ndarray | None:
    """Read `samples` samples of one channel of an entry from the segments that hold them.

    Args:
        read_at: reads a number of bytes from an offset of the shard; called once.
        digest: key of the entry.
        location: location of the entry in the shard.
        channel: number of the channel.
        start: first sample.
        samples: number of samples.

    Returns:
        int16 (samples,), writable; None if a checksum fails or bytes are missing.

    Raises:
        ValueError: the entry has no such channel, or is too short.
    """
    if not (0 <= channel < location.channels and start >= 0 and 1 <= samples <= location.samples - start):
        raise ValueError(
            f"channel {channel}, samples {start} to {start + samples} are outside of an entry with "
            f"{location.channels} channels of {location.samples} samples: StoreKey.settings must "
            "differ between clip lengths and numbers of sources"
        )
    segment = location.segment_samples
    first = start // segment
    last = (start + samples - 1) // segment
    stride = _CRC.size + 2 * segment
    channel_bytes = 2 * location.samples + _CRC.size * math.ceil(location.samples / segment)
    end_sample = min((last + 1) * segment, location.samples)
    count = (last - first + 1) * _CRC.size + 2 * (end_sample - first * segment)
    raw = read_at(count, location.offset + channel * channel_bytes + first * stride)
    if len(raw) != count:
        return None
    view = memoryview(raw)
    payloads = []
    for number, begin in enumerate(range(0, count, stride), start=first):
        payload = view[begin + _CRC.size : begin + stride]
        if _CRC.unpack_from(view, begin)[0] != _checksum(digest, channel, number, payload):
            return None
        payloads.append(payload)
    wave_T = np.frombuffer(b"".join(payloads), "<i2")
    skip = start - first * segment
    return wave_T[skip : skip + samples].astype(np.int16)


def _checksum(digest: bytes, channel: int, segment: int, payload: memoryview) -> int:
    return zlib.crc32(payload, zlib.crc32(_SEED.pack(digest, channel, segment)))


def shard_pieces(entries: Sequence[Entry], segment_samples: int) -> tuple[list[bytes], pa.Table]:
    """The byte strings to be written one after another as a shard, and its footer as a table."""
    rows = []
    offset = len(MAGIC)
    for entry in entries:
        place = vars(entry.location) | {"offset": offset, "levels": entry.levels}
        rows.append({"key": entry.key.digest(), **vars(entry.key), **place})
        offset += len(entry.data)
    table = pa.Table.from_pylist(rows, FOOTER.with_metadata({"segment_samples": str(segment_samples)}))
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema, options=pa.ipc.IpcWriteOptions(compression="zstd")) as writer:
        writer.write_table(table)
    footer = sink.getvalue().to_pybytes()
    trailer = _TRAILER.pack(len(footer), zlib.crc32(footer), MAGIC)
    return [MAGIC, *(entry.data for entry in entries), footer, trailer], table


def read_footer(file: pa.NativeFile, size: int) -> pa.Table:
    """Read the footer of a shard as a table with the schema FOOTER.

    Args:
        file: the open shard.
        size: its size in bytes according to the listing of its folder.

    Raises:
        ShardDamage: the file is truncated, altered or not a shard.
    """
    if size < len(MAGIC) + _TRAILER.size:
        raise ShardDamage(f"has only {size} bytes")
    if file.size() < size:
        raise ShardDamage(f"ends after {file.size()} of {size} bytes")
    tail = file.read_at(min(size, _TAIL_BYTES), max(0, size - _TAIL_BYTES))
    length, checksum, magic = _TRAILER.unpack(tail[-_TRAILER.size :])
    if magic != MAGIC:
        raise ShardDamage("has no trailer: truncated or not a shard")
    begin = size - _TRAILER.size - length
    if begin < len(MAGIC):
        raise ShardDamage("its trailer is altered")
    if length + _TRAILER.size > len(tail):
        footer = file.read_at(length, begin)
    else:
        footer = tail[-_TRAILER.size - length : -_TRAILER.size]
    if zlib.crc32(footer) != checksum:
        raise ShardDamage("its footer is altered")
    try:
        table = pa.ipc.open_stream(footer).read_all()
        table.validate(full=True)
        if not table.schema.equals(FOOTER):
            raise ShardDamage("its footer has different columns: written by another version")
        _check_entries(table, begin)
    except (pa.ArrowException, OSError, ValueError, KeyError, TypeError) as error:
        raise ShardDamage(f"its footer is malformed: {error}") from None
    return table


def _check_entries(table: pa.Table, end: int) -> None:
    """Raise ValueError if an entry is not between the magic bytes and the footer, which begins at `end`."""
    if any(table[name].null_count for name in table.column_names):
        raise ValueError("an entry lacks a value")
    samples_N = table["samples"].to_numpy().astype(np.float64)
    channels_N = table["channels"].to_numpy().astype(np.float64)
    offset_N = table["offset"].to_numpy().astype(np.float64)  # float64 cannot overflow here
    segment = segment_samples_of(table)
    if segment < 1:
        raise ValueError(f"segments of {segment} samples")
    size_N = channels_N * (2 * samples_N + _CRC.size * np.ceil(samples_N / segment))
    if (offset_N < len(MAGIC)).any() or (offset_N + size_N > end).any():
        raise ValueError("an entry is outside of the file")
    if not np.array_equal(pc.list_value_length(table["levels"]).to_numpy(), channels_N):
        raise ValueError("an entry does not have one level per channel")


def segment_samples_of(footer: pa.Table) -> int:
    """Samples per segment in the shard with this footer."""
    return int(footer.schema.metadata[b"segment_samples"])
