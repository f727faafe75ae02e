"""Compare two runs: two encoders on the same test clips, or two methods trained with the same seeds.

Legend: P perceptrons, B clips, K classes, D embedding.

An evaluation saves its predictions in RUN/evaluation/<encoder>.npz (`save_predictions`): clip ids, classes, targets,
folds, the scores of the probes, and the embeddings. A comparison reads only these files, without Ray, and recomputes
every metric on the clips that both runs evaluated.
"""

import io
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError

from sepscene.models.config import SepsceneError
from sepscene.models.files import BAD_ZIP, write_atomically
from sepscene.models.spelling import unknown
from sepscene.orchestration.records.results import EncoderResult, RunResults
from sepscene.orchestration.records.run_folder import RunFolder
from sepscene.tasks.evaluation.scores import Predictions, Scores, measure
from sepscene.tasks.evaluation.settings import ScoringSettings
from sepscene.tasks.evaluation.statistics import Interval, PairedTest, paired_bootstrap, paired_t, t_interval

TEST_CLIPS = "test manifest"
"""Key of `RunResults.data` for the digest of the clips that a run was evaluated on."""

MAX_BYTES = 8 * 2**30
"""Largest size of the arrays of one evaluation: 20,000 clips of 527 classes with D = 2048 take about 0.3 GB."""


@dataclass(frozen=True)
class MetricComparison:
    """One metric of both runs, and the test of its difference (B minus A)."""

    name: str
    a: Interval
    b: Interval
    test: PairedTest


@dataclass(frozen=True)
class ClassComparison:
    """One class in both runs: its number of positive clips, and its shallow average precision."""

    name: str
    positives: int
    a: float
    b: float


@dataclass(frozen=True)
class Comparison:
    """A comparison of two encoders or methods, A and B.

    Attributes:
        a, b: labels of the two sides.
        pairs: number of clips or seeds that both sides share.
        metrics: in the order of the evaluation; base decisions on the first, the others depend on it.
        classes: largest gain of B first; empty when comparing over seeds.
        notes: caveats for the reader.
    """

    a: str
    b: str
    pairs: int
    metrics: tuple[MetricComparison, ...]
    classes: tuple[ClassComparison, ...] = ()
    notes: tuple[str, ...] = ()


