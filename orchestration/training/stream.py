"""The stream of views: Ray Data from the rows that remain to what the trainers read.

    rows ──draws──▶ blocks of g rows ──readers──▶ SeparationService actors ──▶ W trainers

Where nothing has to be separated (mix-mix, or a store that was filled before), the readers hand their views to the
trainers themselves, and there are no separation actors.

The order of rows is kept when `training.ordered` is set. Ray Data then hands blocks to the W trainers in turn, so that
step k consumes exactly the rows kB … (k+1)B−1 of what remains, whatever the number of actors and trainers. The last
global batch is evened out with fillers, so that every trainer gets the same number of equal blocks and none waits for
a batch that never comes.
"""

import math
from collections.abc import Mapping
from functools import partial

import numpy as np
import ray.data
from ray.data import ActorPoolStrategy, Dataset, ExecutionOptions, TaskPoolStrategy

from sepscene.augment.augmentations.settings import streams_of
from sepscene.augment.crash_counts import CrashCounts
from sepscene.augment.draws import Schedule
from sepscene.augment.separation.blocks import ServiceSettings
from sepscene.augment.separation.reader import ClipReader, ViewMaker, read_segments, read_source_segments
from sepscene.augment.separation.service import SeparationService
from sepscene.augment.store.separated_store import SeparatedStore
from sepscene.augment.views import PCM_BYTES, patch_samples
from sepscene.orchestration.config import Experiment, Resources
from sepscene.orchestration.records.ledger import Ledger
from sepscene.orchestration.runtime.placement import actor_demand, reader_demand, separates_live
from sepscene.orchestration.runtime.precision import separation_precision
from sepscene.orchestration.training.row_draws import DrawRows, PrefillRows
from sepscene.tasks.datasets.readers import Manifest

ROWS_A_TASK = 512
"""Rows that one task of Ray draws, or one global batch where that is larger. Rows before their sound are small, so that
what a task costs (at 64 rows 0.1 s of a core, more than drawing them) is better spent on many."""

LEAST_MEMORY = 128 * 2**20
"""Of the object store, for any stream."""


def finite_retries() -> dict[str, int]:
    """How often Ray may restart an actor and repeat one of its calls; its defaults are forever.

    Three repeats are what the crash quarantine needs to find a deadly clip (see `augment.crash_counts`).
    """
    return {"max_restarts": 1000, "max_task_retries": 4}


def separation_pool(resources: Resources) -> ActorPoolStrategy:
    """The pool of separation actors: a fixed number, or from `separation_actors_min` to `separation_actors`.

    Ray 2.60 looks at an elastic pool in each turn of the stream's loop: it adds an actor (a seventh of those there are,
    at least one) while they have 1.75 blocks in work or more on average, the most being 2, and Ray Data's budget has
    room for it; below 0.5 it lets one go. An actor for which the cluster has no place just waits.
    """
    counts = resources.separation_counts
    return ActorPoolStrategy(min_size=counts[0], max_size=counts[-1])


def schedule_of(experiment: Experiment, clips: int) -> Schedule:
    """The finite schedule of an experiment over this many clips."""
    return Schedule(seed=experiment.seed, clips=clips, epochs=experiment.training.epochs)


def draws_of(experiment: Experiment, manifest: Manifest, ledger: Ledger) -> DrawRows:
    """The draws of what a ledger still lacks."""
    schedule = schedule_of(experiment, len(manifest.clips))
    return DrawRows(manifest.clips, schedule, ledger, experiment.views, streams_of(experiment.used_augmentations))


def service_settings(experiment: Experiment, checkpoints: Mapping[str, str]) -> ServiceSettings:
    """What readers and separation actors of an experiment agree on; `checkpoints` by processor name."""
    return ServiceSettings(
        views=experiment.views,
        audio=experiment.audio,
        checkpoints=dict(checkpoints),
        precision=separation_precision(experiment),
        mixtures=reads_mixture(experiment),
    )


def reads_mixture(experiment: Experiment) -> bool:
    """Whether an augmentation reads the mixture at the place of each view, which then travels with the rows."""
    return any(one.needs.mixture for one in experiment.used_augmentations.values())


def views_bytes(experiment: Experiment) -> int:
    """Bytes of what the last stage hands on for a row, and of a stored row also the reader."""
    crops = 4 if reads_mixture(experiment) else 2
    return crops * patch_samples(experiment.views, experiment.audio.sample_rate) * PCM_BYTES


def view_stream(
    experiment: Experiment,
    manifest: Manifest,
    checkpoints: Mapping[str, str],
    ledger: Ledger,
    store: SeparatedStore | None = None,
    crash_counts: CrashCounts | None = None,
    shown: str = "",
) -> Dataset:
    """The views of all rows that the ledger still lacks, lazily.

    Args:
        checkpoints: processor name -> separator folder.
        store: where separated clips are kept; none separates every row live.
        crash_counts: of clips that end their actor; none lets such a clip end the run.
        shown: a name beside those of its actors, which tells them from another run's in Ray's dashboard.
    """
    training = experiment.training
    draws = draws_of(experiment, manifest, ledger)
    rows = _drawn_rows(draws, training.global_batch, training.service_rows, experiment.resources)
    return _served(rows, experiment, checkpoints, store, crash_counts, separates_live(experiment), shown)


