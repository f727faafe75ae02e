"""Downstream tasks for comparing encoders: what to embed, what to predict, and how to split it into training and test.

A task is hear:FOLDER, or another format of docs/data.md and its folder (docs/tasks.md). HEAR's layout
(hearbenchmark.com): task_metadata.json, labelvocabulary.csv, one JSON file per split (train, valid and test, or fold00,
fold01, …) that maps file names to labels or to events, and the sound in folders named by rate and split.
"""

import posixpath
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, FiniteFloat, RootModel

from sepscene.models.config import Model, validated
from sepscene.models.files import parse_json
from sepscene.tasks.datasets.labels import TEST_SPLITS, ManifestError
from sepscene.tasks.datasets.readers import read_manifest
from sepscene.tasks.datasets.root import Root

FOLDED = ("esc50", "urbansound8k")
"""Formats whose splits are folds of a cross-validation."""

Kind = Literal["scene", "event"]


@dataclass(frozen=True)
class Event:
    """One sound event: its class, and its start and end in seconds from the start of the file."""

    label: str
    start_seconds: float
    end_seconds: float


@dataclass(frozen=True)
class Sound:
    """One sound of a task, with labels of the whole sound in scene tasks, or events in event tasks.

    It begins `offset_seconds` into its recording, and ends where the next sound of the same recording begins.
    """

    uri: str
    split: str
    labels: tuple[str, ...] = ()
    events: tuple[Event, ...] = ()
    offset_seconds: float = 0.0
    end_seconds: float | None = None


@dataclass(frozen=True)
class Task:
    """A downstream task.

    Attributes:
        name: as results and tables show it.
        kind: scene (labels of whole files) or event (labels with times).
        multilabel: whether a sound can have more than one label, or none.
        classes: all labels.
        sounds: all files, with their split.
        folded: whether each split is tested by probes trained on the others; otherwise the split `test` is tested by
            probes trained on the rest.
    """

    name: str
    kind: Kind
    multilabel: bool
    classes: tuple[str, ...]
    sounds: tuple[Sound, ...]
    folded: bool

    def __post_init__(self) -> None:
        splits = {sound.split for sound in self.sounds}
        if self.folded and len(splits) < 2:
            raise ManifestError(f"task {self.name}: cross-validation needs at least two folds, it has {len(splits)}")
        if not self.folded and (not self.tested or len(self.tested) == len(self.sounds)):
            raise ManifestError(
                f"task {self.name}: has the splits {', '.join(sorted(splits)) or 'none'}; one must be named "
                f"{' or '.join(TEST_SPLITS)}, and there must be another one to train on"
            )

    @property
    def tested(self) -> tuple[int, ...]:
        """Positions of the sounds that are tested, if the task is not folded."""
        return tuple(n for n, sound in enumerate(self.sounds) if sound.split.lower() in TEST_SPLITS)


_Text = Annotated[str, Field(coerce_numbers_to_str=True)]


class _About(BaseModel):
    """The fields of task_metadata.json that are used."""

    task_name: _Text
    version: _Text
    embedding_type: Kind
    prediction_type: str
    split_mode: str


class _Event(BaseModel):
    """One event of a split; times in milliseconds."""

    label: _Text
    start: FiniteFloat
    end: FiniteFloat


def read_task(task: str) -> Task:
    """Read a downstream task.

    Args:
        task: format and folder, e.g. `hear:tasks/dcase2016_task2-hear2021-full` or `esc50:ESC-50-master`.

    Raises:
        ManifestError: the task is malformed, its format is unknown, or its folder or a file is missing or invalid.
    """
    format, colon, folder = task.partition(":")
    if not colon or not folder:
        raise ManifestError(f"task {task!r} must look like FORMAT:FOLDER, e.g. esc50:ESC-50-master or hear:FOLDER")
    if format == "hear":
        return _read_hear(Root(folder))
    manifest = read_manifest(format, folder)
    rows = manifest.clips.to_pylist()
    sounds = tuple(
        Sound(row["uri"], row["split"], tuple(row["labels"]), (), row["offset_seconds"], end)
        for row, end in zip(rows, _ends(rows), strict=True)
        if row["labels"]
    )
    return Task(
        name=f"{format}-{posixpath.basename(folder.rstrip('/'))}",
        kind="scene",
        multilabel=any(len(sound.labels) != 1 for sound in sounds),
        classes=manifest.classes,
        sounds=sounds,
        folded=format in FOLDED,
    )


def _ends(rows: list[dict[str, Any]]) -> list[float | None]:
    """The end of each clip: the start of the next clip of its recording; None: the end of the recording."""
    starts: dict[str, set[float]] = defaultdict(set)
    for row in rows:
        starts[row["uri"]].add(row["offset_seconds"])
    ends = {}
    for uri, offsets in starts.items():
        for start, end in pairwise(sorted(offsets)):
            ends[uri, start] = end
    return [ends.get((row["uri"], row["offset_seconds"])) for row in rows]


def _read_hear(root: Root) -> Task:
    about = _parsed(root, "task_metadata.json", _About)
    folded = about.split_mode.endswith("kfold")
    names = [path.removesuffix(".json") for path in root.files(suffixes=[".json"]) if "/" not in path]
    splits = [name for name in names if (name.startswith("fold") if folded else name in ("train", "valid", "test"))]
    audio = _hear_audio(root)
    sounds = tuple(sound for split in splits for sound in _hear_sounds(root, split, audio, about.embedding_type))
    labels = tuple(row["label"] for row in root.rows("labelvocabulary.csv", ["label"]))
    used = {label for sound in sounds for label in (*sound.labels, *(event.label for event in sound.events))}
    unknown = used - set(labels)
    if unknown:
        raise ManifestError(f"{root.location}/labelvocabulary.csv: lacks the label {min(unknown)!r} of a split")
    multilabel = about.embedding_type == "event" or about.prediction_type == "multilabel"
    return Task(f"{about.task_name}-{about.version}", about.embedding_type, multilabel, labels, sounds, folded)


def _hear_audio(root: Root) -> str:
    """The folder with the highest sample rate; the sound is resampled to the encoder's rate anyway."""
    rates = {path.split("/")[0] for path in root.files() if path.split("/")[0].isdigit()}
    if not rates:
        raise ManifestError(f"{root.location}: has no audio folder named by its rate, e.g. 48000/train/x.wav")
    return max(rates, key=int)


def _hear_sounds(root: Root, split: str, audio: str, kind: Kind) -> Iterator[Sound]:
    if kind == "scene":
        for name, labels in _parsed(root, f"{split}.json", RootModel[dict[str, tuple[_Text, ...]]]).root.items():
            yield Sound(root.uri(f"{audio}/{split}/{name}"), split, labels)
        return
    for name, heard in _parsed(root, f"{split}.json", RootModel[dict[str, tuple[_Event, ...]]]).root.items():
        events = tuple(Event(event.label, event.start / 1000, event.end / 1000) for event in heard)
        yield Sound(root.uri(f"{audio}/{split}/{name}"), split, events=events)


def _parsed(root: Root, name: str, model: type[Model]) -> Model:
    """The content of a JSON file of a HEAR task."""
    where = f"{root.location}/{name}"
    try:
        content = parse_json(root.text(name))
    except ValueError as error:
        raise ManifestError(f"{where}: is not JSON ({error})") from None
    return validated(model, content, f"{where}: is malformed", ManifestError)
