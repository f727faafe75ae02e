"""The length of an MPEG recording (MP3 and layers I and II), found by counting its frames.

Without a Xing or Info frame, a decoder estimates the length from the size of the first frame, and reads only a part of
a recording with variable bit rate. With one, it stops after the stated number of frames, even if another recording
follows. So the frames are counted, and if the number differs, an Info frame with the correct number is prepended.

Sources: ISO/IEC 11172-3 2.4.2.3, ISO/IEC 13818-3 2.4.2.3; the Xing header as LAME writes it.
"""

import re
import struct
from collections.abc import Iterator
from typing import NamedTuple

_KBIT = {
    (1, 1): (32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448),
    (1, 2): (32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (1, 3): (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (2, 1): (32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    (2, 2): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    (2, 3): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
"""Bit rates in kbit/s of the indices 1 to 14, by (version, layer)."""
_RATES = {3: (44_100, 48_000, 32_000), 2: (22_050, 24_000, 16_000), 0: (11_025, 12_000, 8_000)}
"""Sample rates in Hz by version: 3 is MPEG 1, 2 is MPEG 2, 0 is MPEG 2.5."""
_SIDE_INFO_BYTES = {(1, 1): 17, (1, 2): 32, (2, 1): 9, (2, 2): 17}
"""Size of the side information by (version, number of channels)."""
_BEGINNING = re.compile(rb"\xff|ID3")
_SEARCH_BYTES = 1 << 16  # bytes between two frames that are searched for the next one; tags are skipped by their size

FORMAT_CHANGES = "its sample rate or number of channels changes within the file; split it"
"""Message for concatenated recordings of different formats."""


class Frame(NamedTuple):
    """Header of a frame: its size in bytes, its samples per channel, and its format."""

    size: int
    samples: int
    rate: int
    channels: int
    layer: int
    info_at: int
    """Offset of a Xing or Info mark within the frame."""


def frame_at(data: bytes, at: int) -> Frame | None:
    """The frame that begins at byte `at`, or None if there is none. Free-format bit rates are not supported."""
    if at + 4 > len(data) or data[at] != 0xFF or data[at + 1] & 0xE0 != 0xE0:
        return None
    version = (data[at + 1] >> 3) & 3
    layer = 4 - ((data[at + 1] >> 1) & 3)
    index = data[at + 2] >> 4
    rate_index = (data[at + 2] >> 2) & 3
    padding = (data[at + 2] >> 1) & 1
    if version == 1 or layer == 4 or index in (0, 15) or rate_index == 3:
        return None
    kbit = _KBIT[1 if version == 3 else 2, layer][index - 1]
    rate = _RATES[version][rate_index]
    channels = 1 if data[at + 3] >> 6 == 3 else 2
    if layer == 1:
        return Frame((12_000 * kbit // rate + padding) * 4, 384, rate, channels, layer, 0)
    samples = 576 if layer == 3 and version != 3 else 1152
    side_info = _SIDE_INFO_BYTES[1 if version == 3 else 2, channels]
    return Frame(samples * 125 * kbit // rate + padding, samples, rate, channels, layer, 4 + side_info)


def with_true_length(data: bytes) -> bytes | None:
    """The file with an Info frame that states its number of frames, or None if nothing needs to be corrected.

    Raises:
        ValueError: the sample rate or number of channels changes within the file.
    """
    frames = list(_frames(data))
    stated = [_declared(data, at, frame) for at, frame in frames]
    count = stated.count(None)
    if count == 0:
        return None
    start, first = frames[0]
    declared = stated[0]
    if declared is not None and declared >= count:
        return None  # a decoder detects a stated number that is too large
    formats = {(frame.rate, frame.channels) for (_, frame), info in zip(frames, stated, strict=True) if info is None}
    if formats != {(first.rate, first.channels)}:
        raise ValueError(FORMAT_CHANGES)
    if declared is None and first.layer != 3:
        return None
    sound = start if declared is None else start + first.size
    return _info_frame(data[start : start + 4], count, len(data) - sound) + data[sound:]


def _frames(data: bytes) -> Iterator[tuple[int, Frame]]:
    """The complete frames with their offsets. Tags and other data between frames are skipped."""
    at = _next_frame(data, 0)
    while at is not None:
        frame = frame_at(data, at)
        if frame is None:
            at = _next_frame(data, at)
        elif at + frame.size <= len(data):
            yield at, frame
            at += frame.size
        else:
            return


def _info_frame(first_header: bytes, frames: int, size: int) -> bytes:
    """An Info frame with the number of frames of sound and their size in bytes, in the format of the first frame."""
    header = bytearray(first_header)
    header[1] |= 1  # no checksum follows
    header[2] = 14 << 4 | header[2] & 0x0C  # the largest bit rate, which always has room for the mark
    frame = frame_at(bytes(header), 0)
    assert frame is not None
    mark = b"Info" + struct.pack(">III", 3, frames, size + frame.size)
    return bytes(header).ljust(frame.info_at, b"\0") + mark + bytes(frame.size - frame.info_at - len(mark))


def _declared(data: bytes, at: int, frame: Frame) -> int | None:
    """The number stated by a Xing or Info frame, 0 if it states none; None for a frame of sound."""
    mark = at + frame.info_at
    if frame.layer != 3 or data[mark : mark + 4] not in (b"Xing", b"Info"):
        return None
    flags, count = struct.unpack(">II", data[mark + 4 : mark + 12].ljust(8, b"\0"))
    return count if flags & 1 else 0


def _next_frame(data: bytes, at: int) -> int | None:
    """Start of the next frame that is followed by another frame or by the end of the file; tags are skipped."""
    end = at + _SEARCH_BYTES
    while at < min(end, len(data)):
        if data[at : at + 3] == b"ID3" and at + 10 <= len(data):
            size = 0
            for byte in data[at + 6 : at + 10]:
                size = size << 7 | byte & 0x7F
            at += 10 + size
            end = at + _SEARCH_BYTES
            continue
        frame = frame_at(data, at)
        if frame is not None:
            after = at + frame.size
            if after == len(data) or frame_at(data, after) is not None:
                return at
        begin = _BEGINNING.search(data, at + 1)
        at = begin.start() if begin else len(data)
    return None
