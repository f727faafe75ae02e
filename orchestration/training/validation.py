"""Validation during training: how well the encoder of a step separates the classes, by a k-NN probe.

See docs/training.md. The labelled clips are chosen from the TRAINING split, never from the test split, by the hash of
their names, hence the same for every seed, trial and restart.

Readers of the metrics (MLflow, the report, Tune trials) can rely on this: each validation adds one record to
RUN/metrics.jsonl,

    {"stage": "pretrain-mix-chan", "seconds": …, "step": 60, "validation_knn_map": 0.31, "validation_seconds": 4.2}

- It comes after the record of that step's losses. Unlike that one, it has no field "rows".
- Steps are in order. After a restart, a step can occur twice; then the last record is valid.
- When training has ended, there is a record of the last step. If its validation failed, it is an "event" record.

Shapes: N clips, K classes, D embedding.
"""

import copy
import hashlib
import json
import shutil
import tempfile
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import ray.train
import torch

from sepscene.augment.audio import ClipError, read_sound
from sepscene.models.config import SepsceneError
from sepscene.models.encoders.encoder import Encoder, load_encoder, save_encoder, update_card
from sepscene.models.files import replace_folder
from sepscene.orchestration.config import Experiment
from sepscene.orchestration.records.files import read_typed, write_text_atomically
from sepscene.orchestration.records.run_folder import StageFolder
from sepscene.orchestration.training.hooks import Hook, Step
from sepscene.orchestration.training.pretrainer import Pretrainer
from sepscene.tasks.datasets.readers import Manifest
from sepscene.tasks.evaluation.embed_sounds import embed_sounds

METRIC = "validation_knn_map"
QUERY_EVERY = 4  # every fourth clip is a query, and the others are its possible neighbours
BATCH_CLIPS = 8  # clips that are embedded at a time, to limit the memory


@dataclass(frozen=True, eq=False)
class ProbeClips:
    """The labelled clips of a validation: queries, and the clips among which their neighbours are searched."""

    uris: list[str]
    offsets: list[float]
    targets_NK: np.ndarray
    query_N: np.ndarray
    """bool: which clips are queries."""


def choose_probe(manifest: Manifest, count: int) -> ProbeClips:
    """The clips of a validation: at most `count` of the training clips with a label.

    Raises:
        SepsceneError: when no class has both a query and another clip.
    """
    targets_NK = manifest.targets()
    names = manifest.clips["clip_id"].to_pylist()
    labelled = np.flatnonzero(targets_NK.any(1)).tolist()
    chosen = sorted(labelled, key=lambda n: hashlib.sha256(names[n].encode()).digest())[:count]
    query_N = np.arange(len(chosen)) % QUERY_EVERY == 0
    targets_NK = targets_NK[chosen]
    known_K = targets_NK[query_N].any(0) & targets_NK[~query_N].any(0)
    if not known_K.any():
        raise SepsceneError(
            f"validation needs labelled training clips, and a class with several: {len(labelled)} of {len(names)} "
            "clips have a label; set training.validation_every_steps to 0, or raise training.validation_clips"
        )
    clips = manifest.clips.select(["uri", "offset_seconds"]).take(chosen).to_pydict()
    return ProbeClips(clips["uri"], clips["offset_seconds"], targets_NK[:, known_K], query_N)


def validation_of(experiment: Experiment, manifest: Manifest, folder: StageFolder) -> ray.train.ValidationConfig | None:
    """The configuration by which Ray Train validates a stage; None if the experiment has no validation.

    Raises:
        SepsceneError: as `choose_probe`.
    """
    if not experiment.training.validation_every_steps:
        return None
    clips = choose_probe(manifest, experiment.training.validation_clips)
    resources = experiment.resources
    return ray.train.ValidationConfig(
        fn=partial(validate, experiment=experiment, clips=clips, folder=folder),
        ray_remote_kwargs={"num_cpus": resources.validation_cpus, "num_gpus": resources.validation_gpus},
    )


