"""Metrics with intervals of an encoder from its embeddings, and of each checkpoint of a ladder.

Shapes: N clips or mixtures, D embedding, R resamples.
"""

import logging
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import numpy as np

from sepscene.models.card import read_card
from sepscene.models.separators.folder import load_separator
from sepscene.orchestration.config import Experiment
from sepscene.orchestration.evaluation.compare import save_predictions
from sepscene.orchestration.evaluation.embed_manifest import Embeddings
from sepscene.orchestration.records.results import ClassResult, EncoderResult, Metric, ProcessorResult, metric_of
from sepscene.orchestration.records.run_folder import RunFolder
from sepscene.tasks.datasets.readers import Manifest
from sepscene.tasks.evaluation.metrics import NothingToEvaluate
from sepscene.tasks.evaluation.probes import embedding_map
from sepscene.tasks.evaluation.resampling import resample
from sepscene.tasks.evaluation.scores import cross_validate, score_embeddings
from sepscene.tasks.evaluation.separation_scores import score_separation
from sepscene.tasks.evaluation.shortcuts import find_shortcuts
from sepscene.tasks.evaluation.statistics import bootstrap_interval

logger = logging.getLogger("sepscene")

_MAP_CLIPS = 400  # points in the report's map of the embedding; more would hide each other
MIN_CLIPS = 20
"""Fewest clips from which it is estimated how much of h background and level explain."""
LEAK = (
    "cross-validated over the folds: no probe has seen the labels of the fold it is tested on, but separator and "
    "encoder were trained on all clips, without labels"
)
"""Caveat of cross-validated metrics."""


def score_encoder(
    name: str, train: Embeddings, test: Embeddings, experiment: Experiment, run_dir: Path
) -> EncoderResult:
    """All metrics of one encoder; saves its predictions in RUN/evaluation/<name>.npz for comparisons.

    If the experiment evaluates by folds, training and test clips are the same, and the probes are cross-validated over
    their splits. If the labels allow no evaluation, the result has no metrics, and its description gives the reason.
    """
    clips = test.manifest.clips
    ids = clips["clip_id"].to_pylist()
    settings = experiment.evaluation.scoring
    tested = (test.h_ND, test.manifest.targets())
    try:
        if experiment.data.by_folds:
            scores = cross_validate(*tested, clips["split"].to_pylist(), test.manifest.classes, settings, ids)
        else:
            trained = (train.h_ND, train.manifest.targets())
            scores = score_embeddings(*trained, *tested, test.manifest.classes, settings, ids)
    except NothingToEvaluate as error:
        logger.warning("%s is not evaluated: %s", name, error)
        return EncoderResult(name=name, description=f"not evaluated, {error}", metrics={}, map_2d=_map_2d(test))
    notes = [LEAK, *scores.notes] if experiment.data.by_folds else scores.notes
    save_predictions(scores, RunFolder(run_dir).predictions(name))
    return EncoderResult(
        name=name,
        description="; ".join(notes),
        metrics={key: metric_of(interval) for key, interval in scores.metrics.items()},
        classes=tuple(
            ClassResult(
                name=row.name,
                positives=row.positives,
                **{f"{probe}_ap": row.metrics.get(f"{probe}_map") for probe in ("shallow", "linear", "qbe")},
            )
            for row in scores.per_class
        ),
        map_2d=_map_2d(test),
        replicates=tuple(np.round(scores.replicates["shallow_map"], 5).tolist()),
        diagnostics=_diagnostics(train, test, experiment.data.by_folds),
    )


def _diagnostics(train: Embeddings, test: Embeddings, by_folds: bool) -> dict[str, float]:
    """How much of h background and level explain. With folds, half of the clips explain the other half."""
    some = slice(0, None, 2) if by_folds else slice(None)
    others = slice(1, None, 2) if by_folds else slice(None)
    if len(train.h_ND[some]) < MIN_CLIPS:
        return {}
    found = find_shortcuts(train.features.of(some), train.h_ND[some], test.features.of(others), test.h_ND[others])
    return {name: round(value, 4) for name, value in asdict(found).items()}


def score_processors(ladder: Mapping[str, str], test: Manifest, experiment: Experiment) -> list[ProcessorResult]:
    """Score every checkpoint of a ladder (name -> folder) on mixtures of held-out clips, and on known sources."""
    clips = list(zip(test.clips["uri"].to_pylist(), test.clips["offset_seconds"].to_pylist(), strict=True))
    mixtures = experiment.evaluation.separator_mixtures
    results = []
    for name, folder in ladder.items():
        card = read_card(folder)
        scores = score_separation(load_separator(folder), clips, experiment.audio, mixtures)
        results.append(
            ProcessorResult(
                name=name,
                step=int(card.metadata.get("step", 0)),
                digest=card.digest,
                si_sdr_improvement_db=_mean_metric(scores.improvement_db),
                source_improvement_db=_mean_metric(scores.source_improvement_db),
                mixit_loss=_mean_metric(scores.loss),
            )
        )
    return results


def _mean_metric(values_N: np.ndarray) -> Metric | None:
    values_N = values_N[np.isfinite(values_N)]
    if not len(values_N):
        return None
    weights_NR = resample(len(values_N))
    return metric_of(bootstrap_interval(float(values_N.mean()), values_N @ weights_NR / len(values_N), len(values_N)))


def _map_2d(test: Embeddings) -> tuple[tuple[float, float, str], ...]:
    points = embedding_map(test.h_ND[:_MAP_CLIPS])
    labels = test.manifest.clips["labels"].slice(0, _MAP_CLIPS).to_pylist()
    return tuple((float(x), float(y), (some or [""])[0]) for (x, y), some in zip(points, labels, strict=True))
