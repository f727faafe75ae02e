"""The stream of views: Ray Data from the rows that remain to what the trainers read.

    rows ──draws──▶ blocks of g rows ──readers──▶ SeparationService actors ──▶ W trainers

The order of rows is kept when `training.ordered` is set. Ray Data then hands blocks to the W trainers in turn, so that
step k consumes exactly the rows kB … (k+1)B−1 of what remains, whatever the number of actors and trainers. The last
global batch is evened out with fillers, so that every trainer gets the same number of equal blocks and none waits for
a batch that never comes.
"""

from collections.abc import Mapping

import numpy as np
import ray.data
from ray.data import ActorPoolStrategy, DataContext, Dataset, TaskPoolStrategy

from augment.draws import Schedule, draw
from augment.service import FILLER, SeparationService, read_rows
from orchestration.config import Experiment, Resources
from orchestration.ledger import Ledger, nth_rows
from tasks.manifests import Manifest

Columns = dict[str, np.ndarray]

MAX_RESTARTS = 3
"""How often Ray may restart an actor or repeat one of its calls: its default is for ever."""


def schedule_of(experiment: Experiment, clips: int) -> Schedule:
    """The finite schedule of an experiment over so many clips."""
    return Schedule(seed=experiment.seed, clips=clips, epochs=experiment.training.epochs)


class DrawRows:
    """Turns positions in what remains into rows with their clip and all their draws."""

    def __init__(self, manifest: Manifest, schedule: Schedule, ledger: Ledger, weights: tuple[float, ...]) -> None:
        self.uri = manifest.clips["uri"].to_numpy(zero_copy_only=False)
        self.offset_seconds = manifest.clips["offset_seconds"].to_numpy()
        self.schedule, self.remaining, self.weights = schedule, ledger.remaining(), weights

    def __call__(self, columns: Columns) -> Columns:
        """Columns of draws for the positions in column `id`; fillers beyond the end have row −1."""
        row_N = nth_rows(self.remaining, columns["id"], beyond=FILLER)
        draws = draw(self.schedule, np.maximum(row_N, 0), self.weights)
        return {
            **draws,
            "row": row_N,
            "uri": self.uri[draws["clip"]],
            "offset_seconds": self.offset_seconds[draws["clip"]],
        }


def view_stream(experiment: Experiment, manifest: Manifest, checkpoints: Mapping[str, str], ledger: Ledger) -> Dataset:
    """The views of all rows that the ledger still lacks, lazily.

    Args:
        experiment: views, audio, training and resources.
        manifest: the training clips.
        checkpoints: processor name -> separator folder.
        ledger: what the weights have consumed.
    """
    training, resources = experiment.training, experiment.resources
    steps = -(-sum(end - start for start, end in ledger.remaining()) // training.global_batch)
    draws = DrawRows(manifest, schedule_of(experiment, len(manifest.clips)), ledger, experiment.views.processor_weights)
    actors = resources.separation_actors
    return (
        ray.data.range(steps * training.global_batch, override_num_blocks=steps)
        .map_batches(draws, batch_size=None, num_cpus=resources.reader_cpus)
        .repartition(target_num_rows_per_block=training.service_rows)
        .map_batches(
            read_rows,
            fn_kwargs={"audio": experiment.audio},
            batch_size=training.service_rows,
            compute=TaskPoolStrategy(size=resources.readers),
            num_cpus=resources.reader_cpus,
        )
        .map_batches(
            SeparationService,
            fn_constructor_kwargs={
                "checkpoints": dict(checkpoints),
                "views": experiment.views,
                "audio": experiment.audio,
                "device": "cuda" if resources.separation_gpus else "cpu",
            },
            batch_size=training.service_rows,
            compute=ActorPoolStrategy(size=actors),
            **_actor_options(resources),
        )
    )


def _actor_options(resources: Resources) -> dict[str, object]:
    """Where separation actors may run, and how often Ray may try again."""
    options: dict[str, object] = {
        "num_cpus": resources.separation_cpus,
        "max_restarts": MAX_RESTARTS,
        "max_task_retries": MAX_RESTARTS,
    }
    if resources.separation_gpus:
        options["num_gpus"] = resources.separation_gpus
    if resources.separation_accelerator:
        options["accelerator_type"] = resources.separation_accelerator
    if resources.separation_labels:
        options["label_selector"] = resources.separation_labels
    return options


def configure_data(ordered: bool) -> None:
    """Set this process's Ray Data context: order, no progress bars of its own, and errors that stop the run."""
    context = DataContext.get_current()
    context.execution_options.preserve_order = ordered
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.enable_rich_progress_bars = False
    context.max_errored_blocks = 0