def save_predictions(scores: Scores, path: Path) -> Path:
    """Write the predictions atomically; a comparison needs nothing else."""
    predictions = scores.predictions
    arrays: dict[str, Any] = {
        "clip_ids": predictions.clip_ids,
        "classes": np.array(predictions.classes, dtype=np.str_),
        "targets": predictions.targets_BK,
        "folds": predictions.folds,
        "h": predictions.h_BD,
        "settings": np.array(predictions.settings.model_dump_json()),
        "notes": np.array(predictions.notes, dtype=np.str_),
        "trained": predictions.trained_BK,
    }
    arrays |= {f"scores_{name}": scores_PBK for name, scores_PBK in predictions.scores.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    content = io.BytesIO()
    np.savez_compressed(content, **arrays)
    write_atomically(path, content.getvalue())
    return path


def load_predictions(path: Path) -> Predictions:
    """Read predictions that `save_predictions` wrote. Nothing is unpickled.

    Raises:
        SepsceneError: when the file is missing, damaged, or not an evaluation.
    """
    try:
        with zipfile.ZipFile(path) as archive:  # zeros can expand a thousandfold when they are decompressed
            size = sum(entry.file_size for entry in archive.infolist())
        if size > MAX_BYTES:
            raise ValueError(f"its arrays take {size:,} bytes; the limit is {MAX_BYTES:,}")
        with np.load(path, allow_pickle=False) as file:
            arrays = dict(file)
        scores = {name.removeprefix("scores_"): array for name, array in arrays.items() if name.startswith("scores_")}
        if any(scores_PBK.ndim != 3 for scores_PBK in scores.values()):
            raise ValueError("an earlier version wrote it, with the scores of one perceptron only")
        predictions = Predictions(
            clip_ids=arrays["clip_ids"],
            classes=tuple(arrays["classes"].tolist()),
            targets_BK=arrays["targets"],
            folds=arrays["folds"],
            h_BD=arrays["h"],
            scores=scores,
            settings=ScoringSettings.model_validate_json(str(arrays["settings"])),
            # Files of earlier versions do not contain it: all classes count as trained.
            trained_BK=arrays.get("trained", np.ones_like(arrays["targets"])),
            notes=tuple(arrays["notes"].tolist()),
        )
        if "shallow" not in scores or not _shapes_fit(predictions):
            raise ValueError("arrays are missing, or have different numbers of clips or classes")
        return predictions
    except FileNotFoundError:
        raise SepsceneError(f"{path} does not exist: evaluate the run first with `sepscene evaluate`") from None
    except (*BAD_ZIP, ValidationError) as error:
        raise SepsceneError(f"{path} is damaged or not an evaluation ({error}): evaluate the run again") from None


def _shapes_fit(predictions: Predictions) -> bool:
    """Whether all arrays have the same clips and classes."""
    shape_B = (predictions.clip_ids.size,)
    shape_BK = (*shape_B, len(predictions.classes))
    per_clip = [predictions.clip_ids.shape, predictions.folds.shape, predictions.h_BD.shape[:1]]
    per_class = [predictions.targets_BK.shape, predictions.trained_BK.shape]
    per_class += [scores_PBK.shape[1:] for scores_PBK in predictions.scores.values()]
    return {*per_clip} == {shape_B} and {*per_class} == {shape_BK}


def compare_runs(run_a: Path, run_b: Path, encoder_a: str | None = None, encoder_b: str | None = None) -> Comparison:
    """Paired bootstrap test of run B against run A, over the clips that both evaluated.

    Args:
        encoder_a, encoder_b: name of an encoder of each run; None: the encoder that the run trained, not a baseline.
            To compare a run with its baseline, give its folder twice with two encoders.

    Raises:
        SepsceneError: when a run has no predictions, or the runs share no clips or were evaluated differently.
    """
    name_a, predictions_a = _predictions(run_a, encoder_a)
    name_b, predictions_b = _predictions(run_b, encoder_b)
    if predictions_a.settings != predictions_b.settings:
        raise SepsceneError(
            f"{name_a} and {name_b} were evaluated with different settings ({predictions_a.settings} and "
            f"{predictions_b.settings}): evaluate one of them again with the settings of the other"
        )
    predictions_a, predictions_b, notes = _paired(predictions_a, predictions_b, name_a, name_b)
    a = measure(predictions_a)
    b = measure(predictions_b)
    clips = len(predictions_a.clip_ids)
    metrics = []
    for name, metric_a in a.metrics.items():
        if name in b.metrics:
            metric_b = b.metrics[name]
            replicates = (a.replicates[name], b.replicates[name])
            test = paired_bootstrap(metric_a.value, metric_b.value, *replicates, clips)
            metrics.append(MetricComparison(name, metric_a, metric_b, test))
    classes = [
        ClassComparison(of_a.name, of_a.positives, of_a.metrics["shallow_map"], of_b.metrics["shallow_map"])
        for of_a, of_b in zip(a.per_class, b.per_class, strict=True)
        if "shallow_map" in of_a.metrics
    ]
    classes.sort(key=lambda row: row.a - row.b)
    return Comparison(name_a, name_b, clips, tuple(metrics), tuple(classes), notes)


def compare_seeds(runs_a: Sequence[Path], runs_b: Sequence[Path]) -> Comparison:
    """Paired t test of method B against method A, over the seeds that both were run with.

    Raises:
        SepsceneError: when a run has no results or no encoder, a side has two runs with the same seed, the sides share
            no seed, or the two runs of a seed were evaluated on different clips.
    """
    by_seed_a = _by_seed(runs_a)
    by_seed_b = _by_seed(runs_b)
    seeds = sorted(by_seed_a.keys() & by_seed_b.keys())
    if not seeds:
        raise SepsceneError(
            f"A and B share no seed: A has {sorted(by_seed_a)}, B has {sorted(by_seed_b)}; run both with the same seeds"
        )
    results_a, encoders_a = zip(*(by_seed_a[seed] for seed in seeds), strict=True)
    results_b, encoders_b = zip(*(by_seed_b[seed] for seed in seeds), strict=True)
    for a, b in zip(results_a, results_b, strict=True):  # test clips can differ between seeds, e.g. those of scenes
        if a.data.get(TEST_CLIPS) != b.data.get(TEST_CLIPS):
            raise SepsceneError(
                f"the runs of seed {a.seed} ({a.run_id} and {b.run_id}) were evaluated on different test clips: "
                "evaluate both on the same data"
            )
    notes = []
    left_out = sorted(by_seed_a.keys() ^ by_seed_b.keys())
    if left_out:
        notes.append(f"left out, seeds of one side only: {left_out}")
    all_metrics = [encoder.metrics for encoder in encoders_a + encoders_b]
    names = [name for name in all_metrics[0] if all(name in metrics for metrics in all_metrics)]
    lacking = sorted(set().union(*all_metrics) - set(names))
    if lacking:
        notes.append(f"left out, metrics that some runs lack: {', '.join(lacking)}")
    if len(seeds) == 1:
        notes.append("one seed: no interval and no p value; run more seeds, or compare over clips")
    compared = []
    for name in names:
        values_a = [encoder.metrics[name].value for encoder in encoders_a]
        values_b = [encoder.metrics[name].value for encoder in encoders_b]
        test = paired_t(values_a, values_b)
        compared.append(MetricComparison(name, t_interval(values_a), t_interval(values_b), test))
    label_a = f"{results_a[0].experiment}/{encoders_a[0].name}"
    label_b = f"{results_b[0].experiment}/{encoders_b[0].name}"
    return Comparison(label_a, label_b, len(seeds), tuple(compared), (), tuple(notes))


def render(comparison: Comparison, classes: int = 5) -> str:
    """The comparison as plain text: metrics with intervals, differences, p values, and the classes that changed most.

    Args:
        classes: show this many classes with the largest gain, and as many with the largest loss.
    """
    lines = [f"A  {comparison.a}", f"B  {comparison.b}", ""]
    lines.append(f"{'':12} {'A':>23} {'B':>23} {'B - A':>26}  p")
    for metric in comparison.metrics:
        test = metric.test
        cells = f"{_cell(metric.a):>23} {_cell(metric.b):>23} {_cell(test.difference, signed=True):>26}"
        lines.append(f"{metric.name:12} {cells}  {_p_value(test.p)}")
    if comparison.metrics:
        first = comparison.metrics[0]
        lines += ["", f"intervals: {first.test.difference.method}; {comparison.pairs} pairs"]
        lines.append(f"p: two-sided, null hypothesis: {first.test.null}")
        lines.append(
            f"base decisions on {first.name}: the other metrics depend on it, and with many tests some differ by chance"
        )
    lines += [f"note: {note}" for note in comparison.notes]
    if comparison.classes:
        changed = comparison.classes
        shown = changed if len(changed) <= 2 * classes else changed[:classes] + changed[-classes:]
        lines += ["", f"{'classes that changed most':40} {'clips':>5} {'A':>6} {'B':>6} {'B - A':>7}"]
        lines += [f"{c.name[:40]:40} {c.positives:5d} {c.a:6.3f} {c.b:6.3f} {c.b - c.a:+7.3f}" for c in shown]
    return "\n".join(lines)


def _p_value(p: float | None) -> str:
    if p is None:
        return "–"
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def _cell(interval: Interval, signed: bool = False) -> str:
    sign = "+" if signed else ""
    if interval.low is None or interval.high is None:
        return f"{interval.value:{sign}.3f}"
    return f"{interval.value:{sign}.3f} [{interval.low:{sign}.3f}, {interval.high:{sign}.3f}]"


def _results(run: Path, encoder: str | None = None) -> tuple[RunResults, EncoderResult]:
    """The results of a run, and of one of its encoders, with metrics; None: the encoder that the run trained."""
    results = RunResults.load(run)
    names = [found.name for found in results.encoders]
    if not names:
        raise SepsceneError(f"{run} has no evaluated encoder: evaluate it first with `sepscene evaluate`")
    if encoder is not None and encoder not in names:
        raise SepsceneError(f"{run}: {unknown(encoder, names, 'encoder')}")
    chosen = results.encoders[names.index(encoder or names[0])]
    if not chosen.metrics:
        raise SepsceneError(f"{run}: the encoder {chosen.name} has no metrics ({chosen.description})")
    return results, chosen


def _by_seed(runs: Sequence[Path]) -> dict[int, tuple[RunResults, EncoderResult]]:
    found: dict[int, tuple[RunResults, EncoderResult]] = {}
    for run in runs:
        results, encoder = _results(run)
        if results.seed in found:
            raise SepsceneError(
                f"{run} has the same seed ({results.seed}) as another run of its side: give each seed once"
            )
        found[results.seed] = (results, encoder)
    return found


def _predictions(run: Path, encoder: str | None) -> tuple[str, Predictions]:
    results, chosen = _results(run, encoder)
    label = f"{run.name}/{chosen.name} ({results.experiment}, {results.scale}, seed {results.seed})"
    return label, load_predictions(RunFolder(run).predictions(chosen.name))


def _paired(
    a: Predictions, b: Predictions, name_a: str, name_b: str
) -> tuple[Predictions, Predictions, tuple[str, ...]]:
    """The predictions of both sides for the clips that they share, in the same order.

    Raises:
        SepsceneError: when they share no clips, or their classes, labels or folds differ.
    """
    row_a, row_b = ({clip: row for row, clip in enumerate(side.clip_ids.tolist())} for side in (a, b))
    for rows, side, name in ((row_a, a, name_a), (row_b, b, name_b)):
        if len(rows) < len(side.clip_ids):
            raise SepsceneError(f"{name} evaluated several clips with the same id: make the ids in its manifest unique")
    shared = [clip for clip in row_a if clip in row_b]  # in the order of A, so that its metrics equal its report's
    if not shared:
        raise SepsceneError(f"{name_a} and {name_b} share no test clips: evaluate both on the same data")
    notes: tuple[str, ...] = ()
    if len(shared) < max(len(row_a), len(row_b)):
        notes = (f"{len(shared)} shared clips of {len(row_a)} (A) and {len(row_b)} (B)",)
    a = a.rows(np.array([row_a[clip] for clip in shared]))
    b = b.rows(np.array([row_b[clip] for clip in shared]))
    same = np.array_equal(a.targets_BK, b.targets_BK) and np.array_equal(a.folds, b.folds)
    if a.classes != b.classes or not same:
        raise SepsceneError(
            f"{name_a} and {name_b} have different classes, labels or folds for the same clips: "
            "evaluate both with the same manifest"
        )
    both_BK = a.trained_BK & b.trained_BK  # classes that the probes of both sides were trained on
    return replace(a, trained_BK=both_BK), replace(b, trained_BK=both_BK), notes
