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
from dataclasses import dataclass
from pathlib import Path

from sepscene.augment.locations import is_utf8
from sepscene.models.config import SepsceneError

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._=+,@ -]{0,199}")
"""What a run, a sweep, an encoder or a checkpoint may be called: a plain name of one folder."""


def plain_name(name: str, what: str) -> str:
    """The name, if it can be that of a file or folder and nothing else.

    Args:
        name: from a user or from a file that anybody may have written.
        what: what it names, for the message.

    Raises:
        SepsceneError: for a path, a hidden name, an empty or a very long one.
    """
    if not NAME.fullmatch(name):
        raise SepsceneError(
            f"{what} {name[:80]!r} cannot be the name of a folder: take letters, digits and . _ = + , - only, "
            "a letter or digit first, and no path"
        )
    return name


def folder_in(storage: Path, name: str, what: str) -> Path:
    """The folder of a run, a sweep or a reproduction in a storage.

    Args:
        storage: folder of all runs.
        name: the id that the user gave.
        what: what it names, for the message.

    Raises:
        SepsceneError: when the id is no plain name, or the path is not UTF-8.
    """
    folder = (storage / plain_name(name, what)).resolve()
    if not is_utf8(str(folder)):
        raise SepsceneError(f"{folder} is no UTF-8 text, which the files of a run must be: choose another --storage")
    return folder


@dataclass(frozen=True)
class RunFolder:
    """The folder of one run."""

    path: Path

    @property
    def experiment(self) -> Path:
        """The resolved configuration."""
        return self.path / "experiment.yaml"

    @property
    def started(self) -> Path:
        """When the run began; UTC, ISO 8601."""
        return self.path / "started"

    @property
    def lock(self) -> Path:
        """Which process works in the folder at present."""
        return self.path / "running.json"

    @property
    def metrics(self) -> Path:
        """The records of all steps and validations, and the events; one JSON object a line."""
        return self.path / "metrics.jsonl"

    @property
    def system(self) -> Path:
        """What the machines were doing, sampled; one JSON object a line."""
        return self.path / "system.jsonl"

    @property
    def timings(self) -> Path:
        """Stage -> seconds."""
        return self.path / "stages.json"

    @property
    def results(self) -> Path:
        """The `RunResults`."""
        return self.path / "results.json"

    @property
    def ledger(self) -> Path:
        """The ledger of the encoder's weights."""
        return self.path / "ledger.json"

    @property
    def mlflow(self) -> Path:
        """What MLflow has of the run, and what it lacks."""
        return self.path / "mlflow.json"

    @property
    def mlflow_calls(self) -> Path:
        """All calls of MLflow that the run has made, whether they have arrived or not; one JSON object a line."""
        return self.path / "mlflow-calls.jsonl"

    @property
    def mirrored(self) -> tuple[Path, ...]:
        """The files whose records are mirrored to MLflow."""
        return self.metrics, self.system

    @property
    def scenes(self) -> Path:
        """Synthetic scenes, where the data has no folder of its own."""
        return self.path / "scenes"

    def scenes_done(self, split: str) -> Path:
        """There once all scenes of a split are written."""
        return self.scenes / f"{split}.done"

    @property
    def ladder(self) -> Path:
        """Folder of the separator's checkpoints."""
        return self.path / "ladder"

    @property
    def ladder_index(self) -> Path:
        """Processor name -> its folder below `ladder`."""
        return self.ladder / "ladder.json"

    @property
    def encoder(self) -> Path:
        """The run's own encoder: a bundle."""
        return self.path / "encoder"

    def baseline(self, name: str) -> Path:
        """The bundle of a baseline: "mix-mix" or "untrained"."""
        return self.path / "baselines" / plain_name(name, "the baseline")

    def evidence(self, encoder: str) -> Path:
        """Targets, scores and embeddings of an encoder's evaluation.

        Raises:
            SepsceneError: when results.json names the encoder by something that is no plain name.
        """
        return self.path / "evaluation" / f"{plain_name(encoder, 'the encoder')}.npz"

    @property
    def crashes(self) -> Path:
        """Folder of the crash counts of clips, which all stages share."""
        return self.path / "crash_counts"

    @property
    def checkpoints(self) -> Path:
        """Folder of the training stages."""
        return self.path / "checkpoints"

    @property
    def report_html(self) -> Path:
        """The report as a page."""
        return self.path / "report.html"

    @property
    def report_md(self) -> Path:
        """The report as text."""
        return self.path / "report.md"

    @property
    def listening_page(self) -> Path:
        """The page on which the separation and the neighbours can be heard."""
        return self.path / "listen.html"

    @property
    def sounds(self) -> Path:
        """Folder of the sounds of the listening page."""
        return self.path / "listen"

    @property
    def plots(self) -> Path:
        """Folder of the report's pictures."""
        return self.path / "plots"

    @property
    def trial(self) -> Path:
        """Name, settings and newest validation of a trial."""
        return self.path / "trial.json"

    @property
    def finished(self) -> Path:
        """There once a trial has finished."""
        return self.path / "finished"

    @property
    def failure(self) -> Path:
        """Why a trial failed."""
        return self.path / "failure"

    @property
    def stopped(self) -> Path:
        """Why a scheduler stopped a trial."""
        return self.path / "stopped"

    @property
    def is_over(self) -> bool:
        """Whether there is nothing left to do for a trial."""
        return self.finished.exists() or self.stopped.exists()

    @property
    def held(self) -> Path:
        """Folder with a file for each time that a trial held its resources."""
        return self.path / "held"

    @property
    def store(self) -> Path:
        """The separated clips of all runs beside this one."""
        return store_of(self.path.parent)

    def pretraining(self, pair: str) -> "StageFolder":
        """The stage that trains on one kind of positive pair."""
        return StageFolder(self.path, pretraining_stage(pair))


