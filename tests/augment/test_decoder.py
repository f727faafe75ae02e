"""The length is that of the sound, not that of the header: comparison with another decoder (FFmpeg, through PyAV)."""

import io
import re
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from sepscene.augment.audio import AudioFormat, ClipError, check_audio, read_audio, read_blocks, read_clip
from sepscene.augment.containers import corrected
from sepscene.augment.mpeg import frame_at, with_true_length
from sepscene.models.config import SepsceneError

av = pytest.importorskip("av", reason="FFmpeg's Python package, from constraints-dev.txt")

RATE = 44_100
WINDOW = AudioFormat(sample_rate=RATE, clip_seconds=0.5)


def noise(seconds: float, rate: int = RATE, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-0.3, 0.3, round(rate * seconds))


def encoded(wave: np.ndarray, format: str, subtype: str | None = None, rate: int = RATE, **how: Any) -> bytes:
    sink = io.BytesIO()
    with soundfile.SoundFile(
        sink, "w", rate, 1 if wave.ndim == 1 else wave.shape[1], subtype=subtype, format=format, **how
    ) as file:
        for start in range(0, len(wave), 4096):
            file.write(wave[start : start + 4096])
    return sink.getvalue()


def by_ffmpeg(data: bytes) -> np.ndarray:
    """The first channel, float (T,)."""
    with av.open(io.BytesIO(data), "r") as container:
        resampler = av.AudioResampler(format="fltp")
        parts = [part.to_ndarray()[0] for frame in container.decode(audio=0) for part in resampler.resample(frame)]
    return np.concatenate(parts)


def wav(data: bytes, riff: int | None = None, size: int | None = None, tail: bytes = b"") -> bytes:
    head = b"WAVEfmt " + struct.pack("<IHHIIHH", 16, 1, 1, RATE, 2 * RATE, 2, 16)
    body = head + b"data" + struct.pack("<I", len(data) if size is None else size) + data + tail
    return b"RIFF" + struct.pack("<I", len(body) if riff is None else riff) + body


def flac(samples: int | None) -> bytes:
    """A FLAC file whose header states another number of samples."""
    data = bytearray(encoded(noise(1.0), "FLAC"))
    if samples is not None:
        fields = int.from_bytes(data[18:26], "big") >> 36 << 36 | samples
        data[18:26] = fields.to_bytes(8, "big")
    return bytes(data)


def changing() -> np.ndarray:
    """Sound for which an encoder with variable bit rate writes large frames first, then small ones."""
    wave = 0.01 * np.sin(2 * np.pi * 440 * np.arange(8 * RATE) / RATE)
    wave[: 2 * RATE] = noise(2.0)
    return wave


def mp3(wave: np.ndarray, info: bool = True, **how: Any) -> bytes:
    data = encoded(wave, "MP3", **how)
    first = frame_at(data, 0)
    assert first is not None
    return data if info else data[first.size :]


