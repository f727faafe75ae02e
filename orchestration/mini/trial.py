"""One trial at scale mini: train, embed, score with several perceptrons, and write one small JSON file.

Shapes: N clips, D embedding, R resamples of the test clips.
"""

import time
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import mean

import numpy as np
from pydantic import Field
from sklearn.decomposition import PCA

from sepscene.models.config import Config
from sepscene.orchestration.config import Experiment
from sepscene.orchestration.mini.data import LogMelStore
from sepscene.orchestration.mini.training import MiniTrainer, ViewCrops, embed, refuse_what_is_ignored
from sepscene.orchestration.records.environment import commit
from sepscene.orchestration.records.files import write_whole
from sepscene.orchestration.records.results import LedgerResult
from sepscene.tasks.datasets.readers import Manifest
from sepscene.tasks.evaluation.labels import labelled, targets_of_probes, unlabelled_notes
from sepscene.tasks.evaluation.metrics import Bools, Floats, mean_average_precision
from sepscene.tasks.evaluation.probes import knn_probe, linear_probe
from sepscene.tasks.evaluation.resampling import resample, resampled_scores
from sepscene.tasks.evaluation.shallow import train_perceptrons
from sepscene.tasks.evaluation.shortcuts import find_shortcuts

RESAMPLES = 200
SAME_DIMENSIONS = 128
"""Larger representations are scored once more after PCA to this many, so that sizes can be compared."""


class TrialRecord(Config):
    """What a trial leaves behind."""

    row: str
    seed: int
    config_digest: str
    commit: str
    finished: str = Field(description="UTC, ISO 8601")
    seconds: float
    steps: int
    steps_per_second: float
    metrics: dict[str, float] = Field(description="shallow_map is the mean over the perceptrons")
    perceptrons: tuple[float, ...] = Field(description="shallow mAP of each perceptron")
    replicates: tuple[float, ...] = Field(
        description="shallow mAP on resampled test clips, the same ones in each trial"
    )
    losses: dict[str, float]
    diagnostics: dict[str, float]
    warning: str = ""
    left_out: tuple[str, ...] = Field((), description="clips and classes without a usable label, in words")
    ledger: LedgerResult | None = Field(None, description="none for the fresh encoder, which consumes nothing")

    def save(self, path: Path) -> None:
        """Write it whole or not at all."""
        write_whole(path, self.model_dump_json() + "\n")


def run_trial(
    experiment: Experiment, train: LogMelStore, test: LogMelStore, processors: dict[str, str], untrained: bool = False
) -> TrialRecord:
    """Train and score one trial.

    Args:
        experiment: of scale mini.
        train: its clips train the encoder, and with their labels the probes.
        test: its clips are scored.
        processors: name -> folder of the separators.
        untrained: score the fresh encoder instead, without training.

    Raises:
        SepsceneError: for settings that one process cannot honour, labels that nothing can be made of, or a loss that
            is not finite.
    """
    refuse_what_is_ignored(experiment)
    begin = time.perf_counter()
    trainer = MiniTrainer(experiment, ViewCrops(experiment, train, processors, len(train.manifest)))
    for _ in range(0 if untrained else trainer.steps):
        trainer.advance()
    trained = time.perf_counter() - begin
    train_h = embed(trainer, train)
    test_h = embed(trainer, test)
    split = Split.of(train.manifest, test.manifest)
    values, replicates_R = score(train_h, test_h, split, experiment)
    probed = _with_targets(train_h, test_h, split)
    metrics = {
        "shallow_map": mean(values),
        "linear_map": split.metric(linear_probe(*probed).scores_BK),
        "knn_map": split.metric(knn_probe(*probed).scores_BK),
    }
    if train_h.shape[1] > SAME_DIMENSIONS:
        pca = PCA(SAME_DIMENSIONS, random_state=0).fit(train_h)
        smaller = score(pca.transform(train_h), pca.transform(test_h), split, experiment)[0]
        metrics["shallow_map_pca"] = mean(smaller)
    shortcuts = find_shortcuts(train.features, train_h, test.features, test_h)
    return TrialRecord(
        row="untrained" if untrained else experiment.name,
        seed=experiment.seed,
        config_digest=experiment.digest(),
        commit=commit() or "unknown",
        finished=datetime.now(UTC).isoformat(timespec="seconds"),
        seconds=round(time.perf_counter() - begin, 1),
        steps=trainer.step,
        steps_per_second=round(trainer.step / trained, 3),
        metrics=_rounded(metrics),
        perceptrons=tuple(round(value, 5) for value in values),
        replicates=tuple(np.round(replicates_R, 5).tolist()),
        losses=_rounded(trainer.last_losses()) if trainer.step else {},
        diagnostics=_rounded(asdict(shortcuts)),
        warning=shortcuts.warning,
        left_out=split.notes,
        ledger=None if untrained else LedgerResult.of(trainer.ledger),
    )


@dataclass(frozen=True, eq=False)
class Split:
    """The clips that have a label, and by which targets they are scored: the rules of `tasks.evaluation.labels`.

    Attributes:
        train_B, test_B: which clips of each store have a label.
        train_targets_BK, test_targets_BK: of these clips.
        known_BK: the test targets of the classes that can be evaluated.
        notes: what is left out, in words.
    """

    train_B: Bools
    test_B: Bools
    train_targets_BK: Bools
    test_targets_BK: Bools
    known_BK: Bools
    classes: tuple[str, ...]
    notes: tuple[str, ...]

    @classmethod
    def of(cls, train: Manifest, test: Manifest) -> "Split":
        """The labels of both parts of the data.

        Raises:
            NothingToEvaluate: when fewer than two clips of a part have a label, or no class can be evaluated.
        """
        train_BK = train.targets()
        test_BK = test.targets()
        train_B = labelled(train_BK, "training")
        test_B = labelled(test_BK, "test")
        trained_BK = train_BK[train_B]
        tested_BK = test_BK[test_B]
        known_BK, notes = targets_of_probes(tested_BK, test.classes, trained_BK)
        notes = [*unlabelled_notes(training=train_B, test=test_B), *notes]
        return cls(train_B, test_B, trained_BK, tested_BK, known_BK, tuple(test.classes), tuple(notes))

    def metric(self, scores_BK: Floats) -> float:
        """mAP of the scores of the labelled test clips."""
        return mean_average_precision(scores_BK, self.known_BK, self.classes).value


def score(train_h: Floats, test_h: Floats, split: Split, experiment: Experiment) -> tuple[list[float], Floats]:
    """The shallow mAP of each perceptron, and their mean on each resample of the labelled test clips (R,)."""
    found = train_perceptrons(*_with_targets(train_h, test_h, split), split.classes, experiment.evaluation.scoring)
    weights_BR = resample(len(split.known_BK), RESAMPLES)
    replicates = [resampled_scores(one.scores_BK, split.known_BK, weights_BR).map_R for one in found]
    return [split.metric(one.scores_BK) for one in found], np.mean(replicates, axis=0)


def _with_targets(train_h: Floats, test_h: Floats, split: Split) -> tuple[Floats, Bools, Floats, Bools]:
    return train_h[split.train_B], split.train_targets_BK, test_h[split.test_B], split.test_targets_BK


def _rounded(values: dict[str, float]) -> dict[str, float]:
    return {name: round(float(value), 5) for name, value in values.items()}
