"""From any sound file to mono float32 samples at one rate and, for a clip, of one length.

Shape suffixes: T samples, C recorded channels.

libsndfile decodes (WAV, FLAC, Ogg Vorbis and Opus, MP3, AIFF, AU, CAF, W64, …), torchaudio resamples. What is
wrong with a file becomes a `ClipError` that names it and the cause, which quarantines that clip and no other.
"""

import hashlib
import math
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from io import SEEK_END, BytesIO
from typing import BinaryIO, Literal

import numpy as np
import soundfile
from pydantic import Field, model_validator

from sepscene.augment.locations import ClipError, open_location, version_of
from sepscene.models.config import Config

__all__ = ["AudioFormat", "ClipError", "Recording", "check_audio", "content_hash", "read_audio", "read_clip"]

_RATES = (
    1_000,
    768_000,
)  # Hz; beyond lies a broken header, which would ask for an absurd filter
_BLOCK_SAMPLES = 1 << 20  # values decoded at a time, over all channels: bounds the memory of wide files
_UNKNOWN_LENGTH = 1 << 40  # frames; libsndfile reports absurdly many where a header does not say
_MPEG_FRAME = 1152  # MP3 headers state the length only to within one of these
# What libsndfile notes in its log when a container promises more audio than the file holds.
_OVERSTATED = re.compile(r"^\s*(data|SSND|riff|Data Size)\s*:.*should be|Calculated frame count", re.MULTILINE)
_CHUNK_OUTSIDE = re.compile(r"^\*\*\* Chunk size \d+ > file length", re.MULTILINE)


class AudioFormat(Config):
    """The one form in which every clip of a run is processed."""

    sample_rate: int = Field(16_000, ge=_RATES[0], le=_RATES[1], description="Hz [open; ours]")
    clip_seconds: float = Field(10.0, gt=0, le=3600, description="length of every clip; AudioSet has 10 s")
    pad: Literal["zeros", "repeat"] = Field(
        "zeros",
        description="a shorter recording is followed by silence, or by itself again [open; ours]",
    )
    crop: Literal["start", "centre"] = Field(
        "start", description="which part of a longer one is kept, counted from the clip's offset [open; ours]"
    )

    @model_validator(mode="after")
    def _holds_a_sample(self) -> "AudioFormat":
        if self.samples < 1:
            raise ValueError("clip_seconds is shorter than one sample; lengthen it or raise sample_rate")
        return self

    @property
    def samples(self) -> int:
        """Samples of one clip, T."""
        return round(self.clip_seconds * self.sample_rate)


@dataclass(frozen=True)
class Recording:
    """What a recording is: its rate in Hz, its channels, and its frames (samples of one channel)."""

    sample_rate: int
    channels: int
    frames: int

    @property
    def seconds(self) -> float:
        """Its length."""
        return self.frames / self.sample_rate


