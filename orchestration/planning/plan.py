"""Estimates the cost of a run: rows, operations, bytes, time and GPU-hours, for each mode of the store.

The stages work at the same time, so the slowest one determines the duration:

    readers ──▶ separation actors ──▶ trainers

- live: every row is separated.
- read-through: a clip is separated once by each processor that the OR rule draws for it. In epoch e (from 1), the share
  of clips that are new is sum_k p_k (1 − p_k)^(e−1), where p_k is the probability of processor k. With a curriculum it
  is the sum of p_k(e) times the product of 1 − p_k over the epochs before.
- prefill: every clip is separated by every processor before the first step.

Shapes: E epochs, K processors.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from pydantic import Field

from sepscene.augment.views import PCM_BYTES, Views, patch_samples
from sepscene.models.config import Config, SepsceneError
from sepscene.orchestration.config import Experiment
from sepscene.orchestration.planning.processors import Processor, processors_of
from sepscene.orchestration.training.flops import BACKWARD, separation_flops, step_flops
from sepscene.orchestration.training.stream import reads_mixture, views_bytes

HOUR = 3600.0  # in seconds
CPU = "CPU"
"""Name of the device when no GPU was used."""


class Calibration(Config):
    """Seconds per row (one clip, one positive pair) in each stage, for one reader, actor or trainer."""

    decode_seconds: float = Field(gt=0, description="a reader decodes one clip")
    stored_seconds: float = Field(gt=0, description="a reader creates the views of one row from the store")
    separation_seconds: dict[str, float] = Field(
        description="processor -> an actor separates one clip with it and crops the views"
    )
    put_seconds: float = Field(ge=0, description="an actor stores one separated clip and its mixture")
    train_seconds: float = Field(gt=0, description="a trainer processes one row of an optimiser step")
    separation_rows: int = Field(ge=1, description="clips that were separated together")
    train_rows: int = Field(ge=1, description="rows of the measured optimiser step")
    separation_device: str = Field(description="device of the separation")
    train_device: str = Field(description="device of the training")
    cores: int = Field(ge=1, description="CPU cores of the machine")


@dataclass(frozen=True)
class Work:
    """The rows of one phase of a run.

    Attributes:
        live: number of rows that are decoded and separated.
        stored: number of rows whose views come from the store.
        trained: number of rows that reach the trainers.
        kept: whether separated clips are also written to the store.
        shares: relative number of live rows that each processor separates, in the combination's order; None: as the OR
            rule draws the processors over the whole run.
    """

    live: float
    stored: float
    trained: float
    kept: bool
    shares: tuple[float, ...] | None = None

    def mean(self, values: Sequence[float], views: Views) -> float:
        """The mean over the live rows of a value that each processor has."""
        shares = self.shares or views.processor_weights
        return sum(share * value for share, value in zip(shares, values, strict=True)) / sum(shares)


@dataclass(frozen=True)
class ModeCost:
    """The cost with one mode of the store.

    Attributes:
        name: "live", "read-through" or "prefill".
        seconds: expected duration of the pre-training, including the prefill.
        flops: operations of separation and training; None if those of a processor are not known.
        busy_gpu_hours: GPU time in use.
        held_gpu_hours: GPU time that is reserved, idle or not: by the separation actors during a prefill, by the
            trainers after it, and by both in the other modes.
        store_bytes, read_bytes: final size of the store, and bytes read from it.
        moved_bytes: bytes that pass through the object store.
        bottleneck: the stage that is the slowest for most of the time.
    """

    name: str
    seconds: float
    separated: float
    flops: float | None
    busy_gpu_hours: float
    held_gpu_hours: float
    store_bytes: float
    read_bytes: float
    moved_bytes: float
    bottleneck: str


@dataclass(frozen=True)
class Plan:
    """The estimates that `sepscene plan` shows.

    Attributes:
        clip_hours: hours of audio that are read, one clip per row.
        view_hours: hours of audio in views, two views per row.
        processors: the processors of the combination; none for mix-mix.
        actors_per_trainer: separation actors that keep one trainer busy in live mode.
        actors, readers: numbers that keep the configured trainers busy in live mode.
    """

    experiment: Experiment
    calibration: Calibration
    clips: int
    rows: int
    steps: int
    clip_hours: float
    view_hours: float
    processors: tuple[Processor, ...]
    train_flops_per_row: float
    separator_training_flops: float
    separator_training_seconds: float
    live_row_bytes: int
    stored_row_bytes: int
    modes: tuple[ModeCost, ...]
    actors_per_trainer: float
    actors: int
    readers: int

    def mode(self, name: str) -> ModeCost:
        """The cost with a mode of the store: "live", "read-through" or "prefill"."""
        return next(mode for mode in self.modes if mode.name == name)


def plan(experiment: Experiment, calibration: Calibration, clips: int | None = None) -> Plan:
    """Estimate what the pre-training of an experiment costs on the resources that it requests.

    Args:
        experiment: the experiment to run.
        calibration: stage times measured on hardware similar to that of the run.
        clips: number of training clips; can be omitted for synthetic scenes.

    Raises:
        SepsceneError: when the number of clips is not known.
    """
    if clips is None:
        if experiment.data.format != "scenes":
            raise SepsceneError(
                f"the number of clips is unknown for data.format {experiment.data.format!r}: give `clips`"
            )
        clips = experiment.data.scenes_train
    training = experiment.training
    resources = experiment.resources
    audio = experiment.audio
    rows = clips * training.epochs
    processors = processors_of(experiment) if experiment.views.separates else ()
    seconds = stage_seconds(experiment, calibration, Work(1.0, 0.0, 1.0, kept=False))
    actors = resources.separation_actors * seconds["separation"] / seconds["trainers"]
    training_flops = separator_training_flops(experiment)
    return Plan(
        experiment=experiment,
        calibration=calibration,
        clips=clips,
        rows=rows,
        steps=math.ceil(rows / training.global_batch),
        clip_hours=rows * audio.clip_seconds / HOUR,
        view_hours=2 * rows * experiment.views.patch_seconds / HOUR,
        processors=processors,
        train_flops_per_row=_train_flops(experiment),
        separator_training_flops=training_flops,
        separator_training_seconds=_training_seconds(experiment, calibration, training_flops),
        live_row_bytes=clip_bytes(experiment) + views_bytes(experiment),
        stored_row_bytes=2 * views_bytes(experiment),
        modes=tuple(
            _mode_cost(name, experiment, calibration, clips, processors) for name in ("live", "read-through", "prefill")
        ),
        actors_per_trainer=actors / resources.trainers,
        actors=_enough(actors),
        readers=_enough(resources.readers * seconds["readers"] / seconds["trainers"]),
    )


def _enough(processes: float) -> int:
    """The number of processes, rounded up but for rounding errors: 100.000000001 gives 100."""
    return max(1, math.ceil(processes - 1e-6))


def clip_bytes(experiment: Experiment) -> int:
    """Bytes of one decoded clip, as sent from reader to actor; also of one channel in the store."""
    return experiment.audio.samples * PCM_BYTES


def stored_bytes(experiment: Experiment) -> int:
    """Bytes read from the store for one row: its crops, each in whole segments."""
    segments = experiment.store.settings.segment_samples
    crop = patch_samples(experiment.views, experiment.audio.sample_rate) + segments - 1  # the mean over all starts
    return (4 if reads_mixture(experiment) else 2) * min(crop, experiment.audio.samples) * PCM_BYTES


def separator_training_flops(experiment: Experiment) -> float:
    """Operations of training the ladder with MixIT; 0 if the checkpoints exist already."""
    settings = experiment.separator
    if settings.checkpoints or not experiment.views.separates:
        return 0.0
    samples = round(settings.segment_seconds * experiment.audio.sample_rate)
    mixtures = settings.batch_mixtures * max(settings.ladder.steps.values())
    return float((1 + BACKWARD) * separation_flops(settings.network, samples) * mixtures)


def _training_seconds(experiment: Experiment, calibration: Calibration, flops: float) -> float:
    """Duration of training the ladder, estimated from the measured separation; each trainer has one device."""
    settings = experiment.separator
    ours = [name for name in experiment.views.combination if name not in settings.beside]
    name = (ours or list(calibration.separation_seconds))[0]
    per_clip = separation_flops(settings.beside.get(name, settings.network), experiment.audio.samples)
    return flops / per_clip * calibration.separation_seconds[name] / experiment.resources.trainers


def work_of(name: str, experiment: Experiment, clips: int) -> list[Work]:
    """The successive phases of a run in one mode of the store; in read-through mode, each epoch is a phase."""
    epochs = experiment.training.epochs
    views = experiment.views
    if name == "live" or not experiment.views.separates:
        return [Work(clips * epochs, 0, clips * epochs, kept=False)]
    if name == "prefill":
        return [
            Work(clips * len(views.combination), 0, 0, kept=True, shares=(1.0,) * len(views.combination)),
            Work(0, clips * epochs, clips * epochs, kept=True),
        ]
    share_EK = _processor_shares(views, epochs)
    missed_EK = np.cumprod(np.vstack([np.ones(share_EK.shape[1]), 1 - share_EK]), axis=0)[:-1]
    new_EK = clips * share_EK * missed_EK
    return [
        Work(sum(new_K), clips - sum(new_K), clips, kept=True, shares=tuple(new_K) if sum(new_K) else None)
        for new_K in new_EK.tolist()
    ]


def _processor_shares(views: Views, epochs: int) -> np.ndarray:
    """(epochs, K): the probability of each processor in each epoch, with a curriculum in the middle of the epoch."""
    if views.curriculum:
        return views.weights_at((np.arange(epochs) + 0.5) / epochs)
    weights = np.array(views.processor_weights, np.float64)
    return np.tile(weights / weights.sum(), (epochs, 1))


def stage_seconds(experiment: Experiment, calibration: Calibration, work: Work) -> dict[str, float]:
    """Seconds for which each stage is busy in a phase; the longest determines the phase's duration.

    The CPU cores, which several stages can share, count as a separate stage, so that a plan never assumes more cores
    than there are. A fraction of a GPU is assumed to have that fraction of its speed.
    """
    resources = experiment.resources
    separation = 0.0
    if experiment.views.separates:
        each = [calibration.separation_seconds[name] for name in experiment.views.combination]
        separation = work.mean(each, experiment.views)
    put = calibration.put_seconds if work.kept else 0.0
    reading = work.live * calibration.decode_seconds + work.stored * calibration.stored_seconds
    actor_speed = min(1.0, resources.separation_gpus or 1.0)
    trainer_speed = min(1.0, resources.trainer_gpus or 1.0)
    on_cpu = reading + work.live * put
    if not resources.separation_gpus:
        on_cpu += work.live * separation * threads(resources.separation_cpus)
    if not resources.trainer_gpus:
        on_cpu += work.trained * calibration.train_seconds * threads(resources.trainer_cpus)
    return {
        "readers": reading / resources.readers,
        "separation": work.live * (separation + put) / (resources.separation_actors * actor_speed),
        "trainers": work.trained * calibration.train_seconds / (resources.trainers * trainer_speed),
        "CPU cores": on_cpu / max(calibration.cores, _requested_cpus(experiment)),
    }


def threads(cpus: float) -> int:
    """Threads that torch uses in a process that requests this many CPUs; Ray sets them."""
    return max(1, int(cpus))


def _requested_cpus(experiment: Experiment) -> float:
    resources = experiment.resources
    return (
        resources.trainers * resources.trainer_cpus
        + resources.separation_actors * resources.separation_cpus
        + resources.readers * resources.reader_cpus
    )


def _mode_cost(
    name: str, experiment: Experiment, calibration: Calibration, clips: int, processors: tuple[Processor, ...]
) -> ModeCost:
    resources = experiment.resources
    phases = work_of(name, experiment, clips)
    actor_gpus = resources.separation_actors * resources.separation_gpus if processors else 0.0
    trainer_gpus = resources.trainers * resources.trainer_gpus
    total = 0.0
    busy = 0.0
    held = 0.0
    slowest: Counter[str] = Counter()
    for work in phases:
        seconds = stage_seconds(experiment, calibration, work)
        stage = max(seconds, key=lambda key: seconds[key])
        slowest[stage] += seconds[stage]  # type: ignore[assignment]
        total += seconds[stage]
        busy += seconds["separation"] * actor_gpus + seconds["trainers"] * trainer_gpus
        simultaneous = name != "prefill" or not processors
        if simultaneous or not work.trained:
            held += seconds[stage] * actor_gpus
        if work.trained > 0:
            held += seconds[stage] * trainer_gpus
    return ModeCost(
        name=name,
        seconds=total,
        separated=sum(work.live for work in phases) if processors else 0.0,
        flops=_flops(experiment, phases, processors),
        busy_gpu_hours=busy / HOUR,
        held_gpu_hours=held / HOUR,
        store_bytes=_channels(experiment, phases, processors, clips) * clip_bytes(experiment),
        read_bytes=sum(work.stored for work in phases) * stored_bytes(experiment),
        moved_bytes=_moved_bytes(name, experiment, phases),
        bottleneck=max(slowest, key=lambda key: slowest[key]),
    )


def _channels(experiment: Experiment, phases: list[Work], processors: tuple[Processor, ...], clips: int) -> float:
    """Number of channels in the store: all channels of each separation, and every mixture once."""
    sources = [processor.sources for processor in processors]
    kept = sum(work.live * work.mean(sources, experiment.views) for work in phases if work.kept)
    return kept + clips if kept else 0.0


def _flops(experiment: Experiment, phases: list[Work], processors: tuple[Processor, ...]) -> float | None:
    """Operations of separation and training; None if those of a processor are not known."""
    training = sum(work.trained for work in phases) * _train_flops(experiment)
    if not processors:
        return training
    each = [processor.flops for processor in processors if processor.flops is not None]
    if len(each) < len(processors):
        return None
    return training + sum(work.live * work.mean(each, experiment.views) for work in phases)


def _train_flops(experiment: Experiment) -> float:
    """Operations per row of a training step."""
    return step_flops(experiment) / experiment.training.global_batch


def _moved_bytes(name: str, experiment: Experiment, phases: list[Work]) -> float:
    """Bytes through the object store: clips to the actors and views from them; after a prefill, only views."""
    clip = clip_bytes(experiment)
    views = views_bytes(experiment)
    if not experiment.views.separates:
        return sum(work.live for work in phases) * views
    stored = views if name == "prefill" else 2 * views
    return sum(work.live * (clip + views) + work.stored * stored for work in phases)
