"""Compute the metrics of a downstream task from its embeddings, with linear, shallow and nearest-neighbour probes.

Scene tasks: accuracy if each sound has one label, and mAP over the classes. Event tasks: each timestamp is labelled
with the events that are heard at that time; mAP over the timestamps, and F1 over segments of one second. A class is
predicted in a segment if the perceptron's probability exceeds 0.5 at any of its timestamps. With folds, all metrics are
means over the folds. Accuracy, F1 and average precision are scikit-learn's.

Legend: N sounds or timestamps, D embedding, K classes, P probes of a kind.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import accuracy_score, f1_score

from sepscene.tasks.datasets.downstream import Event, Task
from sepscene.tasks.evaluation.metrics import Bools, EvaluationError, Floats, mean_average_precision
from sepscene.tasks.evaluation.probes import probe_scores
from sepscene.tasks.evaluation.settings import ScoringSettings

SEGMENT_SECONDS = 1.0  # resolution of the segment-based F-score, as usual for DCASE


@dataclass(frozen=True)
class Rows:
    """The data of a task that the probes use.

    Attributes:
        h_ND: embeddings.
        targets_NK: which classes are heard.
        sound_N: the sound of the task that each row is, or belongs to.
        seconds_N: time of a timestamp in its sound; 0 in scene tasks.
    """

    h_ND: Floats
    targets_NK: Bools
    sound_N: NDArray[np.intp]
    seconds_N: Floats


def targets_at(events: Sequence[Event], seconds_N: Floats, classes: Sequence[str]) -> Bools:
    """Which classes are heard at each timestamp, (N, K): an event includes its start but not its end."""
    heard_NK = np.zeros((len(seconds_N), len(classes)), bool)
    for event in events:
        inside_N = (seconds_N >= event.start_seconds) & (seconds_N < event.end_seconds)
        heard_NK[inside_N, classes.index(event.label)] = True
    return heard_NK


def score_task(task: Task, rows: Rows, settings: ScoringSettings) -> dict[str, float]:
    """The metrics of a task by name, e.g. "linear_accuracy", "shallow_map", "shallow_segment_f1".

    Raises:
        EvaluationError: a test split has no positive example of any class.
    """
    if task.folded:
        split_N = np.array([sound.split for sound in task.sounds])[rows.sound_N]
        tested = [split_N == fold for fold in np.unique(split_N)]
    else:
        tested = [np.isin(rows.sound_N, task.tested)]
    parts = [_score_part(task, rows, test_N, settings) for test_N in tested]
    return {name: float(np.mean([part[name] for part in parts])) for name in parts[0]}


def _score_part(task: Task, rows: Rows, test_N: Bools, settings: ScoringSettings) -> dict[str, float]:
    """The metrics on some rows, with probes that are trained on the others."""
    target_NK = rows.targets_NK[test_N]
    if not target_NK.any():
        raise EvaluationError(f"task {task.name}: a test split has no labelled sound; check its splits and labels")
    scores, _ = probe_scores(rows.h_ND[~test_N], rows.targets_NK[~test_N], rows.h_ND[test_N], target_NK, settings)
    true_N = target_NK.argmax(axis=1)
    segment_N = rows.sound_N[test_N] * 10**6 + (rows.seconds_N[test_N] // SEGMENT_SECONDS).astype(np.intp)
    found: dict[str, list[float]] = defaultdict(list)
    for probe, scores_PNK in scores.items():
        for scores_NK in scores_PNK:
            found[f"{probe}_map"].append(mean_average_precision(scores_NK, target_NK).value)
            if not task.multilabel:
                found[f"{probe}_accuracy"].append(accuracy_score(true_N, scores_NK.argmax(axis=1)))
            if task.kind == "event" and probe == "shallow":
                found["shallow_segment_f1"].append(segment_f1(target_NK, scores_NK > 0, segment_N))
    return {name: float(np.mean(values)) for name, values in found.items()}


def segment_f1(targets_NK: Bools, predicted_NK: Bools, segment_N: NDArray[np.intp]) -> float:
    """Micro F1 over segments: a class is present in a segment if it is at any of the segment's timestamps."""
    segments, place_N = np.unique(segment_N, return_inverse=True)
    merged = np.zeros((2, len(segments), targets_NK.shape[1]), bool)
    np.logical_or.at(merged[0], place_N, targets_NK)
    np.logical_or.at(merged[1], place_N, predicted_NK)
    return float(f1_score(merged[0], merged[1], average="micro", zero_division=0.0))
