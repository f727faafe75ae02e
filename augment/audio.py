"""Read any sound file as mono float32 samples at one sample rate and, for a clip, of one length.

Audit, training, evaluation and `sepscene embed` all read sound here, so that sample rate, mix-down and level are the
same everywhere. `augment.decoder` decodes, torchaudio resamples.

Shape suffixes: T samples.
"""

import hashlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import Any, Literal

import numpy as np
from pydantic import Field, model_validator

from sepscene.augment.decoder import HIGHEST_RATE, LOWEST_RATE, Decoder, cancels, open_recording
from sepscene.augment.locations import ClipError, open_location, unreadable, version_of
from sepscene.models.config import Config

_FULL_SCALE = 32_766.5 / 32_768
"""A sample of at least this absolute value counts as clipped."""


class AudioFormat(Config):
    """Sample rate and length of every clip of a run."""

    sample_rate: int = Field(16_000, ge=LOWEST_RATE, le=HIGHEST_RATE, description="Hz [open]")
    clip_seconds: float = Field(10.0, gt=0, le=3600, description="length of every clip; AudioSet has 10 s")
    pad: Literal["zeros", "repeat"] = Field(
        "zeros", description="a shorter recording is padded with silence, or repeated [open]"
    )
    crop: Literal["start", "centre"] = Field(
        "start", description="which part of a longer recording is kept, from the clip's offset on [open]"
    )

    @model_validator(mode="after")
    def _at_least_one_sample(self) -> "AudioFormat":
        if self.samples < 1:
            raise ValueError("clip_seconds is shorter than one sample; lengthen it or raise sample_rate")
        return self

    @property
    def samples(self) -> int:
        """Number of samples T of a clip."""
        return round(self.clip_seconds * self.sample_rate)


@dataclass(frozen=True)
class Recording:
    """Format and level statistics of a whole recording.

    Attributes:
        sample_rate: in Hz.
        channels: number of recorded channels.
        frames: samples per channel.
        peak: largest absolute sample of any channel, full scale 1.
        level_db: RMS over all channels in dBFS; digital silence is −200.
        quietest_db: RMS of the quietest channel in dBFS.
        offset: largest DC offset (mean of the samples) of any channel.
        clipped: share of the samples at full scale.
        cancels: whether the channels cancel each other when averaged.
    """

    sample_rate: int
    channels: int
    frames: int
    peak: float = 0.0
    level_db: float = -200.0
    quietest_db: float = -200.0
    offset: float = 0.0
    clipped: float = 0.0
    cancels: bool = False

    @property
    def seconds(self) -> float:
        """Duration in seconds."""
        return self.frames / self.sample_rate


def read_clip(uri: str, audio_format: AudioFormat, offset_seconds: float = 0.0) -> np.ndarray:
    """Read one clip as float32 (T,), T = `audio_format.samples`. Of a local file, only the needed frames are read.

    Args:
        uri: see `augment.locations`.
        audio_format: sample rate, length, and how recordings of another length are padded or cropped.
        offset_seconds: start of the clip in the recording.

    Raises:
        ClipError: the file is missing, unreadable, empty, truncated or not audio; its header is wrong; a sample is NaN,
            infinite or far beyond full scale 1; or the offset is past the end.
    """
    return pad_sound(read_sound(uri, audio_format, offset_seconds), audio_format)


def read_sound(uri: str, audio_format: AudioFormat, offset_seconds: float = 0.0) -> np.ndarray:
    """Read a clip without padding, float32 (T,): T is `sound_samples`, at most `audio_format.samples`.

    Raises:
        ClipError: as `read_clip`.
    """
    with open_recording(uri) as decoder:
        return _window(decoder, audio_format, offset_seconds)


def sound_samples(uri: str, audio_format: AudioFormat, offset_seconds: float = 0.0) -> int:
    """Number of samples that `read_sound` returns, from the header only.

    Raises:
        ClipError: as `read_clip`, as far as the header shows it.
    """
    with open_recording(uri) as decoder:
        _, samples = _part(decoder, audio_format, offset_seconds)
        return samples


def pad_sound(wave_T: np.ndarray, audio_format: AudioFormat) -> np.ndarray:
    """Pad a clip to the length of its format, with silence or by repetition."""
    missing = (0, audio_format.samples - len(wave_T))
    if missing[1] == 0:
        return wave_T
    return np.pad(wave_T, missing, mode="wrap") if audio_format.pad == "repeat" else np.pad(wave_T, missing)


def read_audio(uri: str, sample_rate: int) -> np.ndarray:
    """Read a whole recording as mono float32 (T,) at `sample_rate` Hz.

    Raises:
        ClipError: as `read_clip`, or the recording is longer than `augment.decoder.MAX_SAMPLES`.
    """
    with open_recording(uri) as decoder:
        return _whole(decoder, sample_rate)


def read_blocks(uri: str, sample_rate: int, block_seconds: int) -> Iterator[np.ndarray]:
    """Read a recording as mono float32 blocks (T,) of `block_seconds`; the last one can be shorter.

    The concatenated blocks equal `read_audio`.

    Raises:
        ClipError: as `read_clip`, when the iteration reaches the fault.
    """
    with open_recording(uri) as decoder:
        if decoder.frames <= block_seconds * decoder.sample_rate:
            yield _whole(decoder, sample_rate)
            return
        block = AudioFormat(sample_rate=sample_rate, clip_seconds=block_seconds)
        samples = math.ceil(decoder.frames / _resampling_ratio(decoder.sample_rate, sample_rate))
        for start in range(0, samples, block.samples):
            if round(start / sample_rate * decoder.sample_rate) < decoder.frames:
                yield _window(decoder, block, start / sample_rate)


