"""Open and decode a recording: its header is checked against the file, and its samples are read at full scale 1.

libsndfile decodes (WAV, FLAC, Ogg Vorbis and Opus, MP3, AIFF, AU, CAF, W64, …). Any fault of a file raises a
`ClipError` with the file's name and the cause, so that only this clip is quarantined.

Shape suffixes: T samples, C recorded channels.
"""

import math
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from io import SEEK_END
from typing import BinaryIO

import numpy as np
import soundfile

from sepscene.augment.containers import as_wav, corrected, is_unfilled
from sepscene.augment.locations import ClipError, open_location, unreadable
from sepscene.models.settings import MAX_PEAK

LOWEST_RATE = 1_000
HIGHEST_RATE = 768_000
"""In Hz. Other rates mean a damaged header, and would need an excessively long resampling filter."""
MAX_SAMPLES = 1 << 29
"""Most samples that are read at once, 2 GiB: 9 hours at 16 kHz. A megabyte of compressed silence can hold more."""

_BLOCK_SAMPLES = 1 << 20  # values decoded at a time over all channels: limits memory for files with many channels
_UNKNOWN_LENGTH = 1 << 40  # frames; libsndfile reports a huge number if the header does not state the length
_MPEG_FRAME = 1152  # samples; an MP3 header states the length only to within one frame
_MPEG_PREROLL = 20 * _MPEG_FRAME  # MP3 frames depend on earlier ones: the first after a seek are wrong
_CANCELS = 1e-4  # channels cancel if the power of their mean is below this share of their own power: -40 dB
# What libsndfile logs if a header states more audio than the file holds.
_OVERSTATED = re.compile(r"^\s*(?:data|SSND|riff|Data Size)\s*:\s*(\d+).*should be", re.MULTILINE)
_MORE_CALCULATED = re.compile(r"Calculated frame count")
_CHUNK_OUTSIDE = re.compile(r"^\*\*\* Chunk size \d+ > file length", re.MULTILINE)


