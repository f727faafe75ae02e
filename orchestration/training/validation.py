"""Validation while training goes on: how well the encoder of a step tells the classes apart, by its neighbours.

Every `training.validation_every_steps` steps, and after the last, Ray Train stores the encoder and then hands it to a
task of its own (one at a time; the others queue), while the trainers go on. The task embeds labelled clips of the
TRAINING split, never of the test split: `training.validation_clips` of them, chosen by the hash of their names, hence
the same for every seed, trial and restart. Every fourth is asked for, the other three are the neighbours that answer
(`probes.knn_map`). The encoder has heard these clips, as all training clips, but never with their labels.

What readers can rely on (MLflow, the report, Tune trials): each validation adds one record to RUN/metrics.jsonl,

    {"stage": "pretrain-mix-chan", "seconds": …, "step": 60, "validation_knn_map": 0.31, "validation_seconds": 4.2}

- it comes after the record of that step's losses, which has the field "rows"; this one has not;
- steps come in order; one may come twice, after a restart, and then the last counts;
- when training has ended, the last step's is there, unless the validation failed, which an "event" record tells.

Shapes: N clips, K classes, D embedding.
"""

import copy
import hashlib
import json
import shutil
import tempfile
import time
from collections.abc import Callable
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
from sepscene.orchestration.records.files import read_typed, write_whole
from sepscene.orchestration.records.run_folder import StageFolder
from sepscene.orchestration.training.hooks import Hook, Step
from sepscene.tasks.datasets.readers import Manifest
from sepscene.tasks.distributed.gather import rank
from sepscene.tasks.evaluation.embed_sounds import embed_sounds

METRIC = "validation_knn_map"
VALIDATED = "validation.json"
"""Beside the files of the best bundle: its step and its metric."""

ASKED_EVERY = 4
CLIPS_AT_ONCE = 8


@dataclass(frozen=True, eq=False)
class ProbeClips:
    """The labelled clips of a validation: some are asked for, the others answer."""

    uris: tuple[str, ...]
    offsets: tuple[float, ...]
    targets_NK: np.ndarray
    asked_N: np.ndarray
    """bool: which clips are asked for."""


def choose_probe(manifest: Manifest, count: int) -> ProbeClips:
    """The clips of a validation: at most `count` of the training clips with a label.

    Raises:
        SepsceneError: when no class has a clip on both sides.
    """
    targets_NK = manifest.targets()
    names = manifest.clips["clip_id"].to_pylist()
    labelled = [n for n in range(len(names)) if targets_NK[n].any()]
    chosen = sorted(labelled, key=lambda n: hashlib.sha256(names[n].encode()).digest())[:count]
    asked_N = np.arange(len(chosen)) % ASKED_EVERY == 0
    targets_NK = targets_NK[chosen]
    known_K = targets_NK[asked_N].any(0) & targets_NK[~asked_N].any(0)
    if not known_K.any():
        raise SepsceneError(
            f"validation needs labelled training clips, and a class with several: {len(labelled)} of {len(names)} "
            "clips have a label; set training.validation_every_steps to 0, or raise training.validation_clips"
        )
    uris = manifest.clips["uri"].to_pylist()
    offsets = manifest.clips["offset_seconds"].to_pylist()
    return ProbeClips(
        tuple(uris[n] for n in chosen), tuple(offsets[n] for n in chosen), targets_NK[:, known_K], asked_N
    )


