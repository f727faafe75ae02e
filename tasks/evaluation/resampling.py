"""Metrics of resampled test sets: how mAP, d', lwlrap and query by example vary with the test clips.

Legend: B clips, K classes, R resamples, P positives of a class, M pairs, D embedding.

A resample draws B clips with replacement; `weights_BR` holds how often each clip is drawn. The metrics of many
resamples are computed together from these weights. `tasks.evaluation.statistics` turns them into intervals and tests.

Two rules that the textbook bootstrap leaves open:

- Copies of a positive clip are not additional hits for that clip. Its precision is the share of positives among the
  clips ranked at or above it. With its own copies among them, rare classes would look far too good: with 10
  positives in 128 clips, the mean of the plain bootstrap is mAP 0.336 for an estimate of 0.308, and its "95 %"
  intervals cover 78 %. So each positive counts itself once, and other clips as often as they are drawn. Then the
  mean of the resamples equals the estimate, and the intervals have their nominal coverage (`benchmarks.evaluation`).
- The mean is over the same classes in every resample. A class that has lost all its positives in a resample (or all
  its negatives, if it has few) keeps its metric on the test set itself. Leaving it out, as `tasks.evaluation.metrics`
  does if the test set has none, would favour the remaining classes: with 20 frequent classes and 20 with a single
  positive each, the 95 % interval of mAP 0.510 would be 0.545 to 0.693. But a class with one or two positives that
  keeps its metric hardly varies. With half of the classes having a single positive, 31 % of the tests of two equally
  good runs gave p < 0.05 (`benchmarks.evaluation`). So the classes with fewer than `ENOUGH_POSITIVES` are pooled: the
  group keeps its weight in the mean, and within it each class is weighted by how often its positives are drawn. The
  differences between these classes then count as chance, so the intervals are rather too wide;
  `tasks.evaluation.scores` lists these classes.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csc_array

from sepscene.tasks.evaluation.metrics import Bools, Floats, check, d_prime_of, label_precisions
from sepscene.tasks.evaluation.retrieval import choose, pairs_of, unit_length

ENOUGH_POSITIVES = 3  # a resample loses a class with three positives with probability 0.05, two 0.14, one 0.37
RESAMPLES_AT_ONCE = 128  # to limit the memory
PAIR_RESAMPLES_AT_ONCE = 32  # a class has about 15,000 pairs, many more than clips


@dataclass(frozen=True, eq=False)
class ScoreReplicates:
    """Metrics of scores on each resample, (R,) each; lwlrap is NaN if no clip with a label was drawn."""

    map_R: Floats
    d_prime_R: Floats
    lwlrap_R: Floats


def resample(clips: int, resamples: int = 1000, seed: int = 0) -> Floats:
    """How often each clip is drawn in each resample: (B, R), whole numbers as float32; columns sum to B."""
    generator = np.random.default_rng(seed)
    weights_RB = np.empty((resamples, clips), dtype=np.float32)
    for r in range(resamples):
        weights_RB[r] = np.bincount(generator.integers(0, clips, clips), minlength=clips)
    return np.ascontiguousarray(weights_RB.T)


def resampled_scores(scores_BK: Floats, targets_BK: Bools, weights_BR: Floats) -> ScoreReplicates:
    """mAP, d' and lwlrap of every resample.

    Raises:
        EvaluationError: scores are NaN or shapes do not match.
    """
    check(scores_BK, targets_BK)
    positives_K = targets_BK.sum(axis=0)
    columns = np.flatnonzero(positives_K)
    precision_KR, auc_KR, drawn_KR = np.empty((3, len(columns), 1 + weights_BR.shape[1]))
    for part, block_BR in _blocks(_after_test_set(weights_BR), RESAMPLES_AT_ONCE):
        for row, k in enumerate(columns):
            precision_KR[row, part], auc_KR[row, part] = _ranking(scores_BK[:, k], targets_BK[:, k], block_BR)
            drawn_KR[row, part] = block_BR[targets_BK[:, k]].mean(axis=0)
    rare_K = positives_K[columns] < ENOUGH_POSITIVES
    label_B = label_precisions(scores_BK, targets_BK).sum(axis=1)
    labels_R = targets_BK.sum(axis=1) @ weights_BR
    return ScoreReplicates(
        _over_classes(precision_KR, drawn_KR, rare_K),
        d_prime_of(_over_classes(auc_KR, drawn_KR, rare_K)),
        share(label_B @ weights_BR, labels_R),
    )


def resampled_retrieval(h_BD: Floats, targets_BK: Bools, weights_BR: Floats, clips: int = 100, seed: int = 0) -> Floats:
    """Query by example of every resample, (R,), over the clips that `query_by_example` chose with this seed.

    The weight of a pair is the product of the weights of its clips; copies of a clip do not form a pair.

    Raises:
        EvaluationError: embeddings are NaN or shapes do not match.
    """
    check(h_BD, targets_BK)
    unit_BD = unit_length(h_BD)
    weights_BR = _after_test_set(weights_BR)
    precision_KR = []
    drawn_KR = []
    rare_K = []
    for positive_P, negative_N in choose(targets_BK, clips, seed):
        if len(positive_P) < 2 or len(negative_N) < 1:
            continue
        left_M, right_M, relevant_M, similarity_M = pairs_of(unit_BD, positive_P, negative_N)
        order_M = np.argsort(-similarity_M)
        left_M = left_M[order_M]
        right_M = right_M[order_M]
        ranked_M = -similarity_M[order_M]
        hit_P = np.flatnonzero(relevant_M[order_M])
        # Equal similarities share a rank: the last of them.
        last_P = np.searchsorted(ranked_M, ranked_M[hit_P], side="right") - 1
        precision_R, drawn_R = np.empty((2, weights_BR.shape[1]))
        for part, block_BR in _blocks(weights_BR, PAIR_RESAMPLES_AT_ONCE):
            above_MR = block_BR[left_M]
            above_MR *= block_BR[right_M]
            own_PR = above_MR[hit_P]
            np.cumsum(above_MR, axis=0, out=above_MR)
            hits_PR = np.cumsum(own_PR, axis=0)[np.searchsorted(hit_P, last_P, side="right") - 1]
            negatives_R = above_MR[-1] - own_PR.sum(axis=0)
            found_R = _average_precision(own_PR, hits_PR, above_MR[last_P])
            precision_R[part] = np.where(negatives_R > 0, found_R, np.nan)
            drawn_R[part] = own_PR.mean(axis=0)
        precision_KR.append(precision_R)
        drawn_KR.append(drawn_R)
        rare_K.append(len(positive_P) < ENOUGH_POSITIVES)
    return _over_classes(np.array(precision_KR), np.array(drawn_KR), np.array(rare_K))


def _after_test_set(weights_BR: Floats) -> Floats:
    """The test set itself (each clip once) as the first column, then the resamples: (B, 1 + R)."""
    return np.hstack([np.ones((len(weights_BR), 1), dtype=weights_BR.dtype), weights_BR])


def _blocks(weights_BR: Floats, resamples: int) -> Iterator[tuple[slice, Floats]]:
    """A few resamples at a time, so that their data fits the processor's cache."""
    for start in range(0, weights_BR.shape[1], resamples):
        part = slice(start, start + resamples)
        yield part, np.ascontiguousarray(weights_BR[:, part])


