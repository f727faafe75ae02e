"""All metrics, by split and by folds, with notes on those that are undefined."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch

from sepscene.tasks.evaluation.metrics import EvaluationError, mean_average_precision
from sepscene.tasks.evaluation.resampling import resample, resampled_scores
from sepscene.tasks.evaluation.retrieval import query_by_example
from sepscene.tasks.evaluation.scores import Scores, cross_validate, measure, score_embeddings
from sepscene.tasks.evaluation.settings import ScoringSettings
from sepscene.tasks.evaluation.shallow import train_perceptrons

SETTINGS = ScoringSettings(shallow_hidden=16, shallow_epochs=3, perceptrons=3, qbe_clips=8, neighbours=5, bootstrap=50)
MAPS = {"shallow_map", "linear_map", "knn_map", "qbe_map"}


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    """With products this small, several threads only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def embedded(clips: int, seed: int, single: bool = False) -> tuple[np.ndarray, np.ndarray]:
    directions = 2 * np.random.default_rng(42).standard_normal((4, 8))
    draw = np.random.default_rng(seed)
    targets = np.eye(4, dtype=bool)[draw.integers(0, 4, clips)] if single else draw.random((clips, 4)) < 0.3
    targets[~targets.any(axis=1), 0] = True
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
    predictions = found.predictions
    shallow = [
        mean_average_precision(scores_BK, predictions.targets_BK).value for scores_BK in predictions.scores["shallow"]
    ]
    assert len(shallow) == 3 and found.metrics["shallow_map"].value == pytest.approx(np.mean(shallow), abs=1e-12)
    by_example = query_by_example(predictions.h_BD, predictions.targets_BK, clips=8, seed=0)
    assert found.metrics["qbe_map"].value == by_example.average_precision.value
    assert any("random embeddings would reach" in note for note in found.notes)


def test_perceptrons_differ_in_their_seed_and_the_interval_covers_them() -> None:
    """The metric is the mean over perceptrons, each as if trained alone; its interval covers clips and perceptrons."""
    several = scored()
    train = embedded(120, 0)
    test = embedded(60, 1)
    values = []
    replicates = []
    for seed in range(3):
        (alone_BK,), _ = train_perceptrons(*train, test[0], SETTINGS.changed({"perceptrons": 1, "seed": seed}))
        np.testing.assert_allclose(several.predictions.scores["shallow"][seed], alone_BK, rtol=0, atol=1e-5)
        values.append(mean_average_precision(alone_BK, test[1]).value)
        replicates.append(resampled_scores(alone_BK, test[1], resample(60, 50)).map_R)
    assert len(set(values)) == 3 and several.metrics["shallow_map"].value == pytest.approx(np.mean(values), abs=1e-12)
    share_PR = resample(3, 50) / np.float64(3)
    np.testing.assert_allclose(several.replicates["shallow_map"], (share_PR * replicates).sum(axis=0), rtol=1e-12)
    assert set((3 * share_PR[0]).round(9)) == {0, 1, 2, 3}, "a resample can draw a perceptron zero to three times"
    one = scored(SETTINGS.changed({"perceptrons": 1}))
    assert one.metrics["shallow_map"].value == values[0]
    np.testing.assert_array_equal(one.replicates["shallow_map"], replicates[0])
    assert "the perceptron was trained" in one.notes[0] and "mean of 3 perceptrons" in several.notes[0]


def test_the_table_of_classes() -> None:
    found = scored()
    assert [row.name for row in found.per_class] == ["a", "b", "c", "d"]
    assert [row.positives for row in found.per_class] == found.predictions.targets_BK.sum(axis=0).tolist()
    for metric in MAPS:
        mean = np.mean([row.metrics[metric] for row in found.per_class])
        assert mean == pytest.approx(found.metrics[metric].value)


def test_the_same_input_gives_the_same_metrics() -> None:
    first = scored()
    again = scored()
    assert first.metrics == again.metrics and first.per_class == again.per_class
    assert measure(first.predictions).metrics == first.metrics
    without = scored(SETTINGS.changed({"bootstrap": 0}))
    assert without.metrics["shallow_map"].low is None
    assert without.metrics["shallow_map"].value == first.metrics["shallow_map"].value


def test_accuracy_where_each_clip_has_one_label() -> None:
    found = scored(single=True)
    predictions = found.predictions
    right = predictions.scores["shallow"].argmax(axis=2) == predictions.targets_BK.argmax(axis=1)
    assert found.metrics["accuracy"].value == pytest.approx(right.mean(), abs=1e-12)
    assert "accuracy" not in scored().metrics


def test_undefined_metrics_are_noted() -> None:
    train_h, train_targets = embedded(120, 0)
    test_h, _ = embedded(2, 1)
    test_targets = np.eye(4, dtype=bool)[:2]  # two classes with a single positive: no pairs for query by example
    found = score_embeddings(train_h, train_targets, test_h, test_targets, ["a", "b", "c", "d"], SETTINGS)
    assert "qbe_map" not in found.metrics and "shallow_map" in found.metrics
    assert any("no class has a defined query by example" in note for note in found.notes)
    assert "left out, no positive test clip: c, d" in found.notes
    assert found.per_class[2].metrics == {} and found.per_class[2].positives == 0
    assert "50 resamples" in found.metrics["shallow_map"].method  # a class that a resample has lost keeps its metric
    assert "fewer than 3 positive test clips, so their spread is uncertain: a, b" in found.notes
    assert not any("spread" in note for note in scored().notes)


