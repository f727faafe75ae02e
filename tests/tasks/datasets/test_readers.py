"""Manifests and the plain layouts: what is read, and what is refused with which message."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sepscene.augment.audio import ClipError, check_audio
from sepscene.augment.locations import filesystem_of
from sepscene.augment.synthetic.scenes import SceneConfig, write_scenes
from sepscene.models.config import SepsceneError
from sepscene.tasks.datasets.manifest import CLIP_COLUMNS, Clip, make_manifest
from sepscene.tasks.datasets.readers import Manifest, ManifestError, read_manifest


def write(root: Path, files: dict[str, str]) -> str:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text, encoding="utf-8")
    return str(root)


def rows(manifest: Manifest) -> list[tuple[str, list[str], str, float]]:
    clips = manifest.clips.to_pylist()
    return [(clip["clip_id"], clip["labels"], clip["split"], clip["offset_seconds"]) for clip in clips]


TABLE = "uri,labels,split\na.wav,dog;cat,train\nb/c.wav,,test\nd.wav,cat,train\n"


class TestManifest:
    def test_targets_are_the_labels(self, tmp_path: Path) -> None:
        manifest = read_manifest("table", write(tmp_path, {"manifest.csv": TABLE}))
        assert manifest.classes == ("cat", "dog") and len(manifest) == 3
        assert manifest.clips.schema == CLIP_COLUMNS
        np.testing.assert_array_equal(manifest.targets(), [[True, True], [False, False], [True, False]])

    def test_selections_keep_order_and_classes(self, tmp_path: Path) -> None:
        manifest = read_manifest("table", write(tmp_path, {"manifest.csv": TABLE}))
        train = manifest.select("train")
        assert [row[0] for row in rows(train)] == ["a.wav", "d.wav"] and train.classes == manifest.classes
        np.testing.assert_array_equal(train.targets(), manifest.targets()[[0, 2]])
        np.testing.assert_array_equal(manifest.select("test", "train").targets(), manifest.targets())
        with pytest.raises(ManifestError, match="no split 'dev'; known names: test, train"):
            manifest.select("train", "dev")

    def test_a_single_table_can_have_any_name(self, tmp_path: Path) -> None:
        named = read_manifest("table", write(tmp_path / "a", {"manifest.csv": TABLE}))
        found = read_manifest("table", write(tmp_path / "b", {"train.csv": TABLE, "notes.txt": "none"}))
        assert found.clips["clip_id"].to_pylist() == named.clips["clip_id"].to_pylist()
        for files, count in (({"one.csv": TABLE, "two.csv": TABLE}, "2"), ({"notes.txt": "none"}, "no")):
            with pytest.raises(ManifestError, match=f"has {count} tables .* name the table itself"):
                read_manifest("table", write(tmp_path / count, files))

    def test_targets_of_a_sliced_table(self) -> None:
        manifest = make_manifest([Clip(str(n), str(n), ("a", "b")[: n % 3], "train") for n in range(7)], "here")
        part = Manifest(manifest.clips.slice(2, 4), manifest.classes)
        np.testing.assert_array_equal(part.targets(), manifest.targets()[2:6])

    def test_the_digest_depends_on_the_content_not_the_location(self, tmp_path: Path) -> None:
        first = read_manifest("table", write(tmp_path / "a", {"manifest.csv": TABLE}))
        moved = read_manifest("table", write(tmp_path / "b", {"manifest.csv": TABLE}))
        assert first.digest() == moved.digest() and len(first.digest()) == 64
        for change in (("dog;cat", "dog"), ("a.wav", "e.wav"), ("c.wav,,test", "c.wav,,train")):
            changed = read_manifest("table", write(tmp_path / "c", {"manifest.csv": TABLE.replace(*change)}))
            assert changed.digest() != first.digest()
        assert first.select("train").digest() != first.digest()

    def test_a_label_outside_the_classes(self) -> None:
        with pytest.raises(ManifestError, match="not among"):
            make_manifest([Clip("a", "a", ("dog",), "train")], "here", classes=("cat",)).targets()

    def test_no_classes_at_all(self) -> None:
        manifest = make_manifest([Clip("a", "a", (), "train")], "here")
        assert manifest.classes == () and manifest.targets().shape == (1, 0)

    def test_columns_are_declared(self) -> None:
        with pytest.raises(ManifestError, match="columns"):
            Manifest(pa.table({"uri": ["a"]}), ())


class TestTable:
    def test_file_or_folder_csv_or_parquet(self, tmp_path: Path) -> None:
        root = write(tmp_path, {"manifest.csv": "\ufeff" + TABLE, "x/manifest.csv": "never read"})
        table = {"uri": ["a.wav", "b/c.wav", "d.wav"], "labels": [["dog", "cat"], [], ["cat"]]}
        table["split"] = ["train", "test", "train"]
        pq.write_table(pa.table(table), tmp_path / "other.parquet")
        by_folder = read_manifest("table", root)
        by_file = read_manifest("table", f"{root}/manifest.csv")
        by_parquet = read_manifest("table", f"{root}/other.parquet")
        assert by_folder.digest() == by_file.digest() == by_parquet.digest()
        assert by_folder.clips["uri"].to_pylist()[1] == f"{root}/b/c.wav"

    def test_relative_root_becomes_absolute(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        write(tmp_path, {"data/manifest.csv": TABLE})
        monkeypatch.chdir(tmp_path)
        assert read_manifest("table", "data").clips["uri"][0].as_py() == f"{tmp_path}/data/a.wav"

    def test_several_clips_of_one_recording(self, tmp_path: Path) -> None:
        text = "uri,labels,split,offset_seconds\na.wav,x,1,\na.wav,y,1,10\na.wav,x,2,20.5\n"
        manifest = read_manifest("table", write(tmp_path, {"manifest.csv": text}))
        assert rows(manifest) == [
            ("a.wav", ["x"], "1", 0.0),
            ("a.wav@10", ["y"], "1", 10.0),
            ("a.wav@20.5", ["x"], "2", 20.5),
        ]

    def test_large_offsets_give_different_names(self, tmp_path: Path) -> None:
        text = "uri,labels,split,offset_seconds\na.wav,x,1,100000.2\na.wav,x,1,100000.4\na.wav,x,1,1000000\n"
        manifest = read_manifest("table", write(tmp_path, {"manifest.csv": text}))
        assert [row[0] for row in rows(manifest)] == ["a.wav@100000.2", "a.wav@100000.4", "a.wav@1000000"]

    def test_absolute_names_below_the_root(self, tmp_path: Path) -> None:
        text = f"uri,labels,split\n{tmp_path}/a.wav,x,train\ns.tar#b/c.wav,x,train\n"
        manifest = read_manifest("table", write(tmp_path, {"manifest.csv": text}))
        assert [row[0] for row in rows(manifest)] == ["a.wav", "s.tar#b/c.wav"]

    @pytest.mark.parametrize(
        "uri",
        [
            "../a.wav",
            "/etc/passwd",
            "b/../../a.wav",
            "file:///etc/passwd",
            "s3://b/a.wav",
            "s.tar#../a.wav",
            "",
            "C:\\a.wav",
        ],
    )
    def test_names_outside_the_root(self, tmp_path: Path, uri: str) -> None:
        with pytest.raises(ManifestError, match=r"is outside of the data set's root"):
            read_manifest("table", write(tmp_path, {"manifest.csv": f"uri,labels,split\n{uri},x,train\n"}))

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("", "Empty CSV file; a table needs a header"),
            ("uri,split\na.wav,train\n", "column labels is missing; the table has uri, split"),
            ("uri,labels,split,split\na.wav,x,train,test\n", "column 'split' is repeated"),
            ("uri,labels,split\n", "the data set is empty"),
            (
                "uri,labels,split\na.wav,x\n",
                "Row #2: Expected 3 columns, got 2: a.wav,x; a table needs .* same number of cells",
            ),
            (
                "uri,labels,split\na.wav,x,train,more\n",
                "Row #2: Expected 3 columns, got 4: a.wav,x,train,more; a table needs",
            ),
            ("uri,labels,split\na.wav,x,train\na.wav,y,test\n", "'a.wav'; list each once"),
            ('uri,labels,split\n"a.wav,x,train\n', "cannot be read as a table"),
            ("uri,labels,split,offset_seconds\na.wav,x,train,-1\n", "row 2: offset_seconds is '-1'"),
            ("uri,labels,split,offset_seconds\na.wav,x,train,soon\n", "row 2: offset_seconds is 'soon'"),
            ("uri,labels,split,offset_seconds\na.wav,x,train,nan\n", "row 2: offset_seconds is 'nan'"),
        ],
    )
    def test_a_table_with_a_bad_row_is_refused_with_the_row(self, tmp_path: Path, text: str, message: str) -> None:
        root = write(tmp_path, {"manifest.csv": text})
        with pytest.raises(ManifestError, match=message) as caught:
            read_manifest("table", root)
        assert root in str(caught.value)

    def test_a_bad_row_is_named_however_far_down_it_is(self, tmp_path: Path) -> None:
        rows = "a.wav,x,train\n" * 200_000
        with pytest.raises(ManifestError, match=r"Row #200002: Expected 3 columns, got 1: b\.wav; a table needs"):
            read_manifest("table", write(tmp_path, {"manifest.csv": f"uri,labels,split\n{rows}\nb.wav\n"}))

    @pytest.mark.parametrize(("rows", "clips_per_split"), [(2**15, 1), (100_000, 3)])
    def test_too_many_splits(self, tmp_path: Path, rows: int, clips_per_split: int) -> None:
        """In one batch of rows, and only in all batches together."""
        text = "".join(f"{n}.wav,x,{n // clips_per_split}\n" for n in range(rows))
        with pytest.raises(ManifestError, match="different splits; `split` must be one of a few"):
            read_manifest("table", write(tmp_path, {"manifest.csv": "uri,labels,split\n" + text}))

    def test_not_text_not_parquet(self, tmp_path: Path) -> None:
        (tmp_path / "manifest.csv").write_bytes(b"\xff\xfe\x00uri")
        with pytest.raises(ManifestError, match="not UTF-8"):
            read_manifest("table", str(tmp_path))
        (tmp_path / "m.parquet").write_bytes(b"PAR1 but not really PAR1")
        with pytest.raises(ManifestError, match="cannot be read as a table"):
            read_manifest("table", f"{tmp_path}/m.parquet")

    def test_rows_of_parquet_are_counted_from_one(self, tmp_path: Path) -> None:
        columns = {"uri": ["a.wav", "b.wav"], "labels": ["x", "y"], "split": ["1", "1"], "offset_seconds": [0.0, -1.0]}
        pq.write_table(pa.table(columns), tmp_path / "m.parquet")
        with pytest.raises(ManifestError, match=r"m\.parquet row 2: offset_seconds is -1"):
            read_manifest("table", f"{tmp_path}/m.parquet")

    def test_rows_of_json_lines_are_counted_from_one(self, tmp_path: Path) -> None:
        root = write(tmp_path, {"metadata.jsonl": '{"file_name": "a.wav", "offset_seconds": -1}\n'})
        with pytest.raises(ManifestError, match="row 1: offset_seconds is -1"):
            read_manifest("folder", root)


class TestLinks:
    """Symbolic links can lead anywhere below the root; the root itself can be a link."""

    @pytest.fixture
    def root(self, tmp_path: Path) -> Path:
        write(tmp_path, {"out/secret.wav": "", "data/dog/a.wav": "", "data/cat/b.wav": ""})
        (tmp_path / "link").symlink_to(tmp_path / "data")
        return tmp_path / "data"

    @pytest.mark.parametrize("name", ["dog/link.wav", "folder/secret.wav", "folder/none.wav", "folder/s.tar#a.wav"])
    def test_declared_names_that_lead_out(self, root: Path, name: str) -> None:
        (root / "dog/link.wav").symlink_to(root.parent / "out/secret.wav")
        (root / "folder").symlink_to(root.parent / "out")
        write(root, {"manifest.csv": f"uri,labels,split\n{name},x,train\n"})
        for place in (root, root.parent / "link"):
            with pytest.raises(ManifestError, match="out of the data set's root through a symbolic link; move the"):
                read_manifest("table", str(place))

    @pytest.mark.parametrize(("link", "target"), [("dog/link.wav", "out/secret.wav"), ("owl", "out")])
    def test_found_links_that_lead_out(self, root: Path, link: str, target: str) -> None:
        (root / link).symlink_to(root.parent / target)
        with pytest.raises(ManifestError, match="through a symbolic link"):
            read_manifest("directory", str(root))

    def test_links_inside_and_a_linked_root(self, root: Path) -> None:
        (root / "dog/link.wav").symlink_to("../cat/b.wav")
        (root / "owl").symlink_to(root / "cat")
        names = ["cat/b.wav", "dog/a.wav", "dog/link.wav", "owl/b.wav"]
        for place in (root, root.parent / "link"):
            manifest = read_manifest("directory", str(place))
            assert manifest.clips["uri"].to_pylist() == [f"{place}/{name}" for name in names]

    def test_a_root_that_is_a_linked_file(self, root: Path) -> None:
        pq.write_table(pa.table({"audio": [b"x"]}), root.parent / "out/all.parquet")
        (root / "link.parquet").symlink_to(root.parent / "out/all.parquet")
        manifest = read_manifest("parquet", f"{root}/link.parquet")
        assert manifest.clips["uri"].to_pylist() == [f"{root}/link.parquet#0"]


class TestDirectory:
    def test_split_folders(self, tmp_path: Path) -> None:
        names = [
            "train/dog/a.wav",
            "train/cat/deep/b.FLAC",
            "test/dog/c.wav",
            "train/dog/.hidden.wav",
            "train/dog/x.txt",
        ]
        manifest = read_manifest("directory", write(tmp_path, dict.fromkeys(names, "")))
        assert rows(manifest) == [
            ("test/dog/c.wav", ["dog"], "test", 0.0),
            ("train/cat/deep/b.FLAC", ["cat"], "train", 0.0),
            ("train/dog/a.wav", ["dog"], "train", 0.0),
        ]

    def test_drawn_splits_are_stable_and_in_every_class(self, tmp_path: Path) -> None:
        names = [f"{label}/{n}.wav" for label, count in (("dog", 10), ("cat", 2), ("owl", 1)) for n in range(count)]
        root = write(tmp_path, dict.fromkeys(names, ""))
        manifest = read_manifest("directory", root)
        count = {
            (label, split): sum(row[1] == [label] and row[2] == split for row in rows(manifest))
            for label in ("dog", "cat", "owl")
            for split in ("train", "test")
        }
        assert count == {
            **{("dog", "train"): 8, ("dog", "test"): 2, ("cat", "train"): 1},
            **{("cat", "test"): 1, ("owl", "train"): 1, ("owl", "test"): 0},
        }
        assert read_manifest("directory", root).digest() == manifest.digest()

    def test_unlabelled_files(self, tmp_path: Path) -> None:
        manifest = read_manifest("directory", write(tmp_path, {"a.wav": "", "b.wav": ""}))
        assert manifest.classes == () and sorted(manifest.splits) == ["test", "train"]

    def test_empty(self, tmp_path: Path) -> None:
        with pytest.raises(ManifestError, match="the data set is empty"):
            read_manifest("directory", write(tmp_path, {"dog/a.txt": ""}))

    def test_remote_folder(self) -> None:
        filesystem, path = filesystem_of("mock://zoo/data")
        for name in ("dog/a.wav", "dog/b.wav", "cat/c.wav"):
            filesystem.create_dir(f"{path}/{name.split('/')[0]}", recursive=True)
            filesystem.open_output_stream(f"{path}/{name}").close()
        manifest = read_manifest("directory", "mock://zoo/data/")
        assert manifest.clips["uri"].to_pylist() == [
            f"mock://zoo/data/{n}" for n in ("cat/c.wav", "dog/a.wav", "dog/b.wav")
        ]

    def test_names_of_remote_files_can_contain_reserved_characters_of_uris(self) -> None:
        filesystem, path = filesystem_of("mock://zoo/odd?region=here")
        filesystem.create_dir(f"{path}/dog", recursive=True)
        for name in ("a b.wav", "50%.wav", "c#1?.wav"):
            with filesystem.open_output_stream(f"{path}/dog/{name}") as stream:
                stream.write(b"not sound")
        manifest = read_manifest("directory", "mock://zoo/odd?region=here")
        for uri in manifest.clips["uri"].to_pylist():
            assert uri.endswith(".wav?region=here")
            with pytest.raises(ClipError, match="not decodable"):
                check_audio(uri)


class TestScenes:
    def test_written_scenes_are_read(self, tmp_path: Path) -> None:
        for split, count in (("train", 3), ("test", 2)):
            write_scenes(tmp_path, count, 0, split, SceneConfig(clip_seconds=0.5))
        manifest = read_manifest("scenes", str(tmp_path))
        assert len(manifest.select("train")) == 3 and len(manifest.select("test")) == 2
        assert manifest.targets().any(axis=1).all()
        assert all(Path(uri).is_file() for uri in manifest.clips["uri"].to_pylist())

    def test_no_scenes(self, tmp_path: Path) -> None:
        with pytest.raises(ManifestError, match="sepscene scenes"):
            read_manifest("scenes", str(tmp_path))


class TestEsc50:
    def test_real_esc10(self, shared_dir: Path) -> None:
        manifest = read_manifest("esc50", str(shared_dir / "data/esc10"))
        assert len(manifest) == 320 and len(manifest.classes) == 10 and manifest.splits == ("1", "2", "3", "4")
        np.testing.assert_array_equal(manifest.select("4").targets().sum(axis=0), np.full(10, 8))
        assert all(Path(uri).is_file() for uri in manifest.clips["uri"].to_pylist())

    def test_hostile_name(self, tmp_path: Path) -> None:
        text = "filename,fold,category\n../../secret.wav,1,dog\n"
        with pytest.raises(ManifestError, match=r"is outside of the data set's root"):
            read_manifest("esc50", write(tmp_path, {"meta/esc50.csv": text}))

    def test_wrong_root(self, tmp_path: Path) -> None:
        with pytest.raises(ManifestError, match=r"esc50.csv: no such file; is this the root"):
            read_manifest("esc50", str(tmp_path))


def test_unknown_format_and_root(tmp_path: Path) -> None:
    with pytest.raises(
        SepsceneError, match=r"no format 'esc51' \(did you mean esc50\?\); known names: scenes, directory"
    ):
        read_manifest("esc51", str(tmp_path))
    with pytest.raises(ManifestError, match=r"no such folder; set data.root"):
        read_manifest("directory", str(tmp_path / "none"))
    with pytest.raises(ManifestError, match="cannot be reached"):
        read_manifest("directory", "nowhere://bucket/data")
