"""Metrics of resampled test sets: what mAP, d', lwlrap and query by example would have been on other clips.

Legend: B clips, K classes, R resamples, P positives of a class, M pairs, D embedding.

A resample draws B clips with replacement; `weights_BR` says how often it holds each clip. All metrics are
computed from the weights, for all resamples at once. `tasks.evaluation.statistics` turns them into intervals and tests.

Two rules that the textbook bootstrap leaves open:

- A copy of a clip is not a second witness. Average precision asks what share of the clips ranked at or
  above a positive is positive too; the copies of that positive itself would always answer "all", so that
  rare classes come out far too good (with 10 positives in 128 clips the plain bootstrap puts mAP 0.336
  around an estimate of 0.308, and its "95 %" intervals cover 78 %). So each positive counts itself once and
  other clips as often as they are drawn: the mean of the resamples is then the estimate, and the intervals
  cover what they say (`benchmarks.evaluation`).
- The mean goes over the same classes in every resample. A class whose positives a resample has all lost (or its
  negatives, where it has few) keeps the metric that it has on the test set itself. Leaving it out, as
  `tasks.evaluation.metrics` does where the test set has none, would favour the classes that stay: beside 20 frequent
  classes, 20 with a single positive each put the 95 % interval of mAP 0.510 at 0.545 to 0.693. But a class of
  one or two positives that keeps its metric hardly moves, which made p < 0.05 of 31 % of the tests of two
  equally good runs (`benchmarks.evaluation`: half of the classes with a single positive). So the classes with
  fewer than `ENOUGH_POSITIVES` stand for each other: the group keeps its weight in the mean, and within it each
  counts as often as its positives are drawn. What they differ by counts as chance then, so that intervals are
  rather too wide; `tasks.evaluation.scores` names these classes.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csc_array

from sepscene.tasks.evaluation.metrics import Bools, Floats, check, d_prime_of, label_precisions
from sepscene.tasks.evaluation.retrieval import choose, pair_rows, ranked_pairs, unit_length

ENOUGH_POSITIVES = 3  # a resample loses a class of three with probability 0.05, of two 0.14, of one 0.37
RESAMPLES_AT_ONCE = 128
PAIR_RESAMPLES_AT_ONCE = 32  # a class has some 15,000 pairs, far more than clips


@dataclass(frozen=True, eq=False)
class ScoreReplicates:
    """Metrics of scores on each resample, (R,) each; lwlrap is NaN where no clip with a label was drawn."""

    map_R: Floats
    d_prime_R: Floats
    lwlrap_R: Floats


def resample(clips: int, resamples: int = 1000, seed: int = 0) -> Floats:
    """How often each clip is drawn in each resample: (B, R) float32 holding whole numbers; columns sum to B."""
    generator = np.random.default_rng(seed)
    weights_RB = np.empty((resamples, clips), dtype=np.float32)
    for r in range(resamples):
        weights_RB[r] = np.bincount(generator.integers(0, clips, clips), minlength=clips)
    return np.ascontiguousarray(weights_RB.T)


def resampled_scores(scores_BK: Floats, targets_BK: Bools, weights_BR: Floats) -> ScoreReplicates:
    """mAP, d' and lwlrap of every resample.

    Raises:
        EvaluationError: for NaN scores or shapes that do not fit.
    """
    check(scores_BK, targets_BK)
    positives_K = targets_BK.sum(axis=0)
    columns = np.flatnonzero(positives_K)
    precision_KR, auc_KR, drawn_KR = np.empty((3, len(columns), 1 + weights_BR.shape[1]))
    for part, block_BR in _blocks(_after_itself(weights_BR), RESAMPLES_AT_ONCE):
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

    A pair counts as often as both of its clips were drawn; a clip and its own copy are no pair.

    Raises:
        EvaluationError: for NaN embeddings or shapes that do not fit.
    """
    check(h_BD, targets_BK)
    unit_BD = unit_length(h_BD)
    weights_BR = _after_itself(weights_BR)
    precision_KR = []
    drawn_KR = []
    rare_K = []
    for positive_P, negative_N in choose(targets_BK, clips, seed):
        if len(positive_P) < 2 or len(negative_N) < 1:
            continue
        relevant_M, similarity_M = ranked_pairs(unit_BD, positive_P, negative_N)
        order_M = np.argsort(-similarity_M)
        left_M, right_M = (clip_M[order_M] for clip_M in pair_rows(positive_P, negative_N))
        ranked_M = similarity_M[order_M]
        hit_P = np.flatnonzero(relevant_M[order_M])
        # Equal similarities share a rank: the last of them.
        last_P = np.searchsorted(-ranked_M, -ranked_M[hit_P], side="right") - 1
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


