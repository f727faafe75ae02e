"""Names of the files in a run's folder; no other file contains them. Those of sweeps are in `records.sweep_folder`.

storage/                       Storage
    audits/audit-<digest>/     AuditFolder
    <run>/                     RunFolder
        checkpoints/<stage>/   StageFolder
            step-<number>/     CheckpointFolder
    <sweep>/                   SweepFolder (in `records.sweep_folder`)
        shared/                RunFolder for files that all trials share
        trials/<trial>/        RunFolder

Files are written with `models.files.write_atomically`, `replace_file` and `replace_folder`, so that they are complete
even if the process is killed. Exceptions are files to which lines are appended, and `RunFolder.lock` (see `run_lock`).
What is inside a folder of weights (`models.weights`), of separated clips (`augment.store`), of generated scenes
(`augment.synthetic.sources`), of crash counts (`augment.crash_counts`) or of lists of clips
(`tasks.datasets.python_clips`) is named there: these rooms know nothing of runs.
"""

import glob
import os
import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sepscene.augment.locations import is_utf8
from sepscene.models.config import SepsceneError

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._=+,@ -]{0,199}")
"""Allowed names of runs, sweeps, encoders and checkpoints: plain names of a folder."""

PRETRAINING = "pretrain"
"""First word of the names of all stages that train an encoder."""

LEVELS_BELOW_STORAGE = 3
"""The most deeply nested run is a trial: STORAGE/SWEEP/trials/TRIAL."""


def plain_name(name: str, what: str) -> str:
    """The name, if it is a valid name of one folder; `what` describes it in the error message.

    Raises:
        SepsceneError: for a path, or for a hidden, empty or very long name.
    """
    if not NAME.fullmatch(name):
        raise SepsceneError(
            f"{what} {name[:80]!r} cannot be the name of a folder: use only letters, digits and . _ = + , @ -, "
            "starting with a letter or digit, and no path"
        )
    return name


def dated(name: str) -> str:
    """The name of a new folder: an experiment or kind of run, followed by the current time."""
    return f"{name.replace('/', '-')}-{time.strftime('%Y%m%d-%H%M%S')}"


def newest_dated(storage: Path, name: str, option: str) -> str:
    """The name of the newest folder of a storage that `dated` has named after this experiment or kind.

    Raises:
        SepsceneError: if there is none; the message names the option that gives the folder's name.
    """
    pattern = f"{glob.escape(name.replace('/', '-'))}-*"
    newest = max((path.name for path in storage.glob(pattern)), default=None)
    if newest is None:
        raise SepsceneError(f"{storage} contains no {pattern} to continue: remove --resume, or give its {option}")
    return newest


def folder_in(storage: Path, name: str, what: str) -> Path:
    """The folder of a run, a sweep or a reproduction in a storage, by the id that the user has given.

    Raises:
        SepsceneError: if the id is not a plain name, or the path is not UTF-8.
    """
    folder = (storage / plain_name(name, what)).resolve()
    if not is_utf8(str(folder)):
        raise SepsceneError(f"the path {folder} is not UTF-8: choose another --storage")
    return folder


class Place:
    """Descriptor of a file or folder with a fixed name inside the owner's `path`."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __get__(self, folder: Any, kind: type) -> Path:
        """The path in that folder; on the class, the path relative to the folder."""
        return Path(folder.path, self.name) if folder else Path(self.name)


@dataclass(frozen=True)
class Storage:
    """The folder of all runs. MLflow's files can also be in the folder of one run, e.g. of the demo."""

    path: Path

    store = Place("store")  # separated clips, shared by all runs
    audits = Place("audits")  # the audits of all data sets that the runs use
    clips = Place("clips")  # the lists of clips that were passed to runs from Python
    mlflow = Place("mlflow.db")  # MLflow's SQLite store, if no server is used
    mlflow_artifacts = Place("mlartifacts")  # the artifacts of the SQLite store

    def audit(self, manifest_digest: str) -> "AuditFolder":
        """The audit of the data set with this manifest."""
        return AuditFolder(self.audits / f"audit-{manifest_digest[:12]}")


