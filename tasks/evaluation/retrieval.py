"""Query by example: are clips of one class closer to each other than to other clips?

The paper's second downstream task (section "Evaluation"): per class about 100 positive and 100 negative
clips; cosine distance of all (positive, positive) and (positive, negative) pairs; rank all of them in one
list; average precision of finding the (positive, positive) ones; mean over classes. Nothing is trained.
Chance is not 0 but the share of (positive, positive) pairs: 4950 / 14950 = 0.331 for 100 and 100 clips.

Legend: B clips, D embedding, K classes, P positives, N negatives, M pairs.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score

from sepscene.tasks.evaluation.metrics import Bools, Floats, Macro, check, macro

Rows = NDArray[np.intp]


@dataclass(frozen=True, eq=False)
class RetrievalResult:
    """The result of query by example.

    Attributes:
        average_precision: per class, and their mean as its value. It is undefined for classes with fewer than two
            positive clips or without negative clips.
        chance: (K,) share of (positive, positive) pairs: what random embeddings reach; NaN for these classes.
        short_K: which classes had fewer positive or negative clips than requested, so that all were used.
    """

    average_precision: Macro
    chance: Floats
    short_K: Bools


def query_by_example(h_BD: Floats, targets_BK: Bools, clips: int = 100, seed: int = 0) -> RetrievalResult:
    """Rank the pairs of each class by cosine distance.

    Args:
        clips: number of positive and of negative clips per class; all clips of a class that has fewer.
        seed: selects the clips, independently for each class; runs that are compared must use the same seed.

    Raises:
        EvaluationError: embeddings are NaN, shapes do not match, or no class has two positive clips.
    """
    check(h_BD, targets_BK)
    unit_BD = unit_length(h_BD)
    precision_K, chance_K = np.full((2, targets_BK.shape[1]), np.nan)
    for k, (positive_P, negative_N) in enumerate(choose(targets_BK, clips, seed)):
        if len(positive_P) >= 2 and len(negative_N):
            _, _, relevant_M, similarity_M = pairs_of(unit_BD, positive_P, negative_N)
            precision_K[k] = average_precision_score(relevant_M, similarity_M)
            chance_K[k] = relevant_M.mean()
    positives_K = targets_BK.sum(axis=0)
    short_K = np.minimum(positives_K, len(targets_BK) - positives_K) < clips
    return RetrievalResult(macro(precision_K, "query by example"), chance_K, short_K)


def choose(targets_BK: Bools, clips: int, seed: int) -> list[tuple[Rows, Rows]]:
    """For each class the rows of its positive and its negative clips, at most `clips` of each, without repetition."""
    chosen = []
    for k, target_B in enumerate(targets_BK.T):
        # One generator per class: the choice does not depend on the other classes.
        generator = np.random.default_rng((seed, k))
        positive = generator.permutation(np.flatnonzero(target_B))[:clips]
        negative = generator.permutation(np.flatnonzero(~target_B))[:clips]
        chosen.append((positive, negative))
    return chosen


def pairs_of(unit_BD: Floats, positive_P: Rows, negative_N: Rows) -> tuple[Rows, Rows, Bools, Floats]:
    """The two clips of every pair, whether both are positive, and their cosine similarity; (M,) each."""
    first, second = np.triu_indices(len(positive_P), k=1)
    left_M = np.concatenate([positive_P[first], np.repeat(positive_P, len(negative_N))])
    right_M = np.concatenate([positive_P[second], np.tile(negative_N, len(positive_P))])
    among_PP = unit_BD[positive_P] @ unit_BD[positive_P].T
    across_PN = unit_BD[positive_P] @ unit_BD[negative_N].T
    similarity_M = np.concatenate([among_PP[first, second], across_PN.ravel()])
    return left_M, right_M, np.arange(len(left_M)) < len(first), similarity_M


def unit_length(h_BD: Floats) -> Floats:
    """Embeddings of length 1 in float64. A zero embedding stays zero: at distance 1 from every clip."""
    wide_BD = h_BD.astype(np.float64)
    return wide_BD / np.maximum(np.linalg.norm(wide_BD, axis=1, keepdims=True), 1e-12)
