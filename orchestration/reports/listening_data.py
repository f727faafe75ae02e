"""The content of a run's listening page: separated held-out clips, and the nearest neighbours of an encoder.

Shapes: B test clips, D embedding, K classes (of `targets_BK`) or sources of a scene, T samples.
"""

import csv
from pathlib import Path

import numpy as np
import torch

from sepscene.augment.audio import AudioFormat, ClipError, read_clip
from sepscene.augment.synthetic.sources import read_sources, scenes_manifest
from sepscene.models.separators.folder import load_separator
from sepscene.orchestration.evaluation.compare import load_predictions
from sepscene.orchestration.records.results import ProcessorResult
from sepscene.orchestration.records.run_folder import RunFolder
from sepscene.orchestration.reports.listening_page import Neighbour, PageScene, Query, write_listening_page
from sepscene.tasks.datasets.readers import Manifest

SCENES = 4
QUERIES = 3
NEIGHBOURS = 4


def listening_page(
    run_dir: Path,
    test: Manifest,
    audio: AudioFormat,
    ladder: dict[str, str],
    processors: list[ProcessorResult],
    encoder: str | None = None,
    has_report: bool = False,
) -> Path:
    """Write RUN/listen.html.

    Args:
        run_dir: the run's folder; it contains the predictions of `encoder`, if one was evaluated.
        test: held-out clips.
        audio: rate and length of the clips.
        ladder: processor name -> separator folder.
        processors: the evaluation of each processor.
        encoder: name of the encoder for the queries; None: no queries.
        has_report: whether to link to RUN/report.html, which is written after this page.
    """
    separators = {name: load_separator(folder) for name, folder in ladder.items()}
    scenes = []
    for clip in test.clips.slice(0, SCENES).to_pylist():
        try:
            wave_T = read_clip(clip["uri"], audio, clip["offset_seconds"])
        except ClipError:
            continue  # it is listed in the ledger or by the evaluation
        with torch.inference_mode():
            separated = {name: net(torch.from_numpy(wave_T)[None])[0].numpy() for name, net in separators.items()}
        sources_KT = _sources(clip["uri"], len(wave_T))
        names = () if sources_KT is None else _source_labels(Path(clip["uri"]))
        scenes.append(PageScene(clip["clip_id"], wave_T, separated, tuple(clip["labels"]), sources_KT, names))
    queries = _queries(run_dir, test, audio, encoder) if encoder else []
    return write_listening_page(run_dir, scenes, processors, audio.sample_rate, queries, has_report)


def _sources(uri: str, samples: int) -> np.ndarray | None:
    """The true sources of a synthetic scene, cut to the clip; None for other sound."""
    try:
        return read_sources(uri)[:, :samples]
    except ClipError:
        return None


def _source_labels(path: Path) -> tuple[str, ...]:
    """The label of each true source, from the table next to the split's folder; empty without a table."""
    table = scenes_manifest(path.parent.parent, path.parent.name)
    if not table.exists():
        return ()
    with table.open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if Path(row["uri"]).name == path.name]
    return tuple(rows[0]["source_labels"].split(";")) if rows and rows[0].get("source_labels") else ()


def _queries(run_dir: Path, test: Manifest, audio: AudioFormat, encoder: str) -> list[Query]:
    """Clips of the most frequent classes with their nearest neighbours by cosine distance of h."""
    predictions = load_predictions(RunFolder(run_dir).predictions(encoder))
    clips = {clip["clip_id"]: clip for clip in test.clips.to_pylist()}

    def clip_of(b: int) -> tuple[str, np.ndarray, tuple[str, ...]]:
        clip = clips[str(predictions.clip_ids[b])]
        return clip["clip_id"], read_clip(clip["uri"], audio, clip["offset_seconds"]), tuple(clip["labels"])

    unit_BD = predictions.h_BD / np.maximum(np.linalg.norm(predictions.h_BD, axis=1, keepdims=True), 1e-12)
    queries: list[Query] = []
    used: set[int] = set()
    for k in np.argsort(-predictions.targets_BK.sum(axis=0))[:QUERIES]:
        positives = [int(b) for b in np.flatnonzero(predictions.targets_BK[:, k]) if b not in used]
        if not positives:
            continue
        query = positives[0]
        used.add(query)
        distance_B = 1 - unit_BD @ unit_BD[query]
        nearest = [int(b) for b in np.argsort(distance_B) if b != query][:NEIGHBOURS]
        found = [Neighbour(*clip_of(b), float(distance_B[b]), bool(predictions.targets_BK[b, k])) for b in nearest]
        queries.append(Query(*clip_of(query), tuple(found), predictions.classes[k]))
    return queries
