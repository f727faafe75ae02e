"""Every layout of a task, with generated files: its sounds, labels, folds and splits."""

import json
from pathlib import Path

import pytest

from sepscene.tasks.datasets.downstream import Event, Task, read_task
from sepscene.tasks.datasets.labels import ManifestError
from sepscene.tasks.datasets.python_clips import write_clips


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def hear(kind: str, mode: str, splits: dict[str, dict]) -> dict[str, str]:
    about = {"task_name": "made", "version": "up", "embedding_type": kind, "prediction_type": "multiclass"}
    files = {"task_metadata.json": json.dumps({**about, "split_mode": mode, "download_urls": []})}
    files["labelvocabulary.csv"] = "idx,label\n0,dog\n1,cat\n"
    for split, entries in splits.items():
        files[f"{split}.json"] = json.dumps(entries)
        files |= {f"{rate}/{split}/{name}": "" for rate in ("16000", "48000") for name in entries}
    return files


def summary(task: Task) -> tuple[str, bool, bool, tuple[str, ...], dict[str, int]]:
    splits = [sound.split for sound in task.sounds]
    return task.kind, task.multilabel, task.folded, task.classes, {name: splits.count(name) for name in sorted(splits)}


def test_esc50_and_urbansound8k_are_tested_fold_by_fold(tmp_path: Path) -> None:
    rows = [(f"{fold}-{label}.wav", fold, label) for fold in range(1, 11) for label in ("dog", "cat")]
    esc = {"meta/esc50.csv": "filename,fold,category\n" + "".join(f"{n},{f},{x}\n" for n, f, x in rows if f < 6)}
    urban = {
        "metadata/UrbanSound8K.csv": "slice_file_name,fold,class\n" + "".join(f"{n},{f},{x}\n" for n, f, x in rows)
    }
    for format, files, folds in (("esc50", esc, 5), ("urbansound8k", urban, 10)):
        task = read_task(f"{format}:{write(tmp_path / format, files)}")
        expected = {str(fold): 2 for fold in range(1, folds + 1)}
        assert summary(task) == ("scene", False, True, ("cat", "dog"), dict(sorted(expected.items())))


def test_fsd50k_tests_its_evaluation_clips(tmp_path: Path) -> None:
    truth = "FSD50K.ground_truth"
    files = {f"{truth}/dev.csv": 'fname,labels,mids,split\n1,"dog,cat",m,train\n2,cat,m,val\n'}
    files |= {f"{truth}/eval.csv": "fname,labels,mids\n3,dog,m\n", "FSD50K.eval_audio/3.wav": ""}
    files |= {f"FSD50K.dev_audio/{n}.wav": "" for n in (1, 2)}
    task = read_task(f"fsd50k:{write(tmp_path, files)}")
    assert summary(task) == ("scene", True, False, ("cat", "dog"), {"test": 1, "train": 1, "val": 1})
    assert [task.sounds[n].labels for n in task.tested] == [("dog",)]


def test_hear_scenes_in_splits_and_in_folds(tmp_path: Path) -> None:
    one = {"a.wav": ["dog"], "b.wav": ["cat"]}
    splits = hear("scene", "trainvaltest", {split: one for split in ("train", "valid", "test")})
    task = read_task(f"hear:{write(tmp_path / 'tvt', splits)}")
    assert summary(task) == ("scene", False, False, ("dog", "cat"), {"test": 2, "train": 2, "valid": 2})
    assert task.name == "made-up" and task.sounds[0].uri == f"{tmp_path}/tvt/48000/test/a.wav"
    folds = hear("scene", "new_split_kfold", {f"fold{n:02}": one for n in range(3)})
    task = read_task(f"hear:{write(tmp_path / 'folds', folds)}")
    assert summary(task) == ("scene", False, True, ("dog", "cat"), {"fold00": 2, "fold01": 2, "fold02": 2})


def test_hear_events_have_times_in_seconds(tmp_path: Path) -> None:
    heard = {"a.wav": [{"label": "cat", "start": 100.0, "end": 350.5}], "b.wav": []}
    files = hear("event", "trainvaltest", {split: heard for split in ("train", "valid", "test")})
    task = read_task(f"hear:{write(tmp_path, files)}")
    assert summary(task)[:3] == ("event", True, False)
    assert task.sounds[0].events == (Event("cat", 0.1, 0.3505),) and task.sounds[1].events == ()


def test_a_label_that_the_vocabulary_lacks_is_refused(tmp_path: Path) -> None:
    files = hear("scene", "trainvaltest", {split: {"a.wav": ["owl"]} for split in ("train", "valid", "test")})
    with pytest.raises(ManifestError, match=r"labelvocabulary\.csv: lacks the label 'owl'"):
        read_task(f"hear:{write(tmp_path, files)}")


@pytest.mark.parametrize(
    ("text", "message"),
    [("idx,name\n0,dog\n", "column label is missing"), ("idx,label\n0,dog,x\n", "cannot be read as a table")],
)
def test_a_malformed_vocabulary_is_refused(text: str, message: str, tmp_path: Path) -> None:
    files = hear("scene", "trainvaltest", {split: {"a.wav": ["dog"]} for split in ("train", "valid", "test")})
    with pytest.raises(ManifestError, match=rf"labelvocabulary\.csv: {message}"):
        read_task(f"hear:{write(tmp_path, files | {'labelvocabulary.csv': text})}")


def test_malformed_files_of_hear_are_refused(tmp_path: Path) -> None:
    def refused(message: str, kind: str, entry: object, **about: object) -> None:
        files = hear(kind, "trainvaltest", {split: {"a.wav": entry} for split in ("train", "valid", "test")})
        files["task_metadata.json"] = json.dumps(json.loads(files["task_metadata.json"]) | about)
        with pytest.raises(ManifestError, match=message):
            read_task(f"hear:{write(tmp_path, files)}")

    refused(r"task_metadata\.json: .*embedding_type: Input should be 'scene' or 'event'", "tag", ["dog"])
    refused(r"task_metadata\.json: .*split_mode: ", "scene", ["dog"], split_mode=None)
    refused(r"test\.json: .*a\.wav: Input should be a valid tuple", "scene", "dog")
    refused(r"test\.json: .*a\.wav\.0\.end: Field required", "event", [{"label": "dog", "start": 0}])


def test_a_labelled_folder_tests_a_fifth_of_each_class(tmp_path: Path) -> None:
    files = {f"{label}/{n}.wav": "" for label in ("dog", "cat") for n in range(10)}
    task = read_task(f"directory:{write(tmp_path, files)}")
    assert summary(task) == ("scene", False, False, ("cat", "dog"), {"test": 4, "train": 16})


def test_clips_of_one_recording_end_where_the_next_one_begins(tmp_path: Path) -> None:
    starts = [(0.0, "train"), (4.0, "test"), (2.5, "train")]
    clips = [{"uri": "/a.wav", "labels": "dog", "split": split, "offset": start} for start, split in starts]
    clips += [{"uri": "/b.wav", "labels": "cat", "split": "test"}, {"uri": "/c.wav", "split": "test"}]
    task = read_task(f"clips:{write_clips(clips, tmp_path)}")
    assert [(sound.offset_seconds, sound.end_seconds) for sound in task.sounds] == [
        (0.0, 2.5),
        (4.0, None),
        (2.5, 4.0),
        (0.0, None),
    ], "a clip without a label is not a sound of the task"
