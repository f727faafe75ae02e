"""Reading audio: valid files are read exactly, and faults are named."""

import io
import math
import os
import pickle
import struct
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile

from sepscene.augment.audio import AudioFormat, ClipError, check_audio, content_hash, read_audio, read_clip
from sepscene.augment.locations import filesystem_of, leaves_root, tar_members
from sepscene.models.config import SepsceneError

ONE_SECOND = AudioFormat(clip_seconds=1.0)


def sine(rate: int, seconds: float, frequency: float = 300.0) -> np.ndarray:
    return 0.5 * np.sin(2 * np.pi * frequency * np.arange(round(rate * seconds)) / rate)


def encoded(format: str, subtype: str | None = None, wave: np.ndarray | None = None, rate: int = 16_000) -> bytes:
    buffer = io.BytesIO()
    wave = np.random.default_rng(0).uniform(-0.3, 0.3, 32_000) if wave is None else wave
    soundfile.write(buffer, wave, rate, format=format, subtype=subtype)
    return buffer.getvalue()


def with_data_size(wav: bytes, size: int) -> bytes:
    place = wav.index(b"data") + 4
    return wav[:place] + struct.pack("<I", size) + wav[place + 4 :]


class TestWhole:
    @pytest.mark.parametrize("format", ["WAV", "FLAC", "OGG", "MP3", "AIFF", "AU", "CAF", "W64", "RF64"])
    def test_every_container_gives_its_samples(self, tmp_path: Path, format: str) -> None:
        path = tmp_path / f"a.{format.lower()}"
        wave = sine(16_000, 1.5)
        path.write_bytes(encoded(format, wave=wave))
        read = read_audio(str(path), 16_000)
        assert read.shape == (24_000,) and read.dtype == np.float32
        lossy = format in ("OGG", "MP3")
        np.testing.assert_allclose(read, wave, atol=0.05 if lossy else 2**-15)

    def test_16_bit_samples_are_exact(self, tmp_path: Path) -> None:
        samples = np.array([-32768, -1, 0, 1, 32767], np.int16)
        soundfile.write(tmp_path / "a.wav", samples, 16_000)
        np.testing.assert_array_equal(read_audio(str(tmp_path / "a.wav"), 16_000), samples / np.float32(32768))

    def test_mix_down_is_the_mean_of_eight_channels(self, tmp_path: Path) -> None:
        waves = np.random.default_rng(1).uniform(-1, 1, (16_000, 8)).astype(np.float32)
        soundfile.write(tmp_path / "a.wav", waves, 16_000, subtype="FLOAT")
        np.testing.assert_allclose(read_clip(str(tmp_path / "a.wav"), ONE_SECOND), waves.mean(axis=1), atol=1e-7)
        assert check_audio(str(tmp_path / "a.wav")).channels == 8

    @pytest.mark.parametrize("rate", [8_000, 11_025, 22_050, 44_100, 48_000, 96_000])
    def test_resampling_keeps_a_sine(self, tmp_path: Path, rate: int) -> None:
        soundfile.write(tmp_path / "a.wav", sine(rate, 2), rate, subtype="FLOAT")
        read = read_audio(str(tmp_path / "a.wav"), 16_000)
        assert len(read) == 32_000
        np.testing.assert_allclose(read[200:-200], sine(16_000, 2)[200:-200], atol=5e-4)

    @pytest.mark.parametrize("rate", [1_000, 22_051, 44_101, 192_001])
    def test_odd_rates_need_no_giant_filter(self, tmp_path: Path, rate: int) -> None:
        soundfile.write(tmp_path / "a.wav", sine(rate, 2), rate, subtype="FLOAT")
        read = read_audio(str(tmp_path / "a.wav"), 16_000)
        assert abs(len(read) - 32_000) <= 2
        np.testing.assert_allclose(read[400:31_600], sine(16_000, 2)[400:31_600], atol=0.03)