def read_clip(uri: str, audio_format: AudioFormat, offset_seconds: float = 0.0) -> np.ndarray:
    """Read one clip as float32 (T,), T = `audio_format.samples`; of a local file only the needed frames.

    Args:
        uri: see `augment.locations`.
        audio_format: rate, length, and what to do with recordings of another length.
        offset_seconds: where in the recording the clip begins.

    Raises:
        ClipError: empty, truncated, a header that lies, NaN or Inf, not audio, unreadable, missing, or an
            offset past the end.
    """
    rate, samples = audio_format.sample_rate, audio_format.samples
    if not (math.isfinite(offset_seconds) and offset_seconds >= 0):
        raise ClipError(uri, f"offset_seconds is {offset_seconds}; it counts from 0")
    with _opened(uri) as file:
        ratio = _resampling_ratio(file.samplerate, rate)
        needed = math.ceil(samples * ratio)
        start = round(offset_seconds * file.samplerate)
        if start >= file.frames:
            seconds = file.frames / file.samplerate
            raise ClipError(uri, f"offset {offset_seconds:g} s is past its end ({seconds:.3f} s)")
        if audio_format.crop == "centre":
            start += max(0, file.frames - start - needed) // 2
        # Frames beyond the window feed the filter at its edges: a partial read then gives what the whole file
        # gives. Before the window they are whole periods of the ratio, which keeps the resampler's phase.
        margin = 16 * math.ceil(max(float(ratio), 1))
        lead = min(start // ratio.numerator, math.ceil(margin / ratio.numerator))
        first = start - lead * ratio.numerator
        wanted = min(file.frames - first, start - first + needed + margin)
        wave_T = _resample(_read_mono(file, uri, first, wanted), ratio)[lead * ratio.denominator :]
    return _fit(_finite(wave_T, uri), samples, audio_format.pad)


def read_audio(uri: str, sample_rate: int) -> np.ndarray:
    """Read a whole recording as mono float32 (T,) at `sample_rate` Hz.

    Raises:
        ClipError: as `read_clip`.
    """
    with _opened(uri) as file:
        wave_T = _read_mono(file, uri, 0, file.frames)
        return _finite(_resample(wave_T, _resampling_ratio(file.samplerate, sample_rate)), uri)


def check_audio(uri: str) -> Recording:
    """Decode a whole recording, and say what it is.

    Raises:
        ClipError: as `read_clip`.
    """
    with _opened(uri) as file:
        return Recording(file.samplerate, file.channels, len(_read_mono(file, uri, 0, file.frames)))


def content_hash(uri: str) -> str:
    """SHA-256 (hexadecimal) of a recording's bytes as they are stored: equal for copies under other names.

    Bytes that this process has hashed before and that have not changed since are not read again.

    Raises:
        ClipError: missing or unreadable.
    """
    version = version_of(uri)
    return _hash(uri) if version is None else _hash_of_version(uri, version)


@lru_cache(maxsize=1 << 16)  # some 30 MB at most
def _hash_of_version(uri: str, version: tuple[int, ...]) -> str:
    return _hash(uri)


def _hash(uri: str) -> str:
    opened = open_location(uri)
    if isinstance(opened, BytesIO):
        return hashlib.sha256(opened.getbuffer()).hexdigest()
    try:
        with open(opened, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ClipError(uri, f"cannot be read ({error})") from error


@contextmanager
def _opened(uri: str) -> Iterator[soundfile.SoundFile]:
    """A decoder whose header has been checked; decoding errors inside the block become a `ClipError`."""
    source = open_location(uri)
    try:
        with open(source, "rb") if isinstance(source, str) else source as stream:
            size = stream.seek(0, SEEK_END)
            if size == 0:
                raise ClipError(uri, "the file is empty (0 bytes)")
            with soundfile.SoundFile(source if isinstance(source, str) else _rewound(source)) as file:
                _check_header(file, uri, size)
                if file.format == "OGG" and not _ends_with_whole_page(stream):
                    raise ClipError(uri, "truncated: the last Ogg page is incomplete")
                yield file
    except soundfile.LibsndfileError as error:
        raise ClipError(uri, f"not decodable: {error.error_string}") from error
    except TypeError as error:  # soundfile asks for a rate where the name ends in .raw
        raise ClipError(uri, "headerless audio (.raw) is not read; convert it to WAV or FLAC") from error
    except (OSError, RuntimeError) as error:
        raise ClipError(uri, f"cannot be read ({error})") from error


def _rewound(stream: BytesIO) -> BytesIO:
    stream.seek(0)
    return stream


def _check_header(file: soundfile.SoundFile, uri: str, size: int) -> None:
    if file.frames >= _UNKNOWN_LENGTH:
        raise ClipError(uri, "its header does not say how long it is; encode it again")
    log = file.extra_info
    if _OVERSTATED.search(log):
        raise ClipError(uri, f"truncated: its header promises more than the {file.frames} frames it holds")
    # Half of the bytes are not accounted for, and what follows the audio is no chunk: the length is wrong.
    accounted = 4 * file.frames * file.channels
    if _CHUNK_OUTSIDE.search(log) and file.subtype.startswith("PCM") and 2 * accounted < size:
        raise ClipError(uri, f"its header lies: it claims {file.frames} frames in a file of {size} bytes")
    if file.frames <= 0:
        raise ClipError(uri, "holds no samples")
    low, high = _RATES
    if not low <= file.samplerate <= high:
        raise ClipError(uri, f"its header gives {file.samplerate} Hz; {low} to {high} Hz are read")


def _ends_with_whole_page(stream: BinaryIO) -> bool:
    """Whether the last Ogg page is complete: decoders quietly drop a cut one, and seconds of sound."""
    end = stream.seek(0, SEEK_END)
    stream.seek(max(0, end - 70_000))  # a page has at most 65,307 bytes
    tail = stream.read()
    page = tail[max(tail.rfind(b"OggS"), 0) :]
    if len(page) < 27 or len(page) < 27 + page[26]:
        return False
    return len(page) >= 27 + page[26] + sum(page[27 : 27 + page[26]])


def _read_mono(file: soundfile.SoundFile, uri: str, start: int, frames: int) -> np.ndarray:
    """`frames` frames from `start`, averaged over the recorded channels.

    Read in blocks, so that no memory is taken on a header's word alone.
    """
    file.seek(start)
    block, parts, got = max(1, _BLOCK_SAMPLES // file.channels), [], 0
    while got < frames:
        wave_TC = file.read(min(block, frames - got), dtype="float32", always_2d=True)
        if len(wave_TC) == 0:
            break
        parts.append(wave_TC.mean(axis=1))
        got += len(wave_TC)
    tolerated = _MPEG_FRAME if file.format == "MP3" else 0
    if got < frames - tolerated or not parts:
        end = start + got
        raise ClipError(uri, f"truncated: its header says {file.frames} frames, decoding ended after {end}")
    return _finite(np.concatenate(parts), uri)


def _finite(wave_T: np.ndarray, uri: str) -> np.ndarray:
    bad = np.flatnonzero(~np.isfinite(wave_T))
    if len(bad):
        raise ClipError(uri, f"{len(bad)} samples are NaN or infinite, the first at {bad[0]}")
    return wave_T


def _resampling_ratio(from_rate: int, to_rate: int) -> Fraction:
    """from/to, exact for every usual pair of rates.

    The polyphase filter has about numerator·denominator taps. For odd pairs (44101 to 16000 Hz) that would be
    gigabytes, so there the ratio is rounded: the pitch is then off by at most 1.3e-5, a fiftieth of a cent.
    """
    exact = Fraction(from_rate, to_rate)
    return exact if exact.numerator * exact.denominator <= 1_000_000 else exact.limit_denominator(200)


def _resample(wave_T: np.ndarray, ratio: Fraction) -> np.ndarray:
    return wave_T if ratio == 1 else _resampler(ratio)(wave_T)


@lru_cache(maxsize=16)
def _resampler(ratio: Fraction) -> Callable[[np.ndarray], np.ndarray]:
    """torchaudio's; it takes seconds to import, which sound at the rate asked for does without."""
    import torch
    import torchaudio

    resample = torchaudio.transforms.Resample(ratio.numerator, ratio.denominator)

    @torch.inference_mode()
    def resampled(wave_T: np.ndarray) -> np.ndarray:
        samples: np.ndarray = resample(torch.from_numpy(wave_T)).numpy()
        return samples

    return resampled


def _fit(wave_T: np.ndarray, samples: int, pad: str) -> np.ndarray:
    wave_T = wave_T[:samples]
    if len(wave_T) < samples:
        missing = (0, samples - len(wave_T))
        wave_T = np.pad(wave_T, missing, mode="wrap") if pad == "repeat" else np.pad(wave_T, missing)
    return np.ascontiguousarray(wave_T, dtype=np.float32)