def _after_itself(weights_BR: Floats) -> Floats:
    """The resamples, and before them the test set itself: every clip once."""
    return np.hstack([np.ones((len(weights_BR), 1), dtype=weights_BR.dtype), weights_BR])


def _blocks(weights_BR: Floats, resamples: int) -> Iterator[tuple[slice, Floats]]:
    """Few resamples at a time: what they touch then fits the processor's cache."""
    for start in range(0, weights_BR.shape[1], resamples):
        part = slice(start, start + resamples)
        yield part, np.ascontiguousarray(weights_BR[:, part])


def _over_classes(metric_KR: Floats, drawn_KR: Floats, rare_K: Bools) -> Floats:
    """Mean over the classes in each resample, by the second rule above; NaN without a class. (R,)

    Args:
        metric_KR: (K, 1 + R), first on the test set itself; NaN where a resample has lost the class.
        drawn_KR: (K, 1 + R), how often a positive clip, or pair of them, was drawn on average.
        rare_K: which classes stand for each other.
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

    Only the positives' scores matter as thresholds: clips between two of them are summed up once.
    """
    thresholds, group_P = np.unique(score_B[target_B], return_inverse=True)
    group_B = np.searchsorted(thresholds, score_B, side="right") - 1
    own_PR = weights_BR[target_B]
    above = _sums(group_B, group_B >= 0, len(thresholds), weights_BR)
    hits = _sums(group_P, group_P >= 0, len(thresholds), own_PR)
    above_PR, hits_PR = (np.cumsum(part[::-1], axis=0)[::-1][group_P] for part in (above, hits))
    tied_B = ~target_B & (group_B >= 0) & (thresholds[np.maximum(group_B, 0)] == score_B)
    not_below_PR = above_PR - hits_PR
    if tied_B.any():
        not_below_PR -= 0.5 * _sums(group_B, tied_B, len(thresholds), weights_BR)[group_P]
    auc_R = _area_under_roc(own_PR, not_below_PR, weights_BR.sum(axis=0, dtype=np.float64))
    return _average_precision(own_PR, hits_PR, above_PR), auc_R


def _sums(group_B: NDArray[np.intp], kept_B: Bools, groups: int, weights_BR: Floats) -> Floats:
    """Weights of the kept rows, added up by group: (groups, R), as a product with a sparse matrix of ones."""
    starts = np.concatenate([[0], np.cumsum(kept_B)])
    ones = np.ones(starts[-1], dtype=weights_BR.dtype)
    return csc_array((ones, group_B[kept_B], starts), shape=(groups, len(kept_B))) @ weights_BR


def _average_precision(own_PR: Floats, hits_PR: Floats, above_PR: Floats) -> Floats:
    """Mean over the positives of the precision down to each, its own copies counted once. (R,)

    Args:
        own_PR: weight of each positive.
        hits_PR: weight of the positives scored at least as high, itself included.
        above_PR: weight of all clips scored at least as high, itself included.
    """
    precision_PR = (hits_PR - own_PR + 1) / (above_PR - own_PR + 1)
    return share((own_PR * precision_PR).sum(axis=0, dtype=np.float64), own_PR.sum(axis=0, dtype=np.float64))


def _area_under_roc(own_PR: Floats, not_below_PR: Floats, total_R: Floats) -> Floats:
    """Share of (positive, negative) pairs in the right order, moved inside (0, 1) by half a pair. (R,)"""
    positives_R = own_PR.sum(axis=0, dtype=np.float64)
    pairs_R = positives_R * (total_R - positives_R)
    wrong_R = share((own_PR * not_below_PR).sum(axis=0, dtype=np.float64), pairs_R)
    half_R = share(np.full_like(pairs_R, 0.5), pairs_R)
    return np.clip(1 - wrong_R, half_R, 1 - half_R)


def share(part_R: Floats, whole_R: Floats) -> Floats:
    """part / whole, NaN where the whole is zero."""
    return np.divide(part_R, whole_R, out=np.full(whole_R.shape, np.nan), where=whole_R > 0)
