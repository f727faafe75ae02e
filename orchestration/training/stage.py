"""A training stage: one run over a schedule, which continues after failures of its processes.

The separator's training and pre-training share its storage, retries and metrics. A stage trains with Ray Train
(`RayStage`) or in this process (`pretraining.LocalStage`).
"""

import functools
import os
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from concurrent.futures import Future, wait
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import ray.train
import ray.train.torch
from ray.data import Dataset
from ray.exceptions import RayError
from ray.util.placement_group import PlacementGroup, get_current_placement_group, remove_placement_group

from sepscene.models.config import SepsceneError
from sepscene.models.trust import trust_variables
from sepscene.orchestration.config import Experiment, Resources
from sepscene.orchestration.records.checkpoints import choose_resume_point, newest_intact, read_ledger, steps_up_to
from sepscene.orchestration.records.files import read_text, write_text_atomically
from sepscene.orchestration.records.ledger import Ledger
from sepscene.orchestration.records.metrics_log import MetricsFile, append_metrics, collect_validations, recover_metrics
from sepscene.orchestration.records.run_folder import StageFolder
from sepscene.orchestration.runtime.allocator import allocator_variables
from sepscene.orchestration.runtime.ray_compat import configure_data, kill_actor, trainer_class
from sepscene.orchestration.runtime.run_processes import core_is_alive, processes_of_run
from sepscene.orchestration.runtime.signals import checkpoint_on_signal
from sepscene.orchestration.runtime.watchdog import Watchdog
from sepscene.orchestration.training.stream import execution_options

MAX_FAILURES = 8
"""Number of worker groups that can fail before the stage fails."""

MAX_CONTROLLERS = 4
"""Number of Train controllers that can die before the stage fails; Ray itself never starts a second one."""

STOP_SECONDS = 60
"""How long a stage in this process can take to end after a signal: for a step and its checkpoint."""

LEAVE_SECONDS = 10
"""How long `fit` can take to return after its Train controller was killed; it takes some milliseconds."""

POLL_SECONDS = 0.5
"""Interval at which a Train controller polls its workers for reports, failures and their end; Ray's default is 2."""

WAKE_SECONDS = 0.5
"""Interval at which the driver wakes up while a stage runs, to handle signals and to run the watchdog."""


@dataclass(frozen=True)
class Stage(ABC):
    """One stage of a run.

    Attributes:
        folder: where its checkpoints are, and how its processes communicate; its path must be absolute.
        rows: rows of the schedule.
    """

    folder: StageFolder
    rows: int

    @abstractmethod
    def fit(self, stop: threading.Event) -> None:
        """Train on the rows that `ledger` lacks; called in a thread. After `stop`, it may end early."""

    def wait_for_end(self, fitted: Future[None]) -> None:
        """Wait for the end of `fit` after `stop`: if this process exits while the thread computes, it crashes."""
        wait([fitted], STOP_SECONDS)

    def run(self) -> Path:
        """Run to the end of the schedule, despite failures of any process except this one.

        A finished stage is not changed; an interrupted one continues.

        Returns:
            The last checkpoint.

        Raises:
            SepsceneError: when the stage reports a fatal condition, or fails too often.
        """
        finished = self._finished()
        if finished is not None:
            return finished
        self._remove_leftovers()
        for controller in range(1, MAX_CONTROLLERS + 1):
            if self._controller_survived():
                break
            if controller == MAX_CONTROLLERS:
                raise SepsceneError(
                    f"stage {self.folder.name} failed: its Train controller died {controller} times, often for lack of "
                    "memory: look for its reason in Ray's logs, then continue the run with --resume"
                )
            self._log_event("its Train controller died, starting another")
            self._free_reserved()
        collect_validations(self.folder)
        if self.folder.fatal.exists():
            raise SepsceneError(read_text(self.folder.fatal))
        last = newest_intact(self.folder.path)
        if last is None:
            raise SepsceneError(
                f"{self.folder.path} holds no valid checkpoint after training: check its disk, then continue "
                "the run with --resume"
            )
        return last

    def _finished(self) -> Path | None:
        """The last checkpoint, if an earlier command completed the schedule."""
        last = newest_intact(self.folder.path)
        if last is None or read_ledger(last).remaining():
            return None
        recover_metrics(self.folder, steps_up_to(last))
        collect_validations(self.folder)
        return last

    def _remove_leftovers(self) -> None:
        """Remove the files by which the processes of an earlier command communicated.

        Ray Train's snapshot is one of them: it names folders of encoders, which Ray Train would delete, and a truncated
        one would end every later controller. It is not needed, because checkpoints are not stored by Ray.
        """
        folder = self.folder
        for leftover in (folder.fatal, folder.ray_snapshot, folder.wanted, folder.reserved, folder.controller):
            leftover.unlink(missing_ok=True)

    def _controller_survived(self) -> bool:
        """Train to the end of the schedule; returns False when the Train controller died before.

        Ray runs in a thread, so that this one can handle signals: Ray would handle Ctrl-C itself.
        """
        fitted: Future[None] = Future()
        stop = threading.Event()

        def fit() -> None:
            try:
                self.fit(stop)
                fitted.set_result(None)
            except BaseException as error:
                fitted.set_exception(error)

        watchdog = Watchdog(self.folder.run.metrics, self._log_event, processes_of_run())
        thread = threading.Thread(target=fit, name=f"fit-{self.folder.name}", daemon=True)
        with checkpoint_on_signal(self.folder):
            try:
                thread.start()  # inside, because a signal can arrive before it returns
                # Not `thread.join`: an exception of a signal handler makes it consider the thread ended (Python 3.11).
                while not fitted.done():
                    wait([fitted], WAKE_SECONDS)
                    watchdog.check()
            finally:
                stop.set()
                self.wait_for_end(fitted)
        error = fitted.exception()
        if error is None:
            return True
        if isinstance(error, ray.exceptions.RayActorError) and ray.is_initialized() and not self.folder.fatal.exists():
            return False
        self._fail(error)

    def _fail(self, error: BaseException) -> NoReturn:
        """Raise the error that ended the stage, with a message that gives the remedy."""
        name = self.folder.name
        if isinstance(error, ray.train.TrainingFailedError) or self.folder.fatal.exists():
            reason = read_text(self.folder.fatal) if self.folder.fatal.exists() else str(error)
            raise SepsceneError(f"stage {name} failed: {reason}") from error
        if isinstance(error, RayError | ConnectionError):
            raise SepsceneError(
                f"stage {name} ended because Ray ended ({type(error).__name__}); continue the run with --resume"
            ) from error
        raise error

    def ledger(self) -> Ledger:
        """The ledger of the newest valid checkpoint, from which training continues."""
        chosen = choose_resume_point(self.folder)
        if chosen is None:
            return Ledger(self.rows)
        recover_metrics(self.folder, steps_up_to(chosen))
        return read_ledger(chosen).without_unread_rows()

    def _free_reserved(self) -> None:
        """Remove the placement group of the trainers of a controller that died.

        Ray keeps it until the job ends: on two CPU cores, the stream of the next controller would wait forever. Ray
        Train's own process for this runs on clusters only (`ray_compat.trainer_class`).
        """
        if self.folder.reserved.exists():
            reserved = ray.PlacementGroupID.from_hex(read_text(self.folder.reserved).strip())
            remove_placement_group(PlacementGroup(reserved))

    def _log_event(self, event: str) -> None:
        with suppress(OSError):  # if the disk is full, the error at the end of the stage explains it
            append_metrics(self.folder, [{"event": event}])


