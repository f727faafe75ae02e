"""Measures on this machine, in about ten seconds, how long one row takes in each stage of a run.

All stages run in this process, with the modules that a run uses. Ray's overhead is not included (see
benchmarks/pipeline.py). Networks that are not trained yet get random weights, which take the same time.

Shapes: S channels of a separator, T samples.
"""

import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median

import numpy as np
import torch

from sepscene.augment.augmentations.settings import streams_of
from sepscene.augment.draws import Schedule, draw
from sepscene.augment.separation.blocks import Columns, ServiceSettings
from sepscene.augment.separation.reader import ClipReader
from sepscene.augment.separation.service import SeparationService
from sepscene.augment.store.separated_store import SeparatedStore, StoreKey
from sepscene.augment.synthetic.scenes import write_scenes
from sepscene.augment.views import levels_db, patch_samples
from sepscene.models.config import SepsceneError
from sepscene.models.separators.custom import checkpoint_folders
from sepscene.models.separators.folder import save_separator
from sepscene.models.separators.tdcnpp import TDCNpp
from sepscene.orchestration.config import Experiment
from sepscene.orchestration.planning.plan import CPU, Calibration, threads
from sepscene.orchestration.planning.processors import Processor, processors_of
from sepscene.orchestration.records.run_folder import RunFolder, Storage
from sepscene.orchestration.training.pretrainer import Pretrainer
from sepscene.orchestration.training.stream import reads_mixture, service_settings

_SCENES = 4  # generated clips to measure with, if no clips are given
_SHARES = {"reading": 0.1, "separation": 0.4, "training": 0.4}  # of `seconds`; the rest is for starting
_ROUNDS = 3  # repetitions that must fit into the time; each then takes as many rows as possible


def calibrate(
    experiment: Experiment, seconds: float = 10.0, clips: Sequence[str] = (), offsets: Sequence[float] = ()
) -> Calibration:
    """Measure decoding, the store, separation and training for about `seconds`.

    Separation and training use a GPU if the experiment requests one and this machine has one. Their block or batch is
    as large as the time allows, but not larger than in the experiment.

    Args:
        clips: URIs of some clips of the data set; empty: synthetic scenes.
        offsets: start of each clip in its recording, in seconds; empty: all at 0.

    Raises:
        SepsceneError: when a clip cannot be decoded, or a checkpoint does not fit the experiment.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = RunFolder(Path(name))
        uris = [str(uri) for uri in clips] or _scenes(experiment, folder.scenes)
        processors = processors_of(experiment)
        settings = {p.name: _settings(experiment, p, folder.ladder) for p in processors}
        first = settings[processors[0].name]
        columns = _columns(experiment, uris, offsets or [0.0] * len(uris))
        reading = seconds * _SHARES["reading"]
        with SeparatedStore(str(Storage(folder.path).store)) as store:
            reader = ClipReader(first, store)
            block = reader(columns)
            for uri, fault in zip(block["uri"], block["fault"], strict=True):
                if fault:
                    raise SepsceneError(f"cannot calibrate with {uri}: {fault}; use readable clips")
            decode, _ = _per_row(lambda n: reader(_first(columns, n)), len(block["row"]), reading)
            put = _put(first, store, block, processors[0].sources)
            stored, _ = _per_row(lambda n: reader(_first(columns, n)), len(block["row"]), reading)
        separation, separation_rows, separation_device = _separation(
            experiment, processors, settings, block, seconds * _SHARES["separation"]
        )
    train, train_rows, train_device = _training(experiment, seconds * _SHARES["training"])
    return Calibration(
        decode_seconds=decode,
        stored_seconds=stored,
        separation_seconds=separation,
        put_seconds=put,
        train_seconds=train,
        separation_rows=separation_rows,
        train_rows=train_rows,
        separation_device=separation_device,
        train_device=train_device,
        cores=_cores(),
    )


def _scenes(experiment: Experiment, folder: Path) -> list[str]:
    write_scenes(folder, _SCENES, experiment.seed, "train")
    return [str(path) for path in sorted((folder / "train").glob("*.wav"))]


def _settings(experiment: Experiment, processor: Processor, folder: Path) -> ServiceSettings:
    """The service with a single processor. For mix-mix, separation is measured as for mix-chan."""
    name = processor.name
    place = processor.place or str(folder / name)
    if processor.network is not None:
        save_separator(TDCNpp(processor.network), folder / name, {"step": 0})
    checkpoints = checkpoint_folders({name: place}, folder)
    pair = experiment.views.pair if experiment.views.separates else "mix-chan"
    single = {"views.pair": pair, "views.combination": (name,), "views.weights": None, "views.curriculum": ()}
    return service_settings(experiment, checkpoints).changed(single)


def _columns(experiment: Experiment, uris: list[str], offsets: Sequence[float]) -> Columns:
    """A block of the service's size with real draws; clips are repeated if there are too few."""
    rows = np.arange(experiment.training.service_rows)
    columns = draw(Schedule(seed=experiment.seed, clips=len(uris), epochs=len(rows)), rows, (1.0,))
    uri = np.array(uris, object)[rows % len(uris)]
    return {**columns, "uri": uri, "offset_seconds": np.array(offsets, np.float64)[rows % len(uris)]}


