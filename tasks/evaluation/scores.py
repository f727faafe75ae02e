"""Evaluate an encoder from embeddings of clips: every metric with its interval, and a table of the classes.

Legend: B clips, D embedding, K classes, R resamples, P perceptrons.

`score_embeddings` (one training and one test split) and `cross_validate` (folds, as in ESC-50) train the probes and
collect their predictions for each test clip. `measure` computes the metrics from the predictions. The predictions are
stored with the run, so that two runs can be compared on the same clips later (`orchestration.evaluation.compare`).

`tasks.evaluation.labels` decides which clips and classes are evaluated.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from sepscene.tasks.evaluation.labels import labelled, listed, targets_of_probes, unlabelled_notes
from sepscene.tasks.evaluation.metrics import (
    Bools,
    EvaluationError,
    Floats,
    Macro,
    check,
    check_split,
    d_prime,
    lwlrap,
    mean_average_precision,
    mean_macro,
)
from sepscene.tasks.evaluation.probes import probe_scores
from sepscene.tasks.evaluation.resampling import (
    ENOUGH_POSITIVES,
    resample,
    resampled_retrieval,
    resampled_scores,
    share,
)
from sepscene.tasks.evaluation.retrieval import query_by_example
from sepscene.tasks.evaluation.settings import ScoringSettings
from sepscene.tasks.evaluation.statistics import Interval, bootstrap_interval


@dataclass(frozen=True, eq=False)
class Predictions:
    """The embedding of each test clip, and what the probes predict from it.

    Attributes:
        clip_ids: (B,) str.
        classes: K names.
        targets_BK: bool.
        folds: (B,) str: metrics are computed within each fold and averaged. A plain test split is one fold.
        h_BD: the encoder's embeddings.
        scores: "shallow" -> (P, B, K), "linear" and "knn" -> (1, B, K), from probes that did not see the clip's fold.
        trained_BK: which classes occurred in the training clips of the probes that scored a clip.
        notes: remarks for the reader, e.g. the number of epochs in each fold.
    """

    clip_ids: NDArray[np.str_]
    classes: tuple[str, ...]
    targets_BK: Bools
    folds: NDArray[np.str_]
    h_BD: Floats
    scores: dict[str, Floats]
    settings: ScoringSettings
    trained_BK: Bools
    notes: tuple[str, ...] = ()

    def rows(self, rows: NDArray[np.intp] | Bools) -> "Predictions":
        """The predictions for some of the clips, in the given order."""
        return replace(
            self,
            clip_ids=self.clip_ids[rows],
            folds=self.folds[rows],
            targets_BK=self.targets_BK[rows],
            h_BD=self.h_BD[rows],
            scores={name: scores_PBK[:, rows] for name, scores_PBK in self.scores.items()},
            trained_BK=self.trained_BK[rows],
        )


@dataclass(frozen=True)
class ClassMetrics:
    """One class: the number of its positive test clips, and its metrics by name, without undefined ones."""

    name: str
    positives: int
    metrics: dict[str, float]


@dataclass(frozen=True, eq=False)
class Scores:
    """Metrics with intervals, and the predictions from which they were computed.

    Attributes:
        metrics: "shallow_map", "d_prime", "lwlrap" (both of the perceptron), "linear_map", "knn_map",
            "qbe_map", and "accuracy" of the perceptron where each clip has exactly one label.
        replicates: the same names -> the metric on each resample, (R,).
        per_class: metrics of each class, those of d' and lwlrap included.
        notes: classes that were left out or have few clips, chance levels, epochs.
    """

    predictions: Predictions
    metrics: dict[str, Interval]
    replicates: dict[str, Floats]
    per_class: tuple[ClassMetrics, ...]
    notes: tuple[str, ...]


def score_embeddings(
    train_h_BD: Floats,
    train_targets_BK: Bools,
    test_h_BD: Floats,
    test_targets_BK: Bools,
    classes: Sequence[str] | None = None,
    settings: ScoringSettings | None = None,
    clip_ids: Sequence[str] | None = None,
) -> Scores:
    """All metrics of one encoder on a training and a test split.

    Args:
        clip_ids: of the test clips; None: their numbers. Comparisons match clips by these.

    Raises:
        EvaluationError: embeddings are NaN, shapes do not match, or no class has a positive test clip.
    """
    settings = settings or ScoringSettings()
    check_split(train_h_BD, train_targets_BK, test_h_BD, test_targets_BK)
    names = _names(classes, test_targets_BK)
    ids = _ids(clip_ids, len(test_h_BD))
    train_B = labelled(train_targets_BK, "training clips")
    test_B = labelled(test_targets_BK, "test clips")
    notes = unlabelled_notes({"training clips": train_B, "test clips": test_B})
    split = (train_h_BD[train_B], train_targets_BK[train_B], test_h_BD[test_B], test_targets_BK[test_B])
    return measure(_predictions(split, names, settings, ids[test_B], notes))


def _predictions(
    split: tuple[Floats, Bools, Floats, Bools],
    names: tuple[str, ...],
    settings: ScoringSettings,
    ids: NDArray[np.str_],
    notes: tuple[str, ...] = (),
) -> Predictions:
    """Train the probes and predict the test clips. `split`: training h and targets, test h and targets, labelled."""
    train_h_BD, train_targets_BK, test_h_BD, test_targets_BK = split
    scores, epochs_P = probe_scores(*split, settings)
    return Predictions(
        clip_ids=ids,
        classes=names,
        targets_BK=test_targets_BK,
        folds=np.full(len(ids), "test", dtype=np.str_),
        h_BD=test_h_BD,
        scores=scores,
        settings=settings,
        trained_BK=np.tile(train_targets_BK.any(axis=0), (len(ids), 1)),
        notes=(*notes, _trained(epochs_P.tolist(), len(train_h_BD))),
    )


def cross_validate(
    h_BD: Floats,
    targets_BK: Bools,
    folds: Sequence[str],
    classes: Sequence[str] | None = None,
    settings: ScoringSettings | None = None,
    clip_ids: Sequence[str] | None = None,
) -> Scores:
    """All metrics by cross-validation over given folds, as ESC-50 requires.

    Each fold is tested by probes trained on the others. Metrics are means over the folds; the bootstrap
    draws clips within each fold.

    Raises:
        EvaluationError: as for `score_embeddings`, or there are fewer than two folds.
    """
    settings = settings or ScoringSettings()
    check(h_BD, targets_BK)
    names = _names(classes, targets_BK)
    fold_B = np.array(list(folds), dtype=np.str_)
    if len(fold_B) != len(h_BD) or len(set(folds)) < 2:
        raise EvaluationError(
            f"{len(fold_B)} fold names ({len(set(folds))} different) for {len(h_BD)} clips: cross-validation "
            "needs one per clip, and at least two folds"
        )
    ids = _ids(clip_ids, len(h_BD))
    labelled_B = labelled(targets_BK, "clips")
    notes = unlabelled_notes({"clips": labelled_B})
    h_BD = h_BD[labelled_B]
    targets_BK = targets_BK[labelled_B]
    fold_B = fold_B[labelled_B]
    ids = ids[labelled_B]
    probes = {"shallow": settings.perceptrons, "linear": 1, "knn": 1}
    scores: dict[str, Floats] = {name: np.zeros((count, *targets_BK.shape)) for name, count in probes.items()}
    trained_BK = np.zeros(targets_BK.shape, bool)
    for fold in sorted(set(fold_B.tolist())):
        test_B = fold_B == fold
        split = (h_BD[~test_B], targets_BK[~test_B], h_BD[test_B], targets_BK[test_B])
        part = _predictions(split, names, settings, ids[test_B])
        for name, scores_PBK in part.scores.items():
            scores[name][:, test_B] = scores_PBK
        trained_BK[test_B] = part.trained_BK
        notes += tuple(f"fold {fold}: {note}" for note in part.notes)
    return measure(Predictions(ids, names, targets_BK, fold_B, h_BD, scores, settings, trained_BK, notes))


def _names(classes: Sequence[str] | None, targets_BK: Bools) -> tuple[str, ...]:
    columns = targets_BK.shape[1]
    names = tuple(str(k) for k in range(columns)) if classes is None else tuple(classes)
    if len(names) != columns:
        raise EvaluationError(f"{len(names)} class names for {columns} columns of targets: give one name per column")
    return names


def _ids(clip_ids: Sequence[str] | None, clips: int) -> NDArray[np.str_]:
    names = [str(row) for row in range(clips)] if clip_ids is None else list(clip_ids)
    if len(names) != clips:
        raise EvaluationError(f"{len(names)} clip ids for {clips} test clips: give one id per clip")
    return np.array(names, dtype=np.str_)


@dataclass
class _Fold:
    """Metrics of one fold by name: the value, the values per class, and the values per resample."""

    values: dict[str, float] = field(default_factory=dict)
    per_class: dict[str, Floats] = field(default_factory=dict)
    replicates: dict[str, Floats] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def add(self, name: str, metric: Macro, replicates_R: Floats) -> None:
        self.values[name] = metric.value
        self.per_class[name] = metric.per_class
        self.replicates[name] = replicates_R


def measure(predictions: Predictions) -> Scores:
    """Compute metrics with intervals from predictions. The same predictions give the same metrics and resamples.

    Raises:
        EvaluationError: scores or embeddings are NaN, or a fold has no class with a positive clip.
    """
    names = sorted(set(predictions.folds.tolist()))
    folds = [_measure_fold(predictions.rows(predictions.folds == name), seed) for seed, name in enumerate(names)]
    metrics = {}
    replicates = {}
    for metric in folds[0].values:
        if any(metric not in fold.values for fold in folds):
            continue
        replicates[metric] = np.mean([fold.replicates[metric] for fold in folds], axis=0)
        value = float(np.mean([fold.values[metric] for fold in folds]))
        metrics[metric] = bootstrap_interval(value, replicates[metric], len(predictions.clip_ids))
    notes = list(predictions.notes)
    for name, fold in zip(names, folds, strict=True):
        notes += fold.notes if len(folds) == 1 else [f"fold {name}: {note}" for note in fold.notes]
    return Scores(predictions, metrics, replicates, _class_table(predictions, folds), tuple(notes))


def _measure_fold(predictions: Predictions, fold: int) -> _Fold:
    targets_BK = predictions.targets_BK
    settings = predictions.settings
    weights_BR = resample(len(targets_BK), settings.bootstrap, settings.seed + fold)
    known_BK, notes = targets_of_probes(targets_BK, predictions.classes, predictions.trained_BK)
    found = _Fold(notes=notes)
    for probe, scores_PBK in predictions.scores.items():
        replicates = [resampled_scores(scores_BK, known_BK, weights_BR) for scores_BK in scores_PBK]
        share_PR = resample(len(scores_PBK), settings.bootstrap, settings.seed + fold) / np.float64(len(scores_PBK))
        precisions = [mean_average_precision(scores_BK, known_BK) for scores_BK in scores_PBK]
        found.add(f"{probe}_map", mean_macro(precisions), _drawn_mean(share_PR, [each.map_R for each in replicates]))
        if probe == "shallow":
            rankings = [lwlrap(scores_BK, known_BK) for scores_BK in scores_PBK]
            found.add("lwlrap", mean_macro(rankings), _drawn_mean(share_PR, [each.lwlrap_R for each in replicates]))
            distances = [d_prime(scores_BK, known_BK) for scores_BK in scores_PBK]
            found.add("d_prime", mean_macro(distances), _drawn_mean(share_PR, [each.d_prime_R for each in replicates]))
    _add_retrieval(found, predictions, weights_BR)
    positives_K = known_BK.sum(axis=0)
    rare_K = (positives_K > 0) & (positives_K < ENOUGH_POSITIVES)
    if rare_K.any() and settings.bootstrap:
        rare = listed(predictions.classes, rare_K)
        found.notes.append(f"fewer than {ENOUGH_POSITIVES} positive test clips, so their spread is uncertain: {rare}")
    if (targets_BK.sum(axis=1) == 1).all():
        _add_accuracy(found, predictions, known_BK, weights_BR)
    return found


def _drawn_mean(share_PR: Floats, replicates: Sequence[Floats]) -> Floats:
    """The mean over the perceptrons drawn in each resample: intervals cover both clips and perceptrons. (R,)"""
    return (share_PR * np.stack(replicates)).sum(axis=0)


def _add_accuracy(found: _Fold, predictions: Predictions, known_BK: Bools, weights_BR: Floats) -> None:
    """Accuracy over the clips whose class is evaluated and occurs in training."""
    scores_PBK = predictions.scores["shallow"]
    known_B = known_BK.any(axis=1)
    right_B = known_B * (scores_PBK.argmax(axis=2) == predictions.targets_BK.argmax(axis=1)).mean(axis=0)
    found.values["accuracy"] = float(right_B.sum() / known_B.sum())
    found.replicates["accuracy"] = share(right_B @ weights_BR, known_B @ weights_BR)


def _add_retrieval(found: _Fold, predictions: Predictions, weights_BR: Floats) -> None:
    clips = predictions.settings.qbe_clips
    seed = predictions.settings.seed
    try:
        result = query_by_example(predictions.h_BD, predictions.targets_BK, clips, seed)
    except EvaluationError as error:  # no class has two positive clips: the other metrics are still valid
        found.notes.append(str(error))
        return
    replicates_R = resampled_retrieval(predictions.h_BD, predictions.targets_BK, weights_BR, clips, seed)
    found.add("qbe_map", result.average_precision, replicates_R)
    found.notes.append(f"query by example: random embeddings would reach {np.nanmean(result.chance):.3f}")
    if result.short_K.any():
        short = listed(predictions.classes, result.short_K)
        found.notes.append(f"query by example: fewer than {clips} positive or negative clips for {short}")


def _class_table(predictions: Predictions, folds: list[_Fold]) -> tuple[ClassMetrics, ...]:
    per_class: dict[str, Floats] = {}
    for name in folds[0].per_class:
        of_folds = [fold.per_class[name] for fold in folds if name in fold.per_class]
        per_class[name] = np.ma.masked_invalid(of_folds).mean(axis=0).filled(np.nan)  # NaN where no fold has it
    positives_K = predictions.targets_BK.sum(axis=0)
    rows = []
    for k, name in enumerate(predictions.classes):
        values = {metric: float(values_K[k]) for metric, values_K in per_class.items()}
        known = {metric: value for metric, value in values.items() if not np.isnan(value)}
        rows.append(ClassMetrics(name, int(positives_K[k]), known))
    return tuple(rows)


def _trained(epochs: list[int], clips: int) -> str:
    listed_epochs = ", ".join(map(str, epochs))
    if len(epochs) == 1:
        return f"the perceptron was trained for {listed_epochs} epochs on {clips} clips"
    return f"shallow classification is the mean of {len(epochs)} perceptrons ({listed_epochs} epochs on {clips} clips)"
