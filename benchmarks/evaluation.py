"""Cost of an evaluation, and coverage of its intervals and error rate of its tests.

Run with `python -m benchmarks.evaluation` (about two minutes on one idle core). Prints ratios and medians of several
runs, interleaved where two methods are compared, and the number of additions.

Legend: B clips, K classes, D embedding, R resamples.
"""

import time
from collections.abc import Callable

import numpy as np
from rich.console import Console
from sklearn.metrics import average_precision_score

from sepscene.tasks.evaluation.metrics import Bools, Floats, mean_average_precision
from sepscene.tasks.evaluation.probes import knn_map
from sepscene.tasks.evaluation.resampling import resample, resampled_retrieval, resampled_scores
from sepscene.tasks.evaluation.retrieval import query_by_example
from sepscene.tasks.evaluation.settings import ScoringSettings
from sepscene.tasks.evaluation.shallow import train_perceptrons
from sepscene.tasks.evaluation.statistics import bootstrap_interval, paired_bootstrap

RESAMPLES = 1000
CASES = {"scenes": (128, 30, 0.08), "ESC-50 fold": (400, 50, 0.02), "AudioSet eval": (20_000, 527, 0.005)}
CLASSES_MEASURED = 5  # of larger cases; the time is proportional to the number of classes and scaled up

console = Console(width=130)


def seconds(function: Callable[[], object], runs: int = 3) -> float:
    """Median processor time, which depends little on other load of the machine."""
    times = []
    for _ in range(runs):
        start = time.process_time()
        function()
        times.append(time.process_time() - start)
    return float(np.median(times))


def test_set(clips: int, classes: int, prevalence: float, draw: np.random.Generator) -> tuple[Floats, Bools]:
    """Scores with unit variance whose means differ by one between positives and negatives, and the targets.

    Every class has at least one positive.
    """
    targets = draw.random((clips, classes)) < prevalence
    targets[draw.integers(0, clips, classes), np.arange(classes)] = True
    return draw.standard_normal((clips, classes)) + targets, targets


def small_set(draw: np.random.Generator, rare: int) -> tuple[Floats, Bools]:
    """128 clips and 24 classes with about 10 positives each; the first `rare` classes have one positive."""
    scores, targets = test_set(128, 24, 0.08, draw)
    scores -= targets
    targets[:, :rare] = np.arange(128)[:, None] == draw.integers(0, 128, rare)
    return scores + targets, targets


def plain_bootstrap(scores_BK: Floats, targets_BK: Bools, weights_BR: Floats) -> Floats:
    """The textbook method, resample by resample, with scikit-learn's sample weights: repeated clips count as further
    clips."""
    found = []
    for weight_B in weights_BR.T:
        present = [k for k in range(targets_BK.shape[1]) if weight_B[targets_BK[:, k]].any()]
        columns = [(targets_BK[:, k], scores_BK[:, k]) for k in present]
        found.append(np.mean([average_precision_score(*column, sample_weight=weight_B) for column in columns]))
    return np.array(found)


def cost_of_the_bootstrap() -> None:
    """Time of all resamples together against one by one, for three sizes of the test set."""
    console.print(f"[bold]Bootstrap of mAP, d' and lwlrap, {RESAMPLES} resamples[/bold]")
    draw = np.random.default_rng(0)
    for name, (clips, classes, prevalence) in CASES.items():
        measured = min(classes, CLASSES_MEASURED)
        scores, targets = test_set(clips, measured, prevalence, draw)
        weights = resample(clips, RESAMPLES)
        few = weights[:, :5]
        ours = []
        slow = []
        for _ in range(3):
            ours.append(seconds(lambda: resampled_scores(scores, targets, weights), 1))  # noqa: B023
            slow.append(seconds(lambda: plain_bootstrap(scores, targets, few), 1) * RESAMPLES / 5)  # noqa: B023
        scale = classes / measured
        console.print(
            f"  {name:14} {clips} clips x {classes} classes: {np.median(ours) * scale:8.2f} s, "
            f"{np.median(slow) / np.median(ours):5.0f}x scikit-learn's loop (mAP only), "
            f"{clips * classes * RESAMPLES / 1e9:.2f} G additions"
        )
        h = draw.standard_normal((clips, 128))
        by_example = seconds(lambda: resampled_retrieval(h, targets, weights), 1)  # noqa: B023
        console.print(f"  {'':14} query by example: {by_example * scale:8.2f} s")


