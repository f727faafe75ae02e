"""Names of the files in a run's folder. Nobody else spells a path below it; `records.sweep_folder` has those around it.

storage/
    store/                     separated clips, shared by all runs of a storage
    audits/audit-<digest>/     audits of data sets
    <run>/                     RunFolder
        checkpoints/<stage>/   StageFolder
    <sweep>/                   SweepFolder (in `records.sweep_folder`)
        shared/                RunFolder of what all trials share
        trials/<trial>/        RunFolder
"""

import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sepscene.augment.locations import is_utf8
from sepscene.models.config import SepsceneError

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._=+,@ -]{0,199}")
"""What a run, a sweep, an encoder or a checkpoint may be called: a plain name of one folder."""

LEVELS_BELOW_STORAGE = 3
"""A trial, the deepest run, lies in STORAGE/SWEEP/trials/TRIAL."""


def plain_name(name: str, what: str) -> str:
    """The name, if it can be that of a file or folder and nothing else; `what` it names is for the message.

    Raises:
        SepsceneError: for a path, a hidden name, an empty or a very long one.
    """
    if not NAME.fullmatch(name):
        raise SepsceneError(
            f"{what} {name[:80]!r} cannot be the name of a folder: take letters, digits and . _ = + , - only, "
            "a letter or digit first, and no path"
        )
    return name


def dated(name: str) -> str:
    """The name of a new folder: of an experiment or a kind of run, and when it was begun."""
    return f"{name.replace('/', '-')}-{time.strftime('%Y%m%d-%H%M%S')}"


def folder_in(storage: Path, name: str, what: str) -> Path:
    """The folder of a run, a sweep or a reproduction in a storage, by the id that the user gave.

    Raises:
        SepsceneError: when the id is no plain name, or the path is not UTF-8.
    """
    folder = (storage / plain_name(name, what)).resolve()
    if not is_utf8(str(folder)):
        raise SepsceneError(f"{folder} is no UTF-8 text, which the files of a run must be: choose another --storage")
    return folder


class Place:
    """A file or folder that always has the same name in a folder, whose `path` is known."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __get__(self, folder: Any, kind: type) -> Path:
        """Its path in that folder; asked of the class, its path below any such folder."""
        return Path(folder.path, self.name) if folder else Path(self.name)


@dataclass(frozen=True)
class RunFolder:
    """The folder of one run."""

    path: Path

    experiment = Place("experiment.yaml")
    """The resolved configuration."""
    started = Place("started")
    """When the run began; UTC, ISO 8601."""
    lock = Place("running.json")
    """Which process works in the folder at present."""
    metrics = Place("metrics.jsonl")
    """The records of all steps and validations, and the events; one JSON object a line."""
    system = Place("system.jsonl")
    """What the machines were doing, sampled; one JSON object a line."""
    timings = Place("stages.json")
    """Stage -> seconds."""
    results = Place("results.json")
    """The `RunResults`."""
    ledger = Place("ledger.json")
    """The ledger of the encoder's weights."""
    mlflow = Place("mlflow.json")
    """What MLflow has of the run, and what it lacks."""
    mlflow_calls = Place("mlflow-calls.jsonl")
    """All calls of MLflow that the run has made, whether they have arrived or not; one JSON object a line."""
    scenes = Place("scenes")
    """Synthetic scenes, where the data has no folder of its own."""
    ladder = Place("ladder")
    """Folder of the separator's checkpoints."""
    ladder_index = Place("ladder/ladder.json")
    """Processor name -> its folder below `ladder`."""
    encoder = Place("encoder")
    """The run's own encoder: a bundle."""
    crashes = Place("crash_counts")
    """Folder of the crash counts of clips, which all stages share."""
    checkpoints = Place("checkpoints")
    """Folder of the training stages."""
    report_html = Place("report.html")
    """The report as a page."""
    report_md = Place("report.md")
    """The report as text."""
    listening_page = Place("listen.html")
    """The page on which the separation and the neighbours can be heard."""
    sounds = Place("listen")
    """Folder of the sounds of the listening page."""
    plots = Place("plots")
    """Folder of the report's pictures."""
    trial = Place("trial.json")
    """Name, settings and newest validation of a trial."""
    finished = Place("finished")
    """There once a trial has finished."""
    failure = Place("failure")
    """Why a trial failed."""
    stopped = Place("stopped")
    """Why a scheduler stopped a trial."""
    held = Place("held")
    """Folder with a file for each time that a trial held its resources."""

    @property
    def mirrored(self) -> tuple[Path, ...]:
        """The files whose records are mirrored to MLflow."""
        return self.metrics, self.system

    def baseline(self, name: str) -> Path:
        """The bundle of a baseline: "mix-mix" or "untrained"."""
        return self.path / "baselines" / plain_name(name, "the baseline")

    def predictions(self, encoder: str) -> Path:
        """Targets, scores and embeddings of an encoder's evaluation.

        Raises:
            SepsceneError: when results.json names the encoder by something that is no plain name.
        """
        return self.path / "evaluation" / f"{plain_name(encoder, 'the encoder')}.npz"

    def stage(self, name: str) -> "StageFolder":
        """The folder of a training stage."""
        return StageFolder(self, name)

    @property
    def is_over(self) -> bool:
        """Whether there is nothing left to do for a trial."""
        return self.finished.exists() or self.stopped.exists()

    @property
    def store(self) -> Path:
        """The separated clips of all runs beside this one."""
        return store_of(self.path.parent)


def store_of(storage: Path) -> Path:
    """The separated clips that all runs of a storage share."""
    return storage / "store"


def audits_of(storage: Path) -> Path:
    """The audits of all data sets that the runs of a storage use."""
    return storage / "audits"


def clips_of(storage: Path) -> Path:
    """The lists of clips that runs of a storage were given from Python."""
    return storage / "clips"


def encoder_of(folder: Path) -> Path:
    """The bundle of an encoder, where a user may give it or the run that trained it."""
    own = RunFolder(folder).encoder
    return own if own.is_dir() else folder


def pretraining_stage(pair: str) -> str:
    """Name of the stage that trains on one kind of positive pair, in metrics, MLflow and checkpoints."""
    return f"pretrain-{pair}"


@dataclass(frozen=True)
class StageFolder:
    """A training stage in RUN/checkpoints/<stage>: its checkpoints and what its processes tell each other."""

    run: RunFolder
    name: str

    fatal = Place("fatal")
    """Why the stage must stop for good, in one sentence."""
    bad_rows = Place("bad_rows.json")
    """The rows of each step that was skipped for a loss or gradient that is not finite."""
    resume = Place("resume")
    """Name of the checkpoint from which the present worker group starts."""
    wanted = Place("wanted")
    """There while somebody waits for a checkpoint that is not made yet."""
    reserved = Place("reserved")
    """The id of the placement group that Ray keeps for the present worker group."""
    validations = Place("validation")
    """Folder where validation tasks leave their records, one file a step, until they are in the metrics file."""
    best = Place("best")
    """The best encoder so far by validation: a bundle."""

    @property
    def path(self) -> Path:
        """The folder itself; checkpoints are its sub-folders `step-00000100`."""
        return self.run.checkpoints / self.name

    @property
    def shown(self) -> str:
        """The stage's name in Ray's dashboard, where the stages of several runs stand side by side."""
        return f"{self.run.path.name}-{self.name}"

    @property
    def ray_snapshot(self) -> Path:
        """What Ray Train remembers of the encoders that it stored; it names folders that Ray deletes."""
        return self.path / self.shown / "checkpoint_manager_snapshot.json"
