"""Files that a reader leaves out are counted by reason, and all ways to write "no label" are recognised."""

import io
import json
import math
import os
import tarfile
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sepscene.tasks.datasets.audit import audit
from sepscene.tasks.datasets.labels import class_labels, split_labels
from sepscene.tasks.datasets.readers import Manifest, ManifestError, read_manifest
from sepscene.tasks.datasets.survey import NOT_UTF8, LeftOut


def touch(root: Path, *names: str, **texts: str) -> str:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    for name, text in texts.items():
        (root / name.replace("_csv", ".csv")).write_text(text)
    return str(root)


def reasons(manifest: Manifest) -> dict[str, int]:
    return {entry.reason: entry.count for entry in manifest.skipped}


def left_out(manifest: Manifest) -> int:
    """Number of files and members of archives without a clip."""
    return sum(reasons(manifest).values())


def sound() -> bytes:
    sink = io.BytesIO()
    soundfile.write(sink, np.linspace(-0.5, 0.5, 1_600), 16_000, format="WAV")
    return sink.getvalue()


def tar(path: Path, members: dict[str, bytes]) -> None:
    with tarfile.open(path, "w") as archive:
        for name, data in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))


class TestDirectory:
    def test_a_file_next_to_the_splits_is_left_out(self, tmp_path: Path) -> None:
        names = [
            f"{split}/{label}/{n}.wav" for split in ("train", "test") for label in ("dog", "cat") for n in range(2)
        ]
        manifest = read_manifest("directory", touch(tmp_path, *names, "intro.wav", "notes.txt", ".git/x.wav", "v.m4a"))
        assert manifest.classes == ("cat", "dog") and manifest.splits == ("test", "train") and len(manifest) == 8
        assert reasons(manifest) == {
            "not inside a folder of a split": 1,
            "hidden: a name in its path begins with a dot": 1,
            "suffix .txt is not read": 1,
            "suffix .m4a is not read": 1,
        }
        assert len(manifest.remarks()) == 4 and "intro.wav" in " ".join(manifest.remarks())

    def test_a_folder_next_to_the_splits_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(ManifestError, match="train are splits, but extra are not"):
            read_manifest("directory", touch(tmp_path, "train/dog/a.wav", "test/dog/b.wav", "extra/dog/c.wav"))

    def test_a_class_with_the_name_of_a_split(self, tmp_path: Path) -> None:
        """ESC-50 has a class `train`, the vehicle."""
        manifest = read_manifest("directory", touch(tmp_path, "train/a.wav", "train/b.wav", "airplane/c.wav"))
        assert manifest.classes == ("airplane", "train")

    def test_one_class_is_noted(self, tmp_path: Path) -> None:
        manifest = read_manifest("directory", touch(tmp_path, *(f"sounds/{n % 2}/{n}.wav" for n in range(6))))
        assert manifest.classes == ("sounds",)
        assert "its folder contains folders (0, 1); is the root one level too high?" in manifest.notes[0]

    def test_a_name_that_is_not_utf_8(self, tmp_path: Path) -> None:
        (tmp_path / "dog").mkdir()
        (tmp_path / "dog/ok.wav").write_bytes(sound())
        Path(os.fsdecode(os.fsencode(tmp_path) + b"/dog/caf\xe9.wav")).write_bytes(sound())
        manifest = read_manifest("directory", str(tmp_path))
        assert manifest.clips["clip_id"].to_pylist() == ["dog/ok.wav"] and reasons(manifest) == {NOT_UTF8: 1}
        assert r"dog/caf\udce9.wav" in audit(manifest).text()

    def test_a_folder_that_links_to_one_above_it(self, tmp_path: Path) -> None:
        touch(tmp_path, "dog/a.wav")
        (tmp_path / "dog/again").symlink_to(tmp_path)
        assert read_manifest("directory", str(tmp_path)).clips["clip_id"].to_pylist() == ["dog/a.wav"]


