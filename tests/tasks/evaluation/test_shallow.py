"""The perceptron on frozen h: it learns what can be learned, and stays at chance on noise."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch

from sepscene.tasks.evaluation.metrics import mean_average_precision
from sepscene.tasks.evaluation.settings import ScoringSettings
from sepscene.tasks.evaluation.shallow import train_perceptrons


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    """With products this small, several threads only wait for each other."""
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


def run(data: Split, hidden: int = 32, epochs: int = 40, seed: int = 0) -> tuple[np.ndarray, int]:
    """The scores of one perceptron, and its epochs."""
    settings = ScoringSettings(shallow_hidden=hidden, shallow_epochs=epochs, perceptrons=1, seed=seed)
    (scores_BK,), (trained,) = train_perceptrons(*data[:3], settings)
    return scores_BK, int(trained)


def precision(data: Split, hidden: int = 32, epochs: int = 40) -> float:
    """mAP of one perceptron."""
    return mean_average_precision(run(data, hidden, epochs)[0], data[3]).value


def slow_perceptron(data: Split, settings: ScoringSettings) -> tuple[np.ndarray, int]:
    """One perceptron, trained by a plain loop with PyTorch's own layers."""
    train_h, train_targets, test_h, _ = data
    mean = train_h.astype(np.float64).mean(0)
    deviation = train_h.astype(np.float64).std(0)
    train, test = (torch.tensor((h - mean) / deviation, dtype=torch.float32) for h in (train_h, test_h))
    targets = torch.tensor(train_targets).float()

    def trained(rows: torch.Tensor) -> Iterator[torch.nn.Sequential]:
        draws = torch.Generator().manual_seed(settings.seed)
        layers = [torch.nn.Linear(train.shape[1], settings.shallow_hidden), torch.nn.Linear(settings.shallow_hidden, 6)]
        for layer in layers:
            for parameter in (layer.weight, layer.bias):
                torch.nn.init.uniform_(parameter, -(layer.in_features**-0.5), layer.in_features**-0.5, draws)
        network = torch.nn.Sequential(layers[0], torch.nn.ReLU(), layers[1])
        optimiser = torch.optim.AdamW(network.parameters(), lr=1e-3, weight_decay=1e-4)
        order = torch.Generator().manual_seed(settings.seed)
        for _ in range(settings.shallow_epochs):
            for batch in torch.randperm(len(rows), generator=order).split(32):
                optimiser.zero_grad()
                entropy = torch.nn.functional.binary_cross_entropy_with_logits
                entropy(network(train[rows[batch]]), targets[rows[batch]]).backward()
                optimiser.step()
            yield network

    rows = torch.randperm(len(train), generator=torch.Generator().manual_seed(settings.seed + 1))
    held = rows[: int(0.15 * len(train))]
    others = rows[int(0.15 * len(train)) :]
    losses: list[float] = []
    for network in trained(others):
        with torch.no_grad():
            found = torch.nn.functional.binary_cross_entropy_with_logits(network(train[held]), targets[held])
        losses.append(found.item())
        if len(losses) - 1 - int(np.argmin(losses)) >= 10:
            break
    epochs = int(np.argmin(losses)) + 1
    for epoch, network in enumerate(trained(torch.arange(len(train))), 1):
        if epoch == epochs:
            return network(test).detach().numpy(), epochs
    raise AssertionError


@pytest.mark.parametrize("strength", [0.3, 1.0, 3.0])
def test_trained_together_they_equal_the_slow_loop(strength: float) -> None:
    """Even if they stop at different epochs."""
    data = split(strength=strength)
    settings = ScoringSettings(shallow_hidden=32, shallow_epochs=40, perceptrons=4, seed=3)
    scores_PBK, epochs_P = train_perceptrons(*data[:3], settings)
    for n in range(4):
        scores_BK, epochs = slow_perceptron(data, settings.changed({"seed": 3 + n}))
        assert epochs_P[n] == epochs
        np.testing.assert_allclose(scores_PBK[n], scores_BK, rtol=0, atol=1e-4)
    assert strength > 0.3 or len(set(epochs_P.tolist())) > 1


def test_it_learns_linear_classes() -> None:
    data = split()
    scores_BK, epochs = run(data)
    assert mean_average_precision(scores_BK, data[3]).value > 0.95
    assert scores_BK.shape == (100, 6) and scores_BK.dtype == np.float32
    assert 1 <= epochs <= 40


def test_it_learns_a_nonlinear_class() -> None:
    draw = np.random.default_rng(0)
    h = draw.uniform(-1, 1, (900, 2))
    targets = (h[:, :1] * h[:, 1:]) > 0  # exclusive or of the two signs
    assert precision((h[:500], targets[:500], h[500:], targets[500:]), hidden=64, epochs=50) > 0.95


def test_noise_stays_at_chance_and_stops_early() -> None:
    data = split(train=400, test=1000, strength=0.0)
    scores_BK, epochs = run(data)
    assert mean_average_precision(scores_BK, data[3]).value == pytest.approx(data[3].mean(), abs=0.04)
    assert epochs < 25


def test_the_same_seed_gives_the_same_scores_and_keeps_torchs_random_state() -> None:
    data = split(train=80)
    torch.manual_seed(5)
    state = torch.get_rng_state()
    first, again, other = (run(data, epochs=5, seed=seed)[0] for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)
    assert torch.equal(torch.get_rng_state(), state)


def test_scale_and_offset_of_the_embedding_do_not_matter() -> None:
    train_h, train_targets, test_h, test_targets = split(train=80)
    plain, _ = run((train_h, train_targets, test_h, test_targets), epochs=5)
    moved, _ = run((train_h * 1000 + 70, train_targets, test_h * 1000 + 70, test_targets), epochs=5)
    np.testing.assert_allclose(plain, moved, atol=2e-3)


def test_training_does_not_use_the_test_clips() -> None:
    train_h, train_targets, test_h, test_targets = split(train=80)
    all_scores, _ = run((train_h, train_targets, test_h, test_targets), epochs=5)
    some_scores, _ = run((train_h, train_targets, test_h[:7], test_targets[:7]), epochs=5)
    np.testing.assert_allclose(all_scores[:7], some_scores, rtol=1e-5, atol=1e-6)


def test_two_clips_collapsed_embeddings_and_unseen_classes_have_scores() -> None:
    train_h, train_targets, test_h, test_targets = split(train=80)
    two, _ = run((train_h[:2], train_targets[:2], test_h, test_targets), epochs=2)
    assert np.isfinite(two).all()
    dead = np.zeros_like(train_h)  # an encoder that has collapsed: constant scores are chance, not an error
    collapsed = precision((dead, train_targets, np.zeros_like(test_h), test_targets), epochs=2)
    assert collapsed == pytest.approx(test_targets.mean(), abs=1e-6)
    unseen = train_targets.copy()
    unseen[:, 0] = False
    assert np.isfinite(precision((train_h, unseen, test_h, test_targets), epochs=2))
