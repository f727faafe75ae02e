"""Comparison of runs: saved predictions are read back unchanged, clips are paired by id, differences are detected."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from sepscene.models.config import SepsceneError
from sepscene.orchestration.evaluation import compare
from sepscene.orchestration.evaluation.compare import (
    TEST_CLIPS,
    compare_runs,
    compare_seeds,
    load_predictions,
    render,
    save_predictions,
)
from sepscene.orchestration.records.results import EncoderResult, Metric, RunResults
from sepscene.orchestration.records.run_folder import RunFolder
from sepscene.tasks.evaluation.scores import Predictions, Scores, measure
from sepscene.tasks.evaluation.settings import ScoringSettings

CLASSES = ("bird", "car", "door")


def predictions(strength: float, seed: int = 0, clips: int = 80) -> Predictions:
    """Scores that are `strength` times the targets plus noise, which depends on the seed."""
    targets = np.random.default_rng(99).random((clips, len(CLASSES))) < 0.3
    noise = np.random.default_rng(seed)
    perceptrons = {"shallow": 2, "linear": 1, "knn": 1}
    scores = {p: strength * targets + noise.standard_normal((n, *targets.shape)) for p, n in perceptrons.items()}
    h = strength * targets.astype(float) + noise.standard_normal(targets.shape)
    ids = np.array([f"clip{row}" for row in range(clips)])
    settings = ScoringSettings(qbe_clips=40, bootstrap=200)
    trained = np.ones_like(targets)
    return Predictions(ids, CLASSES, targets, np.full(clips, "test"), h, scores, settings, trained, ("a note",))


def a_run(folder: Path, scores: Scores, encoder: str = "mix-chan", seed: int = 0) -> Path:
    folder.mkdir(exist_ok=True)
    save_predictions(scores, RunFolder(folder).predictions(encoder))
    metrics = {name: Metric(value=i.value, low=i.low, high=i.high) for name, i in scores.metrics.items()}
    results = RunResults(
        run_id=folder.name,
        experiment="demo",
        scale="tiny",
        seed=seed,
        started="2026-01-01T00:00:00Z",
        seconds=1.0,
        encoders=(EncoderResult(name=encoder, metrics=metrics),),
    )
    results.save(folder)
    return folder


def test_saved_predictions_are_read_back_unchanged(tmp_path: Path) -> None:
    scores = measure(predictions(1.0))
    path = save_predictions(scores, tmp_path / "deep" / "e.npz")
    read = load_predictions(path)
    assert read.settings == scores.predictions.settings and read.notes == ("a note",)
    assert read.classes == CLASSES and (read.clip_ids == scores.predictions.clip_ids).all()
    again = measure(read)
    assert again.metrics == scores.metrics and again.per_class == scores.per_class
    assert [p.name for p in path.parent.iterdir()] == ["e.npz"]


def test_in_predictions_of_an_earlier_version_all_classes_count_as_trained(tmp_path: Path) -> None:
    path = save_predictions(measure(predictions(1.0)), tmp_path / "e.npz")
    with np.load(path) as file:
        arrays = {name: file[name] for name in file.files if name != "trained"}
    np.savez(path, **arrays)
    read = load_predictions(path)
    assert read.trained_BK.all() and read.trained_BK.shape == read.targets_BK.shape


@pytest.mark.parametrize("content", [None, b"", b"text", b"PK\x03\x04 torn"])
def test_missing_or_damaged_predictions_are_refused(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "e.npz"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(SepsceneError, match="evaluate the run"):
        load_predictions(path)


def test_predictions_larger_than_the_limit_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Zeros can expand a thousandfold when they are decompressed, so the size is checked first."""
    path = save_predictions(measure(predictions(1.0)), tmp_path / "e.npz")
    monkeypatch.setattr(compare, "MAX_BYTES", 10_000)
    with pytest.raises(SepsceneError, match=r"its arrays take [\d,]+ bytes; the limit is 10,000"):
        load_predictions(path)


