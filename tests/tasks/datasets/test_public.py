"""Public data sets and sharded layouts, as small copies of the real layouts."""

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile

from sepscene.augment.audio import AudioFormat, read_clip
from sepscene.augment.locations import filesystem_of
from sepscene.tasks.datasets.readers import Manifest, ManifestError, read_manifest


def wav(seconds: float = 0.1) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, np.linspace(-0.5, 0.5, round(16_000 * seconds)), 16_000, format="WAV")
    return buffer.getvalue()


def write(root: Path, files: dict[str, str]) -> str:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text, encoding="utf-8")
    return str(root)


def rows(manifest: Manifest) -> list[tuple[str, list[str], str]]:
    return [(clip["clip_id"], clip["labels"], clip["split"]) for clip in manifest.clips.to_pylist()]


def tar(path: Path, members: dict[str, bytes]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, data in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))


INDEX = """index,mid,display_name
0,/m/09x0r,"Speech"
1,/m/05zppz,"Male speech, man speaking"
10,/m/0bt9lr,"Dog"
2,/m/068hy,"Domestic animals, pets"
"""
HEADER = """# Segments csv created Sun Mar  5 10:54:31 2017
# num_ytids=3, num_segs=3, num_unique_labels=4, num_positive_labels=5
# YTID, start_seconds, end_seconds, positive_labels
"""


class TestAudioSet:
    FILES = {
        "class_labels_indices.csv": INDEX,
        "balanced_train_segments.csv": HEADER
        + '--aE2O5G5WE, 30.000, 40.000, "/m/09x0r,/m/05zppz"\n'
        + '-0RWZT-miFs, 420.000, 430.000, "/m/0bt9lr"\n'
        + 'Y_abcdefg-1, 0.000, 10.000, "/m/068hy"\n',
        "eval_segments.csv": HEADER + 'eval1234_-A, 30.000, 40.000, "/m/0bt9lr,/m/068hy"\n',
    }

    def test_layouts_of_the_audio(self, tmp_path: Path) -> None:
        audio = ["audio/bal/--aE2O5G5WE.wav", "audio/bal/Y-0RWZT-miFs.wav", "audio/bal/Y_abcdefg-1_0_10000.flac"]
        audio += ["audio/eval/eval1234_-A_30.000.flac", "audio/eval/unlisted12_.wav"]
        manifest = read_manifest("audioset", write(tmp_path, self.FILES | dict.fromkeys(audio, "")))
        assert manifest.classes == ("Speech", "Male speech, man speaking", "Domestic animals, pets", "Dog")
        assert rows(manifest) == [
            ("--aE2O5G5WE", ["Speech", "Male speech, man speaking"], "balanced_train"),
            ("-0RWZT-miFs", ["Dog"], "balanced_train"),
            ("Y_abcdefg-1", ["Domestic animals, pets"], "balanced_train"),
            ("eval1234_-A", ["Dog", "Domestic animals, pets"], "eval"),
        ]
        assert [Path(uri).name for uri in manifest.clips["uri"].to_pylist()] == [Path(name).name for name in audio[:4]]
        np.testing.assert_array_equal(manifest.targets().sum(axis=0), [1, 1, 2, 2])

    def test_a_second_segment_of_one_recording_is_reported(self, tmp_path: Path) -> None:
        strong = HEADER + '--aE2O5G5WE, 30.000, 40.000, "/m/09x0r"\n--aE2O5G5WE, 50.500, 60.500, "/m/09x0r"\n'
        files = self.FILES | {"strong_segments.csv": strong, "a/--aE2O5G5WE.wav": ""}
        manifest = read_manifest("audioset", write(tmp_path, files))
        assert [row[0] for row in rows(manifest)] == ["--aE2O5G5WE"]
        assert manifest.absent[-1] == "--aE2O5G5WE_50500" and len(manifest.absent) == 4

    def test_a_file_name_matches_one_id(self, tmp_path: Path) -> None:
        both = HEADER + 'ABCDEFGHIJ_, 0, 10, "/m/09x0r"\nYABCDEFGHIJ, 0, 10, "/m/0bt9lr"\n'
        files = {"class_labels_indices.csv": INDEX, "eval_segments.csv": both, "a/YABCDEFGHIJ_.wav": ""}
        manifest = read_manifest("audioset", write(tmp_path, files))
        assert [row[0] for row in rows(manifest)] == ["ABCDEFGHIJ_"] and manifest.absent == ("YABCDEFGHIJ",)
        plain = read_manifest("audioset", write(tmp_path, {"b/ABCDEFGHIJ_.wav": "", "b/YABCDEFGHIJ.wav": ""}))
        assert plain.clips["uri"].to_pylist() == [f"{tmp_path}/b/{n}.wav" for n in ("ABCDEFGHIJ_", "YABCDEFGHIJ")]

    def test_deleted_videos_are_absent(self, tmp_path: Path) -> None:
        manifest = read_manifest("audioset", write(tmp_path, self.FILES | {"a/eval1234_-A.wav": ""}))
        assert [row[0] for row in rows(manifest)] == ["eval1234_-A"]
        assert manifest.absent == ("--aE2O5G5WE", "-0RWZT-miFs", "Y_abcdefg-1")

    @pytest.mark.parametrize(
        ("files", "message"),
        [
            ({}, r"class_labels_indices.csv: no such file"),
            ({"class_labels_indices.csv": INDEX}, r"has no \*_segments.csv"),
            (FILES, "the data set is empty"),
            (
                FILES | {"eval_segments.csv": 'abcdefghijk, 1, 2, "/m/none"\n'},
                "label '/m/none', which class_labels_indices.csv lacks",
            ),
            (FILES | {"eval_segments.csv": "../../../x, 1, 2, /m/0bt9lr\n"}, "is not `YTID"),
            (FILES | {"eval_segments.csv": "abcdefghijk, 1\n"}, "is not `YTID"),
            (FILES | {"eval_segments.csv": 'abcdefghijk, 1, 2, "' + 200_000 * "x"}, "cannot be read as CSV"),
        ],
    )
    def test_invalid_segment_files_are_refused_with_the_reason(
        self, tmp_path: Path, files: dict[str, str], message: str
    ) -> None:
        with pytest.raises(ManifestError, match=message):
            read_manifest("audioset", write(tmp_path, files))