class TestFolder:
    def test_words_in_a_path_are_not_splits(self, tmp_path: Path) -> None:
        table = "file_name,label\nstation/train whistle.wav,a\ntest_1.wav,b\nfield test/dev/2.wav,b\n"
        manifest = read_manifest("folder", touch(tmp_path, metadata_csv=table))
        assert manifest.splits == ("train",) and "all are in split train" in manifest.notes[0]


class TestShards:
    def test_dots_in_a_key(self, tmp_path: Path) -> None:
        keys = ("Track 2.0 (x)", "aaaaaaaaaaa_30.000", "b")
        members = {
            f"{key}.{end}": data for key in keys for end, data in (("wav", sound()), ("json", b'{"label": "x"}'))
        }
        extra = {"b.png": b"x", "lonely.txt": b"dog", "c.left.wav": sound(), "c.right.wav": sound(), "c.cls": b"-1"}
        tar(tmp_path / "train-0.tar", members | extra)
        manifest = read_manifest("shards", touch(tmp_path, "b.tar.gz", "stray.wav"))
        assert [clip["labels"] for clip in manifest.clips.to_pylist()] == [["x"]] * 3 + [[], []]
        assert reasons(manifest) == {
            ".tar.gz is not read: unpack it to .tar": 1,
            "not inside a shard": 1,
            "suffix .png is not read": 1,
            "no sound has the same key": 1,
        }
        alone = read_manifest("shards", str(tmp_path / "train-0.tar"))
        assert reasons(alone) == {"suffix .png is not read": 1, "no sound has the same key": 1}

    def test_compressed_shards_are_refused_with_a_fix(self, tmp_path: Path) -> None:
        with pytest.raises(ManifestError, match=r"2 \(.tar.gz is not read: unpack it to .tar\)"):
            read_manifest("shards", touch(tmp_path, "a.tar.gz", "b.tar.gz"))


class TestPublic:
    def test_fsd50k_as_flac(self, tmp_path: Path) -> None:
        files = {f"FSD50K.ground_truth/{part}.csv": "fname,labels,mids\n1,Bark,x\n2,,x\n" for part in ("dev", "eval")}
        (tmp_path / "FSD50K.ground_truth").mkdir()
        for name, text in files.items():
            (tmp_path / name).write_text(text)
        manifest = read_manifest("fsd50k", touch(tmp_path, "FSD50K.dev_audio/1.flac", "FSD50K.eval_audio/2.ogg"))
        assert manifest.clips["clip_id"].to_pylist() == ["FSD50K.dev_audio/1.flac", "FSD50K.eval_audio/2.ogg"]
        assert manifest.clips["labels"].to_pylist() == [["Bark"], []] and len(manifest.absent) == 2

    @pytest.mark.parametrize("name", ["_60.000", "_60.000_70.000", "_60000_70000", "_60_70", "_60000"])
    def test_a_file_of_a_second_segment_has_its_labels(self, tmp_path: Path, name: str) -> None:
        (tmp_path / "class_labels_indices.csv").write_text("index,mid,display_name\n0,/m/1,Speech\n1,/m/2,Alarm\n")
        lines = 'aaaaaaaaaaa, 30.000, 40.000, "/m/1"\naaaaaaaaaaa, 60.000, 70.000, "/m/2"\n'
        (tmp_path / "eval_segments.csv").write_text("# a\n" + lines)
        manifest = read_manifest("audioset", touch(tmp_path, f"aaaaaaaaaaa{name}.wav", "other.wav"))
        assert manifest.clips.select(["clip_id", "labels"]).to_pylist() == [
            {"clip_id": "aaaaaaaaaaa_60000", "labels": ["Alarm"]}
        ]
        assert manifest.absent == ("aaaaaaaaaaa",) and reasons(manifest) == {"its name does not match a segment": 1}


