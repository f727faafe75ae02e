"""What a run will cost, before it starts: rows, operations, bytes, time, GPU-hours, by the use of the store.

The stages work at the same time, so the slowest of them sets the pace:

    readers ──▶ separation actors ──▶ trainers

Live, every row is separated. With the store, a clip is separated once by each processor that the OR rule
draws for it: in epoch e (from 1) a share sum_k p_k (1 − p_k)^(e−1) of the clips is new, where p_k is the
probability of processor k (under a curriculum: p_k(e) times the product of 1 − p_k of the epochs before). With
prefill all of that happens before the first step.
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

HOUR = 3600.0
CPU = "CPU"
"""Name of the device where no GPU did the work."""


class Calibration(Config):
    """Seconds of one row (one clip, one positive pair) in each stage, on one reader, actor, trainer."""

    decode_seconds: float = Field(gt=0, description="a reader decodes one clip")
    stored_seconds: float = Field(gt=0, description="a reader makes one row's views from the store")
    separation_seconds: dict[str, float] = Field(
        description="processor -> an actor separates one clip with it and crops its views"
    )
    put_seconds: float = Field(ge=0, description="an actor keeps one separated clip and its mixture")
    train_seconds: float = Field(gt=0, description="one row of a trainer's optimiser step")
    separation_rows: int = Field(ge=1, description="clips that were separated together")
    train_rows: int = Field(ge=1, description="rows of the measured optimiser step")
    separation_device: str = Field(description="what separated")
    train_device: str = Field(description="what trained")
    cores: int = Field(ge=1, description="CPU cores of the machine that measured")


@dataclass(frozen=True)
class Work:
    """Rows that pass at the same time.

    Attributes:
        live: rows that are decoded and separated.
        stored: rows whose views come from the store.
        trained: rows that reach the trainers.
        kept: what is separated is also written to the store.
        shares: which processors separate the live rows, adding up to 1, in the combination's order; none as the OR rule
            draws them over the whole run.
    """

    live: float
    stored: float
    trained: float
    kept: bool
    shares: tuple[float, ...] | None = None

    def mean(self, values: Sequence[float], views: Views) -> float:
        """The mean of a value of each processor over the live rows."""
        shares = self.shares or views.processor_weights
        return sum(share * value for share, value in zip(shares, values, strict=True)) / sum(shares)


@dataclass(frozen=True)
class Way:
    """One way to use the store.

    Attributes:
        name: "live", "read-through" or "prefill".
        seconds: expected time of the pre-training, with the prefill where there is one.
        flops: operations of separation and training; None where a processor's are not known.
        busy_gpu_hours: GPU time that is worked.
        held_gpu_hours: GPU time that is reserved, idle or not: by the separation actors while a store is filled, by the
            trainers afterwards, by both where they work side by side.
        store_bytes, read_bytes: what the store holds in the end, and what is read from it.
        moved_bytes: what passes through the object store.
        bottleneck: the stage that sets the pace for most of the time.
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
    """What `sepscene plan` shows.

    Attributes:
        clip_hours: audio that is read, in hours: every row reads one clip.
        processors: those of the combination; none for mix-mix.
        view_hours: audio that is learned from, in hours: two views a row.
        actors_per_trainer: separation actors that feed one trainer, live.
        actors, readers: how many keep the configured trainers busy, live.
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
    ways: tuple[Way, ...]
    actors_per_trainer: float
    actors: int
    readers: int

    def way(self, name: str) -> Way:
        """The cost with that setting of `store.mode`."""
        return next(way for way in self.ways if way.name == name)


def plan(experiment: Experiment, calibration: Calibration, clips: int | None = None) -> Plan:
    """Work out what the pre-training of an experiment costs on the resources that it asks for.

    Args:
        experiment: what is to be run.
        calibration: stage times measured on hardware like that of the run.
        clips: training clips; may be left out for synthetic scenes, whose number is configured.

    Raises:
        SepsceneError: when the number of clips is not known.
    """
    if clips is None:
        if experiment.data.format != "scenes":
            raise SepsceneError(f"data.format {experiment.data.format!r} does not say how many clips: give it")
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
        ways=tuple(
            _way(name, experiment, calibration, clips, processors) for name in ("live", "read-through", "prefill")
        ),
        actors_per_trainer=actors / resources.trainers,
        actors=_enough(actors),
        readers=_enough(resources.readers * seconds["readers"] / seconds["trainers"]),
    )


def _enough(processes: float) -> int:
    """Whole processes; 100.000000001 of them, by rounding, are 100."""
    return max(1, math.ceil(processes - 1e-6))


def clip_bytes(experiment: Experiment) -> int:
    """Bytes of one decoded clip, from the reader to the actor; also of one channel in the store."""
    return experiment.audio.samples * PCM_BYTES


def stored_bytes(experiment: Experiment) -> int:
    """Bytes read from the store for one row: its crops, each in whole segments."""
    segments = experiment.store.settings.segment_samples
    crop = patch_samples(experiment.views, experiment.audio.sample_rate) + segments - 1  # the mean over all starts
    return (4 if reads_mixture(experiment) else 2) * min(crop, experiment.audio.samples) * PCM_BYTES


def separator_training_flops(experiment: Experiment) -> float:
    """Operations of the MixIT training of the ladder; none when the checkpoints are there already."""
    settings = experiment.separator
    if settings.checkpoints or not experiment.views.separates:
        return 0.0
    samples = round(settings.segment_seconds * experiment.audio.sample_rate)
    mixtures = settings.batch_mixtures * max(settings.ladder.steps.values())
    return float((1 + BACKWARD) * separation_flops(settings.network, samples) * mixtures)


def _training_seconds(experiment: Experiment, calibration: Calibration, flops: float) -> float:
    """The ladder's network at the pace of its measured separation, on as many devices as there are trainers."""
    settings = experiment.separator
    ours = [name for name in experiment.views.combination if name not in settings.beside]
    name = (ours or list(calibration.separation_seconds))[0]
    per_clip = separation_flops(settings.beside.get(name, settings.network), experiment.audio.samples)
    return flops / per_clip * calibration.separation_seconds[name] / experiment.resources.trainers


