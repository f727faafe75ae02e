"""`sepscene embed`: equals the encoder on the whole file, can be resumed, and does not stop at a bad file."""

import errno
import io
import json
import os
import zlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
import torch

from sepscene.augment.audio import AudioFormat, read_audio, read_blocks
from sepscene.augment.locations import filesystem_of
from sepscene.models.config import SepsceneError
from sepscene.models.custom import CustomEncoder
from sepscene.models.encoders.encoder import Encoder, EncoderConfig, save_encoder
from sepscene.models.names import trust_code
from sepscene.orchestration.api import embed
from sepscene.orchestration.evaluation import embed_files as embedding
from sepscene.orchestration.evaluation import embedding_writer
from sepscene.orchestration.evaluation.embed_clips import EmbedClips
from sepscene.orchestration.evaluation.embed_files import EmbedReport, list_files
from sepscene.orchestration.evaluation.file_encoder import FileEncoder
from sepscene.tasks.datasets.readers import read_manifest
from sepscene.tasks.datasets.survey import NOT_UTF8
from tests.custom_code import write_package
from tests.models.encoders.test_encoder import small_encoder


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    save_encoder(small_encoder(), tmp_path / "bundle", {})
    return tmp_path / "bundle"


def _noise(path: Path, seconds: float, rate: int = 16_000, channels: int = 1) -> str:
    draws = np.random.default_rng(zlib.crc32(path.name.encode()))
    soundfile.write(path, 0.1 * draws.standard_normal((int(seconds * rate), channels)), rate)
    return str(path)


@pytest.fixture
def sounds(tmp_path: Path) -> list[str]:
    """Files of all formats and of various lengths, and one that is not a sound."""
    folder = tmp_path / "sounds"
    (folder / "deeper").mkdir(parents=True)
    files = [
        _noise(folder / "a.wav", 2.5),
        _noise(folder / "b.flac", 0.3, rate=22_050),
        _noise(folder / "c.ogg", 1.92, rate=44_100, channels=2),
        _noise(folder / "deeper" / "d.mp3", 1.1, rate=48_000),
    ]
    (folder / "broken.wav").write_bytes(b"not a sound")
    (folder / "notes.txt").write_text("not a sound either")
    return files


def _embed(bundle: Path, inputs: list[str], out: Path, **options) -> EmbedReport:
    return embed(bundle, inputs, out, device="cpu", quiet=True, **options)


def _read(out: Path) -> dict[str, np.ndarray]:
    if out.suffix == ".npy":
        names = json.loads(out.with_suffix(".names.json").read_text())["names"]
        h_ND = np.load(out)
    else:
        table = pq.read_table(out)
        names = table["uri"].to_pylist()
        h_ND = np.stack(table["h"].to_numpy())
    assert h_ND.dtype == np.float32 and len(set(names)) == len(names) == len(h_ND)
    return dict(zip(names, h_ND, strict=True))


@pytest.mark.parametrize("name", ["out.npy", "out.parquet"])
def test_each_file_gets_the_encoders_h_and_bad_ones_are_reported(
    bundle: Path, sounds: list[str], tmp_path: Path, name: str
) -> None:
    broken = str(tmp_path / "sounds" / "broken.wav")
    missing = str(tmp_path / "missing.wav")
    report = _embed(bundle, [str(tmp_path / "sounds"), missing], tmp_path / name)
    assert (report.written, report.skipped, set(report.bad)) == (4, 0, {broken, missing})
    assert report.bad[missing] == "no such file" and "not decodable" in report.bad[broken]
    encoder = small_encoder()
    found = _read(tmp_path / name)
    assert set(found) == set(sounds)
    for uri in sounds:
        with torch.inference_mode():
            expected = encoder(torch.from_numpy(read_audio(uri, 16_000))[None])[0].numpy()
        np.testing.assert_allclose(found[uri], expected, atol=1e-4, rtol=1e-4)
    assert not (tmp_path / f"{name}.parts").exists()


@pytest.mark.parametrize("rate", [16_000, 44_100, 11_025])
@pytest.mark.parametrize("seconds", [4.0, 5.3])
def test_all_blocks_together_are_the_whole_file(tmp_path: Path, rate: int, seconds: float) -> None:
    uri = _noise(tmp_path / "long.wav", seconds, rate)
    blocks = list(read_blocks(uri, 16_000, 2))
    assert {len(block_T) for block_T in blocks[:-1]} == {32_000}
    np.testing.assert_allclose(np.concatenate(blocks), read_audio(uri, 16_000), atol=1e-6)