class TestFsd50k:
    def test_ground_truth(self, tmp_path: Path) -> None:
        files = {
            "FSD50K.ground_truth/dev.csv": "fname,labels,mids,split\n"
            '64760,"Electric_guitar,Guitar","/m/02sgy,/m/0342h",train\n16399,Bark,/m/05tny_,val\n1,Bark,/m/05tny_,val\n',
            "FSD50K.ground_truth/eval.csv": 'fname,labels,mids\n37199,"Bark,Dog","/m/05tny_,/m/0bt9lr"\n',
            **dict.fromkeys(["FSD50K.dev_audio/64760.wav", "FSD50K.dev_audio/16399.wav"], ""),
            **dict.fromkeys(["FSD50K.eval_audio/37199.wav", "FSD50K.eval_audio/unlisted.wav"], ""),
        }
        manifest = read_manifest("fsd50k", write(tmp_path, files))
        assert rows(manifest) == [
            ("FSD50K.dev_audio/64760.wav", ["Electric_guitar", "Guitar"], "train"),
            ("FSD50K.dev_audio/16399.wav", ["Bark"], "val"),
            ("FSD50K.eval_audio/37199.wav", ["Bark", "Dog"], "test"),
        ]
        assert manifest.classes == ("Bark", "Dog", "Electric_guitar", "Guitar")
        assert manifest.absent == ("FSD50K.dev_audio/1.wav",)

    def test_collection(self, tmp_path: Path) -> None:
        files = {
            "FSD50K.metadata/collection/collection_dev.csv": "fname,labels,mids\n1,Bark,/m/05tny_\n",
            "FSD50K.metadata/collection/collection_eval.csv": "fname,labels,mids\n2,,\n",
            "FSD50K.dev_audio/1.wav": "",
            "FSD50K.eval_audio/2.wav": "",
        }
        manifest = read_manifest("fsd50k", write(tmp_path, files))
        assert rows(manifest) == [
            ("FSD50K.dev_audio/1.wav", ["Bark"], "train"),
            ("FSD50K.eval_audio/2.wav", [], "test"),
        ]

    def test_hostile_name(self, tmp_path: Path) -> None:
        files = {
            "FSD50K.ground_truth/dev.csv": "fname,labels,mids,split\n../../x,Bark,/m/05tny_,train\n",
            "FSD50K.ground_truth/eval.csv": "fname,labels,mids\n",
        }
        with pytest.raises(ManifestError, match=r"is outside of the data set's root"):
            read_manifest("fsd50k", write(tmp_path, files))