class ValidationHook(Hook):
    """Passes encoders to the validation: writes each in a thread, then attaches it to a later report. For rank 0 only.

    Ray only stores the encoder, as a bundle, and not the checkpoints from which a run continues.
    """

    def __init__(self, worker: Pretrainer) -> None:
        self.worker = worker
        self.every = worker.experiment.training.validation_every_steps
        """0: no validation."""
        self.last_step = worker.last_step
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="validation-bundle")
        self._bundle: Future[Path] | None = None
        """The bundle of step `_step`, until it is reported."""
        self._step = 0

    def needs_report(self, number: int) -> bool:
        """At steps whose encoder is validated, because the previous one must be reported by then."""
        return self.every > 0 and (number % self.every == 0 or number == self.last_step)

    def after_step(self, step: Step) -> None:
        """Attach the written encoder to the report, and start to write the next one."""
        due = self.needs_report(step.number)
        if step.reported:
            self._attach(step, wait=due)
        if due and not step.fatal:
            self._step = step.number
            encoder = copy.deepcopy(
                self.worker.encoder()
            ).cpu()  # a copy, because training continues while it is written
            self._bundle = self._writer.submit(_write_bundle, encoder, step.number)

    def at_end(self, last: Step) -> None:
        """Attach the last encoder to the last report."""
        self._attach(last, wait=True)

    def _attach(self, step: Step, wait: bool) -> None:
        """Add the options by which `ray.train.report` stores and validates an encoder, if one is ready."""
        if self._bundle is None or not (wait or self._bundle.done()):
            return
        try:
            step.report_options |= {
                "checkpoint": ray.train.Checkpoint.from_directory(self._bundle.result()),
                "checkpoint_upload_mode": ray.train.CheckpointUploadMode.ASYNC,
                "validation": ray.train.ValidationTaskConfig(fn_kwargs={"step": self._step}),
            }
        except Exception as error:  # it could not be written
            step.events.append(f"step {self._step} is not validated: {error}")
        self._bundle = None


def _write_bundle(encoder: Encoder, step: int) -> Path:
    folder = Path(tempfile.mkdtemp(prefix="sepscene-validation-"))
    save_encoder(encoder, folder, {"title": f"step {step}", "steps": step})
    return folder


def validate(
    checkpoint: ray.train.Checkpoint, step: int, experiment: Experiment, clips: ProbeClips, folder: StageFolder
) -> dict[str, float]:
    """Evaluate an encoder, write the record for the metrics file, and keep the encoder if it is the best so far.

    Ray runs it on any node with free resources. A failure must not end the training: it is reported as an event.
    """
    started = time.perf_counter()
    metrics: dict[str, float] = {}
    record: dict[str, Any]
    try:
        with checkpoint.as_directory() as bundle:
            metrics = {METRIC: probe(load_encoder(bundle), clips, experiment)}
            keep_best(folder, Path(bundle), step, metrics[METRIC])
        record = {**metrics, "validation_seconds": round(time.perf_counter() - started, 3)}
    except Exception as error:
        record = {"event": f"the validation of step {step} failed: {type(error).__name__}: {error}"}
    write_text_atomically(folder.validation(step), json.dumps({"step": step, **record}))
    return metrics


def probe(encoder: Encoder, clips: ProbeClips, experiment: Experiment) -> float:
    """mAP of the queries, by the votes of their nearest neighbours. Clips that cannot be read are left out.

    Raises:
        EvaluationError: for NaN embeddings, or when no class has both a query and another clip.
    """
    # Imported here because it imports scikit-learn, which the trainers, which import this module too, do not need.
    from sepscene.tasks.evaluation.probes import knn_map

    torch.set_num_threads(max(1, int(experiment.resources.validation_cpus)))
    device = "cuda" if experiment.resources.validation_gpus else "cpu"
    encoder.to(device)
    h = []
    kept = []
    for start in range(0, len(clips.uris), BATCH_CLIPS):
        waves = []
        for n in range(start, min(start + BATCH_CLIPS, len(clips.uris))):
            try:
                waves.append(read_sound(clips.uris[n], experiment.audio, clips.offsets[n]))
            except ClipError:
                continue  # the readers quarantine it with the reason
            kept.append(n)
        if waves:
            h.append(embed_sounds(encoder, waves, device))
    h_ND = np.concatenate(h)
    targets_NK = clips.targets_NK[kept]
    query_N = clips.query_N[kept]
    neighbours = experiment.evaluation.scoring.neighbours
    return knn_map(h_ND[~query_N], targets_NK[~query_N], h_ND[query_N], targets_NK[query_N], neighbours)


def best_metric(folder: StageFolder) -> float:
    """The metric of the best encoder so far; −∞ before there is one."""
    try:
        return read_typed(folder.best_record, dict[str, float])[METRIC]
    except (OSError, SepsceneError, KeyError):
        return float("-inf")


def keep_best(folder: StageFolder, bundle: Path, step: int, value: float) -> None:
    """Copy a bundle to `best` if its metric is higher; the old best stays until the new one is complete."""
    if value <= best_metric(folder):
        return
    for leftover in folder.leftovers_of_best():
        shutil.rmtree(leftover)
    fresh = folder.unfinished_best
    shutil.copytree(bundle, fresh)
    update_card(fresh, {"title": "the best step by validation", "metrics": {METRIC: {"value": value}}})
    write_text_atomically(fresh / folder.best_record.name, json.dumps({"step": step, METRIC: value}))
    replace_folder(fresh, folder.best)
