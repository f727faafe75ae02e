"""Corrects sound files whose header states a wrong length.

A program that writes into a pipe cannot fill in the length afterwards; a 32-bit field wraps at 4 GiB; two concatenated
recordings have the header of the first. A decoder that trusts such a header rejects the file, or silently reads only a
part of it. `corrected` determines the length from the file itself.

Shapes: T samples, C channels.
"""

import io
import struct
from collections.abc import Iterator
from functools import lru_cache
from typing import Any, BinaryIO

import numpy as np
import soundfile

from sepscene.augment.mpeg import FORMAT_CHANGES, with_true_length

_LEFT_IN_PIPES = ((0x7F000000, 0x80000000), (0xFFFF0000, 0xFFFFFFFF), (1 << 62, 1 << 63))
_RIFF_CHUNK = "<4sI"
_CAF_CHUNK = ">4sq"
_LARGEST_IN_MEMORY = 1 << 30  # bytes of an MPEG or chained Ogg file, which is read as a whole
_SMALL = 1 << 22  # up to this size in bytes, an Ogg file is searched as a whole
_LARGEST_PAGE = 65_307  # bytes of an Ogg page
_TAIL = 1 << 17  # the last frame of a FLAC file begins within this many bytes of its end


class Corrected(io.RawIOBase):
    """A file with a replaced beginning: `head`, followed by the bytes of `stream` from `start` on."""

    def __init__(self, head: bytes, stream: BinaryIO, start: int) -> None:
        self.head = head
        self.stream = stream
        self.start = start
        self.at = 0
        self.size = len(head) + max(0, stream.seek(0, io.SEEK_END) - start)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """See `io.RawIOBase.seek`."""
        self.at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self.at, io.SEEK_END: self.size}[whence]
        return self.at

    def readinto(self, buffer: Any) -> int:
        """See `io.RawIOBase.readinto`."""
        view = memoryview(buffer).cast("B")
        if self.at < len(self.head):
            data = self.head[self.at : self.at + len(view)]
        else:
            self.stream.seek(self.start + self.at - len(self.head))
            data = self.stream.read(len(view))
        view[: len(data)] = data
        self.at += len(data)
        return len(data)


def is_unfilled(length: int) -> bool:
    """Whether programs that write into a pipe, and cannot fill in a length afterwards, leave this one.

    ffmpeg leaves 2^32 - 1 (W64: 2^63 - 1), sox 2^31 - 1 minus the header (AIFF: 0x7F000000), arecord 2^31.
    """
    return length == 0 or any(low <= length <= high for low, high in _LEFT_IN_PIPES)


def corrected(stream: BinaryIO, size: int) -> Corrected | BinaryIO | None:
    """The file with the correct length in its header, or None if nothing needs to be corrected.

    Args:
        stream: the whole file; its position changes.
        size: size of the file in bytes.

    Raises:
        ValueError: the length cannot be determined, or the sample rate or number of channels changes within the file.
    """
    stream.seek(0)
    magic = stream.read(12)
    if magic[:4] == b"RIFF" and magic[8:] == b"WAVE":
        return _wav(stream, size)
    if magic[:4] == b"caff":
        return _caf(stream, size)
    if magic[:4] == b"fLaC":
        return _flac(stream, size)
    if magic[:4] == b"OggS":
        return _ogg(stream, size)
    if magic[:3] == b"ID3" or (magic[:1] == b"\xff" and len(magic) > 1 and magic[1] & 0xE0 == 0xE0):
        return _mpeg(stream, size)
    return None


def _wav(stream: BinaryIO, size: int) -> Corrected | BinaryIO | None:
    """WAV: the size of the data chunk was never filled in, or wrapped at 4 GiB."""
    at, length = _data_chunk(stream, 12, size, _RIFF_CHUNK)
    there = size - at - 8
    if length >= there or _ends_with_chunks(stream, at + 8 + length + length % 2, size):
        return None  # correct, or larger than the file: libsndfile detects the latter
    if not is_unfilled(length) and (there - length) % (1 << 32):
        return None  # the data after the sound are not chunks; `decoder` checks how many bytes they are
    stream.seek(0)
    head = stream.read(at)
    # With these sizes, of a file that was not finished, libsndfile reads up to the end of the file, also beyond 4 GiB.
    return Corrected(head[:4] + struct.pack("<I", 8) + head[8:] + b"data" + bytes(4), stream, at + 8)


