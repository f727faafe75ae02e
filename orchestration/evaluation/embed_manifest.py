"""Embeddings of the clips of manifests; Ray Data runs the forward passes.

Shapes: N clips, D embedding.
"""

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import ray.data

from sepscene.augment.audio import AudioFormat
from sepscene.models.trust import trust_variables
from sepscene.orchestration.config import Experiment
from sepscene.orchestration.evaluation.embed_clips import EmbedClips
from sepscene.orchestration.runtime.actor_pools import finite_retries, separation_pool
from sepscene.orchestration.runtime.allocator import allocator_variables
from sepscene.orchestration.runtime.placement import actor_demand
from sepscene.orchestration.runtime.ray_compat import blocks_of
from sepscene.tasks.datasets.readers import Manifest
from sepscene.tasks.evaluation.shortcuts import ClipFeatures

logger = logging.getLogger("sepscene")

CLIPS_PER_CALL = 8
"""Clips per block, and per call of an embedding actor."""


@dataclass(frozen=True)
class Embeddings:
    """Representations h of the clips of a manifest that could be read."""

    h_ND: np.ndarray
    manifest: Manifest
    """Only these clips."""
    features: ClipFeatures
    """Their background and level."""


def embed_manifests(
    bundles: Mapping[str, Path], manifests: Sequence[Manifest], experiment: Experiment, progress: Callable[[int], None]
) -> tuple[dict[str, Embeddings], ...]:
    """Embed every clip of several manifests with all encoders in one pass, so that each clip is decoded once.

    All manifests share one pass, because starting the actors takes longer than embedding a small manifest. The actors
    request the same resources as the separation actors. Clips that cannot be read are left out and logged with their
    reason.

    This process keeps the embeddings of all clips in memory, N x D float32 per encoder, and a copy of the readable
    ones: 2 million clips at D = 128 take 1 GB per encoder and copy.

    Args:
        bundles: name of each encoder -> folder of its bundle.
        progress: called with the number of clips embedded so far.

    Returns:
        The embeddings of each manifest, by the name of the encoder.
    """
    resources = experiment.resources
    clips = pa.concat_tables([manifest.clips.select(["uri", "offset_seconds"]) for manifest in manifests])
    table = clips.append_column("position", [np.arange(len(clips))])
    paths = {name: str(bundle.resolve()) for name, bundle in bundles.items()}
    rows = (
        ray.data.from_arrow(table)
        .repartition(target_num_rows_per_block=CLIPS_PER_CALL)
        .map_batches(
            EmbedClips,
            fn_constructor_args=(paths, experiment.audio, "cuda" if resources.separation_gpus else "cpu"),
            batch_size=CLIPS_PER_CALL,
            compute=separation_pool(resources),
            ray_remote_args_fn=finite_retries,
            runtime_env={"env_vars": allocator_variables() | trust_variables()},
            **actor_demand(resources).ray_options(),
        )
    )
    columns = _by_position(blocks_of(rows), len(clips), progress)
    fault_N = columns["fault"]
    for n in np.flatnonzero(fault_N != ""):
        logger.warning("%s is left out of the evaluation: %s", clips["uri"][n], fault_N[n])
    _warn_about_clips(columns, experiment.audio)
    ends = np.cumsum([len(manifest) for manifest in manifests])
    return tuple(_readable(columns, bundles, *part) for part in zip(manifests, ends, strict=True))


def _by_position(
    blocks: Iterable[dict[str, np.ndarray]], clips: int, progress: Callable[[int], None]
) -> dict[str, np.ndarray]:
    """The columns of `EmbedClips`, (N,) or (N, D), in the order of the clips; the blocks can be in any order."""
    columns: dict[str, np.ndarray] = {"fault": np.full(clips, "its block was lost", object)}
    done = 0
    for block in blocks:
        for name, values in block.items():
            if name not in columns:
                columns[name] = np.zeros((clips, *values.shape[1:]), values.dtype)
            columns[name][block["position"]] = values
        done += len(block["position"])
        progress(done)
    return columns


def _warn_about_clips(columns: Mapping[str, np.ndarray], audio: AudioFormat) -> None:
    """Log how many clips are silent, and how many are shorter than the window."""
    read_N = columns["fault"] == ""
    silent = int(columns["silent"].sum())
    short = int((read_N & (columns["samples"] < audio.samples)).sum())
    if silent:
        logger.warning("%d of %d evaluated clips are silent: every sample is 0", silent, int(read_N.sum()))
    if short:
        text = "%d of %d evaluated clips are shorter than audio.clip_seconds (%g s): embedded without padding"
        logger.warning(text, short, int(read_N.sum()), audio.clip_seconds)


def _readable(
    columns: Mapping[str, np.ndarray], names: Iterable[str], manifest: Manifest, end: int
) -> dict[str, Embeddings]:
    """The embeddings of the readable clips of a manifest, whose rows end at `end`, by the name of the encoder."""
    start = end - len(manifest)
    rows_N = start + np.flatnonzero(columns["fault"][start:end] == "")
    readable = replace(manifest, clips=manifest.clips.take(rows_N - start))
    features = ClipFeatures(columns["background"][rows_N], columns["level"][rows_N])
    return {name: Embeddings(columns[f"h:{name}"][rows_N], readable, features) for name in names}