class TestClip:
    def test_short_is_padded_with_silence_or_itself(self, tmp_path: Path) -> None:
        path = str(tmp_path / "a.wav")
        soundfile.write(path, np.array([0.5, -0.5, 0.25]), 16_000, subtype="FLOAT")
        zeros = read_clip(path, AudioFormat(clip_seconds=8 / 16_000))
        np.testing.assert_array_equal(zeros, [0.5, -0.5, 0.25, 0, 0, 0, 0, 0])
        repeated = read_clip(path, AudioFormat(clip_seconds=8 / 16_000, pad="repeat"))
        np.testing.assert_array_equal(repeated, [0.5, -0.5, 0.25, 0.5, -0.5, 0.25, 0.5, -0.5])

    def test_one_sample_is_a_clip(self, tmp_path: Path) -> None:
        soundfile.write(tmp_path / "a.wav", np.array([0.5]), 16_000, subtype="FLOAT")
        read = read_clip(str(tmp_path / "a.wav"), ONE_SECOND)
        assert read[0] == 0.5 and not read[1:].any() and len(read) == 16_000

    def test_long_is_cropped_at_start_or_centre(self, tmp_path: Path) -> None:
        path = str(tmp_path / "a.wav")
        ramp = np.linspace(0, 1, 48_000, dtype=np.float32)
        soundfile.write(path, ramp, 16_000, subtype="FLOAT")
        np.testing.assert_array_equal(read_clip(path, ONE_SECOND), ramp[:16_000])
        np.testing.assert_array_equal(read_clip(path, ONE_SECOND, offset_seconds=1.5), ramp[24_000:40_000])
        centre = AudioFormat(clip_seconds=1.0, crop="centre")
        np.testing.assert_array_equal(read_clip(path, centre), ramp[16_000:32_000])
        np.testing.assert_array_equal(read_clip(path, centre, offset_seconds=1.0), ramp[24_000:40_000])

    @pytest.mark.parametrize("rate", [8_000, 44_100, 48_000])
    def test_partial_read_equals_the_crop_of_the_whole(self, tmp_path: Path, rate: int) -> None:
        noise = np.random.default_rng(2).uniform(-0.5, 0.5, rate * 5)
        path = str(tmp_path / "a.flac")
        soundfile.write(path, noise, rate)
        whole = read_audio(path, 16_000)
        for offset in (0, 2, 4):
            part = read_clip(path, ONE_SECOND, offset_seconds=offset)
            np.testing.assert_allclose(part, whole[offset * 16_000 :][:16_000], atol=1e-6)

    def test_partial_read_does_not_read_beyond_the_clip(self, tmp_path: Path) -> None:
        path = tmp_path / "a.flac"
        whole = encoded("FLAC", wave=np.random.default_rng(3).uniform(-0.5, 0.5, 160_000))
        path.write_bytes(whole[: len(whole) // 2])
        assert len(read_clip(str(path), ONE_SECOND)) == 16_000
        with pytest.raises(ClipError, match=r"lost sync|truncated"):
            read_audio(str(path), 16_000)

    @pytest.mark.parametrize("offset", [2.0, 1e9, -1.0, math.nan, math.inf])
    def test_impossible_offset(self, tmp_path: Path, offset: float) -> None:
        soundfile.write(tmp_path / "a.wav", sine(16_000, 2), 16_000)
        with pytest.raises(ClipError, match="offset"):
            read_clip(str(tmp_path / "a.wav"), ONE_SECOND, offset_seconds=offset)


WAV = encoded("WAV", "PCM_16")
CORRUPT = {
    "empty": (b"", "empty"),
    "text": (b"no sound here\n" * 100, "not decodable"),
    "zeros": (bytes(5_000), "not decodable"),
    "cut header": (WAV[:30], "not decodable"),
    "no samples": (encoded("WAV", wave=np.zeros(0)), "no samples"),
    "cut data": (WAV[:-1], "truncated"),
    "half": (WAV[: len(WAV) // 2], "truncated"),
    "claims too much": (with_data_size(WAV, 640_000), "truncated"),
    "claims too little": (with_data_size(WAV, 10), "header is wrong"),
    "no channels": (WAV[:22] + b"\0\0" + WAV[24:], "not decodable"),
    "rate 0": (WAV[:24] + bytes(4) + WAV[28:], "not decodable"),
    "rate 3 Hz": (WAV[:24] + struct.pack("<I", 3) + WAV[28:], "3 Hz"),
    "rate 2 GHz": (WAV[:24] + struct.pack("<I", 2_000_000_000) + WAV[28:], "2000000000 Hz"),
    "NaN": (encoded("WAV", "FLOAT", np.array([0.1, np.nan, 0.2])), "NaN or infinite, the first at 1"),
    "Inf": (
        encoded("WAV", "DOUBLE", np.array([[0.1, 0.1], [0.2, -np.inf]])),
        "NaN or infinite, the first at 1",
    ),
    "beyond float32": (encoded("WAV", "DOUBLE", np.full(9, 1e300)), "NaN or infinite"),
    "half FLAC": (encoded("FLAC")[:20_000], "not decodable|truncated"),
    "half Ogg": (encoded("OGG", wave=np.random.default_rng(0).uniform(-1, 1, 160_000))[:50_000], "Ogg page"),
    "Ogg tail": (encoded("OGG")[:-20], "Ogg page"),
    "half MP3": (encoded("MP3")[:6_000], "truncated|not decodable"),
    "cut AIFF": (encoded("AIFF")[:-500], "truncated"),
    "cut RF64": (encoded("RF64")[:-500], "truncated"),
    "cut W64": (encoded("W64")[:-500], "truncated"),
    "cut AU": (encoded("AU")[:-500], "truncated"),
}


class TestCorrupt:
    @pytest.mark.parametrize("name", CORRUPT)
    def test_names_the_file_and_the_cause(self, tmp_path: Path, name: str) -> None:
        data, cause = CORRUPT[name]
        path = tmp_path / "a.wav"
        path.write_bytes(data)
        for read in (
            lambda: read_clip(str(path), AudioFormat()),
            lambda: read_audio(str(path), 16_000),
            lambda: check_audio(str(path)),
        ):
            with pytest.raises(ClipError, match=cause) as caught:
                read()
            assert caught.value.uri == str(path) and str(path) in str(caught.value)

    def test_flipped_bytes_never_raise_anything_else(self, tmp_path: Path) -> None:
        rng = np.random.default_rng(4)
        path = tmp_path / "a.bin"
        sounds = [encoded(format, wave=sine(16_000, 0.2)) for format in ("WAV", "FLAC", "OGG", "MP3", "AIFF")]
        for _ in range(150):
            data = bytearray(sounds[int(rng.integers(len(sounds)))])
            for place in rng.integers(0, min(len(data), 400), 4):
                data[place] = int(rng.integers(256))
            path.write_bytes(data)
            try:
                wave = read_clip(str(path), ONE_SECOND)
            except ClipError:
                continue
            assert wave.shape == (16_000,) and np.isfinite(wave).all()

    def test_missing_and_irregular(self, tmp_path: Path) -> None:
        for uri, cause in (
            (str(tmp_path / "none.wav"), "no such file"),
            (str(tmp_path), "not a regular file"),
            ("/dev/zero", "not a regular file"),
            ("nowhere://bucket/a.wav", "cannot be read"),
            (str(tmp_path / "none.tar#a.wav"), "no such file"),
        ):
            with pytest.raises(ClipError, match=cause):
                read_clip(uri, ONE_SECOND)
            with pytest.raises(ClipError, match=cause):
                content_hash(uri)

    def test_raw_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "a.raw").write_bytes(bytes(1_000))
        with pytest.raises(ClipError, match="headerless"):
            read_clip(str(tmp_path / "a.raw"), ONE_SECOND)

    def test_error_survives_pickling(self) -> None:
        error = pickle.loads(pickle.dumps(ClipError("a.wav", "holds no samples")))
        assert (error.uri, error.cause, str(error)) == (
            "a.wav",
            "holds no samples",
            "a.wav: holds no samples",
        )
        assert isinstance(error, SepsceneError)


class TestLocations:
    def test_file_uri_with_escapes(self, tmp_path: Path) -> None:
        path = tmp_path / "a b#c.wav"
        path.write_bytes(WAV)
        np.testing.assert_array_equal(read_audio(path.as_uri(), 16_000), read_audio(str(path), 16_000))

    def test_remote_object(self) -> None:
        filesystem, path = filesystem_of("mock://bucket/a.wav")
        filesystem.create_dir("bucket", recursive=True)
        with filesystem.open_output_stream(path) as stream:
            stream.write(WAV)
        assert len(read_audio("mock://bucket/a.wav", 16_000)) == 32_000
        with pytest.raises(ClipError, match="no such file"):
            read_audio("mock://bucket/b.wav", 16_000)

    def test_tar_member(self, tmp_path: Path) -> None:
        archive = tmp_path / "s.tar"
        with tarfile.open(archive, "w") as tar:
            for name, data in (("a/b.wav", WAV), ("./c.wav", encoded("FLAC"))):
                entry = tarfile.TarInfo(name)
                entry.size = len(data)
                tar.addfile(entry, io.BytesIO(data))
            link = tarfile.TarInfo("link.wav")
            link.type = tarfile.SYMTYPE
            link.linkname = "/etc/passwd"
            tar.addfile(link)
        assert sorted(tar_members(str(archive))) == ["a/b.wav", "c.wav"]
        assert len(read_audio(f"{archive}#a/b.wav", 16_000)) == 32_000
        assert content_hash(f"{archive}#a/b.wav") == content_hash(_written(tmp_path / "w.wav", WAV))
        for member in ("link.wav", "none.wav", "../s.tar"):
            with pytest.raises(ClipError, match="no regular file"):
                read_audio(f"{archive}#{member}", 16_000)

    @pytest.mark.parametrize(
        "name", ["../evil.wav", "/evil.wav", "a/../../evil.wav", "a\\..\\..\\evil.wav", "C:/evil.wav"]
    )
    def test_hostile_members(self, tmp_path: Path, name: str) -> None:
        assert leaves_root(name)
        archive = tmp_path / "s.tar"
        with tarfile.open(archive, "w") as tar:
            entry = tarfile.TarInfo(name)
            entry.size = len(WAV)
            tar.addfile(entry, io.BytesIO(WAV))
        with pytest.raises(ClipError, match="leaves the archive"):
            read_audio(f"{archive}#{name}", 16_000)

    def test_an_archive_that_is_replaced_by_one_of_the_same_size_and_time(self, tmp_path: Path) -> None:
        sounds = {"a.wav": encoded("WAV", wave=sine(16_000, 1.0)), "b.wav": encoded("WAV", wave=sine(16_000, 1.0, 500))}
        archive = tmp_path / "s.tar"
        for names in (["a.wav", "b.wav"], ["b.wav", "a.wav"]):
            with tarfile.open(tmp_path / "new.tar", "w") as tar:
                for name in names:
                    entry = tarfile.TarInfo(name)
                    entry.size = len(sounds[name])
                    tar.addfile(entry, io.BytesIO(sounds[name]))
            os.utime(tmp_path / "new.tar", ns=(10**18, 10**18))
            os.replace(tmp_path / "new.tar", archive)
            for name, frequency in (("a.wav", 300), ("b.wav", 500)):
                expected = sine(16_000, 1.0, frequency)
                np.testing.assert_allclose(read_audio(f"{archive}#{name}", 16_000), expected, atol=2**-15)

    def test_truncated_and_rewritten_archive(self, tmp_path: Path) -> None:
        archive = tmp_path / "s.tar"
        with tarfile.open(archive, "w") as tar:
            entry = tarfile.TarInfo("a.wav")
            entry.size = len(WAV)
            tar.addfile(entry, io.BytesIO(WAV))
        assert len(read_audio(f"{archive}#a.wav", 16_000)) == 32_000
        archive.write_bytes(archive.read_bytes()[:20_000])
        with pytest.raises(ClipError, match=r"truncated|cannot be read"):
            read_audio(f"{archive}#a.wav", 16_000)

    @pytest.mark.parametrize("as_struct", [True, False])
    def test_parquet_row(self, tmp_path: Path, as_struct: bool) -> None:
        sounds = [encoded("WAV", wave=sine(16_000, 0.1 * (n + 1))) for n in range(5)]
        values = [{"bytes": sound, "path": "x.wav"} for sound in sounds] if as_struct else sounds
        pq.write_table(pa.table({"audio": values, "label": [0] * 5}), tmp_path / "s.parquet", row_group_size=2)
        for row in (4, 0, 2, 3, 1):
            assert len(read_audio(f"{tmp_path}/s.parquet#{row}", 16_000)) == 1_600 * (row + 1)
        for row, cause in (
            ("5", "fewer rows"),
            ("-1", "row number"),
            ("a", "row number"),
            ("", "row number"),
        ):
            with pytest.raises(ClipError, match=cause):
                read_audio(f"{tmp_path}/s.parquet#{row}", 16_000)

    def test_parquet_without_audio(self, tmp_path: Path) -> None:
        pq.write_table(pa.table({"sound": [b"x"]}), tmp_path / "s.parquet")
        with pytest.raises(ClipError, match="no column `audio`"):
            read_audio(f"{tmp_path}/s.parquet#0", 16_000)
        pq.write_table(pa.table({"audio": pa.array([None], pa.binary())}), tmp_path / "n.parquet")
        with pytest.raises(ClipError, match="holds no bytes"):
            read_audio(f"{tmp_path}/n.parquet#0", 16_000)


class TestContentHash:
    def test_follows_the_bytes_not_the_name(self, tmp_path: Path) -> None:
        a = _written(tmp_path / "a.wav", WAV)
        b = _written(tmp_path / "b.wav", WAV)
        c = _written(tmp_path / "c.wav", WAV[:-1] + b"\1")
        assert content_hash(a) == content_hash(b) != content_hash(c)
        assert len(content_hash(a)) == 64

    def test_a_clip_that_changes_is_read_again(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """With equal size and modification time: a new file is never cached, an old one is identified by its inode."""
        for racy in (2 * 10**9, 0):
            monkeypatch.setattr("sepscene.augment.locations._RACY_NS", racy)
            a = _written(tmp_path / "a.wav", WAV)
            os.utime(a, ns=(10**18, 10**18))
            before = content_hash(a)
            (tmp_path / "new.wav").write_bytes(WAV[:-1] + b"\1")
            os.replace(tmp_path / "new.wav", a)
            os.utime(a, ns=(10**18, 10**18))
            assert content_hash(a) != before


def test_invalid_formats_are_refused() -> None:
    for wrong in (
        {"clip_seconds": 0},
        {"sample_rate": 10},
        {"pad": "loop"},
        {"clip_seconds": 1e-9},
        {"rate": 1},
    ):
        with pytest.raises(ValueError):
            AudioFormat(**wrong)
    assert AudioFormat().samples == 160_000


def test_real_recordings(shared_dir: Path) -> None:
    path = sorted((shared_dir / "data/esc10/audio").iterdir())[0]
    clip = read_clip(str(path), AudioFormat())
    assert clip.shape == (160_000,) and np.isfinite(clip).all() and clip.std() > 1e-4
    assert check_audio(str(path)).sample_rate == 44_100


def _written(path: Path, data: bytes) -> str:
    path.write_bytes(data)
    return str(path)