def test_pickled_predictions_are_not_loaded(tmp_path: Path) -> None:
    path = tmp_path / "e.npz"
    np.savez(path, clip_ids=np.array([{"a": 1}], dtype=object))
    with pytest.raises(SepsceneError, match="damaged"):
        load_predictions(path)


@pytest.mark.parametrize("name", ["h", "folds", "targets", "trained", "scores_shallow", "scores_linear"])
def test_predictions_with_arrays_of_different_lengths_are_refused(tmp_path: Path, name: str) -> None:
    path = save_predictions(measure(predictions(1.0)), tmp_path / "e.npz")
    with np.load(path) as file:
        arrays = {key: file[key] for key in file.files}
    arrays[name] = arrays[name][:, :10] if name.startswith("scores") else arrays[name][:10]
    np.savez(path, **arrays)
    with pytest.raises(SepsceneError, match="different numbers of clips or classes"):
        load_predictions(path)


def test_a_real_difference_is_found(tmp_path: Path) -> None:
    a = a_run(tmp_path / "a", measure(predictions(0.2)))
    b = a_run(tmp_path / "b", measure(predictions(2.5, seed=1)))
    comparison = compare_runs(a, b)
    by_name = {metric.name: metric for metric in comparison.metrics}
    assert set(by_name) == {"shallow_map", "d_prime", "lwlrap", "linear_map", "knn_map", "qbe_map"}
    for metric in by_name.values():
        assert metric.test.difference.value > 0
        assert metric.test.p is not None and metric.test.p < 0.02
    assert by_name["shallow_map"].a.value == RunResults.load(a).encoders[0].metrics["shallow_map"].value
    assert comparison.pairs == 80 and len(comparison.classes) == 3
    text = render(comparison)
    assert "shallow_map" in text and "bird" in text and "B - A" in text
    assert all(len(line) <= 110 for line in text.splitlines())


def test_a_run_does_not_differ_from_itself(tmp_path: Path) -> None:
    a = a_run(tmp_path / "a", measure(predictions(1.0)))
    for metric in compare_runs(a, a).metrics:
        assert metric.test.p == 1.0
        assert (metric.test.difference.low, metric.test.difference.high) == (0.0, 0.0)


def test_clips_are_paired_by_id_in_any_order(tmp_path: Path) -> None:
    one = predictions(0.5)
    other = predictions(1.0, seed=1)
    shuffled = other.rows(np.random.default_rng(0).permutation(80))
    a = a_run(tmp_path / "a", measure(one))
    in_order = compare_runs(a, a_run(tmp_path / "b", measure(other)))
    mixed = compare_runs(a, a_run(tmp_path / "c", measure(shuffled)))
    assert in_order.metrics == mixed.metrics
    fewer = compare_runs(a, a_run(tmp_path / "d", measure(shuffled.rows(np.arange(60)))))
    assert fewer.pairs == 60 and "60 shared clips of 80 (A) and 60 (B)" in fewer.notes


def test_runs_that_cannot_be_compared_are_refused(tmp_path: Path) -> None:
    base = predictions(1.0)
    a = a_run(tmp_path / "a", measure(base))
    faults = {
        "share no test clip": replace(base, clip_ids=np.char.add("other", base.clip_ids)),
        "different classes": replace(base, classes=("x", "y", "z")),
        "different classes, labels": replace(
            base,
            classes=CLASSES[:2],
            targets_BK=base.targets_BK[:, :2],
            scores={name: scores_PBK[:, :, :2] for name, scores_PBK in base.scores.items()},
            trained_BK=base.trained_BK[:, :2],
        ),
        "different settings": replace(base, settings=ScoringSettings(bootstrap=10)),
        "same id": replace(base, clip_ids=np.full(80, "same")),
    }
    for number, (message, changed) in enumerate(faults.items()):
        with pytest.raises(SepsceneError, match=message):
            compare_runs(a, a_run(tmp_path / str(number), measure(changed)))
    with pytest.raises(SepsceneError, match=r"no encoder 'mix-mix' \(did you mean mix-chan\?\)"):
        compare_runs(a, a, encoder_b="mix-mix")
    with pytest.raises(SepsceneError, match=r"results\.json"):
        compare_runs(a, tmp_path / "nowhere")


