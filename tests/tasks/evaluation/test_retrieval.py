"""Query by example against a slow loop over pairs, chance, and perfect embeddings."""

import numpy as np
import pytest

from sepscene.tasks.evaluation.metrics import EvaluationError
from sepscene.tasks.evaluation.retrieval import choose, query_by_example


def embedded(clips: int = 60, classes: int = 4, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng(seed)
    targets = draw.random((clips, classes)) < 0.3
    h = targets @ draw.standard_normal((classes, 8)) + draw.standard_normal((clips, 8))
    return h.astype(np.float32), targets


def slow_query_by_example(h: np.ndarray, positives: np.ndarray, negatives: np.ndarray) -> float:
    """Compute the distance of each pair, rank all pairs, and average the precision at the (positive, positive) ones."""

    def distance(a: np.ndarray, b: np.ndarray) -> float:
        a = a.astype(np.float64)
        b = b.astype(np.float64)
        return 1 - float(a @ b) / (float(a @ a) ** 0.5 * float(b @ b) ** 0.5)

    pairs = [(distance(h[p], h[q]), True) for i, p in enumerate(positives) for q in positives[i + 1 :]]
    pairs += [(distance(h[p], h[n]), False) for p in positives for n in negatives]
    pairs.sort()
    hits = 0
    precisions = []
    for rank, (_, relevant) in enumerate(pairs, start=1):
        if relevant:
            hits += 1
            precisions.append(hits / rank)
    return float(np.mean(precisions))


def test_it_is_the_slow_loop_over_pairs() -> None:
    h, targets = embedded()
    found = query_by_example(h, targets, clips=10, seed=3)
    chosen = choose(targets, clips=10, seed=3)
    expected = [slow_query_by_example(h, positive, negative) for positive, negative in chosen]
    np.testing.assert_allclose(found.average_precision.per_class, expected, rtol=1e-9)
    assert found.average_precision.value == pytest.approx(np.mean(expected), rel=1e-9)


def test_the_choice_is_fixed_by_the_seed_and_the_class() -> None:
    _, targets = embedded(clips=200)
    first, again, other = (choose(targets, 30, seed) for seed in (0, 0, 1))
    for k in range(4):
        for kind in (0, 1):
            np.testing.assert_array_equal(first[k][kind], again[k][kind])
            assert len(np.unique(first[k][kind])) == 30
            assert targets[first[k][kind], k].all() == (kind == 0)
        assert not np.array_equal(first[k][0], other[k][0])
    without_first = choose(targets[:, :2], 30, 0)
    np.testing.assert_array_equal(without_first[1][0], first[1][0])


def test_random_embeddings_are_at_chance() -> None:
    draw = np.random.default_rng(0)
    targets = draw.random((1000, 30)) < 0.3
    found = query_by_example(draw.standard_normal((1000, 64)), targets)
    np.testing.assert_allclose(found.chance, 4950 / 14950)
    assert found.average_precision.value == pytest.approx(4950 / 14950, abs=0.01)
    assert not found.short_K.any()


def test_perfect_embeddings_reach_one() -> None:
    targets = np.eye(3, dtype=bool)[np.arange(30) % 3]
    assert query_by_example(targets.astype(np.float32), targets).average_precision.value == 1.0


def test_length_does_not_matter_and_silence_is_accepted() -> None:
    h, targets = embedded()
    scale = np.random.default_rng(1).uniform(0.1, 10, (len(h), 1))
    found, scaled = (query_by_example(x, targets).average_precision.value for x in (h, h * scale))
    assert found == pytest.approx(scaled, rel=1e-6)
    h[:10] = 0
    assert np.isfinite(query_by_example(h, targets).average_precision.value)


def test_small_classes_use_all_their_clips_and_are_reported() -> None:
    h, targets = embedded()
    targets[:, 0] = False
    targets[5, 0] = True  # one positive: no pair
    targets[:, 1] = True  # no negatives
    found = query_by_example(h, targets, clips=5)
    assert np.isnan(found.average_precision.per_class).tolist() == [True, True, False, False]
    assert found.short_K.tolist() == [True, True, False, False]
    assert np.isnan(found.chance[:2]).all()
    assert query_by_example(h, targets, clips=500).short_K.all()


def test_invalid_input_is_refused() -> None:
    h, targets = embedded()
    with pytest.raises(EvaluationError, match="no class has a defined query by example"):
        query_by_example(h, np.eye(60, dtype=bool))
    h[4] = np.nan
    with pytest.raises(EvaluationError, match="1 of 60 clips have NaN"):
        query_by_example(h, targets)
