"""One entry for all metrics: by split, by folds, with notes instead of silent gaps."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch

from sepscene.tasks.evaluation.metrics import EvaluationError, mean_average_precision
from sepscene.tasks.evaluation.resampling import resample, resampled_scores
from sepscene.tasks.evaluation.retrieval import query_by_example
from sepscene.tasks.evaluation.scores import Scores, cross_validate, measure, score_embeddings
from sepscene.tasks.evaluation.settings import ScoringSettings
from sepscene.tasks.evaluation.shallow import shallow_classification

SETTINGS = ScoringSettings(shallow_hidden=16, shallow_epochs=3, perceptrons=3, qbe_clips=8, neighbours=5, bootstrap=50)
MAPS = {"shallow_map", "linear_map", "knn_map", "qbe_map"}


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    """Products this small only make threads wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def embedded(clips: int, seed: int, single: bool = False) -> tuple[np.ndarray, np.ndarray]:
    directions = 2 * np.random.default_rng(42).standard_normal((4, 8))
    draw = np.random.default_rng(seed)
    targets = np.eye(4, dtype=bool)[draw.integers(0, 4, clips)] if single else draw.random((clips, 4)) < 0.3
    return (targets @ directions + draw.standard_normal((clips, 8))).astype(np.float32), targets


def scored(settings: ScoringSettings = SETTINGS, single: bool = False) -> Scores:
    return score_embeddings(*embedded(120, 0, single), *embedded(60, 1, single), ["a", "b", "c", "d"], settings)


def test_every_metric_has_an_interval_around_it() -> None:
    found = scored()
    assert set(found.metrics) == MAPS | {"d_prime", "lwlrap"}
    for name, interval in found.metrics.items():
        assert interval.low is not None and interval.high is not None
        assert interval.low < interval.value < interval.high, name
        assert interval.count == 60 and found.replicates[name].shape == (50,)
    evidence = found.evidence
    shallow = [mean_average_precision(scores_BK, evidence.targets_BK).value for scores_BK in evidence.scores["shallow"]]
    assert len(shallow) == 3 and found.metrics["shallow_map"].value == pytest.approx(np.mean(shallow), abs=1e-12)
    by_example = query_by_example(evidence.h_BD, evidence.targets_BK, clips=8, seed=0)
    assert found.metrics["qbe_map"].value == by_example.average_precision.value
    assert any("random embeddings would reach" in note for note in found.notes)


def test_perceptrons_differ_in_their_seed_and_the_interval_covers_them() -> None:
    """Of one perceptron each metric is what it was; the interval of the mean holds clips and perceptrons."""
    several, (train, test) = scored(), (embedded(120, 0), embedded(60, 1))
    values, replicates = [], []
    for seed in range(3):
        alone = shallow_classification(*train, *test, hidden=16, epochs=3, seed=seed)
        np.testing.assert_array_equal(several.evidence.scores["shallow"][seed], alone.scores_BK)
        values.append(alone.average_precision.value)
        replicates.append(resampled_scores(alone.scores_BK, test[1], resample(60, 50)).map_R)
    assert len(set(values)) == 3 and several.metrics["shallow_map"].value == pytest.approx(np.mean(values), abs=1e-12)
    share_PR = resample(3, 50) / np.float64(3)
    np.testing.assert_allclose(several.replicates["shallow_map"], (share_PR * replicates).sum(axis=0), rtol=1e-12)
    assert set((3 * share_PR[0]).round(9)) == {0, 1, 2, 3}, "a resample may draw a perceptron not at all, or thrice"
    one = scored(SETTINGS.changed({"perceptrons": 1}))
    assert one.metrics["shallow_map"].value == values[0]
    np.testing.assert_array_equal(one.replicates["shallow_map"], replicates[0])
    assert "the perceptron trained" in one.notes[0] and "mean of 3 perceptrons" in several.notes[0]


