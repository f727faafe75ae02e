"""How well scores rank clips: mean average precision, d', lwlrap; each with its value for every class.

Legend: B clips, K classes, X scores or embedding dimensions. `scores_BK` are of any scale, higher means "more likely
present"; `targets_BK` says which class is present in which clip.

mAP and d' are macro averages: each class counts the same. A class without a positive (for d' also: without a
negative) has no defined metric; it is left out of the mean, never counted as 0.
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
    """Labels from which no metric can be made, whatever the encoder: too few, or nothing that differs."""


@dataclass(frozen=True, eq=False)
class Macro:
    """A metric for every class, and one for all.

    Attributes:
        value: the mean over the classes that have a metric (lwlrap: over labels).
        per_class: (K,) float64, NaN for a class without a defined metric.
    """

    value: float
    per_class: Floats


def mean_macro(several: Sequence[Macro]) -> Macro:
    """The mean of one metric over several perceptrons, for every class and for all."""
    per_class = np.mean([one.per_class for one in several], axis=0)
    return Macro(float(np.mean([one.value for one in several])), per_class)


def mean_average_precision(scores_BK: Floats, targets_BK: Bools) -> Macro:
    """mAP, the metric of the paper's Tables 2, 4 and 5: scikit-learn's average precision, mean over classes.

    Raises:
        EvaluationError: for shapes that differ, NaN or infinite scores, or when no class has a positive.
    """
    check(scores_BK, targets_BK)
    per_class = np.full(targets_BK.shape[1], np.nan)
    for k in np.flatnonzero(targets_BK.any(axis=0)):
        per_class[k] = average_precision_score(targets_BK[:, k], scores_BK[:, k])
    return macro(per_class, "average precision")


def d_prime(scores_BK: Floats, targets_BK: Bools) -> Macro:
    """d' = sqrt(2) * probit(AUC): the distance of two unit Gaussians that would be separated as well.

    The macro value is d' of the mean AUC, as AudioSet's baselines report it (Hershey 2017). An AUC of exactly 0 or 1
    would make d' infinite: it is moved inwards by half a pair, 1 / (2 * positives * negatives).

    Raises:
        EvaluationError: for shapes that differ, NaN or infinite scores, or when no class has both kinds of clips.
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

    Classes are ranked within each clip. Each (clip, present class) gives the precision down to that class;
    a class's metric is its mean over clips, and the value the mean over all present labels, so that classes
    weigh as they occur. Ties count against the system, as in scikit-learn's
    label_ranking_average_precision_score.

    Raises:
        EvaluationError: for shapes that differ, NaN or infinite scores, or when no clip has a label.
    """
    check(scores_BK, targets_BK)
    precision_BK = label_precisions(scores_BK, targets_BK)
    positives_K = targets_BK.sum(axis=0)
    per_class = np.full(len(positives_K), np.nan)
    np.divide(precision_BK.sum(axis=0), positives_K, out=per_class, where=positives_K > 0)
    over_classes = macro(per_class, "lwlrap")
    return replace(over_classes, value=float(precision_BK.sum() / positives_K.sum()))


def label_precisions(scores_BK: Floats, targets_BK: Bools) -> Floats:
    """(B, K): for each present label the precision of the clip's ranking down to it; 0 for absent labels."""
    rank_BK = rankdata(-scores_BK, method="max", axis=1)
    hit_rank_BK = rankdata(np.where(targets_BK, -scores_BK, np.inf), method="max", axis=1)
    return np.where(targets_BK, hit_rank_BK / rank_BK, 0.0)


def macro(per_class: Floats, metric: str) -> Macro:
    """The mean over the classes that are not NaN.

    Raises:
        EvaluationError: when all are.
    """
    defined = ~np.isnan(per_class)
    if not defined.any():
        raise EvaluationError(
            f"no class has a defined {metric}: the {len(per_class)} classes lack positive or negative clips; "
            "check the labels and the test split"
        )
    return Macro(float(per_class[defined].mean()), per_class)


def check(values_BX: Floats, targets_BK: Bools) -> None:
    """Refuse scores (B, K) or embeddings (B, D) that do not fit their targets.

    Raises:
        EvaluationError: names the shapes that do not fit, or the number of clips that are not finite.
    """
    if values_BX.ndim != 2 or targets_BK.ndim != 2 or len(values_BX) != len(targets_BK):
        raise EvaluationError(
            f"scores or embeddings {values_BX.shape} do not fit targets {targets_BK.shape}: "
            "both need two dimensions and one row for each clip, in the same order"
        )
    if targets_BK.dtype != np.bool_:
        raise EvaluationError(f"targets are {targets_BK.dtype}, not bool: convert them with `targets > 0`")
    broken = int((~np.isfinite(values_BX)).any(axis=1).sum())
    if broken:
        raise EvaluationError(
            f"{broken} of {len(values_BX)} clips have NaN or infinite scores or embeddings: the encoder has "
            "diverged or its checkpoint is damaged; lower the learning rate or take an earlier checkpoint"
        )


def check_split(train_h_BD: Floats, train_targets_BK: Bools, test_h_BD: Floats, test_targets_BK: Bools) -> None:
    """Refuse training and test clips that do not fit each other.

    Raises:
        EvaluationError: for NaN embeddings, shapes that do not fit, or fewer than two training clips.
    """
    check(train_h_BD, train_targets_BK)
    check(test_h_BD, test_targets_BK)
    if train_targets_BK.shape[1] != test_targets_BK.shape[1]:
        raise EvaluationError(
            f"training targets have {train_targets_BK.shape[1]} classes, test targets {test_targets_BK.shape[1]}: "
            "give both a column for each class"
        )
    if train_h_BD.shape[1] != test_h_BD.shape[1]:
        raise EvaluationError(
            f"training embeddings have {train_h_BD.shape[1]} dimensions, test embeddings "
            f"{test_h_BD.shape[1]}: embed both with the same encoder"
        )
    if len(train_h_BD) < 2:
        raise EvaluationError(f"{len(train_h_BD)} labelled training clips: a classifier needs at least 2")