def _over_classes(metric_KR: Floats, drawn_KR: Floats, rare_K: Bools) -> Floats:
    """Mean over the classes in each resample, by the second rule above; NaN if there are no classes. (R,)

    Args:
        metric_KR: (K, 1 + R), the first column for the test set itself; NaN where a resample has lost the class.
        drawn_KR: (K, 1 + R), how often a positive clip, or pair of them, was drawn on average.
        rare_K: which classes are pooled.
    """
    defined_K = ~np.isnan(metric_KR[:, 0])
    metric_KR = metric_KR[defined_K]
    drawn_KR = drawn_KR[defined_K]
    rare_K = rare_K[defined_K]
    kept_KR = np.where(np.isnan(metric_KR), metric_KR[:, :1], metric_KR)
    weight_KR = np.ones_like(kept_KR)
    group_R = drawn_KR[rare_K].sum(axis=0)
    np.divide(drawn_KR * rare_K.sum(), group_R, out=weight_KR, where=rare_K[:, None] & (group_R > 0))
    return share((weight_KR * kept_KR).sum(axis=0), np.full(len(group_R), len(kept_KR)))[1:]


def _ranking(score_B: Floats, target_B: Bools, weights_BR: Floats) -> tuple[Floats, Floats]:
    """Average precision and area under the ROC curve of one class in each resample, (R,) each.

    Only the scores of positives are thresholds: the clips between two thresholds are summed once.
    """
    thresholds, group_P = np.unique(score_B[target_B], return_inverse=True)
    group_B = np.searchsorted(thresholds, score_B, side="right") - 1
    own_PR = weights_BR[target_B]
    above = _sums(group_B, group_B >= 0, len(thresholds), weights_BR)
    hits = _sums(group_P, group_P >= 0, len(thresholds), own_PR)
    above_PR = np.cumsum(above[::-1], axis=0)[::-1][group_P]
    hits_PR = np.cumsum(hits[::-1], axis=0)[::-1][group_P]
    tied_B = ~target_B & (group_B >= 0) & (thresholds[np.maximum(group_B, 0)] == score_B)
    not_below_PR = above_PR - hits_PR
    if tied_B.any():
        not_below_PR -= 0.5 * _sums(group_B, tied_B, len(thresholds), weights_BR)[group_P]
    auc_R = _area_under_roc(own_PR, not_below_PR, weights_BR.sum(axis=0, dtype=np.float64))
    return _average_precision(own_PR, hits_PR, above_PR), auc_R