def check_audio(uri: str) -> Recording:
    """Decode a whole recording and return its format and level statistics.

    Raises:
        ClipError: as `read_clip`.
    """
    with open_recording(uri) as decoder:
        frames = 0
        clipped = 0
        peak = 0.0
        cancelling = 0
        sum_C = np.zeros(decoder.file.channels)
        power_C = np.zeros(decoder.file.channels)
        for wave_TC in decoder.blocks(0, decoder.frames):
            frames += len(wave_TC)
            size_TC = np.abs(wave_TC)
            peak = max(peak, float(size_TC.max()))
            clipped += int((size_TC >= _FULL_SCALE).sum())
            cancelling += len(wave_TC) * cancels(wave_TC, wave_TC.mean(axis=1))
            sum_C += wave_TC.sum(axis=0, dtype=np.float64)
            power_C += np.square(wave_TC, dtype=np.float64).sum(axis=0)
        return Recording(
            decoder.sample_rate,
            decoder.file.channels,
            frames,
            peak=round(peak, 6),
            level_db=_decibels(float(power_C.mean()) / frames),
            quietest_db=_decibels(float(power_C.min()) / frames),
            offset=round(float(np.abs(sum_C).max()) / frames, 6),
            clipped=round(clipped / (frames * decoder.file.channels), 6),
            cancels=2 * cancelling > frames,
        )


def _decibels(power: float) -> float:
    return round(10 * math.log10(max(power, 1e-20)), 2)


def _whole(decoder: Decoder, sample_rate: int) -> np.ndarray:
    wave_T = decoder.read_mono(0, decoder.frames)
    return _resample(wave_T, _resampling_ratio(decoder.sample_rate, sample_rate))


def _part(decoder: Decoder, audio_format: AudioFormat, offset_seconds: float) -> tuple[int, int]:
    """Start of a clip in frames of the recording, and the number of samples that the recording has for it."""
    if not (math.isfinite(offset_seconds) and offset_seconds >= 0):
        raise ClipError(decoder.uri, f"offset_seconds is {offset_seconds}; it must be finite and at least 0")
    start = round(offset_seconds * decoder.sample_rate)
    if start >= decoder.frames:
        seconds = decoder.frames / decoder.sample_rate
        raise ClipError(decoder.uri, f"offset {offset_seconds:g} s is past its end ({seconds:.3f} s)")
    ratio = _resampling_ratio(decoder.sample_rate, audio_format.sample_rate)
    if audio_format.crop == "centre":
        needed = math.ceil(audio_format.samples * ratio)
        start += max(0, decoder.frames - start - needed) // 2
    return start, min(audio_format.samples, math.ceil((decoder.frames - start) / ratio))


def _window(decoder: Decoder, audio_format: AudioFormat, offset_seconds: float) -> np.ndarray:
    """The samples of a clip, without padding."""
    start, samples = _part(decoder, audio_format, offset_seconds)
    ratio = _resampling_ratio(decoder.sample_rate, audio_format.sample_rate)
    needed = math.ceil(audio_format.samples * ratio)
    # The resampling filter needs frames beyond both edges of the window, so that a partial read equals the same part of
    # the whole file. Before the window these are whole periods of the ratio, which keeps the resampler's phase.
    margin = 16 * math.ceil(max(float(ratio), 1))
    lead = min(start // ratio.numerator, math.ceil(margin / ratio.numerator))
    first = start - lead * ratio.numerator
    wanted = min(decoder.frames - first, start - first + needed + margin)
    wave_T = _resample(decoder.read_mono(first, wanted), ratio)[lead * ratio.denominator :][:samples]
    if len(wave_T) < samples:  # the header of an MP3 counts its last frame in full
        wave_T = np.pad(wave_T, (0, samples - len(wave_T)))
    return np.ascontiguousarray(wave_T, dtype=np.float32)


def content_hash(uri: str) -> str:
    """SHA-256 (hexadecimal) of a recording's stored bytes, so that copies under other names have the same hash.

    The process caches the hash of files that have not changed.

    Raises:
        ClipError: the file is missing or unreadable.
    """
    version = version_of(uri)
    return _hash(uri) if version is None else _hash_of_version(uri, version)


@lru_cache(maxsize=1 << 16)  # at most about 30 MB
def _hash_of_version(uri: str, version: tuple[int, ...]) -> str:
    return _hash(uri)


def _hash(uri: str) -> str:
    opened = open_location(uri)
    try:
        with open(opened, "rb") if isinstance(opened, str) else opened as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise unreadable(uri, error) from error


def _resampling_ratio(from_rate: int, to_rate: int) -> Fraction:
    """from_rate / to_rate, exact for all common sample rates.

    The polyphase filter has about numerator·denominator taps. For unusual pairs (44101 to 16000 Hz) it would take
    gigabytes, so there the ratio is rounded, with a relative error of at most 1.3e-5 (a fiftieth of a cent).
    """
    exact = Fraction(from_rate, to_rate)
    return exact if exact.numerator * exact.denominator <= 1_000_000 else exact.limit_denominator(200)


def _resample(wave_T: np.ndarray, ratio: Fraction) -> np.ndarray:
    """Resample, and clip to [-1, 1] again because the filter overshoots at the edges of clipped sound."""
    if ratio == 1:
        return wave_T
    import torch  # takes seconds, and is not needed for sound that already has the sample rate

    with torch.inference_mode():
        return np.clip(_resampler(ratio)(torch.from_numpy(wave_T)).numpy(), -1.0, 1.0)


@lru_cache(maxsize=16)
def _resampler(ratio: Fraction) -> Callable[[Any], Any]:
    import torchaudio

    return torchaudio.transforms.Resample(ratio.numerator, ratio.denominator)
