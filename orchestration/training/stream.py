"""The stream of views: a Ray Data pipeline from the remaining rows to the trainers.

    rows ──draws──▶ blocks of g rows ──readers──▶ SeparationService actors ──▶ W trainers

If nothing has to be separated (mix-mix, or a prefilled store), there are no separation actors, and the trainers get
their views from the readers.

With `training.ordered`, the order of rows is preserved. Ray Data then distributes blocks to the W trainers in turn, so
that step k consumes exactly the rows kB … (k+1)B−1 of the remaining rows, for any number of actors and trainers. The
last global batch is padded with fillers, so that every trainer gets the same number of equal blocks and none waits
forever for a batch.
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
from sepscene.orchestration.config import Experiment
from sepscene.orchestration.records.ledger import Ledger
from sepscene.orchestration.runtime.actor_pools import finite_retries, separation_pool
from sepscene.orchestration.runtime.placement import actor_demand, reader_demand, separates_live
from sepscene.orchestration.runtime.precision import separation_precision
from sepscene.orchestration.training.row_draws import DrawRows, PrefillRows
from sepscene.tasks.datasets.readers import Manifest

ROWS_PER_TASK = 512
"""Rows that one Ray task draws, or one global batch if that is larger. The overhead of a task, 0.1 s of a core, exceeds
the time for drawing 64 rows; a task can draw many, because rows are small before their sound is read."""

MIN_MEMORY = 128 * 2**20
"""Least object store memory of a stream, in bytes."""


def schedule_of(experiment: Experiment, clips: int) -> Schedule:
    """The finite schedule of an experiment over this many clips."""
    return Schedule(seed=experiment.seed, clips=clips, epochs=experiment.training.epochs)


def draws_of(experiment: Experiment, manifest: Manifest, ledger: Ledger) -> DrawRows:
    """The draws of the rows that a ledger still lacks."""
    schedule = schedule_of(experiment, len(manifest.clips))
    return DrawRows(manifest.clips, schedule, ledger, experiment.views, streams_of(experiment.used_augmentations))


def service_settings(experiment: Experiment, checkpoints: Mapping[str, str]) -> ServiceSettings:
    """The settings that readers and separation actors share; `checkpoints` by processor name."""
    return ServiceSettings(
        views=experiment.views,
        audio=experiment.audio,
        checkpoints=dict(checkpoints),
        precision=separation_precision(experiment),
        mixtures=reads_mixture(experiment),
    )


def reads_mixture(experiment: Experiment) -> bool:
    """Whether an augmentation needs the mixture of each view, which the rows then contain."""
    return any(one.needs.mixture for one in experiment.used_augmentations.values())


def views_bytes(experiment: Experiment) -> int:
    """Bytes of a row at the trainers; also at the readers, if its clip is stored."""
    crops = 4 if reads_mixture(experiment) else 2
    return crops * patch_samples(experiment.views, experiment.audio.sample_rate) * PCM_BYTES


def view_stream(
    experiment: Experiment,
    manifest: Manifest,
    checkpoints: Mapping[str, str],
    ledger: Ledger,
    store: SeparatedStore | None = None,
    crash_counts: CrashCounts | None = None,
    run_name: str = "",
) -> Dataset:
    """The views of all rows that the ledger still lacks; evaluated lazily.

    Args:
        checkpoints: processor name -> separator folder.
        store: where separated clips are kept; None separates every row live.
        crash_counts: crash counts of clips that end their actor; without them, such a clip ends the run.
        run_name: is added to the names of the actors, to distinguish runs in Ray's dashboard.
    """
    training = experiment.training
    draws = draws_of(experiment, manifest, ledger)
    rows = _drawn_rows(draws, training.global_batch, training.service_rows)
    return _served(rows, experiment, checkpoints, store, crash_counts, separates_live(experiment), run_name)


def prefill_stream(
    experiment: Experiment, manifest: Manifest, checkpoints: Mapping[str, str], store: SeparatedStore
) -> Dataset:
    """Separate every clip with every processor of the combination into the store; the data set has a row for each."""
    schedule = schedule_of(experiment, len(manifest.clips))
    draws = PrefillRows(manifest.clips, schedule, Ledger(schedule.rows), experiment.views)
    rows = (
        ray.data.range(len(manifest.clips) * len(experiment.views.combination))
        .map_batches(draws, batch_size=None)
        .repartition(target_num_rows_per_block=experiment.training.service_rows)
    )
    served = _served(rows, experiment, checkpoints, store, crash_counts=None, live=True)
    columns = ["row", "clip", "processor", "uri", "content", "fault", "stored", "damaged", "dropped"]
    return served.select_columns(columns)


def _served(
    rows: Dataset,
    experiment: Experiment,
    checkpoints: Mapping[str, str],
    store: SeparatedStore | None,
    crash_counts: CrashCounts | None,
    live: bool,
    run_name: str = "",
) -> Dataset:
    """Process rows with draws by the readers, and by the separation actors if clips are separated `live`."""
    training = experiment.training
    resources = experiment.resources
    shared = {"settings": service_settings(experiment, checkpoints), "store": store, "crash_counts": crash_counts}
    read = rows.map_batches(
        _named(ClipReader if live else ViewMaker, run_name),
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
        _named(SeparationService, run_name),
        fn_constructor_kwargs=shared | on_device,
        batch_size=training.service_rows,
        compute=separation_pool(resources),
        ray_remote_args_fn=finite_retries,
        **actor_demand(resources).ray_options(),
    )


def _named(actor: type, run_name: str) -> type:
    """A subclass whose name contains the run's, because Ray Data identifies actors by their class name."""
    return type(f"{actor.__name__} of {run_name}", (actor,), {}) if run_name else actor


