"""Starting a Ray Train stage: the same storage, retries and metrics for the separator and for pre-training."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import ray.train
import ray.train.torch
import torch
from ray.data import Dataset
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2._internal.execution.callback import RayTrainCallback
from ray.train.v2._internal.execution.context import get_train_context
from ray.train.v2.api.validation_config import ValidationConfig

from sepscene.models.config import SepsceneError
from sepscene.orchestration.config import Resources
from sepscene.orchestration.records.checkpoint_writer import (
    CheckpointWriter,
    ask_for_checkpoint,
    checkpoint_given,
    checkpoint_wanted,
)
from sepscene.orchestration.records.checkpoints import (
    TrainingState,
    choose_resume_point,
    newest_sound,
    read_figures,
    read_ledger,
)
from sepscene.orchestration.records.ledger import Ledger
from sepscene.orchestration.records.metrics_log import (
    MetricsFile,
    append_metrics,
    collect_validations,
    fatal_path,
    recover_metrics,
)
from sepscene.orchestration.runtime.allocator import kept_memory
from sepscene.orchestration.runtime.placement import is_local
from sepscene.orchestration.runtime.ray_compat import configure_data
from sepscene.tasks.distributed.gather import sum_over_workers

MAX_FAILURES = 8
"""Worker groups that may fail before the stage gives up."""

MAX_CONTROLLERS = 4
"""Train controllers that may die; Ray itself never starts a second one."""

FULL_DISK_SECONDS = 60.0
"""How long the last checkpoint waits for room on the disk."""

WATCH_SECONDS = 0.5
"""How often rank 0 looks for a warning."""

GRACE_SECONDS = 100.0
"""How long a driver that got SIGTERM waits for the checkpoint it asked for; jobs are killed after 120 s."""


def fit(
    worker: Callable[[dict[str, Any]], None],
    settings: dict[str, Any],
    stream: Callable[[Ledger], Dataset],
    rows: int,
    run_dir: Path,
    stage: str,
    resources: Resources,
    checkpoints_kept: int | None,
    options: ray.data.ExecutionOptions,
    validation: ValidationConfig | None = None,
) -> Path:
    """Run one stage to the end of its schedule, through the failures of anything but this process.

    A stage that has reached its end before is left as it is; one that was cut short continues.

    Args:
        worker: the training function of each worker; it finds its resume point under settings["checkpoints"].
        settings: its plain settings.
        stream: builds the data from what a ledger still lacks; called anew for every worker group.
        rows: rows of the schedule.
        run_dir: the run's folder; checkpoints go to RUN/checkpoints/<stage>/.
        stage: name of the stage.
        resources: trainers and where they run.
        checkpoints_kept: how many checkpoints to keep; none keeps all.
        options: order and memory of the stream.
        validation: what Ray Train does with the encoders that a worker hands over (see `validation.py`).

    Returns:
        The last checkpoint.

    Raises:
        SepsceneError: when the stage reports a fatal condition, or fails more often than is reasonable.
    """
    checkpoints = run_dir / "checkpoints" / stage
    metrics = run_dir.resolve() / "metrics.jsonl"

    def remaining() -> Dataset:
        configure_data(options.preserve_order)  # Ray calls this in the controller, which has settings of its own
        chosen = choose_resume_point(checkpoints)
        if chosen is None:
            return stream(Ledger(rows))
        recover_metrics(metrics, stage, read_figures(chosen))
        return stream(read_ledger(chosen))

    last = newest_sound(checkpoints)
    if last is not None and not read_ledger(last).remaining():
        recover_metrics(metrics, stage, read_figures(last))
        collect_validations(metrics, stage)
        return last

    fatal = fatal_path(run_dir, stage)
    fatal.unlink(missing_ok=True)
    checkpoint_given(checkpoints)
    configuration = {**settings, "checkpoints": str(checkpoints), "checkpoints_kept": checkpoints_kept}
    for died in range(MAX_CONTROLLERS):
        trainer = _trainer(worker, configuration, remaining, metrics, stage, resources, options, validation)
        try:
            with checkpoint_on_sigterm(checkpoints):
                trainer.fit()
            break
        except ray.train.TrainingFailedError as error:
            reason = fatal.read_text() if fatal.exists() else str(error)
            raise SepsceneError(f"stage {stage} failed: {reason}") from error
        except ray.exceptions.RayActorError as error:
            if died + 1 == MAX_CONTROLLERS:
                raise SepsceneError(
                    f"stage {stage} failed: its Train controller died {MAX_CONTROLLERS} times"
                ) from error
            append_metrics(metrics, stage, [{"event": "the Train controller died, starting another"}])
    collect_validations(metrics, stage)
    if fatal.exists():
        raise SepsceneError(fatal.read_text())
    last = newest_sound(checkpoints)
    if last is None:
        raise SepsceneError(f"{checkpoints} holds no sound checkpoint after training")
    return last


def _trainer(
    worker: Callable[[dict[str, Any]], None],
    configuration: dict[str, Any],
    remaining: Callable[[], Dataset],
    metrics: Path,
    stage: str,
    resources: Resources,
    options: ray.data.ExecutionOptions,
    validation: ValidationConfig | None,
) -> ray.train.torch.TorchTrainer:
    """One controller's worth of a stage. Checkpoints are not given to Ray: it would delete good ones for bad ones.

    All that Ray stores are encoders to validate; it keeps them until they are, and the last one.
    """
    environment = {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"), **kept_memory()}
    kind = LocalTrainer if is_local() else ray.train.torch.TorchTrainer
    return kind(
        worker,
        train_loop_config=configuration,
        datasets={"views": remaining},
        dataset_config=ray.train.DataConfig(execution_options=options),
        scaling_config=_scaling(resources),
        run_config=ray.train.RunConfig(
            name=stage,
            storage_path=str(Path(configuration["checkpoints"]).parent.resolve()),
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=1),
            failure_config=ray.train.FailureConfig(max_failures=MAX_FAILURES),
            callbacks=[MetricsFile(metrics, stage)],  # type: ignore[list-item]
            # Ray's type hints still describe its first Train; this is the second, whose classes these are.
            worker_runtime_env={"env_vars": environment},  # type: ignore[call-arg]
        ),
        validation_config=validation,
    )


class LocalTrainer(ray.train.torch.TorchTrainer):
    """A trainer on a Ray of this machine alone, without the process that tidies up after a controller that died.

    Ray Train 2.60 has no switch for it. It asks the dashboard every second whether the controller lives; where there is
    no dashboard it asks in vain, or that of another Ray on this machine. What is left goes with the command anyway.
    """

    def _create_default_callbacks(self) -> list[RayTrainCallback]:
        callbacks = super()._create_default_callbacks()  # type: ignore[misc]
        return [each for each in callbacks if not isinstance(each, PlacementGroupCleanerCallback)]


@contextmanager
def checkpoint_on_sigterm(checkpoints: Path) -> Iterator[None]:
    """While the block runs, SIGTERM to this process leads to a checkpoint before it exits.

    `ray job stop`, Kubernetes and Slurm all say SIGTERM first. Only the main thread can listen; a Tune trial's
    driver is none, and falls back to its last checkpoint.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    told: list[int] = []

    def stop(number: int, frame: Any) -> None:
        told.append(number)
        ask_for_checkpoint(checkpoints)
        deadline = time.monotonic() + GRACE_SECONDS
        while checkpoint_wanted(checkpoints) and time.monotonic() < deadline:
            time.sleep(0.1)
        raise SystemExit(128 + number)

    before, interrupt = signal.signal(signal.SIGTERM, stop), signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit:  # Ray, inside which the signal arrives, makes its own of ours
        raise SystemExit(128 + told[0] if told else 1) from None
    finally:
        signal.signal(signal.SIGTERM, before)
        # Ray's own handler keeps the controller, and with it three more processes, until the next stage.
        signal.signal(signal.SIGINT, interrupt)