@dataclass
class Decoder:
    """An open recording.

    Attributes:
        uri: name of the recording for error messages.
        file: handle of libsndfile.
    """

    uri: str
    file: soundfile.SoundFile

    @property
    def sample_rate(self) -> int:
        """Sample rate in Hz."""
        return self.file.samplerate

    @property
    def frames(self) -> int:
        """Samples per channel."""
        return self.file.frames

    def read_mono(self, start: int, frames: int) -> np.ndarray:
        """Read `frames` samples from `start` on as the mean of the channels, float32 (T,) in [-1, 1].

        If the channels cancel each other in the mean, the loudest channel is used instead.

        Raises:
            ClipError: the recording is truncated, has NaN or infinite samples, or is far beyond full scale 1; or more
                than `MAX_SAMPLES` are requested.
        """
        if frames > MAX_SAMPLES:
            seconds = frames / self.sample_rate
            raise ClipError(self.uri, f"{seconds:.0f} s are too long to read at once; split it, or use offsets")
        return np.concatenate([_mono(wave_TC) for wave_TC in self.blocks(start, frames)])

    def blocks(self, start: int, frames: int) -> Iterator[np.ndarray]:
        """Read the same in blocks with all channels, float32 (T, C), so that a wrong header cannot exhaust the memory.

        Raises:
            ClipError: as `read_mono`.
        """
        self.file.seek(start)
        block = max(1, _BLOCK_SAMPLES // self.file.channels)
        got = 0
        while got < frames:
            wave_TC = self._read(start + got, min(block, frames - got))
            if len(wave_TC) == 0:
                break
            self._check_samples(wave_TC, got)
            yield wave_TC
            got += len(wave_TC)
        tolerated = _MPEG_FRAME if self.file.format == "MP3" else 0
        if got < frames - tolerated or not got:
            end = start + got
            raise ClipError(self.uri, f"truncated: its header states {self.frames} frames, decoding ended after {end}")

    def _read(self, start: int, frames: int) -> np.ndarray:
        """The next frames (T, C)."""
        # An MP3 is decoded from an earlier frame on. This must be one call, because soundfile seeks after each.
        before = min(start, _MPEG_PREROLL) if self.file.format == "MP3" else 0
        if before:
            self.file.seek(start - before)
        return self.file.read(before + frames, dtype="float32", always_2d=True)[before:]

    def _check_samples(self, wave_TC: np.ndarray, before: int) -> None:
        peak = max(float(wave_TC.max()), -float(wave_TC.min()))
        if not math.isfinite(peak):
            bad = np.flatnonzero(~np.isfinite(wave_TC).all(axis=1))
            raise ClipError(self.uri, f"{len(bad)} samples are NaN or infinite, the first at {before + bad[0]}")
        if peak > MAX_PEAK:
            raise ClipError(
                self.uri, f"its samples reach {peak:.0f}, but full scale is 1: divide 16-bit values by 32768"
            )


def _mono(wave_TC: np.ndarray) -> np.ndarray:
    mono_T = wave_TC.mean(axis=1)
    if cancels(wave_TC, mono_T):
        mono_T = wave_TC[:, int(np.square(wave_TC).sum(axis=0).argmax())]
    return np.clip(mono_T, -1.0, 1.0)


def cancels(wave_TC: np.ndarray, mono_T: np.ndarray) -> bool:
    """Whether the mean of the channels is 40 dB below them, as with opposite phases. False for silence."""
    if wave_TC.shape[1] == 1:
        return False
    mono_power = float(np.square(mono_T).mean())
    channel_power = float(np.square(wave_TC).mean())
    return channel_power > 1e-9 and mono_power < _CANCELS * channel_power


@contextmanager
def open_recording(uri: str) -> Iterator[Decoder]:
    """Open a recording and check its header. Decoding errors inside the `with` block become a `ClipError`.

    Raises:
        ClipError: the file is missing, empty, truncated or not audio, or its header is wrong.
    """
    source = open_location(uri)
    try:
        with ExitStack() as stack:
            stream = stack.enter_context(open(source, "rb")) if isinstance(source, str) else source
            size = stream.seek(0, SEEK_END)
            if size == 0:
                raise ClipError(uri, "the file is empty (0 bytes)")
            fixed = corrected(stream, size)
            stream.seek(0)
            file = stack.enter_context(soundfile.SoundFile(fixed or (source if isinstance(source, str) else stream)))
            _check_header(file, uri, size)
            if not file.seekable():
                file = stack.enter_context(soundfile.SoundFile(_in_memory(file, uri)))
            yield Decoder(uri, file)
    except soundfile.LibsndfileError as error:
        raise ClipError(uri, f"not decodable: {error.error_string}") from error
    except TypeError as error:  # soundfile requires a sample rate for names that end in .raw
        raise ClipError(uri, "headerless audio (.raw) is not supported; convert it to WAV or FLAC") from error
    except MemoryError as error:
        raise ClipError(uri, "does not fit into memory; split it") from error
    except OSError as error:
        raise unreadable(uri, error) from error
    except (RuntimeError, ValueError) as error:
        raise ClipError(uri, f"not decodable: {error}") from error


def _check_header(file: soundfile.SoundFile, uri: str, size: int) -> None:
    if file.frames >= _UNKNOWN_LENGTH:
        raise ClipError(uri, "its header does not state its length; encode it again")
    log = file.extra_info
    cut = any(not is_unfilled(int(stated)) for stated in _OVERSTATED.findall(log))
    if cut or _MORE_CALCULATED.search(log):
        raise ClipError(uri, f"truncated: its header states more than the {file.frames} frames it holds")
    # The audio takes less than half of the file, and the rest is not a chunk: the stated length is wrong.
    most_bytes = 4 * file.frames * file.channels
    if _CHUNK_OUTSIDE.search(log) and file.subtype.startswith("PCM") and 2 * most_bytes < size:
        raise ClipError(uri, f"its header is wrong: it states only {file.frames} frames in a file of {size} bytes")
    if file.frames <= 0:
        raise ClipError(uri, "has no samples")
    if not LOWEST_RATE <= file.samplerate <= HIGHEST_RATE:
        raise ClipError(uri, f"its header states {file.samplerate} Hz, not {LOWEST_RATE} to {HIGHEST_RATE} Hz")


def _in_memory(file: soundfile.SoundFile, uri: str) -> BinaryIO:
    """A recording in which libsndfile cannot seek (GSM 6.10, G.721), decoded to WAV as a whole."""
    if file.frames * file.channels > MAX_SAMPLES:
        raise ClipError(uri, f"{file.subtype_info} of this length is not supported; convert it to WAV or FLAC")
    return as_wav(file.read(file.frames, dtype="float32", always_2d=True), file.samplerate)
