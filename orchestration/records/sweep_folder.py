"""Names of the files in the folders that lie around runs: sweeps, reproductions, studies at scale mini and audits."""

from dataclasses import dataclass
from pathlib import Path

from sepscene.orchestration.records.run_folder import RunFolder


@dataclass(frozen=True)
class SweepFolder:
    """The folder of a sweep or of a reproduction."""

    path: Path

    @property
    def configuration(self) -> Path:
        """The `SweepConfig`."""
        return self.path / "sweep.yaml"

    @property
    def sweep(self) -> Path:
        """The `SweepResults`."""
        return self.path / "sweep.json"

    @property
    def reproduction(self) -> Path:
        """The `ReproductionResults`."""
        return self.path / "reproduction.json"

    @property
    def shared(self) -> RunFolder:
        """What all trials share: scenes and ladder."""
        return RunFolder(self.path / "shared")

    @property
    def trials(self) -> Path:
        """Folder of the trials."""
        return self.path / "trials"

    def trial(self, name: str) -> RunFolder:
        """The run of one trial."""
        return RunFolder(self.trials / name)

    def runs(self) -> list[RunFolder]:
        """The runs of all trials that have begun, by name."""
        return [RunFolder(path) for path in sorted(self.trials.glob("*")) if path.is_dir()]

    @property
    def store(self) -> Path:
        """The separated clips of all trials."""
        return self.path / "store"

    @property
    def tune(self) -> Path:
        """Where Ray Tune keeps its own state."""
        return self.path / "tune"

    @property
    def report_html(self) -> Path:
        """The report as a page."""
        return self.path / "report.html"

    @property
    def report_md(self) -> Path:
        """The report as text."""
        return self.path / "report.md"


@dataclass(frozen=True)
class StudyFolder:
    """The folder of a reproduction at scale mini, whose trials are one file each; its report lies as in a sweep's."""

    path: Path

    @property
    def settings(self) -> Path:
        """The settings that all trials share, and the digests of the separators."""
        return self.path / "study.json"

    @property
    def trials(self) -> Path:
        """Folder of the trials' records."""
        return self.path / "trials"

    def trial(self, row: str, seed: int) -> Path:
        """The record of one row with one seed."""
        return self.trials / f"{row.replace('/', '-')},seed={seed}.json"

    def running(self, row: str, seed: int) -> Path:
        """Held by the process that runs the trial."""
        return self.trial(row, seed).with_suffix(".running")


@dataclass(frozen=True)
class StudyData:
    """The data that all studies of one storage share."""

    path: Path

    @classmethod
    def of(cls, storage: Path) -> "StudyData":
        """Beside the studies."""
        return cls(storage / "mini-data")

    @property
    def lock(self) -> Path:
        """Held by the process that makes data."""
        return self.path / "lock"

    @property
    def logmels(self) -> Path:
        """Folder of the stored log-mels."""
        return self.path / "logmels"

    def scenes(self, profile: str, seconds: float, train: int, test: int) -> Path:
        """So many synthetic scenes of one kind and length."""
        return self.path / f"{profile}-{seconds:g}s-{train}+{test}"

    def scenes_done(self, scenes: Path, split: str, backgrounds: int) -> Path:
        """There once all scenes of a split are written, in this many versions each."""
        return scenes / f"{split}.{backgrounds}.done"


@dataclass(frozen=True)
class AuditFolder:
    """The audit of one data set."""

    path: Path

    @classmethod
    def of(cls, storage: Path, manifest_digest: str) -> "AuditFolder":
        """Where the audit of a manifest lies."""
        return cls(audits_of(storage) / f"audit-{manifest_digest[:12]}")

    @property
    def findings(self) -> Path:
        """The findings with their digest, as JSON."""
        return self.path / "audit.json"

    @property
    def text(self) -> Path:
        """The findings to read."""
        return self.path / "audit.txt"


def audits_of(storage: Path) -> Path:
    """The audits of all data sets that the runs of a storage use."""
    return storage / "audits"