class Reporter:
    """What a worker tells the driver: the figures of its steps, and from rank 0 the checkpoints.

    On rank 0 a thread waits for a warning that the end may be near, and then saves at once, between two steps. That
    can't be left to the steps themselves: Ray Data gives no more work to a node that is being drained, so the stream
    may stand still until that node is gone.
    """

    def __init__(self, settings: dict[str, Any], state: Callable[[], TrainingState]) -> None:
        """Watch for warnings from now on.

        Args:
            settings: of the worker, as `fit` hands them on.
            state: what a checkpoint must hold; called between steps only.
        """
        self.root, self.state = Path(settings["checkpoints"]), state
        self.is_first = ray.train.get_context().get_world_rank() == 0
        self.unsent: list[dict[str, Any]] = []
        self.since_checkpoint: list[dict[str, float]] = []
        self.writer = CheckpointWriter(self.root, settings["checkpoints_kept"]) if self.is_first else None
        self._told = ""
        self._between_steps, self._ended = threading.RLock(), threading.Event()
        if self.writer is not None:
            threading.Thread(target=self._watch, args=(self.writer,), name="watch-for-the-end", daemon=True).start()

    @contextmanager
    def step(self, device: torch.device) -> Iterator[None]:
        """Around everything that a worker does with a batch; it begins when all workers have theirs.

        So nobody waits for another's data in the middle of a step, when its state can't be saved.
        """
        sum_over_workers(torch.zeros(1, device=device)).item()
        with self._between_steps:
            yield

    def add(self, figures: dict[str, float]) -> None:
        """Keep the figures of a step for the next report."""
        self.unsent.append(figures)
        self.since_checkpoint.append(figures)

    def tell(self, step: int, event: str) -> None:
        """Put an event, if it is one, beside the figures of the steps: the terminal and the report show it."""
        if event:
            self.unsent.append({"step": step, "event": event})

    def send(self, save: bool = False, fatal: str = "", options: Mapping[str, Any] | None = None) -> None:
        """Report the steps since the last report; to `save`, rank 0 also writes a checkpoint beside training.

        All workers call this together. `options` go to `ray.train.report` (see `validation.HandOver`).
        """
        if save and self.writer is not None:
            self._note(self.writer.wait())
            self.writer.start(self._with_figures())
        self._report(fatal, options or {})

    def finish(self, save: bool = False, fatal: str = "", options: Mapping[str, Any] | None = None) -> None:
        """The last report; when it returns, the last checkpoint is on the disk. All workers call this together."""
        self._ended.set()
        with self._between_steps:
            if self.writer is not None:
                refused = self.writer.wait()
                if save:
                    refused = self.writer.save(self._with_figures(), FULL_DISK_SECONDS)
                if refused:
                    fatal = fatal or f"{refused}; make room under {self.root}, then continue the run with --resume"
                checkpoint_given(self.root)
        self._report(fatal, options or {})

    def _watch(self, writer: CheckpointWriter) -> None:
        saved_for: set[str] = set()
        while not self._ended.wait(WATCH_SECONDS):
            leaving = _leaving_nodes()
            if leaving <= saved_for and not checkpoint_wanted(self.root):
                continue
            with self._between_steps:
                if self._ended.is_set():
                    return
                self._note(writer.wait())
                writer.start(self._with_figures())
                self._note(writer.wait())
                if not writer.failure:
                    saved_for |= leaving
                    checkpoint_given(self.root)

    def _with_figures(self) -> TrainingState:
        figures, self.since_checkpoint = self.since_checkpoint, []
        return replace(self.state(), figures=figures)

    def _note(self, failure: str) -> None:
        if failure and failure != self._told:
            self.unsent.append({"event": f"{failure}; training goes on"})
        self._told = failure

    def _report(self, fatal: str, options: Mapping[str, Any]) -> None:
        if fatal:
            self._ended.set()
        ray.train.report({"steps": self.unsent, "fatal": fatal}, **options)
        self.unsent = []


def _leaving_nodes() -> set[str]:
    """The nodes of this worker group that are being drained, as Ray Train has told this worker.

    `ray.train.get_preemption_info` says the same but waits for all workers, and one that waits for data never asks.
    """
    info = get_train_context().preemption_context.preemption_info
    return set(info.preempted_node_ids) if info else set()


def _scaling(resources: Resources) -> ray.train.ScalingConfig:
    per_worker: dict[str, float] = {"CPU": resources.trainer_cpus}
    if resources.trainer_gpus:
        per_worker["GPU"] = resources.trainer_gpus
    elastic = (resources.trainers_min, resources.trainers) if resources.trainers_min else resources.trainers
    return ray.train.ScalingConfig(
        num_workers=elastic,  # type: ignore[arg-type]
        use_gpu=resources.trainer_gpus > 0,
        resources_per_worker=per_worker,
        accelerator_type=resources.trainer_accelerator,
        label_selector=resources.trainer_labels or None,  # type: ignore[call-arg]
    )
