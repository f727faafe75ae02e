"""Degenerate inputs, by Hypothesis: ties, one class, one clip, constant scores, constant embeddings, equal seeds.

Whatever the input, there is an error of ours, or each interval holds its metric and each p is a probability.
"""

import math

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sepscene.tasks.evaluation.metrics import EvaluationError
from sepscene.tasks.evaluation.scores import Predictions, measure
from sepscene.tasks.evaluation.settings import ScoringSettings
from sepscene.tasks.evaluation.statistics import (
    Interval,
    PairedTest,
    bootstrap_interval,
    paired_bootstrap,
    paired_t,
    t_interval,
)

OFTEN = settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
UNIT = ("shallow_map", "linear_map", "knn_map", "qbe_map", "lwlrap", "accuracy")
FEW_VALUES = st.sampled_from([0.0, 0.5, 1.0, -3.0])
NUMBERS = st.one_of(FEW_VALUES, st.floats(-1e6, 1e6))


def holds(interval: Interval) -> None:
    """An interval is not there at all, or is finite and holds its value."""
    assert math.isfinite(interval.value) and interval.method
    assert (interval.low is None) == (interval.high is None)
    if interval.low is not None and interval.high is not None:
        assert -math.inf < interval.low <= interval.value <= interval.high < math.inf


def is_a_test(found: PairedTest) -> None:
    holds(found.difference)
    assert found.p is None or 0 <= found.p <= 1


@st.composite
def predictions(draw: st.DrawFn) -> Predictions:
    """A few clips and classes; scores and embeddings of few different values, so that there are many ties."""
    clips, classes, perceptrons = draw(st.integers(1, 7)), draw(st.integers(1, 3)), draw(st.integers(1, 2))

    def table(width: int, value: st.SearchStrategy[float]) -> np.ndarray:
        constant = draw(st.booleans())
        size = 1 if constant else clips * width
        found = draw(st.lists(value, min_size=size, max_size=size))
        return np.array(found * clips * width if constant else found, float).reshape(clips, width)

    folds = np.array(draw(st.lists(st.sampled_from(["1", "2"]), min_size=clips, max_size=clips)))
    return Predictions(
        clip_ids=np.array([str(n) for n in range(clips)]),
        classes=tuple("abc"[:classes]),
        targets_BK=table(classes, st.sampled_from([0.0, 1.0])) > 0,
        folds=folds,
        h_BD=table(2, FEW_VALUES),
        scores={
            "shallow": np.stack([table(classes, FEW_VALUES) for _ in range(perceptrons)]),
            "linear": table(classes, FEW_VALUES)[None],
            "knn": table(classes, FEW_VALUES)[None],
        },
        settings=ScoringSettings(perceptrons=perceptrons, bootstrap=draw(st.sampled_from([0, 1, 20])), qbe_clips=3),
        trained_BK=np.tile(table(classes, st.sampled_from([0.0, 1.0]))[:1] > 0, (clips, 1)),
    )


@OFTEN
@given(predictions())
def test_every_metric_lies_in_its_interval(predictions: Predictions) -> None:
    try:
        found = measure(predictions)
    except EvaluationError:
        return
    for name, interval in found.metrics.items():
        holds(interval)
        assert name not in UNIT or 0 <= interval.value <= 1
    for row in found.per_class:
        assert all(math.isfinite(value) for value in row.metrics.values())


@OFTEN
@given(predictions(), predictions())
def test_a_run_beside_another_on_the_same_clips(one: Predictions, two: Predictions) -> None:
    """Also beside itself, where nothing differs and p is 1."""
    try:
        a, b = measure(one), measure(two)
    except EvaluationError:
        return
    for name, interval in a.metrics.items():
        same = paired_bootstrap(interval.value, interval.value, a.replicates[name], a.replicates[name], 7)
        is_a_test(same)
        assert same.p in (None, 1.0)
        if name in b.metrics and len(a.replicates[name]) == len(b.replicates[name]):
            try:
                found = paired_bootstrap(
                    interval.value, b.metrics[name].value, a.replicates[name], b.replicates[name], 7
                )
            except EvaluationError:  # each is undefined where the other is defined
                continue
            is_a_test(found)


@OFTEN
@given(NUMBERS, st.lists(st.one_of(NUMBERS, st.just(math.nan)), max_size=6))
def test_a_bootstrap_interval_holds_its_metric(value: float, replicates: list[float]) -> None:
    try:
        holds(bootstrap_interval(value, np.array(replicates), 3))
    except EvaluationError:
        assert replicates and all(math.isnan(each) for each in replicates)


@OFTEN
@given(st.lists(st.tuples(NUMBERS, NUMBERS), min_size=1, max_size=6))
def test_over_seeds(pairs: list[tuple[float, float]]) -> None:
    a, b = ([pair[side] for pair in pairs] for side in (0, 1))
    holds(t_interval(a))
    found, back = paired_t(a, b), paired_t(b, a)
    is_a_test(found)
    assert found.p == back.p and found.difference.value == -back.difference.value
    assert paired_t(a, a).p in (None, 1.0)