def test_cross_validation_evaluates_each_fold_separately() -> None:
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
    np.testing.assert_array_equal(found.predictions.scores["knn"][:, folds == "2"], alone[1].predictions.scores["knn"])
    assert sum(row.positives for row in found.per_class) == 90
    # The mean of three folds varies less than each fold.
    widths = [part.replicates["shallow_map"].std() for part in alone]
    assert found.replicates["shallow_map"].std() < min(widths)


def test_invalid_input_is_refused() -> None:
    h, targets = embedded(40, 0)
    with pytest.raises(EvaluationError, match="at least two folds"):
        cross_validate(h, targets, ["1"] * 40, settings=SETTINGS)
    with pytest.raises(EvaluationError, match="39 fold names"):
        cross_validate(h, targets, ["1"] * 20 + ["2"] * 19, settings=SETTINGS)
    with pytest.raises(EvaluationError, match="3 clip ids for 40 test clips"):
        score_embeddings(h, targets, h, targets, settings=SETTINGS, clip_ids=["a", "b", "c"])
    with pytest.raises(EvaluationError, match="3 class names for 4 columns"):
        score_embeddings(h, targets, h, targets, ["a", "b", "c"], SETTINGS)
    with pytest.raises(EvaluationError, match="3 class names for 4 columns"):
        cross_validate(h, targets, ["1", "2"] * 20, ["a", "b", "c"], SETTINGS)
    h[2] = np.inf
    with pytest.raises(EvaluationError, match="1 of 40 clips have NaN or infinite"):
        score_embeddings(h, targets, h, targets, settings=SETTINGS)


def test_clips_without_a_label_are_left_out_of_probes_and_tests() -> None:
    """They are not negative examples: adding sounds without labels changes no metric."""
    train = embedded(120, 0)
    test = embedded(60, 1)
    more_train, more_test = (embedded(40, seed)[0] for seed in (2, 3))
    nothing = np.zeros((40, 4), bool)
    extended = [
        np.concatenate(pair) for pair in zip((*train, *test), (more_train, nothing, more_test, nothing), strict=True)
    ]
    names = ["a", "b", "c", "d"]
    alone = score_embeddings(*train, *test, names, SETTINGS)
    found = score_embeddings(*extended, names, SETTINGS)
    assert found.metrics == alone.metrics
    assert found.notes[:2] == (
        "left out, without a label: 40 of 160 training clips",
        "left out, without a label: 40 of 100 test clips",
    )
    assert found.notes[2:] == alone.notes
    assert found.predictions.clip_ids.tolist() == [str(n) for n in range(60)]


def test_clips_without_a_label_are_left_out_of_cross_validation() -> None:
    h, targets = embedded(90, 0, single=True)
    folds = np.array(["1", "2", "3"])[np.arange(90) % 3].tolist()
    alone = cross_validate(h, targets, folds, settings=SETTINGS)
    h = np.concatenate([h, h[:30]])
    targets = np.concatenate([targets, np.zeros((30, 4), bool)])
    found = cross_validate(h, targets, folds + ["1"] * 30, settings=SETTINGS)
    assert found.metrics == alone.metrics
    assert found.notes == ("left out, without a label: 30 of 120 clips", *alone.notes)


def test_probes_are_not_evaluated_on_a_class_that_occurs_only_in_test() -> None:
    """No probe can learn it, so it is left out of their means; query by example needs no training."""
    train_h, train_targets = embedded(120, 0, single=True)
    test_h, test_targets = embedded(60, 1, single=True)
    known = ~train_targets[:, 3]
    found = score_embeddings(train_h[known], train_targets[known], test_h, test_targets, list("abcd"), SETTINGS)
    assert "left out, no positive training clip: d" in found.notes
    row = found.per_class[3]
    assert row.positives == test_targets[:, 3].sum() and set(row.metrics) == {"qbe_map"}
    for name in ("shallow_map", "linear_map", "knn_map"):
        mean = np.mean([row.metrics[name] for row in found.per_class[:3]])
        assert found.metrics[name].value == pytest.approx(mean, abs=1e-12)
    right = found.predictions.scores["shallow"].argmax(axis=2) == test_targets.argmax(axis=1)
    assert found.metrics["accuracy"].value == pytest.approx(right[:, ~test_targets[:, 3]].mean(), abs=1e-12)


def test_a_single_class_is_refused_instead_of_scored_as_perfect() -> None:
    h = embedded(40, 0)[0]
    with pytest.raises(EvaluationError, match="every test clip has it, so there is nothing to rank: dog"):
        score_embeddings(h, np.ones((40, 1), bool), h, np.ones((40, 1), bool), ["dog"], SETTINGS)
    with pytest.raises(EvaluationError, match="0 of 40 test clips have a label"):
        score_embeddings(h, np.ones((40, 1), bool), h, np.zeros((40, 1), bool), ["dog"], SETTINGS)
    both = np.arange(40) % 2 == 0
    targets = np.stack([np.ones(40, bool), both, ~both], axis=1)
    found = score_embeddings(h, targets, h, targets, ["sound", "dog", "cat"], SETTINGS)
    assert "left out, every test clip has it, so there is nothing to rank: sound" in found.notes
    assert "query by example: fewer than 8 positive or negative clips for sound" in found.notes
    assert found.per_class[0].metrics == {}