class TestNoLabel:
    @pytest.mark.parametrize(
        "cell",
        [
            None,
            math.nan,
            "",
            " ; ",
            [],
            [None],
            [math.nan, ""],
            (),
            -1,
            -1.0,
            "-1",
            "nan",
            " NaN ",
            "None",
            "<NA>",
            [-1],
        ],
    )
    def test_cells_without_a_label(self, cell: object) -> None:
        assert split_labels(cell) == () and class_labels(cell, ("dog",), "here") == ()

    def test_class_numbers(self) -> None:
        names = ("dog", "cat")
        assert class_labels(-1, names, "here") == ()
        assert class_labels(-1.0, (), "here") == ()
        assert class_labels([-1], names, "here") == ()
        assert class_labels(1.0, names, "here") == ("cat",)
        assert class_labels([0, 1, None], names, "here") == names
        assert class_labels("1" * 5000, names, "here") == ("1" * 5000,), "too long for a number"
        assert class_labels(3, (), "here") == ("3",) and class_labels("owl", names, "here") == ("owl",)
        assert class_labels([-1, "-1", -2], (), "here") == ("-2",)
        for number in (2, -2):
            with pytest.raises(ManifestError, match=f"label {number} has no name; the schema names 2"):
                class_labels(number, names, "here")

    def test_minus_one_of_hugging_face(self, tmp_path: Path) -> None:
        features = {"audio": {"_type": "Audio"}, "label": {"names": ["dog", "cat"], "_type": "ClassLabel"}}
        table = pa.table({"audio": [sound()] * 3, "label": pa.array([0, 1, -1])})
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
        pq.write_table(table, tmp_path / "train.parquet")
        manifest = read_manifest("parquet", str(tmp_path))
        assert manifest.classes == ("cat", "dog") and manifest.clips["labels"].to_pylist() == [["dog"], ["cat"], []]

    @pytest.mark.parametrize("labels", [["dog", None], [["dog"], None], [["dog"], []], ["dog", ""]])
    def test_a_null_in_a_table(self, tmp_path: Path, labels: list[object]) -> None:
        pq.write_table(
            pa.table({"uri": ["a.wav", "b.wav"], "labels": labels, "split": ["x", "x"]}), tmp_path / "m.parquet"
        )
        manifest = read_manifest("table", f"{tmp_path}/m.parquet")
        assert manifest.clips["labels"].to_pylist() == [["dog"], []] and manifest.classes == ("dog",)

    def test_minus_one_in_every_format(self, tmp_path: Path) -> None:
        """ "No label" as Hugging Face and related scripts write it, even if no schema declares class numbers."""
        touch(tmp_path, "a.wav", "b.wav")
        (tmp_path / "manifest.csv").write_text("uri,labels,split\na.wav,3,train\nb.wav,-1,test\n")
        (tmp_path / "metadata.jsonl").write_text(
            '{"file_name": "a.wav", "label": 3}\n{"file_name": "b.wav", "label": -1}\n'
        )
        (tmp_path / "t").mkdir()
        tar(
            tmp_path / "t/a.tar",
            {"a.wav": sound(), "a.json": b'{"label": 3}', "b.wav": b"x", "b.json": b'{"label": -1}'},
        )
        for format, root in (("table", tmp_path), ("folder", tmp_path), ("shards", tmp_path / "t")):
            manifest = read_manifest(format, str(root))
            assert manifest.clips["labels"].to_pylist() == [["3"], []], format
            assert manifest.classes == ("3",) and manifest.unlabelled == 1
            assert "there is one class, '3': an encoder cannot be evaluated on it" in manifest.remarks()


class TestBounds:
    def test_a_table_of_repeated_values(self, tmp_path: Path) -> None:
        """A file of a few kilobytes whose labels would take 4 GB."""
        text = pa.DictionaryArray.from_arrays(pa.array(np.zeros(4_000, np.int32)), pa.array(["x" * (1 << 20)]))
        uris = [f"{n}.wav" for n in range(4_000)]
        table = pa.table({"uri": uris, "labels": text, "split": pa.array(["a"] * 4_000)})
        pq.write_table(table, tmp_path / "m.parquet", compression="zstd")
        assert (tmp_path / "m.parquet").stat().st_size < 100_000
        with pytest.raises(ManifestError, match="more than 1073741824 bytes"):
            read_manifest("table", f"{tmp_path}/m.parquet")