def test_the_table_of_classes() -> None:
    found = scored()
    assert [row.name for row in found.per_class] == ["a", "b", "c", "d"]
    assert [row.positives for row in found.per_class] == found.evidence.targets_BK.sum(axis=0).tolist()
    for metric in MAPS:
        mean = np.mean([row.metrics[metric] for row in found.per_class])
        assert mean == pytest.approx(found.metrics[metric].value)


def test_the_same_input_gives_the_same_metrics() -> None:
    first, again = scored(), scored()
    assert first.metrics == again.metrics and first.per_class == again.per_class
    assert measure(first.evidence).metrics == first.metrics
    without = scored(SETTINGS.changed({"bootstrap": 0}))
    assert without.metrics["shallow_map"].low is None
    assert without.metrics["shallow_map"].value == first.metrics["shallow_map"].value


def test_accuracy_where_each_clip_has_one_label() -> None:
    found = scored(single=True)
    evidence = found.evidence
    right = evidence.scores["shallow"].argmax(axis=2) == evidence.targets_BK.argmax(axis=1)
    assert found.metrics["accuracy"].value == pytest.approx(right.mean(), abs=1e-12)
    assert "accuracy" not in scored().metrics


def test_gaps_are_noted_not_filled() -> None:
    (train_h, train_targets), (test_h, test_targets) = embedded(120, 0), embedded(60, 1)
    test_targets[:, 1:] = False
    test_targets[1:, 0] = False
    test_targets[0, 0] = True  # a single positive in all: no pair to query by
    found = score_embeddings(train_h, train_targets, test_h, test_targets, ["a", "b", "c", "d"], SETTINGS)
    assert "qbe_map" not in found.metrics and "shallow_map" in found.metrics
    assert any("no class has a defined query by example" in note for note in found.notes)
    assert "left out, no positive test clip: b, c, d" in found.notes
    assert found.per_class[1].metrics == {} and found.per_class[1].positives == 0
    assert "50 resamples" in found.metrics["shallow_map"].method  # in all of them its one class has a metric
    assert "fewer than 3 positive test clips, their spread is a guess: a" in found.notes
    assert not any("spread" in note for note in scored().notes)


def test_cross_validation_is_each_fold_by_itself() -> None:
    h, targets = embedded(90, 0, single=True)
    folds = np.array(["1", "2", "3"])[np.arange(90) % 3]
    found = cross_validate(h, targets, folds.tolist(), ["a", "b", "c", "d"], SETTINGS)
    alone = []
    for fold in ("1", "2", "3"):
        test = folds == fold
        alone.append(score_embeddings(h[~test], targets[~test], h[test], targets[test], None, SETTINGS))
    for name, interval in found.metrics.items():
        assert interval.value == pytest.approx(np.mean([part.metrics[name].value for part in alone]))
        assert interval.low is not None and interval.low < interval.value and interval.count == 90
    np.testing.assert_array_equal(found.evidence.scores["knn"][:, folds == "2"], alone[1].evidence.scores["knn"])
    assert sum(row.positives for row in found.per_class) == 90
    # Means of three folds are surer than each fold.
    widths = [part.replicates["shallow_map"].std() for part in alone]
    assert found.replicates["shallow_map"].std() < min(widths)


def test_what_cannot_be_evaluated_is_refused() -> None:
    h, targets = embedded(40, 0)
    with pytest.raises(EvaluationError, match="at least two folds"):
        cross_validate(h, targets, ["1"] * 40, settings=SETTINGS)
    with pytest.raises(EvaluationError, match="39 fold names"):
        cross_validate(h, targets, ["1"] * 20 + ["2"] * 19, settings=SETTINGS)
    with pytest.raises(EvaluationError, match="3 clip ids for 40 test clips"):
        score_embeddings(h, targets, h, targets, settings=SETTINGS, clip_ids=["a", "b", "c"])
    h[2] = np.inf
    with pytest.raises(EvaluationError, match="1 of 40 clips have NaN or infinite"):
        score_embeddings(h, targets, h, targets, settings=SETTINGS)