def prefill_stream(
    experiment: Experiment, manifest: Manifest, checkpoints: Mapping[str, str], store: SeparatedStore
) -> Dataset:
    """Separate every clip with every processor of the combination into the store; yields the rows as it goes."""
    schedule = schedule_of(experiment, len(manifest.clips))
    draws = PrefillRows(manifest.clips, schedule, Ledger(schedule.rows), experiment.views)
    rows = (
        ray.data.range(len(manifest.clips) * len(experiment.views.combination))
        .map_batches(draws, batch_size=None)
        .repartition(target_num_rows_per_block=experiment.training.service_rows)
    )
    made = _served(rows, experiment, checkpoints, store, crash_counts=None, live=True)
    return made.select_columns(["row", "clip", "processor", "uri", "content", "fault", "stored", "damaged", "dropped"])


def _served(
    rows: Dataset,
    experiment: Experiment,
    checkpoints: Mapping[str, str],
    store: SeparatedStore | None,
    crash_counts: CrashCounts | None,
    live: bool,
    shown: str = "",
) -> Dataset:
    """Rows with draws through the readers, and where clips are separated `live` through the separation actors."""
    training = experiment.training
    resources = experiment.resources
    shared = {"settings": service_settings(experiment, checkpoints), "store": store, "crash_counts": crash_counts}
    read = rows.map_batches(
        _named(ClipReader if live else ViewMaker, shown),
        fn_constructor_kwargs=shared,
        batch_size=training.service_rows,
        compute=ActorPoolStrategy(size=resources.readers),
        ray_remote_args_fn=finite_retries,
        **reader_demand(resources).ray_options(),
    )
    if not live:
        return read
    on_device = {
        "device": "cuda" if resources.separation_gpus else "cpu",
        "clips_per_forward": resources.separation_batch,
    }
    return read.map_batches(
        _named(SeparationService, shown),
        fn_constructor_kwargs=shared | on_device,
        batch_size=training.service_rows,
        compute=separation_pool(resources),
        ray_remote_args_fn=finite_retries,
        **actor_demand(resources).ray_options(),
    )


def _named(actor: type, shown: str) -> type:
    """The class of actors under a name of their own: Ray Data shows each actor by the name of its class."""
    return type(f"{actor.__name__} of {shown}", (actor,), {}) if shown else actor


def segment_stream(experiment: Experiment, manifest: Manifest, schedule: Schedule, ledger: Ledger) -> Dataset:
    """Decoded segments for the training of the separator: pairs of neighbouring rows make MixIT's mixtures of mixtures,
    and each row alone a supervised example."""
    settings = experiment.separator
    resources = experiment.resources
    global_rows = 2 * settings.batch_mixtures
    # Whole blocks for each worker, however many there are, and both clips of a mixture in the same block.
    block_rows = 2 * math.gcd(*(settings.batch_mixtures // trainers for trainers in resources.trainer_counts))
    rows = _drawn_rows(DrawRows(manifest.clips, schedule, ledger, experiment.views), global_rows, block_rows, resources)
    read = read_segments if settings.objective == "mixit" else read_source_segments
    return rows.map_batches(
        partial(read, audio=experiment.audio, segment_seconds=settings.segment_seconds),
        batch_size=block_rows,
        compute=TaskPoolStrategy(size=resources.readers),
        **reader_demand(resources).ray_options(),
    )


def _drawn_rows(draws: DrawRows, global_rows: int, block_rows: int, resources: Resources) -> Dataset:
    """What remains, padded to whole global batches, with its draws, in blocks of `block_rows`."""
    steps = draws.batches(global_rows)
    tasks = -(-steps // max(1, ROWS_A_TASK // global_rows))
    return (
        ray.data.range(steps, override_num_blocks=max(1, tasks))
        .map_batches(partial(_positions, rows=global_rows), batch_size=None)
        .map_batches(draws, batch_size=None)
        .repartition(target_num_rows_per_block=block_rows)
    )


def _positions(columns: dict[str, np.ndarray], rows: int) -> dict[str, np.ndarray]:
    """From steps to the positions of their rows: a task draws whole steps, so that all of its blocks are whole, too."""
    return {"id": (columns["id"][:, None] * rows + np.arange(rows)).ravel()}


def execution_options(experiment: Experiment) -> ExecutionOptions:
    """Order of a training stream, and how much of it may lie ready.

    Without a limit, readers that are faster than the trainers would fill half of the object store with views that
    nobody needs yet. Allowed is twice what all stages have in work (four blocks a process) and eight global batches.
    """
    training = experiment.training
    resources = experiment.resources
    views = views_bytes(experiment)
    row = experiment.audio.samples * PCM_BYTES if separates_live(experiment) else views
    in_work = 4 * (resources.readers + resources.separation_actors) * training.service_rows * row
    limit = max(LEAST_MEMORY, 2 * (in_work + 8 * training.global_batch * views))
    return ExecutionOptions(
        preserve_order=training.ordered,
        resource_limits=ray.data.ExecutionResources.for_limits(object_store_memory=limit),
    )