def segment_stream(experiment: Experiment, manifest: Manifest, ledger: Ledger) -> Dataset:
    """Decoded segments for the training of the separator.

    For MixIT, two consecutive rows give a mixture of mixtures; for supervised training, each row is an example.
    """
    settings = experiment.separator
    resources = experiment.resources
    global_rows = 2 * settings.batch_mixtures
    # Each worker gets whole blocks, for any number of workers, and both clips of a mixture are in the same block.
    block_rows = 2 * math.gcd(*(settings.batch_mixtures // trainers for trainers in resources.trainer_counts))
    schedule = Schedule(seed=experiment.seed, clips=len(manifest), epochs=-(-ledger.rows // len(manifest)))
    rows = _drawn_rows(DrawRows(manifest.clips, schedule, ledger, experiment.views), global_rows, block_rows)
    read = read_segments if settings.objective == "mixit" else read_source_segments
    return rows.map_batches(
        partial(read, audio=experiment.audio, segment_seconds=settings.segment_seconds),
        batch_size=block_rows,
        compute=TaskPoolStrategy(size=resources.readers),
        **reader_demand(resources).ray_options(),
    )


def _drawn_rows(draws: DrawRows, global_rows: int, block_rows: int) -> Dataset:
    """The remaining rows with their draws, padded to whole global batches, in blocks of `block_rows`."""
    steps = draws.batches(global_rows)
    tasks = -(-steps // max(1, ROWS_PER_TASK // global_rows))
    return (
        ray.data.range(steps, override_num_blocks=max(1, tasks))
        .map_batches(partial(_positions, rows=global_rows), batch_size=None)
        .map_batches(draws, batch_size=None)
        .repartition(target_num_rows_per_block=block_rows)
    )


def _positions(columns: dict[str, np.ndarray], rows: int) -> dict[str, np.ndarray]:
    """The positions of the rows of steps. A task draws whole steps, so that its blocks are whole, too."""
    return {"id": (columns["id"][:, None] * rows + np.arange(rows)).ravel()}


def execution_options(experiment: Experiment) -> ExecutionOptions:
    """Whether a training stream preserves order, and how much object store memory it can use.

    Without a limit, readers that are faster than the trainers would fill half of the object store with views that are
    not needed yet. The limit is twice the sum of all blocks in progress (four per process) and eight global batches.
    """
    training = experiment.training
    resources = experiment.resources
    views = views_bytes(experiment)
    row = experiment.audio.samples * PCM_BYTES if separates_live(experiment) else views
    in_progress = 4 * (resources.readers + resources.separation_actors) * training.service_rows * row
    limit = max(MIN_MEMORY, 2 * (in_progress + 8 * training.global_batch * views))
    return ExecutionOptions(
        preserve_order=training.ordered,
        resource_limits=ray.data.ExecutionResources.for_limits(object_store_memory=limit),
    )
