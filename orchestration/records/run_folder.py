"""Names of the files in a run's folder. Nobody else spells a path below it."""

from dataclasses import dataclass
from pathlib import Path


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
        return self.run / "checkpoints" / self.name

    @property
    def metrics(self) -> Path:
        """The run's metrics file, which all stages share."""
        return self.run / "metrics.jsonl"

    @property
    def crashes(self) -> Path:
        """Folder of the crash counts of clips, which all stages share."""
        return self.run / "crash_counts"

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
    def ray_snapshot(self) -> Path:
        """What Ray Train remembers of the encoders that it stored; it names folders that Ray deletes."""
        return self.path / "checkpoint_manager_snapshot.json"


def pretraining(run: Path, pair: str) -> StageFolder:
    """The folder of the pre-training with one kind of positive pair."""
    return StageFolder(run, f"pretrain-{pair}")