NAMES = st.lists(st.sampled_from(["train", "test", "dog", "cat", ".git", "a b", "é"]), min_size=0, max_size=3)
OFTEN = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)
ENDINGS = [".wav", ".flac", ".json", ".txt", ".cls", ".png", ""]
ENDS = st.sampled_from([".wav", ".FLAC", ".m4a", ".txt", "", ".csv", ".tar.gz", ".mp3"])
FILES = st.sets(st.tuples(NAMES.map(tuple), st.sampled_from(["x", ".y", "z.1"]), ENDS), min_size=1, max_size=12)


@pytest.mark.slow
@OFTEN
@given(files=FILES, listed=st.integers(0, 12))
def test_every_file_is_used_or_skipped_for_a_reason(files: set[tuple[tuple[str, ...], str, str]], listed: int) -> None:
    with TemporaryDirectory() as folder:
        root = Path(folder)
        names = sorted("/".join([*parts, base + end]) for parts, base, end in files)
        touch(root, *names)
        rows = "".join(f'"{name}",dog,train\n' for name in names[:listed])
        (root / "manifest.csv").write_text("uri,labels,split\n" + rows)
        (root / "metadata.csv").write_text("file_name\n" + "".join(f'"{name}"\n' for name in names[:listed]))
        for format in ("directory", "table", "folder"):
            try:
                manifest = read_manifest(format, folder, survey=True)
            except ManifestError:
                continue
            tables = {"directory": 0, "table": 1, "folder": len([n for n in names if n.endswith("metadata.csv")]) + 1}
            assert len(manifest) + tables[format] + left_out(manifest) == len(names) + 2


KEYS = st.lists(
    st.tuples(st.sampled_from(["a", "b.1", "d/c", ".h", "x y"]), st.sampled_from(ENDINGS)), min_size=1, max_size=10
)


@OFTEN
@given(members=KEYS, beside=st.sets(st.sampled_from(["s.wav", "b.tar.gz", "r.txt"])))
def test_every_member_of_an_archive_is_used_or_skipped(members: list[tuple[str, str]], beside: set[str]) -> None:
    with TemporaryDirectory() as folder:
        touch(Path(folder), *beside)
        names = {key + end for key, end in members}
        tar(Path(folder) / "x.tar", {name: b'{"label": "dog"}' for name in names})
        try:
            manifest = read_manifest("shards", folder)
        except ManifestError as error:
            if "no clip was found" not in str(error):
                raise
            return
        sounds = {name for name in names if name.endswith((".wav", ".flac")) and "/." not in f"/{name}"}
        doubled = reasons(manifest).get("another sound has the same key", 0)
        assert len(manifest) == len(sounds) - doubled
        labelled = set()
        for clip in manifest.clips.to_pylist():
            if clip["labels"]:
                key = _stem_of(clip["clip_id"].split("#")[1], names)
                labelled.add(next(f"{key}{end}" for end in (".json", ".cls", ".txt") if key + end in names))
        assert 1 + len(manifest) + len(labelled) + left_out(manifest) == 1 + len(names) + len(beside)


def _stem_of(sound_name: str, names: set[str]) -> str:
    """The key of the label file of a sound: its full key, or the part before the first dot."""
    key = sound_name.rsplit(".", 1)[0]
    folder, _, base = key.rpartition("/")
    short = f"{folder}/{base.split('.')[0]}" if folder else base.split(".")[0]
    return key if any(key + end in names for end in (".json", ".cls", ".txt")) else short