@dataclass(frozen=True)
class RunFolder:
    """The folder of one run."""

    path: Path

    experiment = Place("experiment.yaml")  # the resolved configuration
    started = Place("started")  # start time of the run; UTC, ISO 8601
    lock = Place("running.json")  # the process that currently works in the folder
    metrics = Place("metrics.jsonl")  # records of all steps and validations, and events; one JSON object per line
    system = Place("system.jsonl")  # samples of the machines' system metrics; one JSON object per line
    timings = Place("stages.json")  # stage -> seconds
    results = Place("results.json")  # the `RunResults`
    ledger = Place("ledger.json")  # the ledger of the encoder's weights
    mlflow = Place("mlflow.json")  # what has been sent to MLflow
    mlflow_calls = Place("mlflow-calls.jsonl")  # all calls to MLflow, sent or not; one JSON object per line
    scenes = Place("scenes")  # synthetic scenes, if the data has no other folder
    ladder = Place("ladder")  # folder of the separator's checkpoints
    ladder_index = Place("ladder/ladder.json")  # processor name -> its folder below `ladder`
    encoder = Place("encoder")  # the run's own encoder: a bundle
    crashes = Place("crash_counts")  # folder of the crash counts of clips, shared by all stages
    checkpoints = Place("checkpoints")  # folder of the training stages
    report_html = Place("report.html")  # the report as a page
    report_md = Place("report.md")  # the report as text
    listening_page = Place("listen.html")  # the page with sounds of the separation and of the nearest neighbours
    sounds = Place("listen")  # folder of the listening page's sounds
    plots = Place("plots")  # folder of the report's plots
    trial = Place("trial.json")  # name, settings and newest validation of a trial
    finished = Place("finished")  # exists once a trial has finished
    failure = Place("failure")  # why a trial failed
    stopped = Place("stopped")  # why a scheduler stopped a trial
    held = Place("held")  # folder with one file per period in which a trial held its resources

    @property
    def mirrored(self) -> tuple[Path, ...]:
        """The files whose records are mirrored to MLflow."""
        return self.metrics, self.system

    def baseline(self, name: str) -> Path:
        """The encoder bundle of a baseline: "mix-mix" or "untrained"."""
        return self.path / "baselines" / plain_name(name, "the baseline")

    def ladder_checkpoint(self, name: str, step: int, digest: str) -> Path:
        """A separator of the ladder: a folder of weights."""
        return self.ladder / f"{name}-{step}-{digest[:12]}"

    def unfinished_ladder_checkpoint(self, name: str, step: int) -> Path:
        """The folder in which a separator of the ladder is written."""
        return self.ladder / f".{name}-{step}"

    def sound(self, number: int) -> Path:
        """A sound of the listening page."""
        return self.sounds / f"{number:03d}.flac"

    def plot(self, name: str) -> Path:
        """A plot of the report."""
        return self.plots / f"{name}.svg"

    def written_plots(self) -> list[Path]:
        """The plots of the newest report."""
        return list(self.plots.glob("*.svg"))

    def held_mark(self, nanoseconds: int) -> Path:
        """The file of the period that began at this Unix time; its last modification is the end of the period."""
        return self.held / str(nanoseconds)

    def held_marks(self) -> list[Path]:
        """The files of all periods in which a trial held its resources."""
        return list(self.held.glob("*"))

    def predictions(self, encoder: str) -> Path:
        """Targets, scores and embeddings of an encoder's evaluation.

        Raises:
            SepsceneError: if the encoder's name, as read from results.json, is not a plain name.
        """
        return self.path / "evaluation" / f"{plain_name(encoder, 'the encoder')}.npz"

    def stage(self, name: str) -> "StageFolder":
        """The folder of a training stage."""
        return StageFolder(self, name)

    @property
    def is_over(self) -> bool:
        """Whether a trial has finished or was stopped."""
        return self.finished.exists() or self.stopped.exists()

    @property
    def store(self) -> Path:
        """The separated clips that all runs next to this one share."""
        return Storage(self.path.parent).store


@dataclass(frozen=True)
class AuditFolder:
    """The audit of one data set."""

    path: Path

    findings = Place("audit.json")  # the findings with their digest, as JSON
    text = Place("audit.txt")  # the findings as readable text