def validation_of(experiment: Experiment, manifest: Manifest, folder: StageFolder) -> ray.train.ValidationConfig | None:
    """What Ray Train needs to validate a stage; none when the experiment does not ask for it.

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


class HandOver(Hook):
    """Rank 0's encoders on their way to the validation: written in a thread, then handed on with a later report.

    What Ray stores and validates is the encoder alone, a bundle. It never sees the checkpoints from which a run
    continues.
    """

    def __init__(self, encoder: Callable[[], Encoder], every: int, last_step: int) -> None:
        """Args:
        encoder: the encoder as it is now.
        every: steps from one validation to the next; 0 never validates.
        last_step: the step that is validated in any case.
        """
        self.encoder = encoder
        self.every = every
        self.last_step = last_step
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="hand-over")
        self._bundle: Future[Path] | None = None
        """On its way; `_step` says which."""
        self._step = 0

    def wants_report(self, number: int) -> bool:
        """Where an encoder is to be validated: the one before must be on its way by then."""
        return self.every > 0 and (number % self.every == 0 or number == self.last_step)

    def after_step(self, step: Step) -> None:
        """Hand on what is written, and begin to write the next."""
        due = self.wants_report(step.number)
        if step.reported:
            self._hand_on(step, wait=due)
        if due and rank() == 0 and not step.fatal:
            self._step = step.number
            encoder = copy.deepcopy(self.encoder()).cpu()  # as it is now: it is written while training goes on
            self._bundle = self._writer.submit(_write_bundle, encoder, step.number)

    def at_end(self, last: Step) -> None:
        """Hand on the last one."""
        self._hand_on(last, wait=True)

    def _hand_on(self, step: Step, wait: bool) -> None:
        """Add what `ray.train.report` takes to store an encoder and validate it; nothing when none is ready."""
        if self._bundle is None or not (wait or self._bundle.done()):
            return
        try:
            step.report_options |= {
                "checkpoint": ray.train.Checkpoint.from_directory(self._bundle.result()),
                "checkpoint_upload_mode": ray.train.CheckpointUploadMode.ASYNC,
                "validation": ray.train.ValidationTaskConfig(fn_kwargs={"step": self._step}),
            }
        except Exception as error:  # of the writing
            step.events.append(f"step {self._step} is not validated: {error}")
        self._bundle = None


def _write_bundle(encoder: Encoder, step: int) -> Path:
    folder = Path(tempfile.mkdtemp(prefix="sepscene-validation-"))
    save_encoder(encoder, folder, {"title": f"step {step}", "steps": step})
    return folder


def validate(
    checkpoint: ray.train.Checkpoint, step: int, experiment: Experiment, clips: ProbeClips, folder: StageFolder
) -> dict[str, float]:
    """Evaluate an encoder, leave the record for the metrics file, and keep the encoder if it is the best so far.

    Ray runs it wherever there is room. A validation that fails must not fail the training: it is reported as an event.
    """
    started = time.perf_counter()
    metrics: dict[str, float] = {}
    record: dict[str, Any]
    try:
        with checkpoint.as_directory() as bundle:
            metrics = {METRIC: probe(load_encoder(bundle), clips, experiment)}
            keep_best(folder.best, Path(bundle), step, metrics[METRIC])
        record = {**metrics, "validation_seconds": round(time.perf_counter() - started, 3)}
    except Exception as error:
        record = {"event": f"the validation of step {step} failed: {type(error).__name__}: {error}"}
    write_whole(folder.validations / f"step-{step:08d}.json", json.dumps({"step": step, **record}))
    return metrics


def probe(encoder: Encoder, clips: ProbeClips, experiment: Experiment) -> float:
    """mAP of the clips asked for, by the votes of their neighbours. Clips that can't be read are left out.

    Raises:
        EvaluationError: for NaN embeddings, or when no class is left on both sides.
    """
    # It imports scikit-learn: the trainers, who import this module too, do without.
    from sepscene.tasks.evaluation.probes import knn_map

    torch.set_num_threads(max(1, int(experiment.resources.validation_cpus)))
    device = "cuda" if experiment.resources.validation_gpus else "cpu"
    encoder.to(device)
    h = []
    kept = []
    for start in range(0, len(clips.uris), CLIPS_AT_ONCE):
        waves = []
        for n in range(start, min(start + CLIPS_AT_ONCE, len(clips.uris))):
            try:
                waves.append(read_sound(clips.uris[n], experiment.audio, clips.offsets[n]))
            except ClipError:
                continue  # the readers quarantine it and say why
            kept.append(n)
        if waves:
            h.append(embed_sounds(encoder, waves, device))
    h_ND = np.concatenate(h)
    targets_NK = clips.targets_NK[kept]
    asked_N = clips.asked_N[kept]
    neighbours = experiment.evaluation.scoring.neighbours
    return knn_map(h_ND[~asked_N], targets_NK[~asked_N], h_ND[asked_N], targets_NK[asked_N], neighbours)


def best_metric(best: Path) -> float:
    """The metric of the best encoder so far; −∞ before there is one."""
    try:
        return read_typed(best / VALIDATED, dict[str, float])[METRIC]
    except (OSError, SepsceneError, KeyError):
        return float("-inf")


def keep_best(best: Path, bundle: Path, step: int, value: float) -> None:
    """Copy a bundle to `best` if its metric is higher; the old best stays until the new one is whole."""
    if value <= best_metric(best):
        return
    for left_over in best.parent.glob("best.*"):
        shutil.rmtree(left_over)
    fresh = best.with_name("best.partial")
    shutil.copytree(bundle, fresh)
    update_card(fresh, {"title": "the best step by validation", "metrics": {METRIC: {"value": value}}})
    write_whole(fresh / VALIDATED, json.dumps({"step": step, METRIC: value}))
    replace_folder(fresh, best)