def _data_chunk(stream: BinaryIO, at: int, size: int, layout: str) -> tuple[int, int]:
    """Position and length of the first chunk `data`; the end of the file and 0 if there is none."""
    chunks = _chunks(stream, at, size, layout)
    return next(((start, length) for start, name, length in chunks if name == b"data"), (size, 0))


def _chunks(stream: BinaryIO, at: int, size: int, layout: str) -> Iterator[tuple[int, bytes, int]]:
    """Position, name and length of each chunk from byte `at` on; `layout` is that of name and length."""
    header = struct.Struct(layout)
    while at + header.size <= size:
        stream.seek(at)
        name, length = header.unpack(stream.read(header.size))
        yield at, name, length
        at += header.size + max(0, length) + (length % 2 if layout == _RIFF_CHUNK else 0)


def _ends_with_chunks(stream: BinaryIO, at: int, size: int) -> bool:
    """Whether only complete chunks, or nothing, follow up to the end of the file."""
    for start, name, length in _chunks(stream, at, size, _RIFF_CHUNK):
        if not all(32 <= byte < 127 for byte in name):
            return False
        at = start + 8 + length + length % 2
    return at <= size + 1  # the last padding byte can be missing


def _caf(stream: BinaryIO, size: int) -> Corrected | BinaryIO | None:
    """CAF: a data chunk of size −1 extends to the end of the file (Apple's specification); libsndfile rejects it."""
    at, length = _data_chunk(stream, 8, size, _CAF_CHUNK)
    if length != -1:
        return None
    stream.seek(0)
    return Corrected(stream.read(at) + struct.pack(_CAF_CHUNK, b"data", size - at - 12), stream, at + 12)


def _flac(stream: BinaryIO, size: int) -> Corrected | BinaryIO | None:
    """FLAC: STREAMINFO states no number of samples, or fewer than there are up to the last frame."""
    stream.seek(0)
    head = stream.read(42)
    if len(head) < 42 or head[4] & 0x7F:
        return None
    fields = int.from_bytes(head[18:26], "big")
    declared = fields & ((1 << 36) - 1)
    smallest, largest = struct.unpack(">HH", head[8:12])
    start = max(42, size - max(_TAIL, 2 * int.from_bytes(head[15:18], "big")))
    stream.seek(start)
    end = _end_of_flac(stream.read(), smallest if smallest == largest else 0)
    if end is None:
        if declared == 0:
            raise ValueError("truncated: its header does not state its length, and its last frame is incomplete")
        return None
    if end <= declared:
        return None  # a decoder detects a stated length that is too large
    fields = fields >> 36 << 36 | end & ((1 << 36) - 1)
    return Corrected(head[:18] + fields.to_bytes(8, "big") + head[26:], stream, 42)


def _end_of_flac(tail: bytes, block: int) -> int | None:
    """End of the last frame in samples, None if it is incomplete; `block` is the fixed block size, or 0."""
    at = len(tail)
    while (at := tail.rfind(b"\xff", 0, at)) >= 0:
        end = _flac_frame_end(tail[at : at + 16], block)
        if end is not None and _crc(tail[at:], 16, 0x8005) == 0:
            return end
    return None