@dataclass(frozen=True)
class RayStage(Stage):
    """A stage that trains with Ray Train.

    Attributes:
        worker: the training function of each worker.
        stream: builds the data set of the rows that a ledger still lacks; called for every worker group.
        validation: how Ray Train validates the encoders that a worker reports (see `validation.py`).
        callbacks: the user's callbacks, which Ray Train calls in its controller's process.
    """

    experiment: Experiment
    worker: Callable[[], None]
    stream: Callable[[Ledger], Dataset]
    validation: ray.train.ValidationConfig | None = None
    callbacks: Sequence[ray.train.UserCallback] = ()

    def fit(self, stop: threading.Event) -> None:
        """Start a Train controller, and wait until it ends."""
        self._trainer().fit()

    def wait_for_end(self, fitted: Future[None]) -> None:
        """Kill the Train controller, so that the thread ends.

        This process would crash if it shut Ray down while the thread waits in Ray for the controller (ray#31145). If
        Ray has died, it is not shut down (`session.disconnect`).
        """
        if not fitted.done() and self.folder.controller.exists() and core_is_alive():
            kill_actor(read_text(self.folder.controller).strip())
            wait([fitted], LEAVE_SECONDS)

    def _trainer(self) -> ray.train.torch.TorchTrainer:
        """The Ray Train run of one controller.

        Ray does not store the checkpoints: it would replace valid ones by damaged ones. It only stores the encoders to
        validate, each until it is validated, and the last one.
        """
        os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", str(POLL_SECONDS))  # Ray passes it to the controller
        environment = {
            "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"),
            **allocator_variables(),
            **trust_variables(),
        }
        return trainer_class()(
            functools.partial(_run_worker, self.worker, self.folder),
            datasets={"views": self._remaining},
            dataset_config=ray.train.DataConfig(execution_options=execution_options(self.experiment)),
            scaling_config=_scaling(self.experiment.resources),
            run_config=ray.train.RunConfig(
                name=self.folder.shown,
                storage_path=str(self.folder.path),
                checkpoint_config=ray.train.CheckpointConfig(num_to_keep=1),
                failure_config=ray.train.FailureConfig(max_failures=MAX_FAILURES),
                callbacks=[MetricsFile(self.folder), *self.callbacks],  # type: ignore[list-item]
                # Ray's type hints still describe Train V1; this is V2.
                worker_runtime_env={"env_vars": environment},  # type: ignore[call-arg]
            ),
            validation_config=self.validation,
        )

    def _remaining(self) -> Dataset:
        """The data set of a worker group. Ray calls this in the controller, whose Ray Data is not configured yet."""
        write_text_atomically(self.folder.controller, str(ray.get_runtime_context().get_actor_id()))
        options = execution_options(self.experiment)
        configure_data(options.preserve_order)
        stream = self.stream(self.ledger())
        stream.set_name(self.folder.shown)
        stream.context.execution_options = options  # as the DataConfig of Ray Train does
        return stream


def _run_worker(worker: Callable[[], None], folder: StageFolder) -> None:
    """Run the worker in a trainer, after rank 0 has written the ID of the placement group to a file."""
    group = get_current_placement_group()
    if group is not None and ray.train.get_context().get_world_rank() == 0:
        write_text_atomically(folder.reserved, group.id.hex())
    if not folder.fatal.exists():  # else an earlier worker group has reported a fatal condition
        worker()


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