class TestShards:
    def test_webdataset(self, tmp_path: Path) -> None:
        tar(
            tmp_path / "train-000000.tar",
            {
                "a/0001.wav": wav(0.1),
                "a/0001.json": b'{"labels": ["dog", "cat"], "caption": "two animals"}',
                "b.flac": wav(0.2),
                "b.json": b'{"label": "owl", "split": "val", "offset_seconds": 0.05}',
                "c.mp3": wav(0.3),
                "c.cls": b"3\n",
                "lonely.json": b"{}",
            },
        )
        tar(tmp_path / "test/000.tar", {"d.wav": wav(0.4), "d.txt": b"dog;owl", "e.v2.wav": wav(0.5)})
        manifest = read_manifest("shards", str(tmp_path))
        assert rows(manifest) == [
            ("test/000.tar#d.wav", ["dog", "owl"], "test"),
            ("test/000.tar#e.v2.wav", [], "test"),
            ("train-000000.tar#a/0001.wav", ["dog", "cat"], "train"),
            ("train-000000.tar#b.flac", ["owl"], "val"),
            ("train-000000.tar#c.mp3", ["3"], "train"),
        ]
        clips = manifest.clips.to_pylist()
        for clip, samples in zip(clips, (6_400, 8_000, 1_600, 2_400, 4_800), strict=True):
            read = read_clip(clip["uri"], AudioFormat(clip_seconds=1), clip["offset_seconds"])
            assert np.flatnonzero(read)[-1] == samples - 1

    def test_label_files_are_found_in_any_case_and_too_large_ones_are_reported(self, tmp_path: Path) -> None:
        members = {"a.wav": wav(), "a.Json": b'{"label": "dog"}', "b.wav": wav(), "b.TXT": b"owl"}
        tar(tmp_path / "x.tar", members | {"c.wav": wav(), "c.txt": b" " * (1 << 20) + b"cat"})
        manifest = read_manifest("shards", str(tmp_path))
        assert [labels for _, labels, _ in rows(manifest)] == [["dog"], ["owl"], []]
        assert [str(entry) for entry in manifest.skipped] == ["1 (a label file can have 1048576 bytes): x.tar#c.txt"]

    def test_a_single_shard(self, tmp_path: Path) -> None:
        tar(tmp_path / "x.tar", {"a.wav": wav()})
        manifest = read_manifest("shards", f"{tmp_path}/x.tar")
        assert rows(manifest) == [("x.tar#a.wav", [], "train")]

    def test_remote(self) -> None:
        filesystem, path = filesystem_of("mock://lake/shards")
        filesystem.create_dir(path, recursive=True)
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w") as archive:
            entry = tarfile.TarInfo("a.wav")
            entry.size = len(wav())
            archive.addfile(entry, io.BytesIO(wav()))
        with filesystem.open_output_stream(f"{path}/test-0.tar") as stream:
            stream.write(buffer.getvalue())
        manifest = read_manifest("shards", "mock://lake/shards")
        assert rows(manifest) == [("test-0.tar#a.wav", [], "test")]
        assert read_clip(manifest.clips["uri"][0].as_py(), AudioFormat(clip_seconds=0.1)).shape == (1_600,)

    @pytest.mark.parametrize(
        ("members", "message"),
        [
            ({"../a.wav": wav()}, "leaves the archive"),
            ({"/a.wav": wav()}, "leaves the archive"),
            ({"a.wav": wav(), "a.json": b"{"}, "its labels cannot be read"),
            ({"a.wav": wav(), "a.json": b"[1]"}, "not an object"),
            ({"a.wav": wav(), "a.cls": b"\xff\xfe"}, "its labels cannot be read"),
            ({"a.wav": wav(), "a.json": b'{"offset_seconds": -1}'}, "offset_seconds is -1"),
            ({"a.txt": b"no audio"}, "the data set is empty"),
        ],
    )
    def test_archives_with_bad_labels_or_without_sound_are_refused_with_the_reason(
        self, tmp_path: Path, members: dict[str, bytes], message: str
    ) -> None:
        tar(tmp_path / "s.tar", members)
        with pytest.raises(ManifestError, match=message):
            read_manifest("shards", str(tmp_path))

    @pytest.mark.parametrize("where", [0, 100, 512, 600, -10, -600])
    def test_a_cut_archive(self, tmp_path: Path, where: int) -> None:
        """At the end of a member; in and after the next header; in the next sound; and in the sound before."""
        tar(tmp_path / "s.tar", {f"{n}.wav": wav() for n in range(5)})
        member = 512 + -(-len(wav()) // 512) * 512
        whole = (tmp_path / "s.tar").read_bytes()
        (tmp_path / "s.tar").write_bytes(whole[: 2 * member + where])
        with pytest.raises(ManifestError, match="not a readable tar archive"):
            read_manifest("shards", str(tmp_path))
        (tmp_path / "s.tar").write_bytes(whole[: 5 * member + 1024])  # some writers do not pad to 10 kB
        assert len(read_manifest("shards", str(tmp_path))) == 5

    def test_not_a_tar(self, tmp_path: Path) -> None:
        (tmp_path / "s.tar").write_bytes(b"x" * 2_000)
        with pytest.raises(ManifestError, match="not a readable tar"):
            read_manifest("shards", str(tmp_path))


class TestParquet:
    def test_texts_of_a_pandas_categorical_are_not_numbers(self, tmp_path: Path) -> None:
        labels = pa.array(["01", "1", "01"]).dictionary_encode()
        pq.write_table(pa.table({"audio": [wav()] * 3, "label": labels}), tmp_path / "a.parquet")
        assert read_manifest("parquet", str(tmp_path)).classes == ("01", "1")

    def test_hugging_face_class_labels(self, tmp_path: Path) -> None:
        features = {"audio": {"_type": "Audio"}, "label": {"names": ["dog", "cat"], "_type": "ClassLabel"}}
        schema = pa.schema(
            [("audio", pa.struct([("bytes", pa.binary()), ("path", pa.string())])), ("label", pa.int64())],
            metadata={"huggingface": json.dumps({"info": {"features": features}})},
        )
        values = {"audio": [{"bytes": wav(0.1), "path": None}, {"bytes": wav(0.2), "path": "b.wav"}], "label": [1, 0]}
        (tmp_path / "data").mkdir()
        pq.write_table(pa.table(values, schema=schema), tmp_path / "data/test-00000-of-00001.parquet", row_group_size=1)
        manifest = read_manifest("parquet", str(tmp_path))
        assert rows(manifest) == [
            ("data/test-00000-of-00001.parquet#0", ["cat"], "test"),
            ("data/test-00000-of-00001.parquet#1", ["dog"], "test"),
        ]
        read = read_clip(manifest.clips["uri"][1].as_py(), AudioFormat(clip_seconds=1))
        assert np.flatnonzero(read)[-1] == 3_199

    @pytest.mark.parametrize(
        ("label", "expected"),
        [({"names": ["dog", 7]}, "7"), ({"names": 5}, "1"), ([{"names": None}], "1"), ("text", "1")],
    )
    def test_malformed_class_names(self, tmp_path: Path, label: object, expected: str) -> None:
        metadata = {"huggingface": json.dumps({"info": {"features": {"label": label}}})}
        table = pa.table({"audio": [wav()], "label": [1]}).replace_schema_metadata(metadata)
        pq.write_table(table, tmp_path / "a.parquet")
        assert rows(read_manifest("parquet", str(tmp_path))) == [("a.parquet#0", [expected], "train")]

    def test_plain_columns(self, tmp_path: Path) -> None:
        table = {"audio": [wav()] * 2, "labels": [["a", "b"], []], "split": ["x", "y"], "offset_seconds": [0.0, 0.01]}
        pq.write_table(pa.table(table), tmp_path / "all.parquet")
        manifest = read_manifest("parquet", f"{tmp_path}/all.parquet")
        assert rows(manifest) == [("all.parquet#0", ["a", "b"], "x"), ("all.parquet#1", [], "y")]
        assert manifest.clips["offset_seconds"].to_pylist() == [0.0, 0.01]

    def test_tables_without_audio_or_with_unreadable_labels_are_refused(self, tmp_path: Path) -> None:
        pq.write_table(pa.table({"sound": [b""]}), tmp_path / "a.parquet")
        with pytest.raises(ManifestError, match="no column `audio`; it has sound"):
            read_manifest("parquet", str(tmp_path))
        times = pa.table({"audio": [b""], "label": pa.array([10**15], pa.timestamp("s"))})
        pq.write_table(times, tmp_path / "a.parquet")
        with pytest.raises(ManifestError, match="cannot be read as Parquet"):
            read_manifest("parquet", str(tmp_path))
        (tmp_path / "a.parquet").write_bytes(b"PAR1")
        with pytest.raises(ManifestError, match="cannot be read as Parquet"):
            read_manifest("parquet", str(tmp_path))


class TestFolder:
    def test_one_table_per_split(self, tmp_path: Path) -> None:
        files = {
            "train/metadata.csv": "file_name,label\nwavs/a.wav,dog\nb.wav,cat;dog\n",
            "test/metadata.jsonl": '{"file_name": "c.wav", "labels": ["owl"]}\n\n{"file_name": "d.wav"}\n',
        }
        assert rows(read_manifest("folder", write(tmp_path, files))) == [
            ("test/c.wav", ["owl"], "test"),
            ("test/d.wav", [], "test"),
            ("train/wavs/a.wav", ["dog"], "train"),
            ("train/b.wav", ["cat", "dog"], "train"),
        ]

    def test_one_table_for_all(self, tmp_path: Path) -> None:
        text = "file_name,label,split\ndata/train/a.wav,dog,\ntest/b.wav,cat,\nc.wav,cat,test\n"
        manifest = read_manifest("folder", write(tmp_path, {"metadata.csv": text}))
        assert [row[2] for row in rows(manifest)] == ["train", "test", "test"]

    @pytest.mark.parametrize(
        ("files", "message"),
        [
            ({"a.wav": ""}, "has no metadata.csv or metadata.jsonl"),
            ({"metadata.csv": "name,label\na.wav,x\n"}, "column file_name is missing"),
            ({"metadata.csv": "file_name\n../a.wav\n"}, "is outside of the data set's root"),
            ({"train/metadata.csv": "file_name\n../a.wav\n"}, "is outside of the data set's root"),
            ({"metadata.jsonl": "{\n"}, "cannot be read as a table"),
            ({"metadata.jsonl": "[1]\n"}, "cannot be read as a table|column file_name is missing"),
            ({"metadata.jsonl": '{"file_name": "a"}\n{"label": 1}\n'}, "row 2 has no value for file_name"),
        ],
    )
    def test_invalid_metadata_files_are_refused_with_the_reason(
        self, tmp_path: Path, files: dict[str, str], message: str
    ) -> None:
        with pytest.raises(ManifestError, match=message):
            read_manifest("folder", write(tmp_path, files))


def test_a_sparse_member_of_an_archive_is_never_unpacked(tmp_path: Path) -> None:
    """Its header claims 8 GiB."""
    entry = tarfile.TarInfo("a.wav")
    entry.type = tarfile.GNUTYPE_SPARSE
    header = bytearray(entry.tobuf(tarfile.GNU_FORMAT))
    for start, number in ((386, 2**33), (398, 0), (483, 2**33)):  # start of a hole, its bytes, the unpacked size
        header[start : start + 12] = b"%011o\0" % number
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    (tmp_path / "train-000.tar").write_bytes(bytes(header) + bytes(1024))
    with tarfile.open(tmp_path / "train-000.tar") as archive:
        assert [(member.size, member.issparse()) for member in archive] == [(2**33, True)]
    with pytest.raises(ManifestError):
        read_manifest("shards", str(tmp_path))