def _flac_frame_end(head: bytes, block: int) -> int | None:
    """End in samples of the frame with this header; None if this is not a frame header (RFC 9639, section 9.1)."""
    if len(head) < 16 or head[1] & 0xFE != 0xF8 or head[3] & 1:
        return None
    ones = 8 - (~head[4] & 0xFF).bit_length()  # leading ones: the number takes as many bytes, as in UTF-8
    at = 4 + max(1, ones)
    number = head[4] & 0x7F >> ones
    for byte in head[5:at]:
        number = number << 6 | byte & 0x3F
    code = head[2] >> 4
    if code == 0:  # reserved
        return None
    if code in (6, 7):
        samples = int.from_bytes(head[at : at + code - 5], "big") + 1
        at += code - 5
    elif code == 1:
        samples = 192
    else:
        samples = 576 << (code - 2) if code < 6 else 1 << code
    at += {12: 1, 13: 2, 14: 2}.get(head[2] & 15, 0)
    if at >= len(head) or _crc(head[: at + 1], 8, 0x07) != 0:
        return None
    return samples + (number if head[1] & 1 else number * (block or samples))


def _crc(data: bytes, bits: int, polynomial: int) -> int:
    """Cyclic redundancy check; 0 for data that end with their own checksum."""
    table = _crc_table(bits, polynomial)
    crc = 0
    mask = (1 << bits) - 1
    for byte in data:
        crc = (crc << 8 & mask) ^ table[(crc >> bits - 8) ^ byte]
    return crc


@lru_cache
def _crc_table(bits: int, polynomial: int) -> tuple[int, ...]:
    table = []
    for byte in range(256):
        crc = byte << bits - 8
        for _ in range(8):
            crc = (crc << 1 ^ (polynomial if crc >> bits - 1 else 0)) & (1 << bits) - 1
        table.append(crc)
    return tuple(table)


def _ogg(stream: BinaryIO, size: int) -> Corrected | BinaryIO | None:
    """Chained Ogg streams, of which libsndfile decodes only the first: all of them, as float WAV."""
    stream.seek(0)
    first_stream = stream.read(18)[14:]
    stream.seek(0 if size <= _SMALL else size - _LARGEST_PAGE)
    tail = stream.read()
    last = tail[max(0, tail.rfind(b"OggS")) :]
    if len(last) < 27 or len(last) < 27 + last[26] + sum(last[27 : 27 + last[26]]):
        raise ValueError("truncated: the last Ogg page is incomplete")  # decoders drop it, with seconds of sound
    if last[14:18] == first_stream and tail.count(b"OggS\0\2") < 2:
        return None
    links = _ogg_links(_whole(stream, size))
    if len(links) < 2:
        return None
    parts = [soundfile.read(io.BytesIO(link), dtype="float32", always_2d=True) for link in links]
    waves = [wave_TC for wave_TC, _ in parts]
    rates = [rate for _, rate in parts]
    if len(set(rates)) > 1 or len({wave_TC.shape[1] for wave_TC in waves}) > 1:
        raise ValueError(FORMAT_CHANGES)
    return as_wav(np.concatenate(waves), rates[0])


def as_wav(wave_TC: np.ndarray, rate: int) -> BinaryIO:
    """Decoded sound as a WAV file in memory."""
    file = io.BytesIO()
    soundfile.write(file, wave_TC, rate, format="WAV", subtype="FLOAT")
    file.seek(0)
    return file


def _ogg_links(data: bytes) -> list[bytes]:
    """The streams of a chained file: a new one begins where a first page follows pages of sound."""
    starts = [0]
    at = 0
    sound = False
    while data[at : at + 4] == b"OggS" and at + 27 <= len(data):
        segments = data[at + 26]
        begins = bool(data[at + 5] & 2)
        if begins and sound:
            starts.append(at)
        sound = not begins
        at += 27 + segments + sum(data[at + 27 : at + 27 + segments])
    return [data[start:end] for start, end in zip(starts, [*starts[1:], len(data)], strict=True)]


def _mpeg(stream: BinaryIO, size: int) -> Corrected | BinaryIO | None:
    """MPEG: the file states no number of frames, or too few."""
    data = with_true_length(_whole(stream, size))
    return None if data is None else io.BytesIO(data)


def _whole(stream: BinaryIO, size: int) -> bytes:
    if size > _LARGEST_IN_MEMORY:
        raise ValueError(f"has {size} bytes, but files of this type are read only up to {_LARGEST_IN_MEMORY}; split it")
    stream.seek(0)
    return stream.read()