def test_a_file_longer_than_a_block_gives_the_same_h(tmp_path: Path) -> None:
    uri = _noise(tmp_path / "long.wav", 51.0, 8_000)
    encoder = small_encoder()
    file_encoder = FileEncoder(encoder)
    assert file_encoder.block_seconds == 48
    (file,) = file_encoder.embed([uri])
    with torch.inference_mode():
        expected = encoder(torch.from_numpy(read_audio(uri, 16_000))[None])[0].numpy()
    np.testing.assert_allclose(file.h_D, expected, atol=1e-4, rtol=1e-4)


def test_damage_in_a_long_file_is_reported_and_the_next_file_is_embedded(tmp_path: Path) -> None:
    long = Path(_noise(tmp_path / "long.flac", 60.0, 8_000))
    good = _noise(tmp_path / "good.wav", 1.0)
    content = bytearray(long.read_bytes())
    content[len(content) * 9 // 10 :] = bytes(len(content) - len(content) * 9 // 10)
    long.write_bytes(content)
    damaged, done = FileEncoder(small_encoder()).embed([str(long), good])
    assert damaged.fault and not done.fault


@pytest.mark.parametrize("name", ["out.npy", "out.parquet"])
def test_an_interrupted_call_continues_where_it_stopped(
    bundle: Path, sounds: list[str], tmp_path: Path, name: str, monkeypatch
) -> None:
    monkeypatch.setattr(embedding, "FILES_PER_PART", 1)
    embed = FileEncoder.embed

    def killed_after_two(self: FileEncoder, uris):
        for count, file in enumerate(embed(self, uris)):
            if count == 2:
                raise KeyboardInterrupt
            yield file

    monkeypatch.setattr(FileEncoder, "embed", killed_after_two)
    with pytest.raises(KeyboardInterrupt):
        _embed(bundle, sounds, tmp_path / name)
    assert not (tmp_path / name).exists()
    monkeypatch.setattr(FileEncoder, "embed", embed)
    report = _embed(bundle, sounds, tmp_path / name)
    assert (report.written, report.skipped) == (2, 2)
    assert list(_read(tmp_path / name)) == sounds


@pytest.mark.parametrize("name", ["out.npy", "out.parquet"])
def test_rows_are_appended_to_a_finished_output(bundle: Path, sounds: list[str], tmp_path: Path, name: str) -> None:
    _embed(bundle, sounds[:2], tmp_path / name)
    before = _read(tmp_path / name)
    report = _embed(bundle, sounds[1:], tmp_path / name)
    after = _read(tmp_path / name)
    assert (report.written, report.skipped) == (2, 1)
    assert list(after) == sounds
    assert all(np.array_equal(after[uri], before[uri]) for uri in before)


def test_a_kill_between_the_rows_and_their_names_loses_nothing(bundle: Path, sounds: list[str], tmp_path: Path) -> None:
    out = tmp_path / "out.npy"
    parts = tmp_path / "out.npy.parts"
    _embed(bundle, sounds, out)
    parts.mkdir()
    out.with_suffix(".names.json").rename(parts / "merged.names.json")
    assert _embed(bundle, sounds, out).skipped == 4
    assert list(_read(out)) == sounds


def test_rows_that_could_not_replace_an_earlier_output_keep_their_names(
    bundle: Path, sounds: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk fails once when the merged rows replace OUT: the names of the new rows must not be moved beside it."""
    out = tmp_path / "out.npy"
    _embed(bundle, sounds[:2], out)
    before = out.with_suffix(".names.json").read_text()

    def full(source: Path, target: Path) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(embedding_writer, "replace_file", full)
        with pytest.raises(SepsceneError, match=r"out\.npy cannot be written .*finished rows are kept"):
            _embed(bundle, sounds, out)
    assert out.with_suffix(".names.json").read_text() == before
    assert _embed(bundle, sounds, out).skipped == 4
    assert list(_read(out)) == sounds
    assert out.with_suffix(".names.json").read_text() != before


def test_rows_of_another_encoder_are_not_mixed_in(bundle: Path, sounds: list[str], tmp_path: Path) -> None:
    other = small_encoder()
    other.trunk.embedding.bias.data += 1
    save_encoder(other, tmp_path / "other", {})
    for name in ("out.npy", "out.parquet"):
        _embed(bundle, sounds[:1], tmp_path / name)
        with pytest.raises(SepsceneError, match=rf"{name} contains rows of another encoder"):
            _embed(tmp_path / "other", sounds, tmp_path / name)
        (tmp_path / name).write_bytes(b"damaged")
        with pytest.raises(SepsceneError, match=r"cannot be continued.*--out"):
            _embed(bundle, sounds, tmp_path / name)
    with pytest.raises(SepsceneError, match=r"must end in \.npy or \.parquet"):
        _embed(bundle, sounds, tmp_path / "out.csv")


def test_arguments_are_files_folders_manifests_and_stdin(sounds: list[str], tmp_path: Path, monkeypatch) -> None:
    folder = tmp_path / "sounds"
    (folder / "list.csv").write_text("label,uri\ndog,a.wav\ncat,s3://bucket/x.wav\n")
    pq.write_table(pa.table({"uri": ["deeper/d.mp3", sounds[0]]}), folder / "list.parquet")
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{sounds[1]}\n\n{folder / 'list.csv'}\n"))
    assert list_files([sounds[2], sounds[2]]) == [sounds[2]]
    everything = sorted([*sounds, str(folder / "broken.wav")], key=Path)
    assert list_files([str(folder)]) == everything
    assert list_files([str(folder / "list.csv")]) == [sounds[0], "s3://bucket/x.wav"]
    assert list_files([str(folder / "list.parquet")]) == [sounds[3], sounds[0]]
    assert list_files(["-"]) == [sounds[1], sounds[0], "s3://bucket/x.wav"]


def test_a_manifest_can_be_in_a_bucket() -> None:
    """Its message once named the current folder."""
    filesystem, path = filesystem_of("mock://lists/a")
    filesystem.create_dir(path)
    with filesystem.open_output_stream(f"{path}/list.csv") as stream:
        stream.write(b"uri\nb c.wav\nmock://other/d.wav\n")
    assert list_files(["mock://lists/a/list.csv"]) == ["mock://lists/a/b%20c.wav", "mock://other/d.wav"]
    with pytest.raises(SepsceneError, match=r"mock://lists/a/none\.csv"):
        list_files(["mock://lists/a/none.csv"])


def test_a_folder_gives_the_files_of_a_data_set_and_reports_what_it_leaves_out(bundle: Path, tmp_path: Path) -> None:
    folder = tmp_path / "sounds"
    tone = 0.3 * np.sin(np.arange(16_000) / 10)
    (folder / ".git").mkdir(parents=True)
    for name in ("plain.wav", ".git/x.wav", "a.aiff", "b.au", "c.caf", "f.w64"):
        soundfile.write(folder / name, tone, 16_000)
    for name in ("._plain.wav", "v.m4a"):
        (folder / name).write_bytes(bytes(100))
    Path(os.fsdecode(os.fsencode(folder) + b"/caf\xe9.wav")).write_bytes((folder / "plain.wav").read_bytes())
    report = _embed(bundle, [str(folder)], tmp_path / "out.parquet")
    listed = read_manifest("directory", str(folder)).clips["uri"].to_pylist()
    assert sorted(_read(tmp_path / "out.parquet")) == listed and len(listed) == 5
    assert report.bad == {r"caf\udce9.wav": NOT_UTF8}
    assert sum(entry.count for entry in report.left_out) == 4


@pytest.mark.parametrize("name", ["o.parquet", "o.npy"])
def test_the_same_name_of_another_file_is_refused(
    bundle: Path, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder, hz in (("one", 300), ("two", 3_000)):
        (tmp_path / folder).mkdir()
        soundfile.write(tmp_path / folder / "take.wav", 0.3 * np.sin(np.arange(16_000) * hz / 16_000), 16_000)
    monkeypatch.chdir(tmp_path / "one")
    assert _embed(bundle, ["take.wav"], tmp_path / name).written == 1
    assert _embed(bundle, ["take.wav"], tmp_path / name).skipped == 1
    monkeypatch.chdir(tmp_path / "two")
    with pytest.raises(SepsceneError, match=r"a row for take.wav of another file.*absolute paths"):
        _embed(bundle, ["take.wav"], tmp_path / name)
    assert _embed(bundle, [str(tmp_path / "two/take.wav")], tmp_path / name).written == 1
    os.utime(tmp_path / "two/take.wav", ns=(1, 1))
    with pytest.raises(SepsceneError, match="the file has changed since"):
        _embed(bundle, [str(tmp_path / "two/take.wav")], tmp_path / name)


def test_devices_and_folders_that_do_not_exist_are_refused(bundle: Path, sounds: list[str], tmp_path: Path) -> None:
    for device in ("gpu", "cuda:99", "warp"):
        with pytest.raises(SepsceneError, match=f"--device {device}: torch"):
            embedding.usable_device(device)
    (tmp_path / "file").touch()
    with pytest.raises(SepsceneError, match="cannot be written"):
        _embed(bundle, sounds[:1], tmp_path / "file/out.parquet")


def test_bad_manifests_are_named(tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text("file\na.wav\n")
    (tmp_path / "list.parquet").write_bytes(b"damaged")
    pq.write_table(pa.table({"uri": ["a.wav", None]}), tmp_path / "null.parquet")
    pq.write_table(pa.table({"uri": ["a.wav", " "]}), tmp_path / "blank.parquet")
    (tmp_path / "blank.csv").write_text("uri,label\n,dog\n")
    (tmp_path / "empty").mkdir()
    for name, message in {
        "list.csv": "column uri is missing; the table has file",
        "list.parquet": "cannot be read as a table",
        "null.parquet": "row 2 has no value for uri",
        "blank.parquet": "row 2 has no uri",
        "blank.csv": "row 2 has no uri",
        "none.csv": "cannot be read",
        "nowhere/list.csv": r"nowhere/list\.csv cannot be read \(no such file\)",
        "empty": "no sound file to embed",
    }.items():
        with pytest.raises(SepsceneError, match=message):
            list_files([str(tmp_path / name)])


def test_a_refused_call_leaves_no_files(bundle: Path, sounds: list[str], tmp_path: Path) -> None:
    with pytest.raises(SepsceneError, match="torch does not know this device"):
        embed(bundle, sounds, tmp_path / "out.parquet", device="abacus")
    assert not list(tmp_path.glob("out.parquet*"))


@pytest.mark.slow
@pytest.mark.usefixtures("local_ray")
def test_an_encoder_that_a_node_cannot_import_is_refused_and_leaves_no_files(
    sounds: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only this process knows and trusts the encoder's code: Ray was started before."""
    write_package(tmp_path / "lab", "embedlab", monkeypatch)
    trust_code("embedlab.nets:MelNet")
    trunk = CustomEncoder.model_validate({"use": "embedlab.nets:MelNet"})
    save_encoder(Encoder(EncoderConfig(trunk=trunk)), tmp_path / "custom", {})
    with pytest.raises(SepsceneError, match=r"embedlab.*pass runtime_env=\{'py_modules'"):
        embed(tmp_path / "custom", sounds, tmp_path / "out.parquet", actors=1)
    assert not list(tmp_path.glob("out.parquet*"))


@pytest.mark.slow
@pytest.mark.usefixtures("local_ray")
@pytest.mark.filterwarnings("error::ray.util.annotations.RayDeprecationWarning")
def test_a_cluster_gives_the_same_rows(bundle: Path, sounds: list[str], tmp_path: Path, monkeypatch) -> None:
    """Also for paths relative to a folder that is not the working folder of the actors."""
    monkeypatch.setattr(embedding, "FILES_PER_CALL", 2)
    monkeypatch.chdir(tmp_path / "sounds")
    inputs = [*(os.path.relpath(uri) for uri in sounds), "missing.wav"]
    with pytest.raises(SepsceneError, match=r"(?s)does not fit the cluster.*change --actors or --gpus, or"):
        embed(bundle, inputs, tmp_path / "no.parquet", actors=1, gpus=1)
    out = tmp_path / "cluster.parquet"
    report = embed(bundle, inputs, out, actors=2, quiet=True)
    again = embed(bundle, inputs[:4], out, actors=2, quiet=True)
    assert (report.written, report.bad) == (4, {"missing.wav": "no such file"})
    assert (again.written, again.skipped) == (0, 4)
    _embed(bundle, inputs, tmp_path / "local.parquet")
    found = _read(out)
    expected = _read(tmp_path / "local.parquet")
    assert found.keys() == expected.keys()
    for uri in expected:
        np.testing.assert_allclose(found[uri], expected[uri], atol=1e-4, rtol=1e-4)


def test_bfloat16_is_close_to_float32(sounds: list[str]) -> None:
    whole = [file.h_D for file in FileEncoder(small_encoder()).embed(sounds)]
    half = [file.h_D for file in FileEncoder(small_encoder(), bfloat16=True).embed(sounds)]
    for exact_D, near_D in zip(whole, half, strict=True):
        assert 0 < np.linalg.norm(near_D - exact_D) < 0.05 * np.linalg.norm(exact_D)


def test_evaluation_embeds_a_short_clip_as_embed_does(bundle: Path, tmp_path: Path) -> None:
    """With a window of 10 s, the padding must not be embedded."""
    paths = []
    for seconds in (1.0, 4.0, 4.0, 0.5):
        paths.append(str(tmp_path / f"{len(paths)}.wav"))
        noise = np.random.default_rng(len(paths)).uniform(-0.5, 0.5, round(16_000 * seconds))
        soundfile.write(paths[-1], noise, 16_000)
    _embed(bundle, paths, tmp_path / "out.parquet")
    columns = {"uri": np.array([*paths, "none.wav"]), "offset_seconds": np.zeros(5), "position": np.arange(5)}
    found = EmbedClips({"e": str(bundle)}, AudioFormat(clip_seconds=10.0), "cpu")(columns)
    expected = _read(tmp_path / "out.parquet")
    np.testing.assert_allclose(found["h:e"][:4], np.stack([expected[path] for path in paths]), atol=1e-4, rtol=1e-4)
    assert found["fault"].tolist() == [""] * 4 + ["no such file"]
    assert found["samples"].tolist() == [16_000, 64_000, 64_000, 8_000, 0]
    assert found["background"].shape == (5, 64) and found["level"][4] == 0 and (found["level"][:4] != 0).all()
