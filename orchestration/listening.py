"""What there is to hear in a finished run: held-out clips through its ladder, and its encoder's nearest neighbours.

Works on the run's folder and data alone, in one process without Ray: it is a few clips.

Shapes: N clips, T samples, D embedding.
"""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from augment.audio import AudioFormat, ClipError, read_clip
from augment.scenes import read_sources
from models import load_encoder
from models.separation import fast_separator
from models.separators import load_separator
from orchestration.listen import Neighbour, Query, Scene, write_listening_page
from orchestration.results import ProcessorResult
from tasks.manifests import Manifest

SCENES = 3
QUERIES = 3
NEIGHBOURS = 5
SEARCHED_CLIPS = 120


def listen_to_run(
    run_dir: Path,
    title: str,
    audio: AudioFormat,
    test: Manifest,
    processors: Mapping[str, str],
    ladder: Sequence[ProcessorResult],
) -> Path:
    """Write RUN/listen.html from the run's test clips, its ladder and, where there is one, its encoder.

    Args:
        run_dir: a run whose encoder is in RUN/encoder.
        title: of the page, e.g. experiment and scale.
        audio: as in the run's configuration.
        test: clips that no training has heard.
        processors: name -> folder of every separator of the ladder.
        ladder: the same processors with their steps, as in results.json.

    Returns:
        The path of the page.
    """
    scenes = separated_scenes(test, audio, processors)
    encoder = run_dir / "encoder"
    queries = nearest_clips(test, audio, encoder) if encoder.exists() else []
    return write_listening_page(run_dir, scenes, ladder, audio.sample_rate, queries, title)


def separated_scenes(test: Manifest, audio: AudioFormat, processors: Mapping[str, str]) -> list[Scene]:
    """Clips from all over the test split, separated by every processor; with true sources where they are kept."""
    separators = {name: fast_separator(load_separator(folder)) for name, folder in processors.items()}
    scenes = []
    for clip in _spread(test, SCENES if processors else 0):
        try:
            mixture_T = read_clip(clip["uri"], audio, clip["offset_seconds"])
        except ClipError:
            continue  # the evaluation names it
        with torch.inference_mode():
            mixture_BT = torch.from_numpy(mixture_T)[None]
            separated = {name: separator(mixture_BT)[0].numpy() for name, separator in separators.items()}
        sources_KT, names = _sources(clip["uri"], len(mixture_T))
        scenes.append(Scene(clip["clip_id"], mixture_T, separated, tuple(clip["labels"]), sources_KT, names))
    return scenes


def nearest_clips(test: Manifest, audio: AudioFormat, encoder_dir: Path) -> list[Query]:
    """Query by example by ear: each query's nearest clips by cosine distance of h, among at most `SEARCHED_CLIPS`."""
    encoder = load_encoder(encoder_dir)
    clips, waves = [], []
    for clip in _spread(test, SEARCHED_CLIPS):
        try:
            waves.append(read_clip(clip["uri"], audio, clip["offset_seconds"]))
        except ClipError:
            continue
        clips.append(clip)
    if len(clips) < 2:
        return []
    with torch.inference_mode():
        h_ND = torch.cat([encoder(torch.from_numpy(wave_T)[None]) for wave_T in waves]).double().numpy()
    unit_ND = h_ND / np.maximum(np.linalg.norm(h_ND, axis=1, keepdims=True), 1e-12)
    distance_NN = 1 - unit_ND @ unit_ND.T
    queries = []
    for query in np.linspace(0, len(clips) - 1, min(QUERIES, len(clips))).round().astype(int):
        nearest = [n for n in np.argsort(distance_NN[query], kind="stable") if n != query][:NEIGHBOURS]
        neighbours = tuple(
            Neighbour(
                name=clips[n]["clip_id"],
                wave_T=waves[n],
                labels=tuple(clips[n]["labels"]),
                distance=float(distance_NN[query, n]),
                relevant=bool(set(clips[n]["labels"]) & set(clips[query]["labels"])),
            )
            for n in nearest
        )
        queries.append(Query(clips[query]["clip_id"], waves[query], tuple(clips[query]["labels"]), neighbours))
    return queries


def _spread(manifest: Manifest, count: int) -> list[dict]:
    """At most `count` clips, evenly from the whole manifest."""
    positions = np.linspace(0, len(manifest) - 1, min(count, len(manifest))).round().astype(int)
    return manifest.clips.take(positions).to_pylist()


def _sources(uri: str, samples: int) -> tuple[np.ndarray | None, tuple[str, ...]]:
    """The sources of a synthetic scene and their labels; none for any other clip."""
    try:
        sources_KT = read_sources(uri)
    except FileNotFoundError:
        return None, ()
    if sources_KT.shape[1] != samples:
        return None, ()  # the run crops or resamples its scenes: the sources no longer lie under the clip
    return sources_KT, _source_labels(Path(uri))


def _source_labels(path: Path) -> tuple[str, ...]:
    """From the split's table, e.g. test.csv beside the folder test."""
    table = path.parent.with_suffix(".csv")
    if not table.exists():
        return ()
    with table.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            if Path(row["uri"]).name == path.name:
                return tuple(row.get("source_labels", "").split(";"))
    return ()
