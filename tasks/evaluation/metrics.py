"""How well scores rank clips: mean average precision, d', lwlrap; each with its value for every class.

Legend: B clips, K classes, X scores or embedding dimensions. `scores_BK` are of any scale, higher means "more likely
present"; `targets_BK` says which class is present in which clip.

mAP and d' are macro averages: each class counts the same. A class without a positive (for d' also: without a
negative) has no defined metric; it is left out of the mean and named in `Macro.left_out`, never counted as 0.
"""

from collections.abc import Sequence
from dataclasses import dataclass

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
        classes: names of all K classes.
        per_class: (K,) float64, NaN for a class that was left out.
        left_out: names of the classes without a defined metric.
    """

    value: float
    classes: tuple[str, ...]
    per_class: Floats
    left_out: tuple[str, ...]


def mean_macro(several: Sequence[Macro]) -> Macro:
    """The mean of one metric over several perceptrons, for every class and for all."""
    per_class = np.mean([one.per_class for one in several], axis=0)
    return Macro(float(np.mean([one.value for one in several])), several[0].classes, per_class, several[0].left_out)


def mean_average_precision(scores_BK: Floats, targets_BK: Bools, classes: Sequence[str] | None = None) -> Macro:
    """mAP, the metric of the paper's Tables 2, 4 and 5: scikit-learn's average precision, mean over classes.

    Raises:
        EvaluationError: for shapes that differ, NaN or infinite scores, or when no class has a positive.
    """
    names = check(scores_BK, targets_BK, classes)
    per_class = np.full(len(names), np.nan)
    for k in np.flatnonzero(targets_BK.any(axis=0)):
        per_class[k] = average_precision_score(targets_BK[:, k], scores_BK[:, k])
    return macro(per_class, names, "average precision")


def d_prime(scores_BK: Floats, targets_BK: Bools, classes: Sequence[str] | None = None) -> Macro:
    """d' = sqrt(2) * probit(AUC): the distance of two unit Gaussians that would be separated as well.

    The macro value is d' of the mean AUC, as AudioSet's baselines report it (Hershey 2017). An AUC of exactly 0 or 1
    would make d' infinite: it is moved inwards by half a pair, 1 / (2 * positives * negatives).

    Raises:
        EvaluationError: for shapes that differ, NaN or infinite scores, or when no class has both kinds of clips.
    """
    names = check(scores_BK, targets_BK, classes)
    auc_K = np.full(len(names), np.nan)
    positives_K = targets_BK.sum(axis=0)
    for k in np.flatnonzero((positives_K > 0) & (positives_K < len(targets_BK))):
        half_pair = 0.5 / (positives_K[k] * (len(targets_BK) - positives_K[k]))
        auc_K[k] = np.clip(roc_auc_score(targets_BK[:, k], scores_BK[:, k]), half_pair, 1 - half_pair)
    mean_auc = macro(auc_K, names, "d'")
    return Macro(float(d_prime_of(mean_auc.value)), names, d_prime_of(auc_K), mean_auc.left_out)


def d_prime_of(auc: Floats | float) -> Floats:
    """d' of an area under the ROC curve strictly between 0 and 1."""
    return np.sqrt(2.0) * ndtri(auc)


def lwlrap(scores_BK: Floats, targets_BK: Bools, classes: Sequence[str] | None = None) -> Macro:
    """Label-weighted label-ranking average precision (DCASE 2019 task 2; Fonseca 2019).

    Classes are ranked within each clip. Each (clip, present class) gives the precision down to that class;
    a class's metric is its mean over clips, and the value the mean over all present labels, so that classes
    weigh as they occur. Ties count against the system, as in scikit-learn's
    label_ranking_average_precision_score.

    Raises:
        EvaluationError: for shapes that differ, NaN or infinite scores, or when no clip has a label.
    """
    names = check(scores_BK, targets_BK, classes)
    precision_BK = label_precisions(scores_BK, targets_BK)
    positives_K = targets_BK.sum(axis=0)
    per_class = np.full(len(names), np.nan)
    np.divide(precision_BK.sum(axis=0), positives_K, out=per_class, where=positives_K > 0)
    left_out = macro(per_class, names, "lwlrap").left_out
    return Macro(float(precision_BK.sum() / positives_K.sum()), names, per_class, left_out)


def label_precisions(scores_BK: Floats, targets_BK: Bools) -> Floats:
    """(B, K): for each present label the precision of the clip's ranking down to it; 0 for absent labels."""
    rank_BK = rankdata(-scores_BK, method="max", axis=1)
    hit_rank_BK = rankdata(np.where(targets_BK, -scores_BK, np.inf), method="max", axis=1)
    return np.where(targets_BK, hit_rank_BK / rank_BK, 0.0)


def macro(per_class: Floats, names: tuple[str, ...], metric: str) -> Macro:
    """The mean over the classes that are not NaN.

    Raises:
        EvaluationError: when all are.
    """
    defined = ~np.isnan(per_class)
    if not defined.any():
        raise EvaluationError(
            f"no class has a defined {metric}: the {len(names)} classes lack positive or negative clips; "
            "check the labels and the test split"
        )
    left_out = tuple(name for name, ok in zip(names, defined, strict=True) if not ok)
    return Macro(float(per_class[defined].mean()), names, per_class, left_out)


def check(values_BX: Floats, targets_BK: Bools, classes: Sequence[str] | None) -> tuple[str, ...]:
    """Class names, after refusing scores or embeddings that do not fit their targets.

    Args:
        values_BX: scores (B, K) or embeddings (B, D): one row a clip.
        targets_BK: (B, K) bool.
        classes: K names; None numbers them.

    Raises:
        EvaluationError: names the number of clips or classes that differ, or of clips that are not finite.
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
    names = tuple(classes) if classes is not None else tuple(str(k) for k in range(targets_BK.shape[1]))
    if len(names) != targets_BK.shape[1]:
        raise EvaluationError(f"{len(names)} class names for {targets_BK.shape[1]} columns of targets: give one each")
    return names


def check_split(
    train_h_BD: Floats,
    train_targets_BK: Bools,
    test_h_BD: Floats,
    test_targets_BK: Bools,
    classes: Sequence[str] | None,
) -> tuple[str, ...]:
    """Class names, after refusing training and test clips that do not fit each other.

    Raises:
        EvaluationError: for NaN embeddings, shapes that do not fit, or fewer than two training clips.
    """
    names = check(train_h_BD, train_targets_BK, classes)
    check(test_h_BD, test_targets_BK, names)
    if train_h_BD.shape[1] != test_h_BD.shape[1]:
        raise EvaluationError(
            f"training embeddings have {train_h_BD.shape[1]} dimensions, test embeddings "
            f"{test_h_BD.shape[1]}: embed both with the same encoder"
        )
    if len(train_h_BD) < 2:
        raise EvaluationError(f"{len(train_h_BD)} labelled training clips: a classifier needs at least 2")
    return names