@OFTEN
@given(names=st.sets(st.sampled_from(["1", "2", "3", "Yaaaaaaaaaaa", "aaaaaaaaaaa_30.000", ".h", "n"])), data=st.data())
def test_every_file_of_a_public_data_set_is_used_or_skipped(names: set[str], data: st.DataObject) -> None:
    files = {name + data.draw(st.sampled_from([".wav", ".flac", ".txt"])) for name in names}
    layouts = {
        "fsd50k": ("FSD50K.dev_audio/", {
            f"FSD50K.ground_truth/{part}.csv": "fname,labels\n1,Bark\n2,\n" for part in ("dev", "eval")}),
        "audioset": ("audio/", {
            "class_labels_indices.csv": "index,mid,display_name\n0,/m/1,Dog\n",
            "eval_segments.csv": 'aaaaaaaaaaa, 30.000, 40.000, "/m/1"\n'}),
        "esc50": ("audio/", {"meta/esc50.csv": "filename,fold,category\n1.wav,1,dog\n"}),
        "urbansound8k": ("audio/fold1/", {
            "metadata/UrbanSound8K.csv": "slice_file_name,fold,class\n1.wav,1,dog\n"}),
        "scenes": ("", {"train.csv": "uri,labels,split\n1.wav,dog,train\n"}),
    }  # fmt: skip
    for format, (folder, tables) in layouts.items():
        with TemporaryDirectory() as root:
            touch(Path(root), *(folder + name for name in files), *tables)
            for name, text in tables.items():
                (Path(root) / name).write_text(text)
            try:
                manifest = read_manifest(format, root, survey=True)
            except ManifestError as error:
                if "no clip was found" not in str(error):
                    raise
                continue
            there = [clip for clip in manifest.clips["uri"].to_pylist() if Path(clip).exists()]
            assert len(set(there)) + left_out(manifest) == len(files), format


BESIDE = st.sets(st.sampled_from(["s.wav", "r.txt", ".h", "c.arrow"]))
ROWS = st.lists(st.sampled_from(["dog", "", None, "cat;dog"]), min_size=1, max_size=4)


@OFTEN
@given(shards=st.lists(ROWS, min_size=1, max_size=3), beside=BESIDE)
@pytest.mark.parametrize("format", ["parquet", "huggingface"])
def test_every_row_is_a_clip_and_every_other_file_is_counted(
    format: str, shards: list[list[str | None]], beside: set[str]
) -> None:
    """In Parquet, and in Arrow as Hugging Face writes it; `c.arrow` is not named in its state.json."""
    with TemporaryDirectory() as folder:
        touch(Path(folder), *beside)
        for number, labels in enumerate(shards):
            cells = [{"bytes": sound(), "path": None}] * len(labels)
            table = pa.table({"audio": cells, "labels": pa.array(labels, pa.string())})
            if format == "parquet":
                pq.write_table(table, f"{folder}/{number}.parquet")
            else:
                with pa.ipc.new_stream(f"{folder}/{number}.arrow", table.schema) as writer:
                    writer.write_table(table, max_chunksize=2)
        files = [{"filename": f"{number}.arrow"} for number in range(len(shards))]
        tables = 0 if format == "parquet" else 1
        if tables:
            Path(folder, "state.json").write_text(json.dumps({"_data_files": files, "_split": None}))
        manifest = read_manifest(format, folder, survey=True)
        assert [tuple(row) for row in manifest.clips["labels"].to_pylist()] == [
            split_labels(label) for labels in shards for label in labels
        ]
        assert left_out(manifest) == len(beside)


@OFTEN
@given(files=FILES)
def test_every_file_below_a_folder_is_embedded_or_skipped(files: set[tuple[tuple[str, ...], str, str]]) -> None:
    """`sepscene embed FOLDER` embeds the clips of a data set of format `directory`, and counts the rest."""
    from sepscene.models.config import SepsceneError
    from sepscene.orchestration.evaluation.embed_files import list_files

    with TemporaryDirectory() as folder:
        names = {"/".join([*parts, base + end]) for parts, base, end in files}
        touch(Path(folder), *names)
        left_out = LeftOut()
        try:
            taken = list_files([folder], left_out)
        except SepsceneError as error:
            if "there is no sound file to embed" not in str(error):
                raise
            taken = []
        assert len(taken) + sum(entry.count for entry in left_out.entries()) == len(names)