def mlflow_lock_of(store: Path) -> Path:
    """Lock file of the process that creates a SQLite store."""
    return store.with_suffix(".lock")


def encoder_of(folder: Path) -> Path:
    """The encoder bundle in a folder that is either the bundle itself or the run that trained it."""
    bundle = RunFolder(folder).encoder
    return bundle if bundle.is_dir() else folder


def pretraining_stage(pair: str) -> str:
    """Name of the stage that trains on one kind of positive pair; used in metrics, MLflow and checkpoints."""
    return f"{PRETRAINING}-{pair}"


def is_pretraining(stage: object) -> bool:
    """Whether a stage, as a record of the metrics file names it, trains an encoder."""
    return str(stage).startswith(PRETRAINING)


@dataclass(frozen=True)
class StageFolder:
    """A training stage in RUN/checkpoints/<stage>: its checkpoints and the files by which its processes communicate."""

    run: RunFolder
    name: str

    fatal = Place("fatal")  # why the stage must stop permanently, in one sentence
    bad_rows = Place("bad_rows.json")  # the rows of each step that was skipped: its loss or gradient was not finite
    resume = Place("resume")  # name of the checkpoint from which the current worker group starts
    wanted = Place("wanted")  # exists while a process waits for a checkpoint that it has requested
    reserved = Place("reserved")  # id of the placement group that Ray has reserved for the current worker group
    controller = Place("controller")  # Ray's id of the current Train controller, which is an actor
    validations = Place("validation")  # records of validations, one file per step, until they are in the metrics file
    best = Place("best")  # the best encoder so far by validation: a bundle
    best_record = Place("best/validation.json")  # the step and the metric of the best encoder
    unfinished_best = Place("best.partial")  # the folder in which a new best encoder is written

    @property
    def path(self) -> Path:
        """The folder itself; its sub-folders are checkpoints (`CheckpointFolder`)."""
        return self.run.checkpoints / self.name

    def validation(self, step: int) -> Path:
        """The record of the validation of a step."""
        return self.validations / f"step-{step:08d}.json"

    def written_validations(self) -> list[Path]:
        """The records of validations that are not yet in the metrics file, oldest first."""
        return sorted(self.validations.glob("step-*.json"))

    def leftovers_of_best(self) -> list[Path]:
        """The folders that a killed process has left while it replaced the best encoder."""
        return list(self.path.glob("best.*"))

    @property
    def shown(self) -> str:
        """The stage's name in Ray's dashboard, which can show the stages of several runs."""
        return f"{self.run.path.name}-{self.name}"

    @property
    def ray_snapshot(self) -> Path:
        """Ray Train's list of the encoders that it has stored; it can name folders that Ray has deleted."""
        return self.path / self.shown / "checkpoint_manager_snapshot.json"


@dataclass(frozen=True)
class CheckpointFolder:
    """A checkpoint of a training stage: RUN/checkpoints/<stage>/step-<number>."""

    path: Path

    state = Place("state.pt")  # the state dicts of model, optimiser and others
    ledger = Place("ledger.json")  # the rows that training has consumed
    steps = Place("metrics.json")  # the metrics of the steps since the previous checkpoint
    manifest = Place("manifest.json")  # the step, and the SHA-256 of the other files; written last


def checkpoint_name(step: int) -> str:
    """Folder name of the checkpoint after `step` optimizer steps; names sort by step."""
    return f"step-{step:08d}"


def is_checkpoint_name(name: str) -> bool:
    """Whether a folder with this name is a complete checkpoint, not one that is written or deleted."""
    return re.fullmatch(r"step-\d{8,}", name) is not None


def checkpoints_of(stage: Path) -> list[Path]:
    """The folders of all checkpoints of a stage, oldest first, damaged ones included."""
    return sorted(folder for folder in stage.glob("step-*") if is_checkpoint_name(folder.name))


def unfinished_checkpoint(stage: Path, name: str) -> Path:
    """The hidden folder in which this process writes a checkpoint, or to which it moves one in order to delete it."""
    return stage / f".writing-{name}-{os.getpid()}"


def unfinished_checkpoints(stage: Path) -> list[Path]:
    """The hidden folders of all processes; those of ended ones are left over."""
    return list(stage.glob(".writing-*"))