def test_seeds_are_paired(tmp_path: Path) -> None:
    runs = {
        side: [
            a_run(tmp_path / f"{side}{seed}", measure(predictions(strength, 10 * seed)), seed=seed)
            for seed in range(seeds)
        ]
        for side, strength, seeds in (("a", 0.5, 4), ("b", 1.5, 3))
    }
    comparison = compare_seeds(runs["a"], runs["b"][::-1])
    assert comparison.pairs == 3 and comparison.notes[0] == "left out, seeds of one side only: [3]"
    first = comparison.metrics[0]
    values = {
        side: [RunResults.load(run).encoders[0].metrics[first.name].value for run in runs[side][:3]] for side in runs
    }
    assert first.test.difference.value == pytest.approx(np.mean(values["b"]) - np.mean(values["a"]))
    assert first.test.p is not None and first.test.p < 0.05
    single = compare_seeds(runs["a"][:1], runs["b"][:1])
    assert single.metrics[0].test.p is None and "one seed" in single.notes[-1] and "–" in render(single)
    with pytest.raises(SepsceneError, match="A and B share no seed"):
        compare_seeds(runs["a"][:1], runs["b"][1:2])
    with pytest.raises(SepsceneError, match="give each seed once"):
        compare_seeds(runs["a"][:1] * 2, runs["b"])


def changed(run: Path, **update: object) -> Path:
    RunResults.load(run).changed(update).save(run)
    return run


def test_metrics_that_a_run_lacks_are_left_out_and_named(tmp_path: Path) -> None:
    runs = [a_run(tmp_path / str(n), measure(predictions(1.0, n)), seed=n % 2) for n in range(4)]
    encoder = RunResults.load(runs[3]).encoders[0]
    kept = {name: metric for name, metric in encoder.metrics.items() if name not in ("qbe_map", "d_prime")}
    changed(runs[3], encoders=(encoder.changed({"metrics": kept}),))
    for sides in ((runs[:2], runs[2:]), (runs[2:], runs[:2])):
        comparison = compare_seeds(*sides)
        assert {metric.name for metric in comparison.metrics} == set(kept)
        assert comparison.notes == ("left out, metrics that some runs lack: d_prime, qbe_map",)


def test_an_encoder_that_could_not_be_evaluated_is_refused_with_the_reason(tmp_path: Path) -> None:
    """It has no metrics; the message once was to evaluate it first, and a comparison over seeds was empty."""
    a = a_run(tmp_path / "a", measure(predictions(1.0)))
    reason = "not evaluated, 0 of 2 test clips have a label"
    b = a_run(tmp_path / "b", measure(predictions(1.0)))
    changed(b, encoders=(EncoderResult(name="mix-chan", description=reason, metrics={}),))
    for compared in (lambda: compare_runs(a, b), lambda: compare_seeds([b], [a])):
        with pytest.raises(SepsceneError, match=rf"b: the encoder mix-chan has no metrics \({reason}\)"):
            compared()


def test_seeds_on_different_test_clips_are_not_compared(tmp_path: Path) -> None:
    one = measure(predictions(1.0))
    fewer = measure(predictions(1.0).rows(np.arange(60)))
    a, b = (changed(a_run(tmp_path / name, one), data={TEST_CLIPS: "1"}) for name in "ab")
    other = changed(a_run(tmp_path / "other", fewer), data={TEST_CLIPS: "2"})
    with pytest.raises(SepsceneError, match=r"of seed 0 \(a and other\) were evaluated on different test clips"):
        compare_seeds([a], [other])
    # Test clips can differ between seeds: scenes are generated anew for each seed.
    more = [changed(a_run(tmp_path / name, fewer, seed=1), data={TEST_CLIPS: "3"}) for name in "cd"]
    assert compare_seeds([a, more[0]], [b, more[1]]).notes == ()