def _sums(group_B: NDArray[np.intp], kept_B: Bools, groups: int, weights_BR: Floats) -> Floats:
    """Weights of the kept rows, summed by group: (groups, R), as a product with a sparse matrix of ones."""
    starts = np.concatenate([[0], np.cumsum(kept_B)])
    ones = np.ones(starts[-1], dtype=weights_BR.dtype)
    return csc_array((ones, group_B[kept_B], starts), shape=(groups, len(kept_B))) @ weights_BR


def _average_precision(own_PR: Floats, hits_PR: Floats, above_PR: Floats) -> Floats:
    """Mean over the positives of the precision at each, its own copies counted once. (R,)

    Args:
        own_PR: weight of each positive.
        hits_PR: weight of the positives scored at least as high, itself included.
        above_PR: weight of all clips scored at least as high, itself included.
    """
    precision_PR = (hits_PR - own_PR + 1) / (above_PR - own_PR + 1)
    return share((own_PR * precision_PR).sum(axis=0, dtype=np.float64), own_PR.sum(axis=0, dtype=np.float64))


def _area_under_roc(own_PR: Floats, not_below_PR: Floats, total_R: Floats) -> Floats:
    """Share of (positive, negative) pairs in the right order, kept half a pair away from 0 and 1. (R,)"""
    positives_R = own_PR.sum(axis=0, dtype=np.float64)
    pairs_R = positives_R * (total_R - positives_R)
    wrong_R = share((own_PR * not_below_PR).sum(axis=0, dtype=np.float64), pairs_R)
    half_R = share(np.full_like(pairs_R, 0.5), pairs_R)
    return np.clip(1 - wrong_R, half_R, 1 - half_R)


def share(part_R: Floats, whole_R: Floats) -> Floats:
    """part / whole; NaN where whole is zero."""
    return np.divide(part_R, whole_R, out=np.full(whole_R.shape, np.nan), where=whole_R > 0)
