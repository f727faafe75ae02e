"""Judging encoders and separators over a manifest, with Ray Data for the forward passes.

Shapes: N clips, T samples, D embedding, S channels.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import ray.data
import torch
from ray.data import ActorPoolStrategy

from augment.audio import AudioFormat, ClipError, read_clip
from models import load_encoder, load_separator
from orchestration.config import Experiment
from orchestration.stream import finite_retries
from orchestration.streamed import blocks_of
from tasks.manifests import Manifest
from tasks.separation_scores import SeparatorScores, score_separation

logger = logging.getLogger("sepscene")

EMBED_ROWS = 8


@dataclass(frozen=True)
class Embeddings:
    """Representations of the clips of a manifest that could be read."""

    h_ND: np.ndarray
    position_N: np.ndarray
    """Which clip of the manifest each row is."""


class EmbedClips:
    """Maps clips to the h of several encoders; a clip that can't be read becomes a row with a `fault`."""

    def __init__(self, bundles: Mapping[str, str], audio: AudioFormat, device: str) -> None:
        self.encoders = {name: load_encoder(bundle).to(device) for name, bundle in bundles.items()}
        self.audio, self.device = audio, device

    def __call__(self, columns: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """`uri`, `offset_seconds`, `position` in; `position`, `fault` and h:<name> (N, D) float32 out."""
        wave_NT = np.zeros((len(columns["uri"]), self.audio.samples), np.float32)
        fault_N = np.array([""] * len(wave_NT), object)
        for n, (uri, offset) in enumerate(zip(columns["uri"], columns["offset_seconds"], strict=True)):
            try:
                wave_NT[n] = read_clip(str(uri), self.audio, float(offset))
            except ClipError as error:
                fault_N[n] = error.cause
        with torch.inference_mode():
            wave = torch.from_numpy(wave_NT).to(self.device)
            h = {f"h:{name}": encoder(wave).float().cpu().numpy() for name, encoder in self.encoders.items()}
        return {**h, "position": columns["position"], "fault": fault_N}


def embed_manifests(
    bundles: Mapping[str, Path], manifests: Sequence[Manifest], experiment: Experiment, progress: Callable[[int], None]
) -> tuple[dict[str, Embeddings], ...]:
    """Embed every clip of some manifests with several encoders at once: each clip is decoded a single time.

    One pass serves all manifests, because starting the actors takes longer than embedding a small one.
    Clips that can't be read are left out and logged with their reason.

    Returns:
        For each manifest its embeddings by the name of the encoder.
    """
    resources = experiment.resources
    clips = pa.concat_tables([manifest.clips.select(["uri", "offset_seconds"]) for manifest in manifests])
    table = clips.append_column("position", [np.arange(len(clips))])
    options: dict[str, Any] = {"num_gpus": resources.separation_gpus} if resources.separation_gpus else {}
    paths = {name: str(bundle.resolve()) for name, bundle in bundles.items()}
    rows = (
        ray.data.from_arrow(table)
        .repartition(target_num_rows_per_block=EMBED_ROWS)
        .map_batches(
            EmbedClips,
            fn_constructor_args=(paths, experiment.audio, "cuda" if options else "cpu"),
            batch_size=EMBED_ROWS,
            compute=ActorPoolStrategy(size=resources.separation_actors),
            num_cpus=resources.separation_cpus,
            ray_remote_args_fn=finite_retries,
            **options,
        )
    )
    parts: list[dict[str, np.ndarray]] = []
    for part in blocks_of(rows):
        parts.append(part)
        progress(sum(len(done["position"]) for done in parts))
    columns = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    order = np.argsort(columns["position"])
    readable_N = order[columns["fault"][order] == ""]
    uris = clips["uri"].to_pylist()
    for n in np.flatnonzero(columns["fault"] != ""):
        logger.warning("%s is left out of the evaluation: %s", uris[columns["position"][n]], columns["fault"][n])
    ends = np.cumsum([len(manifest.clips) for manifest in manifests])
    parts_N = np.split(readable_N, np.searchsorted(columns["position"][readable_N], ends[:-1]))
    return tuple(
        {
            name: Embeddings(columns[f"h:{name}"][rows_N], columns["position"][rows_N] - (end - len(manifest.clips)))
            for name in bundles
        }
        for manifest, end, rows_N in zip(manifests, ends, parts_N, strict=True)
    )


def score_separator(folder: str, manifest: Manifest, audio: AudioFormat, mixtures: int) -> SeparatorScores:
    """The scores of a separator's folder on a manifest's clips."""
    clips = list(zip(manifest.clips["uri"].to_pylist(), manifest.clips["offset_seconds"].to_pylist(), strict=True))
    return score_separation(load_separator(folder), clips, audio, mixtures)
