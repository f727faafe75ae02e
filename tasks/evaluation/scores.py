"""Evaluate an encoder from embeddings of clips: every metric with its interval, and a table of the classes.

Legend: B clips, D embedding, K classes, R resamples, P perceptrons.

`score_embeddings` (one training and one test split) and `cross_validate` (folds, as in ESC-50) train the probes and
collect their predictions for each test clip. `measure` computes the metrics from the predictions. The predictions are
stored with the run, so that two runs can be compared on the same clips later (`orchestration.evaluation.compare`).

`tasks.evaluation.labels` decides which clips and classes are evaluated.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

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

ONE_FOLD = "t"
"""The fold of a plain test split; two runs can be compared only if their folds have the same names."""


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

    def fold_names(self) -> list[str]:
        """The folds, in order."""
        return sorted(set(self.folds.tolist()))

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
    check_split(train_h_BD, train_targets_BK, test_h_BD, test_targets_BK)
    test = _unscored(test_h_BD, test_targets_BK, [ONE_FOLD] * len(test_h_BD), classes, settings, clip_ids)
    train_B = labelled(train_targets_BK, "training clips")
    test_B = labelled(test_targets_BK, "test clips")
    notes = unlabelled_notes({"training clips": train_B, "test clips": test_B})
    train = (train_h_BD[train_B], train_targets_BK[train_B])
    return measure(_scored(test.rows(test_B), lambda fold: train, notes))


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
    check(h_BD, targets_BK)
    if len(folds) != len(h_BD) or len(set(folds)) < 2:
        raise EvaluationError(
            f"{len(folds)} fold names ({len(set(folds))} different) for {len(h_BD)} clips: cross-validation "
            "needs one per clip, and at least two folds"
        )
    labelled_B = labelled(targets_BK, "clips")
    clips = _unscored(h_BD, targets_BK, folds, classes, settings, clip_ids).rows(labelled_B)

    def other_folds(fold: str) -> tuple[Floats, Bools]:
        return clips.h_BD[clips.folds != fold], clips.targets_BK[clips.folds != fold]

    return measure(_scored(clips, other_folds, unlabelled_notes({"clips": labelled_B})))


def _unscored(
    h_BD: Floats,
    targets_BK: Bools,
    folds: Sequence[str],
    classes: Sequence[str] | None,
    settings: ScoringSettings | None,
    clip_ids: Sequence[str] | None,
) -> Predictions:
    """The test clips, without predictions."""
    clips, columns = targets_BK.shape
    names = [str(k) for k in range(columns)] if classes is None else list(classes)
    ids = [str(row) for row in range(clips)] if clip_ids is None else list(clip_ids)
    if len(names) != columns:
        raise EvaluationError(f"{len(names)} class names for {columns} columns of targets: give one name per column")
    if len(ids) != clips:
        raise EvaluationError(f"{len(ids)} clip ids for {clips} test clips: give one id per clip")
    return Predictions(
        clip_ids=np.array(ids, np.str_),
        classes=tuple(names),
        targets_BK=targets_BK,
        folds=np.array(list(folds), np.str_),
        h_BD=h_BD,
        scores={},
        settings=settings or ScoringSettings(),
        trained_BK=np.zeros_like(targets_BK),
    )


def _scored(clips: Predictions, training: Callable[[str], tuple[Floats, Bools]], notes: tuple[str, ...]) -> Predictions:
    """The test clips with the predictions of probes, which are trained on `training` (h and targets) of each fold."""
    scores: dict[str, Floats] = {}
    trained_BK = np.zeros_like(clips.targets_BK)
    remarks = {}
    for fold in clips.fold_names():
        train_h_BD, train_targets_BK = training(fold)
        test_B = clips.folds == fold
        test = (clips.h_BD[test_B], clips.targets_BK[test_B])
        found, epochs_P = probe_scores(train_h_BD, train_targets_BK, *test, clips.settings)
        for name, scores_PBK in found.items():
            empty_PBK = np.zeros((len(scores_PBK), *trained_BK.shape), scores_PBK.dtype)
            scores.setdefault(name, empty_PBK)[:, test_B] = scores_PBK
        trained_BK[test_B] = train_targets_BK.any(axis=0)
        remarks[fold] = [_trained(epochs_P.tolist(), len(train_h_BD))]
    return replace(clips, scores=scores, trained_BK=trained_BK, notes=(*notes, *_by_fold(remarks)))


def _by_fold(notes: Mapping[str, Sequence[str]]) -> list[str]:
    """The notes on all folds, each with the name of its fold; without it if there is only one."""
    return [note if len(notes) == 1 else f"fold {fold}: {note}" for fold, some in notes.items() for note in some]


Measured = dict[str, tuple[Macro, Floats]]
"""Name -> metric of one fold, and its values on the resamples, (R,)."""


def measure(predictions: Predictions) -> Scores:
    """Compute metrics with intervals from predictions. The same predictions give the same metrics and resamples.

    Raises:
        EvaluationError: scores or embeddings are NaN, or a fold has no class with a positive clip.
    """
    folds: list[Measured] = []
    remarks: dict[str, list[str]] = {}
    for seed, name in enumerate(predictions.fold_names()):
        found, remarks[name] = _measure_fold(predictions.rows(predictions.folds == name), seed)
        folds.append(found)
    metrics = {}
    replicates = {}
    for metric in folds[0]:
        if any(metric not in found for found in folds):
            continue
        replicates[metric] = np.mean([found[metric][1] for found in folds], axis=0)
        value = float(np.mean([found[metric][0].value for found in folds]))
        metrics[metric] = bootstrap_interval(value, replicates[metric], len(predictions.clip_ids))
    notes = (*predictions.notes, *_by_fold(remarks))
    return Scores(predictions, metrics, replicates, _class_table(predictions, folds), notes)


def _measure_fold(predictions: Predictions, fold: int) -> tuple[Measured, list[str]]:
    """The metrics of one fold, and notes."""
    targets_BK = predictions.targets_BK
    settings = predictions.settings
    weights_BR = resample(len(targets_BK), settings.bootstrap, settings.seed + fold)
    known_BK, notes = targets_of_probes(targets_BK, predictions.classes, predictions.trained_BK)
    found: Measured = {}
    for probe, scores_PBK in predictions.scores.items():
        # Each resample also draws perceptrons, so that intervals cover both clips and perceptrons.
        share_PR = resample(len(scores_PBK), settings.bootstrap, settings.seed + fold) / np.float64(len(scores_PBK))
        resampled = [resampled_scores(scores_BK, known_BK, weights_BR) for scores_BK in scores_PBK]
        metrics = {f"{probe}_map": (mean_average_precision, [each.map_R for each in resampled])}
        if probe == "shallow":
            metrics["lwlrap"] = (lwlrap, [each.lwlrap_R for each in resampled])
            metrics["d_prime"] = (d_prime, [each.d_prime_R for each in resampled])
        for name, (metric, replicates_PR) in metrics.items():
            mean = mean_macro([metric(scores_BK, known_BK) for scores_BK in scores_PBK])
            found[name] = (mean, (share_PR * np.stack(replicates_PR)).sum(axis=0))
    found |= _retrieval(predictions, weights_BR, notes)
    positives_K = known_BK.sum(axis=0)
    rare_K = (positives_K > 0) & (positives_K < ENOUGH_POSITIVES)
    if rare_K.any() and settings.bootstrap:
        rare = listed(predictions.classes, rare_K)
        notes.append(f"fewer than {ENOUGH_POSITIVES} positive test clips, so their spread is uncertain: {rare}")
    if (targets_BK.sum(axis=1) == 1).all():
        found["accuracy"] = _accuracy(predictions, known_BK, weights_BR)
    return found, notes


def _accuracy(predictions: Predictions, known_BK: Bools, weights_BR: Floats) -> tuple[Macro, Floats]:
    """Accuracy over the clips whose class is evaluated and occurs in training; there is none per class."""
    scores_PBK = predictions.scores["shallow"]
    known_B = known_BK.any(axis=1)
    right_B = known_B * (scores_PBK.argmax(axis=2) == predictions.targets_BK.argmax(axis=1)).mean(axis=0)
    accuracy = Macro(float(right_B.sum() / known_B.sum()), np.full(known_BK.shape[1], np.nan))
    return accuracy, share(right_B @ weights_BR, known_B @ weights_BR)


def _retrieval(predictions: Predictions, weights_BR: Floats, notes: list[str]) -> Measured:
    """Query by example, if it is defined; remarks are added to `notes`."""
    clips = predictions.settings.qbe_clips
    query = (predictions.h_BD, predictions.targets_BK)
    try:
        result = query_by_example(*query, clips, predictions.settings.seed)
    except EvaluationError as error:  # no class has two positive clips: the other metrics are still valid
        notes.append(str(error))
        return {}
    notes.append(f"query by example: random embeddings would reach {np.nanmean(result.chance):.3f}")
    if result.short_K.any():
        short = listed(predictions.classes, result.short_K)
        notes.append(f"query by example: fewer than {clips} positive or negative clips for {short}")
    replicates_R = resampled_retrieval(*query, weights_BR, clips, predictions.settings.seed)
    return {"qbe_map": (result.average_precision, replicates_R)}


def _class_table(predictions: Predictions, folds: list[Measured]) -> tuple[ClassMetrics, ...]:
    per_class: dict[str, Floats] = {}
    for name in folds[0]:
        of_folds = [found[name][0].per_class for found in folds if name in found]
        per_class[name] = np.ma.masked_invalid(of_folds).mean(axis=0).filled(np.nan)  # NaN where no fold has it
    positives_K = predictions.targets_BK.sum(axis=0)
    rows = []
    for k, name in enumerate(predictions.classes):
        known = {metric: float(values_K[k]) for metric, values_K in per_class.items() if not np.isnan(values_K[k])}
        rows.append(ClassMetrics(name, int(positives_K[k]), known))
    return tuple(rows)


def _trained(epochs: list[int], clips: int) -> str:
    listed_epochs = ", ".join(map(str, epochs))
    if len(epochs) == 1:
        return f"the perceptron was trained for {listed_epochs} epochs on {clips} clips"
    return f"shallow classification is the mean of {len(epochs)} perceptrons ({listed_epochs} epochs on {clips} clips)"
