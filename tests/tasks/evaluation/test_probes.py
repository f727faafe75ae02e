"""Linear and nearest-neighbour probes, and the map of embeddings."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch

from sepscene.tasks.evaluation.metrics import EvaluationError, mean_average_precision
from sepscene.tasks.evaluation.probes import (
    VOTE_TEMPERATURE,
    embedding_map,
    knn_map,
    knn_probe,
    linear_probe,
    probe_scores,
)
from sepscene.tasks.evaluation.settings import ScoringSettings


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    """With products this small, several threads only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


Split = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def split(train: int = 150, test: int = 60, strength: float = 2.0, seed: int = 0) -> Split:
    draw = np.random.default_rng(seed)
    directions = strength * draw.standard_normal((5, 12))
    targets = draw.random((train + test, 5)) < 0.25
    h = (targets @ directions + draw.standard_normal((train + test, 12))).astype(np.float32)
    return h[:train], targets[:train], h[train:], targets[train:]


def test_nearest_neighbours_are_the_slow_loop() -> None:
    train_h, train_targets, test_h, test_targets = split()
    expected = np.zeros(test_targets.shape)
    for row, clip in enumerate(test_h.astype(np.float64)):
        cosine = np.array([t @ clip / np.linalg.norm(t) / np.linalg.norm(clip) for t in train_h.astype(np.float64)])
        nearest = np.argsort(-cosine)[:7]
        votes = np.exp(cosine[nearest] / VOTE_TEMPERATURE)
        expected[row] = votes @ train_targets[nearest] / votes.sum()
    found = knn_probe(train_h, train_targets, test_h, neighbours=7)
    np.testing.assert_allclose(found, expected, atol=1e-4)
    value = knn_map(train_h, train_targets, test_h, test_targets, neighbours=7)
    assert value == mean_average_precision(found, test_targets).value


@pytest.mark.parametrize("rows", [0, 1, 7, 59])
def test_nearest_neighbours_do_not_depend_on_the_size_of_the_pieces(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    clips = split()[:3]
    whole = knn_probe(*clips)
    monkeypatch.setattr(
        "sepscene.tasks.evaluation.probes.PIECE_BYTES", rows * 4 * 150
    )  # 150 training clips, but 20 x 5 labels
    np.testing.assert_allclose(knn_probe(*clips), whole, atol=1e-6)


def test_pieces_are_smaller_with_more_training_clips(monkeypatch: pytest.MonkeyPatch) -> None:
    shapes = []
    top = torch.Tensor.topk

    def topk(similarity: torch.Tensor, *args: int, **kwargs: int) -> tuple[torch.Tensor, torch.Tensor]:
        shapes.append(tuple(similarity.shape))
        return top(similarity, *args, **kwargs)

    monkeypatch.setattr(torch.Tensor, "topk", topk)
    monkeypatch.setattr("sepscene.tasks.evaluation.probes.PIECE_BYTES", 4 * 3000)
    knn_probe(*split(train=1000, test=7)[:3])
    assert shapes == [(3, 1000), (3, 1000), (1, 1000)]
    shapes.clear()
    knn_probe(*split(train=20, test=60)[:3])
    assert shapes == [(30, 20), (30, 20)]  # here the neighbours' labels, 20 x 5 per clip, limit the size


@pytest.mark.parametrize("probe", [linear_probe, knn_probe])
def test_chance_and_perfection(probe) -> None:  # type: ignore[no-untyped-def]
    targets = np.eye(4, dtype=bool)[np.arange(400) % 4]
    perfect = targets.astype(np.float32)
    found = probe(perfect[:200], targets[:200], perfect[200:])
    assert mean_average_precision(found, targets[200:]).value == 1.0
    draw = np.random.default_rng(0)
    targets = draw.random((3000, 6)) < 0.2
    noise = draw.standard_normal((3000, 8))
    found = probe(noise[:1000], targets[:1000], noise[1000:])
    assert mean_average_precision(found, targets[1000:]).value == pytest.approx(0.2, abs=0.02)


def test_all_probes_are_deterministic_and_refuse_nan() -> None:
    data = split()
    settings = ScoringSettings(shallow_epochs=2, perceptrons=2, neighbours=7)
    found, epochs_P = probe_scores(*data, settings)
    again, _ = probe_scores(*data, settings)
    assert {name: scores_PBK.shape for name, scores_PBK in found.items()} == {
        "shallow": (2, 60, 5),
        "linear": (1, 60, 5),
        "knn": (1, 60, 5),
    }
    for name, scores_PBK in found.items():
        np.testing.assert_array_equal(scores_PBK, again[name])
    np.testing.assert_array_equal(found["knn"][0], knn_probe(*data[:3], neighbours=7))
    assert epochs_P.shape == (2,)
    data[0][3, 1] = np.nan
    with pytest.raises(EvaluationError, match="1 of 150 clips have NaN"):
        probe_scores(*data, settings)
    with pytest.raises(EvaluationError, match="1 of 150 clips have NaN"):
        knn_map(*data)


@pytest.mark.parametrize("probe", [linear_probe, knn_probe])
def test_collapsed_embeddings_and_few_clips_are_accepted(probe) -> None:  # type: ignore[no-untyped-def]
    train_h, train_targets, test_h, test_targets = split()
    flat = probe(np.ones_like(train_h), train_targets, np.ones_like(test_h))
    assert mean_average_precision(flat, test_targets).value == pytest.approx(test_targets.mean(), abs=1e-6)
    few = probe(train_h[:3], train_targets[:3], test_h)
    assert np.isfinite(few).all()
    one_class = probe(train_h, train_targets[:, :1], test_h)
    assert one_class.shape == (60, 1)


def test_the_linear_probe_finds_a_linear_truth() -> None:
    *clips, test_targets = split(strength=4.0)
    assert mean_average_precision(linear_probe(*clips), test_targets).value > 0.98


def test_a_subset_of_many_training_clips_is_drawn_by_the_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sepscene.tasks.evaluation.probes.LINEAR_CLIPS", 50)
    clips = split()[:3]
    first, again, other = (linear_probe(*clips, seed=seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_the_map_keeps_groups_apart_and_is_deterministic() -> None:
    draw = np.random.default_rng(0)
    group = np.arange(60) % 2
    h = draw.standard_normal((60, 10)) + 20 * group[:, None]
    plane = embedding_map(h)
    assert plane.shape == (60, 2) and np.isfinite(plane).all()
    np.testing.assert_array_equal(plane, embedding_map(h))
    nearest = np.linalg.norm(plane[:, None] - plane[None] + 1e9 * np.eye(60)[..., None], axis=2).argmin(axis=1)
    assert (group[nearest] == group).all()


@pytest.mark.parametrize(("clips", "dimensions"), [(1, 8), (2, 8), (3, 1), (20, 8), (60, 1), (60, 2)])
def test_small_maps_are_principal_components(clips: int, dimensions: int) -> None:
    h = np.random.default_rng(0).standard_normal((clips, dimensions))
    plane = embedding_map(h)
    assert plane.shape == (clips, 2)
    centred = h - h.mean(axis=0)
    variance = np.linalg.svd(centred, compute_uv=False)[0] ** 2
    assert (plane[:, 0] ** 2).sum() == pytest.approx(variance, abs=1e-9)


def test_a_collapsed_encoder_maps_to_a_point() -> None:
    for clips in (10, 60):
        np.testing.assert_array_equal(embedding_map(np.ones((clips, 8))), np.zeros((clips, 2)))
    with pytest.raises(EvaluationError, match="NaN"):
        embedding_map(np.full((4, 3), np.nan))
