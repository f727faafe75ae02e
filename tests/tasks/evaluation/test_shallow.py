"""The perceptron on frozen h: it learns what can be learnt, and nothing where there is nothing."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch

from sepscene.tasks.evaluation.metrics import EvaluationError
from sepscene.tasks.evaluation.shallow import ShallowResult, shallow_classification


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    """Products this small only make threads wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


Split = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def split(train: int = 200, test: int = 100, strength: float = 3.0, seed: int = 0) -> Split:
    """Multi-label clips whose embeddings are the sum of their classes' directions plus noise."""
    draw = np.random.default_rng(seed)
    directions = strength * draw.standard_normal((6, 16))
    targets = draw.random((train + test, 6)) < 0.25
    h = (targets @ directions + draw.standard_normal((train + test, 16))).astype(np.float32)
    return h[:train], targets[:train], h[train:], targets[train:]


def run(data: Split, **changes: int) -> ShallowResult:
    return shallow_classification(*data, **{"hidden": 32, "epochs": 40, **changes})  # type: ignore[arg-type]


def test_it_learns_what_is_there() -> None:
    found = run(split())
    assert found.average_precision.value > 0.95
    assert found.scores_BK.shape == (100, 6) and found.scores_BK.dtype == np.float32
    assert 1 <= found.epochs <= 40


def test_it_learns_what_no_linear_map_can() -> None:
    draw = np.random.default_rng(0)
    h = draw.uniform(-1, 1, (900, 2))
    targets = (h[:, :1] * h[:, 1:]) > 0  # exclusive or of the two signs
    found = shallow_classification(h[:500], targets[:500], h[500:], targets[500:], hidden=64, epochs=50)
    assert found.average_precision.value > 0.95


def test_noise_stays_at_chance_and_stops_early() -> None:
    train_h, train_targets, test_h, test_targets = split(train=400, test=1000, strength=0.0)
    found = run((train_h, train_targets, test_h, test_targets))
    assert found.average_precision.value == pytest.approx(test_targets.mean(), abs=0.04)
    assert found.epochs < 25


def test_the_same_seed_gives_the_same_scores_and_leaves_torch_alone() -> None:
    data = split(train=80)
    torch.manual_seed(5)
    state = torch.get_rng_state()
    first, again, other = run(data, epochs=5), run(data, epochs=5), run(data, epochs=5, seed=1)
    np.testing.assert_array_equal(first.scores_BK, again.scores_BK)
    assert not np.array_equal(first.scores_BK, other.scores_BK)
    assert torch.equal(torch.get_rng_state(), state)


def test_scale_and_offset_of_the_embedding_do_not_matter() -> None:
    train_h, train_targets, test_h, test_targets = split(train=80)
    plain = run((train_h, train_targets, test_h, test_targets), epochs=5)
    moved = run((train_h * 1000 + 70, train_targets, test_h * 1000 + 70, test_targets), epochs=5)
    np.testing.assert_allclose(plain.scores_BK, moved.scores_BK, atol=2e-3)


def test_test_clips_do_not_reach_the_training() -> None:
    train_h, train_targets, test_h, test_targets = split(train=80)
    all_scores = run((train_h, train_targets, test_h, test_targets), epochs=5).scores_BK
    some_scores = run((train_h, train_targets, test_h[:7], test_targets[:7]), epochs=5).scores_BK
    np.testing.assert_allclose(all_scores[:7], some_scores, rtol=1e-5, atol=1e-6)


def test_edges() -> None:
    train_h, train_targets, test_h, test_targets = split(train=80)
    two = run((train_h[:2], train_targets[:2], test_h, test_targets), epochs=2)
    assert np.isfinite(two.scores_BK).all()
    dead = np.zeros_like(train_h)  # an encoder that has collapsed: constant scores are chance, not an error
    collapsed = run((dead, train_targets, np.zeros_like(test_h), test_targets), epochs=2)
    assert collapsed.average_precision.value == pytest.approx(test_targets.mean(), abs=1e-6)
    unseen = train_targets.copy()
    unseen[:, 0] = False
    assert np.isfinite(run((train_h, unseen, test_h, test_targets), epochs=2).average_precision.value)


def test_what_cannot_be_evaluated_is_refused() -> None:
    train_h, train_targets, test_h, test_targets = split(train=80)
    broken = train_h.copy()
    broken[0, 0] = np.nan
    with pytest.raises(EvaluationError, match="1 of 80 clips have NaN"):
        run((broken, train_targets, test_h, test_targets))
    with pytest.raises(EvaluationError, match="no class has a defined average precision"):
        run((train_h, train_targets, test_h, np.zeros_like(test_targets)), epochs=1)