def store_of(storage: Path) -> Path:
    """The separated clips that all runs of a storage share."""
    return storage / "store"


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
    """A training stage in RUN/checkpoints/<stage>: its checkpoints and what its processes tell each other.

    Attributes:
        run: the run's folder.
        name: name of the stage.
    """

    run: Path
    name: str

    @property
    def path(self) -> Path:
        """The folder itself; checkpoints are its sub-folders `step-00000100`."""
        return RunFolder(self.run).checkpoints / self.name

    @property
    def metrics(self) -> Path:
        """The run's metrics file, which all stages share."""
        return RunFolder(self.run).metrics

    @property
    def crashes(self) -> Path:
        """Folder of the crash counts of clips, which all stages share."""
        return RunFolder(self.run).crashes

    @property
    def fatal(self) -> Path:
        """Why the stage must stop for good, in one sentence."""
        return self.path / "fatal"

    @property
    def bad_rows(self) -> Path:
        """The rows of each step that was skipped for a loss or gradient that is not finite."""
        return self.path / "bad_rows.json"

    @property
    def resume(self) -> Path:
        """Name of the checkpoint from which the present worker group starts."""
        return self.path / "resume"

    @property
    def wanted(self) -> Path:
        """There while somebody waits for a checkpoint that is not made yet."""
        return self.path / "wanted"

    @property
    def validations(self) -> Path:
        """Folder where validation tasks leave their records, one file a step, until they are in the metrics file."""
        return self.path / "validation"

    @property
    def best(self) -> Path:
        """The best encoder so far by validation: a bundle."""
        return self.path / "best"

    @property
    def shown(self) -> str:
        """The stage's name in Ray's dashboard, where the stages of several runs stand side by side."""
        return f"{self.run.resolve().name}-{self.name}"

    @property
    def ray(self) -> Path:
        """Where Ray Train keeps its own files."""
        return self.path / self.shown

    @property
    def ray_snapshot(self) -> Path:
        """What Ray Train remembers of the encoders that it stored; it names folders that Ray deletes."""
        return self.ray / "checkpoint_manager_snapshot.json"