def work_of(name: str, experiment: Experiment, clips: int) -> list[Work]:
    """The phases of a run one way, one after another: epochs with a read-through store, else one for all."""
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
    """(epochs, K): the probability of each processor in each epoch; of a curriculum, in the epoch's middle."""
    if views.curriculum:
        return views.weights_at((np.arange(epochs) + 0.5) / epochs)
    weights = np.array(views.processor_weights, np.float64)
    return np.tile(weights / weights.sum(), (epochs, 1))


def stage_seconds(experiment: Experiment, calibration: Calibration, work: Work) -> dict[str, float]:
    """How long each stage is busy with a phase's rows; the longest is the phase's duration.

    Stages that run on the CPU also share its cores: a stage of its own, so that no plan promises more than
    the machine has. A fraction of a GPU works at that fraction of its speed.
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
        "CPU cores": on_cpu / max(calibration.cores, _cpus_asked(experiment)),
    }


def threads(cpus: float) -> int:
    """Threads that torch uses in a process that asks for this many CPUs, as Ray sets them."""
    return max(1, int(cpus))


def _cpus_asked(experiment: Experiment) -> float:
    asked = experiment.resources
    return (
        asked.trainers * asked.trainer_cpus
        + asked.separation_actors * asked.separation_cpus
        + asked.readers * asked.reader_cpus
    )


def _way(
    name: str, experiment: Experiment, calibration: Calibration, clips: int, processors: tuple[Processor, ...]
) -> Way:
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
        side_by_side = name != "prefill" or not processors
        held += seconds[stage] * actor_gpus * (side_by_side or not work.trained)
        held += seconds[stage] * trainer_gpus * (work.trained > 0)
    return Way(
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
    """Channels that are kept in the store: all of each separation, and every mixture once."""
    sources = [processor.sources for processor in processors]
    kept = sum(work.live * work.mean(sources, experiment.views) for work in phases if work.kept)
    return kept + clips if kept else 0.0


def _flops(experiment: Experiment, phases: list[Work], processors: tuple[Processor, ...]) -> float | None:
    """Operations of separation and training; None where a processor's are not known."""
    training = sum(work.trained for work in phases) * _train_flops(experiment)
    if not processors:
        return training
    each = [processor.flops for processor in processors if processor.flops is not None]
    if len(each) < len(processors):
        return None
    return training + sum(work.live * work.mean(each, experiment.views) for work in phases)


def _train_flops(experiment: Experiment) -> float:
    """Operations of one row of a step."""
    return step_flops(experiment) / experiment.training.global_batch


def _moved_bytes(name: str, experiment: Experiment, phases: list[Work]) -> float:
    """Through the object store: clips to the actors, views from them; readers that do it all hand on views only."""
    clip = clip_bytes(experiment)
    views = views_bytes(experiment)
    if not experiment.views.separates:
        return sum(work.live for work in phases) * views
    stored = views if name == "prefill" else 2 * views
    return sum(work.live * (clip + views) + work.stored * stored for work in phases)
