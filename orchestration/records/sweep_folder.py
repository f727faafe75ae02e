"""Names of the files in the folders of sweeps, reproductions and studies at scale mini, and of the studies' data."""

from dataclasses import dataclass
from pathlib import Path

from sepscene.orchestration.records.run_folder import Place, RunFolder


@dataclass(frozen=True)
class SweepFolder:
    """The folder of a sweep or of a reproduction."""

    path: Path

    configuration = Place("sweep.yaml")  # the `SweepConfig`
    base = Place("base.yaml")  # the experiment that is varied, if it came from a file
    sweep = Place("sweep.json")  # the `SweepResults`
    reproduction = Place("reproduction.json")  # the `ReproductionResults`
    trials = Place("trials")  # folder of the trials
    store = Place("store")  # the separated clips of all trials
    tune = Place("tune")  # folder of Ray Tune's state
    report_html = Place("report.html")  # the report as a page
    report_md = Place("report.md")  # the report as text

    @property
    def shared(self) -> RunFolder:
        """The files that all trials share: scenes and ladder."""
        return RunFolder(self.path / "shared")

    def trial(self, name: str) -> RunFolder:
        """The run of one trial."""
        return RunFolder(self.trials / name)

    def relative(self, path: Path) -> str:
        """A path below the folder as its records and pages name it, so that the folder can be moved."""
        return path.relative_to(self.path).as_posix()

    def runs(self) -> list[RunFolder]:
        """The runs of all trials that have started, sorted by name."""
        return [RunFolder(path) for path in sorted(self.trials.glob("*")) if path.is_dir()]


@dataclass(frozen=True)
class StudyFolder:
    """The folder of a reproduction at scale mini, with one file per trial; its report is named as that of a sweep."""

    path: Path

    settings = Place("study.json")  # the settings that all trials share, and the digests of the separators
    trials = Place("trials")  # folder of the trials' records

    def trial(self, row: str, seed: int) -> Path:
        """The record of one row with one seed."""
        return self.trials / f"{row.replace('/', '-')},seed={seed}.json"

    def written_trials(self) -> list[Path]:
        """The records of all finished trials, sorted by name."""
        return sorted(self.trials.glob("*.json"))

    def failure(self, row: str, seed: int) -> Path:
        """Why the trial failed, in one sentence."""
        return self.trial(row, seed).with_suffix(".failed")

    def written_failures(self) -> list[Path]:
        """The reasons of all failed trials, sorted by the trial's name."""
        return sorted(self.trials.glob("*.failed"))

    def running(self, row: str, seed: int) -> Path:
        """Lock file of the process that runs the trial."""
        return self.trial(row, seed).with_suffix(".running")


@dataclass(frozen=True)
class StudyData:
    """The data that all studies of one storage share."""

    path: Path

    lock = Place("lock")  # lock file of the process that generates data
    logmels = Place("logmels")  # folder of the stored log-mels

    @classmethod
    def of(cls, storage: Path) -> "StudyData":
        """The data in the storage of the studies."""
        return cls(storage / "mini-data")

    def scenes(self, profile: str, seconds: float, train: int, test: int) -> Path:
        """Folder of this many synthetic scenes of one kind and length."""
        return self.path / f"{profile}-{seconds:g}s-{train}+{test}"

    def scenes_done(self, scenes: Path, split: str, backgrounds: int) -> Path:
        """Exists once all scenes of a split are written, each in this many versions."""
        return scenes / f"{split}.{backgrounds}.done"


@dataclass(frozen=True)
class LogMelFolder:
    """The log-mels of one manifest, in `StudyData.logmels`, in parts: one for the mixtures and one per processor."""

    path: Path

    @staticmethod
    def mixtures(background: int) -> str:
        """The part of the mixtures in the version with this background."""
        return f"mixture-{background}"

    @staticmethod
    def channels(digest: str, background: int) -> str:
        """The part of the channels of the separator with this digest."""
        return f"channels-{digest[:16]}-{background}"

    def array(self, part: str) -> Path:
        """The log-mels of a part."""
        return self.path / f"{part}.npy"

    def levels(self, part: str) -> Path:
        """The levels of the channels of a part."""
        return self.path / f"{part}.levels.npy"

    def done(self, part: str) -> Path:
        """The number of clips of a part that are complete."""
        return self.path / f"{part}.done"

    def unfinished(self, array: Path) -> Path:
        """The file of an array whose space is not reserved yet."""
        return array.with_suffix(".new")
