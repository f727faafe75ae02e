"""One trial at scale mini: train, embed, score with several perceptrons, and write one small JSON file.

Shapes: P perceptrons, B test clips, K classes, R resamples of the test clips.
"""

import time
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from pydantic import Field
from sklearn.decomposition import PCA

from sepscene.models.config import Config
from sepscene.orchestration.config import Experiment
from sepscene.orchestration.mini.data import LogMelStore
from sepscene.orchestration.mini.training import MiniTrainer, embed
from sepscene.orchestration.records.environment import commit
from sepscene.orchestration.records.files import write_text_atomically
from sepscene.orchestration.records.results import LedgerResult
from sepscene.tasks.datasets.readers import Manifest
from sepscene.tasks.evaluation.labels import targets_of_probes
from sepscene.tasks.evaluation.metrics import Floats, mean_average_precision
from sepscene.tasks.evaluation.resampling import resample, resampled_scores
from sepscene.tasks.evaluation.scores import Predictions, Scores, score_embeddings
from sepscene.tasks.evaluation.shortcuts import find_shortcuts

RESAMPLES = 200
"""Bootstrap resamples of the test clips, whose spread the verdicts add to that over seeds."""
SAME_DIMENSIONS = 128
"""Larger representations are also scored after PCA to this many dimensions, so that sizes can be compared."""


class TrialRecord(Config):
    """The record of a finished trial."""

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
        description="shallow mAP on resamples of the test clips, which are the same in each trial"
    )
    losses: dict[str, float]
    diagnostics: dict[str, float]
    warning: str = ""
    left_out: tuple[str, ...] = Field((), description="clips and classes that could not be evaluated, as sentences")
    ledger: LedgerResult | None = Field(None, description="None for the untrained encoder, which consumes no rows")

    def save(self, path: Path) -> None:
        """Write the record atomically, as one line of JSON."""
        write_text_atomically(path, self.model_dump_json() + "\n")


def run_trial(experiment: Experiment, train: LogMelStore, test: LogMelStore, untrained: bool = False) -> TrialRecord:
    """Train and score one trial.

    Args:
        experiment: of scale mini, which `check_supported` accepts.
        train: clips that train the encoder and, with their labels, the probes.
        test: clips that are scored.
        untrained: score the encoder with its initial weights, without training.

    Raises:
        NothingToEvaluate: when the labels allow no evaluation.
        NonFiniteError: when the loss or the gradient of a step is not finite.
    """
    begin = time.perf_counter()
    trainer = MiniTrainer(experiment, train)
    for _ in range(0 if untrained else trainer.steps):
        trainer.advance()
    training_seconds = time.perf_counter() - begin
    train_h = embed(trainer, train)
    test_h = embed(trainer, test)
    scores = score(train_h, train.manifest, test_h, test.manifest, experiment)
    values, replicates_R = perceptron_maps(scores.predictions)
    metrics = {name: scores.metrics[name].value for name in ("shallow_map", "linear_map", "knn_map")}
    if train_h.shape[1] > SAME_DIMENSIONS:
        pca = PCA(SAME_DIMENSIONS, random_state=0).fit(train_h)
        smaller = score(pca.transform(train_h), train.manifest, pca.transform(test_h), test.manifest, experiment)
        metrics["shallow_map_pca"] = smaller.metrics["shallow_map"].value
    shortcuts = find_shortcuts(train.features, train_h, test.features, test_h)
    return TrialRecord(
        row="untrained" if untrained else experiment.name,
        seed=experiment.seed,
        config_digest=experiment.digest(),
        commit=commit() or "unknown",
        finished=datetime.now(UTC).isoformat(timespec="seconds"),
        seconds=round(time.perf_counter() - begin, 1),
        steps=trainer.step,
        steps_per_second=round(trainer.step / training_seconds, 3),
        metrics=_rounded(metrics),
        perceptrons=tuple(round(value, 5) for value in values),
        replicates=tuple(np.round(replicates_R, 5).tolist()),
        losses=_rounded(trainer.last_losses()) if trainer.step else {},
        diagnostics=_rounded(asdict(shortcuts)),
        warning=shortcuts.warning,
        left_out=tuple(note for note in scores.notes if note.startswith("left out")),
        ledger=None if untrained else LedgerResult.of(trainer.ledger),
    )


def score(train_h: Floats, train: Manifest, test_h: Floats, test: Manifest, experiment: Experiment) -> Scores:
    """The usual evaluation, without intervals.

    Raises:
        NothingToEvaluate: when fewer than two training or test clips have a label, or no class can be evaluated.
    """
    settings = experiment.evaluation.scoring.changed({"bootstrap": 0})
    return score_embeddings(train_h, train.targets(), test_h, test.targets(), test.classes, settings)


def perceptron_maps(predictions: Predictions) -> tuple[list[float], Floats]:
    """The shallow mAP of each perceptron, and its mean over them on each resample (R,) of the labelled test clips."""
    known_BK, _ = targets_of_probes(predictions.targets_BK, predictions.classes, predictions.trained_BK)
    weights_BR = resample(len(known_BK), RESAMPLES)
    scores_PBK = predictions.scores["shallow"]
    replicates = [resampled_scores(scores_BK, known_BK, weights_BR).map_R for scores_BK in scores_PBK]
    return [mean_average_precision(scores_BK, known_BK).value for scores_BK in scores_PBK], np.mean(replicates, axis=0)


def _rounded(values: dict[str, float]) -> dict[str, float]:
    return {name: round(float(value), 5) for name, value in values.items()}
