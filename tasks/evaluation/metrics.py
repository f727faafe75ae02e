"""Metrics of how well scores rank clips: mean average precision, d' and lwlrap, overall and per class.

Legend: B clips, K classes, X scores or embedding dimensions. `scores_BK` can have any scale; higher means "more likely
present". `targets_BK` marks which classes are present in each clip.

mAP and d' are macro averages: all classes have the same weight. For a class without positives (for d' also: without
negatives) the metric is undefined; the class is left out of the mean, not counted as 0.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri
from scipy.stats import rankdata
from sklearn.metrics import average_precision_score, roc_auc_score

from sepscene.models.config import SepsceneError

Floats = NDArray[np.floating]
Bools = NDArray[np.bool_]


class EvaluationError(SepsceneError):
    """Scores, embeddings or targets that cannot be evaluated."""


class NothingToEvaluate(EvaluationError):
    """Labels from which no metric can be computed for any encoder: too few, or all the same."""


@dataclass(frozen=True, eq=False)
class Macro:
    """A metric per class, and its mean.

    Attributes:
        value: the mean over the classes that have a metric (lwlrap: over labels).
        per_class: (K,) float64, NaN for a class without a defined metric.
    """

    value: float
    per_class: Floats


def mean_macro(metrics: Sequence[Macro]) -> Macro:
    """The mean of one metric over several perceptrons, per class and overall."""
    per_class = np.mean([metric.per_class for metric in metrics], axis=0)
    return Macro(float(np.mean([metric.value for metric in metrics])), per_class)


def mean_average_precision(scores_BK: Floats, targets_BK: Bools) -> Macro:
    """mAP, the metric of the paper's Tables 2, 4 and 5: scikit-learn's average precision, mean over classes.

    Raises:
        EvaluationError: shapes differ, scores are NaN or infinite, or no class has a positive.
    """
    check(scores_BK, targets_BK)
    per_class = np.full(targets_BK.shape[1], np.nan)
    for k in np.flatnonzero(targets_BK.any(axis=0)):
        per_class[k] = average_precision_score(targets_BK[:, k], scores_BK[:, k])
    return macro(per_class, "average precision")


def d_prime(scores_BK: Floats, targets_BK: Bools) -> Macro:
    """d' = sqrt(2) * probit(AUC): the distance of two unit Gaussians that are separated equally well.

    The macro value is d' of the mean AUC, as AudioSet's baselines report it (Hershey 2017). An AUC of exactly 0 or 1
    would make d' infinite, so the AUC is kept half a pair, 1 / (2 * positives * negatives), away from 0 and 1.

    Raises:
        EvaluationError: shapes differ, scores are NaN or infinite, or no class has both positives and negatives.
    """
    check(scores_BK, targets_BK)
    auc_K = np.full(targets_BK.shape[1], np.nan)
    positives_K = targets_BK.sum(axis=0)
    for k in np.flatnonzero((positives_K > 0) & (positives_K < len(targets_BK))):
        half_pair = 0.5 / (positives_K[k] * (len(targets_BK) - positives_K[k]))
        auc_K[k] = np.clip(roc_auc_score(targets_BK[:, k], scores_BK[:, k]), half_pair, 1 - half_pair)
    return Macro(float(d_prime_of(macro(auc_K, "d'").value)), d_prime_of(auc_K))


def d_prime_of(auc: Floats | float) -> Floats:
    """d' of an area under the ROC curve strictly between 0 and 1."""
    return np.sqrt(2.0) * ndtri(auc)


def lwlrap(scores_BK: Floats, targets_BK: Bools) -> Macro:
    """Label-weighted label-ranking average precision (DCASE 2019 task 2; Fonseca 2019).

    Classes are ranked within each clip. For each class that is present in a clip, the precision at that class is
    computed. The metric of a class is the mean over its clips; the overall value is the mean over all present labels,
    so classes are weighted by how often they occur. Ties count against the system, as in scikit-learn's
    label_ranking_average_precision_score.

    Raises:
        EvaluationError: shapes differ, scores are NaN or infinite, or no clip has a label.
    """
    check(scores_BK, targets_BK)
    precision_BK = label_precisions(scores_BK, targets_BK)
    positives_K = targets_BK.sum(axis=0)
    per_class = np.full(len(positives_K), np.nan)
    np.divide(precision_BK.sum(axis=0), positives_K, out=per_class, where=positives_K > 0)
    over_classes = macro(per_class, "lwlrap")
    return replace(over_classes, value=float(precision_BK.sum() / positives_K.sum()))


def label_precisions(scores_BK: Floats, targets_BK: Bools) -> Floats:
    """(B, K): the precision of the clip's ranking at each present label; 0 for absent labels."""
    rank_BK = rankdata(-scores_BK, method="max", axis=1)
    hit_rank_BK = rankdata(np.where(targets_BK, -scores_BK, np.inf), method="max", axis=1)
    return np.where(targets_BK, hit_rank_BK / rank_BK, 0.0)


def macro(per_class: Floats, metric: str) -> Macro:
    """The mean over the classes that are not NaN.

    Raises:
        EvaluationError: all are NaN.
    """
    defined = ~np.isnan(per_class)
    if not defined.any():
        raise EvaluationError(
            f"no class has a defined {metric}: the {len(per_class)} classes lack positive or negative clips; "
            "check the labels and the test split"
        )
    return Macro(float(per_class[defined].mean()), per_class)


def check(values_BX: Floats, targets_BK: Bools) -> None:
    """Check that scores (B, K) or embeddings (B, D) are finite and match their targets.

    Raises:
        EvaluationError: shapes do not match, targets are not bool, or clips have values that are not finite.
    """
    if values_BX.ndim != 2 or targets_BK.ndim != 2 or len(values_BX) != len(targets_BK):
        raise EvaluationError(
            f"scores or embeddings {values_BX.shape} do not match targets {targets_BK.shape}: "
            "both need two dimensions and one row per clip, in the same order"
        )
    if targets_BK.dtype != np.bool_:
        raise EvaluationError(f"targets are {targets_BK.dtype}, not bool: convert them with `targets > 0`")
    broken = int((~np.isfinite(values_BX)).any(axis=1).sum())
    if broken:
        raise EvaluationError(
            f"{broken} of {len(values_BX)} clips have NaN or infinite scores or embeddings: the encoder has "
            "diverged or its checkpoint is damaged; lower the learning rate or use an earlier checkpoint"
        )


def check_split(train_h_BD: Floats, train_targets_BK: Bools, test_h_BD: Floats, test_targets_BK: Bools) -> None:
    """Check that training and test clips are valid and match each other.

    Raises:
        EvaluationError: embeddings are NaN, shapes do not match, or there are fewer than two training clips.
    """
    check(train_h_BD, train_targets_BK)
    check(test_h_BD, test_targets_BK)
    if train_targets_BK.shape[1] != test_targets_BK.shape[1]:
        raise EvaluationError(
            f"training targets have {train_targets_BK.shape[1]} classes, test targets {test_targets_BK.shape[1]}: "
            "both need one column per class"
        )
    if train_h_BD.shape[1] != test_h_BD.shape[1]:
        raise EvaluationError(
            f"training embeddings have {train_h_BD.shape[1]} dimensions, test embeddings "
            f"{test_h_BD.shape[1]}: embed both with the same encoder"
        )
    if len(train_h_BD) < 2:
        raise EvaluationError(f"{len(train_h_BD)} labelled training clips: a classifier needs at least 2")