PICTURE = b"ID3\x03\0\0\0\x02\0\0" + bytes(2 << 14)
PCM = (32767 * noise(1.0)).astype("<i2").tobytes()
VARIABLE: dict[str, Any] = {"bitrate_mode": "VARIABLE", "compression_level": 0.3}
WHOLE = {
    "wav of ffmpeg in a pipe": wav(PCM, 0xFFFFFFFF, 0xFFFFFFFF),
    "wav of sox in a pipe": wav(PCM, 0x7FFFFFFF, 0x7FFFFFFF - 36),
    "wav of arecord in a pipe": wav(PCM, 0x80000024, 0x80000000),
    "wav that was never finished": wav(PCM, 0, 0),
    "wav with chunks after the data": wav(PCM, tail=b"LIST\4\0\0\0abcd"),
    "flac": flac(None),
    "flac in a pipe": flac(0),
    "flac that states too little": flac(1000),
    "caf in a pipe": encoded(noise(1.0), "CAF"),
    "au in a pipe": encoded(noise(1.0), "AU"),
    "mp3": mp3(noise(2.0)),
    "mp3 without Info": mp3(noise(2.0), info=False),
    "variable mp3": mp3(changing(), **VARIABLE),
    "variable mp3 without Xing": mp3(changing(), info=False, **VARIABLE),
    "mp3 with a picture": PICTURE + mp3(noise(2.0)),
    "mp3 with a picture, without Info": PICTURE + mp3(noise(2.0), info=False),
    "variable mp3 with a picture, without Xing": PICTURE + mp3(changing(), info=False, **VARIABLE),
    "two mp3 joined": mp3(noise(2.0)) + mp3(noise(1.0)),
    "two mp3 with tags joined": mp3(noise(2.0)) + b"TAG".ljust(128) + PICTURE + mp3(noise(1.0)),
    "two mp3 without Info joined": mp3(noise(2.0), info=False) + mp3(noise(1.0), info=False),
    "two ogg joined": encoded(noise(1.0), "OGG") + encoded(noise(0.5, seed=1), "OGG"),
    "GSM 6.10": encoded(noise(2.0, 8_000), "WAV", "GSM610", 8_000),
    "IMA ADPCM": encoded(noise(2.0, 8_000), "WAV", "IMA_ADPCM", 8_000),
}
_caf = bytearray(WHOLE["caf in a pipe"])
_caf[_caf.index(b"data") + 4 : _caf.index(b"data") + 12] = b"\xff" * 8
WHOLE["caf in a pipe"] = bytes(_caf)
_aiff = bytearray(encoded(noise(1.0), "AIFF", "PCM_16"))
for _place, _size in (
    (4, 0x7F00002E),
    (_aiff.index(b"COMM") + 10, 0x7F000000 // 2),
    (_aiff.index(b"SSND") + 4, 0x7F000008),
):
    _aiff[_place : _place + 4] = struct.pack(">I", _size)
WHOLE["aiff of sox in a pipe"] = bytes(_aiff)
WHOLE["au in a pipe"] = WHOLE["au in a pipe"][:8] + b"\xff" * 4 + WHOLE["au in a pipe"][12:]


@pytest.mark.parametrize("name", WHOLE)
def test_length_and_samples_are_those_of_another_decoder(tmp_path: Path, name: str) -> None:
    data = WHOLE[name]
    path = tmp_path / "a.sound"
    path.write_bytes(data)
    other = by_ffmpeg(data)
    frame = 3 * 1152 if "mp3" in name else 256 if "ogg" in name else 0  # decoders differ in removing the codec's delay
    recording = check_audio(str(path))
    read = read_audio(str(path), recording.sample_rate)
    assert abs(len(read) - len(other)) <= frame and recording.frames == len(read)
    shifts = range(-frame, frame + 1) if frame else (0,)
    head = 8_000  # samples, within the first recording of a joined file
    best = min(shifts, key=lambda shift: float(np.abs(_part(other, 4_000 + shift) - _part(read, 4_000)).max()))
    np.testing.assert_allclose(_part(other, 4_000 + best), _part(read, 4_000), atol=2e-3 if frame else 1e-6)
    assert head < len(read)
    joined = np.concatenate(list(read_blocks(str(path), recording.sample_rate, 1)))
    np.testing.assert_allclose(joined, read, atol=1e-6 if not frame else 2e-3)


def test_bytes_of_a_flac_frame_that_resemble_a_header_are_no_frame(tmp_path: Path) -> None:
    """Bytes with the mark of a frame and the reserved code 0 for its length, as in a few of a thousand files."""
    for seed in range(639, 20_000):  # the first one that has such bytes with libsndfile 1.2
        wave = noise(0.09, seed=seed)  # a single frame
        data = encoded(wave, "FLAC")
        found = re.finditer(rb"\xff[\xf8\xf9][\x00-\x0f][\x00-\xff]", data[-7000:-16])
        if any(match[0][3] % 2 == 0 for match in found):
            break
    path = tmp_path / "a.flac"
    path.write_bytes(data)
    assert check_audio(str(path)).frames == len(wave)


def _part(wave: np.ndarray, start: int) -> np.ndarray:
    return wave[start : start + 4_000]


@pytest.mark.parametrize("name", WHOLE)
def test_a_part_is_the_same_part_of_the_whole(tmp_path: Path, name: str) -> None:
    path = tmp_path / "a.sound"
    path.write_bytes(WHOLE[name])
    rate = check_audio(str(path)).sample_rate
    window = AudioFormat(sample_rate=rate, clip_seconds=0.25)
    whole = read_audio(str(path), rate)
    part = read_clip(str(path), window, offset_seconds=0.5)
    np.testing.assert_allclose(part, whole[rate // 2 :][: window.samples], atol=2e-3)


@pytest.mark.parametrize(
    ("size", "stated"),
    [
        ((1 << 32) + 64_000, 64_000),  # the field has wrapped
        ((1 << 32) + 64_000, 0xFFFFFFFF),  # ffmpeg in a pipe
        ((1 << 31) + 64_000, 0x7FFFFFFF - 36),  # sox in a pipe
        ((1 << 31) + 64_000, 0x80000000),  # arecord in a pipe
    ],
)
def test_a_wav_that_is_longer_than_its_length_field_can_state(tmp_path: Path, size: int, stated: int) -> None:
    """The file is sparse, so that it takes no disk space."""
    path = tmp_path / "a.wav"
    with path.open("wb") as file:
        file.write(wav(b"", riff=(stated + 36) % (1 << 32), size=stated))
        file.seek(44 + size - 2 * RATE)
        file.write(PCM)
    end = size / 2 / RATE - 0.75
    np.testing.assert_allclose(
        read_clip(str(path), WINDOW, end), np.frombuffer(PCM, "<i2")[RATE // 4 :][: RATE // 2] / 32768, atol=1e-6
    )
    with path.open("rb") as stream:
        fixed = corrected(stream, 44 + size)
        assert fixed is not None
        assert soundfile.info(fixed).frames == size // 2


def test_other_data_after_a_large_wav_are_no_sound(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    size = 3 << 30
    with path.open("wb") as file:
        file.write(wav(b"", riff=size + 36, size=size))
        file.seek(44 + size)
        file.write(b"\0\1" * 100)
    with path.open("rb") as stream:
        assert corrected(stream, 44 + size + 200) is None


class TestCut:
    @pytest.mark.parametrize("name", ["flac in a pipe", "mp3", "variable mp3"])
    def test_truncated_files_are_named(self, tmp_path: Path, name: str) -> None:
        path = tmp_path / "a.sound"
        path.write_bytes(WHOLE[name][: len(WHOLE[name]) // 2])
        with pytest.raises(ClipError, match=r"truncated|decodable"):
            check_audio(str(path))

    @pytest.mark.parametrize("stated", [1 << 20, 3 << 30, (1 << 32) - (1 << 20)])
    def test_a_wav_of_any_stated_length_is_named(self, tmp_path: Path, stated: int) -> None:
        path = tmp_path / "a.wav"
        path.write_bytes(wav(PCM, stated + 36, stated))
        with pytest.raises(ClipError, match="truncated: its header states more than the 44100 frames"):
            check_audio(str(path))

    @pytest.mark.parametrize("stated", [1 << 20, 3 << 30, 5 << 30])
    def test_a_w64_of_any_stated_length_is_named(self, tmp_path: Path, stated: int) -> None:
        data = bytearray(encoded(noise(1.0), "W64", "PCM_16"))
        for place, size in ((16, stated + 128), (data.index(b"data") + 16, stated + 24)):
            data[place : place + 8] = struct.pack("<q", size)
        path = tmp_path / "a.w64"
        path.write_bytes(data)
        with pytest.raises(ClipError, match="truncated: its header states more than the 44100 frames"):
            check_audio(str(path))

    def test_a_change_of_the_rate_is_named(self, tmp_path: Path) -> None:
        path = tmp_path / "a.mp3"
        path.write_bytes(mp3(noise(1.0)) + encoded(noise(1.0, 48_000), "MP3", rate=48_000))
        with pytest.raises(ClipError, match="changes within the file; split it"):
            check_audio(str(path))


class TestMpegFrames:
    def test_a_frame_of_the_standard(self) -> None:
        """MPEG-1 layer III, 128 kbit/s, 44.1 kHz, no padding: 417 bytes (ISO/IEC 11172-3, 2.4.3.1)."""
        frame = frame_at(b"\xff\xfb\x90\x00", 0)
        assert frame is not None and (frame.size, frame.samples, frame.rate, frame.channels) == (417, 1152, 44_100, 2)

    @pytest.mark.parametrize("rate", [8_000, 16_000, 22_050, 32_000, 48_000])
    def test_frames_fill_the_file_at_every_rate(self, rate: int) -> None:
        data = encoded(noise(1.0, rate), "MP3", rate=rate)
        first = frame_at(data, 0)
        assert first is not None and first.rate == rate and with_true_length(data) is None
        fixed = with_true_length(data[first.size :])
        assert fixed is not None and _stated_frames(fixed) == _stated_frames(data)

    def test_the_info_frame_states_the_bytes_of_the_file(self) -> None:
        fixed = with_true_length(mp3(noise(1.0)) + mp3(noise(1.0)))
        assert fixed is not None
        frame = frame_at(fixed, 0)
        assert frame is not None
        assert int.from_bytes(fixed[frame.info_at + 12 :][:4], "big") == len(fixed)


def _stated_frames(data: bytes) -> int:
    """Number of frames stated by the Info or Xing frame at the beginning of a file."""
    frame = frame_at(data, 0)
    assert frame is not None and data[frame.info_at :][:4] in (b"Info", b"Xing")
    return int.from_bytes(data[frame.info_at + 8 :][:4], "big")


class TestLevel:
    def test_opposite_phases_are_not_mixed_to_zeros(self, tmp_path: Path) -> None:
        tone = 0.3 * np.sin(np.arange(RATE) / 10)
        soundfile.write(tmp_path / "a.wav", np.stack([tone, -tone], 1), RATE, subtype="FLOAT")
        np.testing.assert_allclose(read_audio(str(tmp_path / "a.wav"), RATE), tone, atol=1e-6)
        assert check_audio(str(tmp_path / "a.wav")).cancels
        soundfile.write(tmp_path / "b.wav", np.stack([tone, 0.5 * tone], 1), RATE, subtype="FLOAT")
        np.testing.assert_allclose(read_audio(str(tmp_path / "b.wav"), RATE), 0.75 * tone, atol=1e-6)

    def test_integers_that_were_written_as_floats_are_refused(self, tmp_path: Path) -> None:
        soundfile.write(tmp_path / "a.wav", 32767 * noise(1.0), RATE, subtype="FLOAT")
        for read in (lambda p: read_audio(p, 16_000), check_audio, lambda p: read_clip(p, WINDOW)):
            with pytest.raises(ClipError, match="full scale is 1: divide"):
                read(str(tmp_path / "a.wav"))

    def test_a_little_over_full_scale_is_limited_everywhere(self, tmp_path: Path) -> None:
        soundfile.write(tmp_path / "a.wav", np.array([0.5, 1.5, -2.0]), 16_000, subtype="FLOAT")
        np.testing.assert_array_equal(read_audio(str(tmp_path / "a.wav"), 16_000), [0.5, 1.0, -1.0])
        found = check_audio(str(tmp_path / "a.wav"))
        assert found.peak == 2.0 and found.clipped == pytest.approx(2 / 3, abs=1e-6)


def test_giant_lengths_take_no_memory(tmp_path: Path) -> None:
    """A header that states 6 days is refused before memory is allocated."""
    (tmp_path / "a.flac").write_bytes(flac(1 << 34))
    with pytest.raises(SepsceneError, match="too long to read at once"):
        read_audio(str(tmp_path / "a.flac"), 16_000)