def _put(settings: ServiceSettings, store: SeparatedStore, block: Columns, sources: int) -> float:
    """Seconds for storing one clip. The mixture is stored as each of its channels; the content does not matter."""
    (digest,) = settings.digests()
    chosen = {content: n for n, content in enumerate(block["content"])}
    begin = time.perf_counter()
    for content, n in chosen.items():
        mixture_T = np.frombuffer(block["sound"][n], np.int16)
        separated_ST = np.repeat(mixture_T[None], sources, axis=0)
        for processor, pcm_ST in ((digest, separated_ST), ("mixture", mixture_T[None])):
            store.put(StoreKey(content, processor, settings.store_settings(0.0)), pcm_ST, levels_db(pcm_ST))
    store.flush()
    return (time.perf_counter() - begin) / len(chosen)


def _separation(
    experiment: Experiment,
    processors: Sequence[Processor],
    settings: Mapping[str, ServiceSettings],
    block: Columns,
    seconds: float,
) -> tuple[dict[str, float], int, str]:
    """Seconds per row by each processor. One processor of each kind is measured; all kinds get equal time."""
    resources = experiment.resources
    device = _device(resources.separation_gpus)
    kinds = {processor.kind: processor.name for processor in processors}
    measured: dict[str, tuple[float, int]] = {}
    with _threads(resources.separation_cpus):
        for kind, name in kinds.items():
            service = SeparationService(settings[name], device=device, clips_per_forward=resources.separation_batch)
            measured[kind] = _seconds_of_service(service, block, seconds / len(kinds))
    rows = min(rows for _, rows in measured.values())
    return {p.name: measured[p.kind][0] for p in processors}, rows, _name(device)


def _seconds_of_service(service: SeparationService, block: Columns, seconds: float) -> tuple[float, int]:
    def separate(rows: int) -> None:
        service(_first(block, rows))

    return _per_row(separate, len(block["row"]), seconds, min_rows=service.clips_per_forward)


def _training(experiment: Experiment, seconds: float) -> tuple[float, int, str]:
    """Seconds per row of a single trainer's step on random views, the rows that were measured, and the device."""
    resources = experiment.resources
    training = experiment.training
    device = torch.device(_device(resources.trainer_gpus))
    trainer = Pretrainer(experiment.changed({"training.start_encoder": None}), 1, device)
    patch = patch_samples(experiment.views, experiment.audio.sample_rate)
    local_rows = training.global_batch // resources.trainers
    schedule = Schedule(seed=0, clips=local_rows, epochs=1)
    streams = streams_of(experiment.used_augmentations)
    columns = draw(schedule, np.arange(local_rows), (1.0,), streams)
    if reads_mixture(experiment):
        columns |= dict.fromkeys(("mixture_1", "mixture_2"), np.zeros((local_rows, patch), np.int16))
    view_B2P = 0.1 * torch.randn(local_rows, 2, patch)

    def gradients(rows: int) -> None:
        trainer.optimizer.zero_grad(set_to_none=True)
        trainer.local_rows = rows
        trainer.loss_and_gradient(trainer.views(view_B2P[:rows].to(device), _first(columns, rows)))
        if device.type == "cuda":
            torch.cuda.synchronize()

    def update(_: int) -> None:
        torch.nn.utils.clip_grad_norm_(trainer.objective.parameters(), training.clip_gradient_norm)
        trainer.optimizer.step()
        if device.type == "cuda":
            torch.cuda.synchronize()

    with _threads(resources.trainer_cpus):
        per_row, rows = _per_row(gradients, local_rows, 0.9 * seconds, min_rows=2)  # a single pair has no negatives
        per_step, _ = _per_row(update, 1, 0.1 * seconds)  # does not depend on the number of rows
    return per_row + per_step / local_rows, rows, _name(device.type)


def _per_row(run: Callable[[int], object], max_rows: int, seconds: float, min_rows: int = 1) -> tuple[float, int]:
    """Median seconds per row, when as many rows are processed together as allow three rounds in `seconds`.

    Returns:
        (seconds per row, rows processed together).
    """
    deadline = time.perf_counter() + seconds
    rows = min(min_rows, max_rows)
    took = _timed(run, rows)  # also warms up caches, kernels and threads
    if took > seconds:
        return took / rows, rows
    took = _timed(run, rows)
    while rows < max_rows and _ROUNDS * 2 * took < deadline - time.perf_counter():
        rows = min(2 * rows, max_rows)
        run(rows)
        took = _timed(run, rows)
    rounds = [took]
    while len(rounds) < 50 * _ROUNDS and time.perf_counter() + took < deadline:
        rounds.append(_timed(run, rows))
    return median(rounds) / rows, rows


def _timed(run: Callable[[int], object], rows: int) -> float:
    begin = time.perf_counter()
    run(rows)
    return time.perf_counter() - begin


def _first(columns: Columns, rows: int) -> Columns:
    return {name: column[:rows] for name, column in columns.items()}


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _device(gpus: float) -> str:
    return "cuda" if gpus and torch.cuda.is_available() else "cpu"


def _name(device: str) -> str:
    return torch.cuda.get_device_name() if device == "cuda" else CPU


@contextmanager
def _threads(cpus: float) -> Iterator[None]:
    """Use as many threads as Ray sets for a process with this many CPUs, but not more than there are cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(min(threads(cpus), _cores()))
    try:
        yield
    finally:
        torch.set_num_threads(before)