def cost_of_the_probes() -> None:
    """Time of the metrics themselves."""
    console.print("[bold]Probes, h of 128 dimensions, 30 classes[/bold]")
    draw = np.random.default_rng(0)
    settings = ScoringSettings(shallow_epochs=20)
    for train, test in ((256, 128), (4096, 1024)):
        h = draw.standard_normal((train + test, 128)).astype(np.float32)
        targets = draw.random((train + test, 30)) < 0.08
        split = (h[:train], targets[:train], h[train:], targets[train:])
        console.print(
            f"  {train:5} training, {test:4} test clips: "
            f"kNN mAP {seconds(lambda: knn_map(*split)) * 1e3:.0f} ms, "  # noqa: B023
            f"query by example {seconds(lambda: query_by_example(*split[2:])) * 1e3:.0f} ms, "  # noqa: B023
            f"five perceptrons {seconds(lambda: train_perceptrons(*split[:3], settings), 1):.1f} s"  # noqa: B023
        )


def coverage_of_the_intervals(rare: int, trials: int = 60, resamples: int = 200) -> None:
    """How often the 95 % interval of one test set contains the mean over many, and the error rate of the test."""
    console.print(f"[bold]Coverage: 128 clips, 24 classes, about 10 positives each, one positive in {rare}[/bold]")
    draw = np.random.default_rng(1)
    sets = [small_set(draw, rare) for _ in range(trials)]
    values = np.array([mean_average_precision(*one).value for one in sets])
    # The true mean is estimated from further test sets, not from those whose intervals are counted.
    fresh = (small_set(draw, rare) for _ in range(5 * trials))
    truth = float(np.mean([mean_average_precision(*one).value for one in fresh]))
    weights = [resample(128, resamples, seed) for seed in range(trials)]
    ways = {
        "ours": [resampled_scores(*one, weight).map_R for one, weight in zip(sets, weights, strict=True)],
        "plain": [plain_bootstrap(*one, weight) for one, weight in zip(sets[:12], weights[:12], strict=True)],
    }
    for way, replicates in ways.items():
        found = [bootstrap_interval(v, r, 128) for v, r in zip(values[: len(replicates)], replicates, strict=True)]
        held = np.mean([(i.low or 0) <= truth <= (i.high or 1) for i in found])
        bias = np.mean([r.mean() - v for v, r in zip(values[: len(replicates)], replicates, strict=True)])
        console.print(
            f"  {way:6} contains the mean of fresh test sets ({truth:.3f}) in {held:.0%} of {len(found)}; "
            f"bias of the resamples: {bias:+.3f}"
        )
    console.print(f"  paired test of two equally good runs: p < 0.05 in {null_rate(trials * 4, resamples, rare):.1%}")


def null_rate(trials: int, resamples: int, rare: int) -> float:
    """Share of tests with p < 0.05 when two encoders rank the same clips equally well."""
    draw = np.random.default_rng(2)
    found = []
    for trial in range(trials):
        scores, targets = small_set(draw, rare)
        other = draw.standard_normal(scores.shape) + targets
        weights = resample(128, resamples, trial)
        value_a, value_b = (mean_average_precision(x, targets).value for x in (scores, other))
        replicates_a, replicates_b = (resampled_scores(x, targets, weights).map_R for x in (scores, other))
        found.append(paired_bootstrap(value_a, value_b, replicates_a, replicates_b, 128).p)
    return float(np.mean([p is not None and p < 0.05 for p in found]))


if __name__ == "__main__":
    cost_of_the_bootstrap()
    cost_of_the_probes()
    for rare in (0, 12):
        coverage_of_the_intervals(rare)
