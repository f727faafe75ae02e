"""A training stage: one Ray Train run over a schedule, which goes on through the failures of its processes.

The same for the separator and for pre-training: storage, retries, metrics.
"""

import functools
import os
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import ray.train
import ray.train.torch
from ray.data import Dataset, ExecutionOptions
from ray.exceptions import RayError
from ray.util.placement_group import PlacementGroup, get_current_placement_group, remove_placement_group

from sepscene.models.config import SepsceneError
from sepscene.models.trust import trust_variables
from sepscene.orchestration.config import Resources
from sepscene.orchestration.records.checkpoints import choose_resume_point, newest_sound, read_ledger, steps_up_to
from sepscene.orchestration.records.files import read_text, write_whole
from sepscene.orchestration.records.ledger import Ledger
from sepscene.orchestration.records.metrics_log import MetricsFile, append_metrics, collect_validations, recover_metrics
from sepscene.orchestration.records.run_folder import StageFolder
from sepscene.orchestration.runtime.allocator import kept_memory
from sepscene.orchestration.runtime.ray_compat import configure_data, trainer_class
from sepscene.orchestration.runtime.run_processes import processes_of_run
from sepscene.orchestration.runtime.signals import checkpoint_on_signal
from sepscene.orchestration.runtime.watchdog import Watchdog

MAX_FAILURES = 8
"""Worker groups that may fail before the stage gives up."""

MAX_CONTROLLERS = 4
"""Train controllers that may die; Ray itself never starts a second one."""

STOP_SECONDS = 60
"""How long a stage in this process may take to end after a signal: a step, and its checkpoint."""

POLL_SECONDS = 0.5
"""How often a Train controller asks its workers for reports, failures and their end; Ray's default is 2."""

LOOK_SECONDS = 0.5
"""How often the driver wakes up while a stage runs, to hear signals and to see what stands still."""


@dataclass(frozen=True)
class Stage:
    """One stage of a run.

    Attributes:
        folder: where its checkpoints are, and through which its processes speak to each other; with an absolute path.
        worker: the training function of each worker.
        settings: what the worker is given, beside "folder".
        stream: builds the data from what a ledger still lacks; called anew for every worker group.
        rows: rows of the schedule.
        resources: trainers and where they run.
        options: order and memory of the stream.
        validation: what Ray Train does with the encoders that a worker hands over (see `validation.py`).
        callbacks: the user's own, for Ray Train, which calls them in its controller's process.
        here: trains in this process, given the settings, the ledger and an event that stops it after a step (see
            `light.py`); none leaves it to Ray Train.
    """

    folder: StageFolder
    worker: Callable[[dict[str, Any]], None]
    settings: dict[str, Any]
    stream: Callable[[Ledger], Dataset]
    rows: int
    resources: Resources
    options: ExecutionOptions
    validation: ray.train.ValidationConfig | None = None
    callbacks: Sequence[ray.train.UserCallback] = ()
    here: Callable[[dict[str, Any], Ledger, threading.Event], None] | None = None

    def run(self) -> Path:
        """Run to the end of the schedule, through the failures of anything but this process.

        A stage that has reached its end before is left as it is; one that was cut short continues.

        Returns:
            The last checkpoint.

        Raises:
            SepsceneError: when the stage reports a fatal condition, or fails more often than is reasonable.
        """
        finished = self._finished()
        if finished is not None:
            return finished
        self._tidy()
        for controller in range(1, MAX_CONTROLLERS + 1):
            if self._controller_lived():
                break
            if controller == MAX_CONTROLLERS:
                raise SepsceneError(f"stage {self.folder.name} failed: its Train controller died {controller} times")
            self._note("its Train controller died, starting another")
            self._free_reserved()
        collect_validations(self.folder)
        if self.folder.fatal.exists():
            raise SepsceneError(read_text(self.folder.fatal))
        last = newest_sound(self.folder.path)
        if last is None:
            raise SepsceneError(f"{self.folder.path} holds no sound checkpoint after training")
        return last

    @property
    def _settings(self) -> dict[str, Any]:
        return {**self.settings, "folder": self.folder}

    def _finished(self) -> Path | None:
        """The last checkpoint, when an earlier command came to the end of the schedule."""
        last = newest_sound(self.folder.path)
        if last is None or read_ledger(last).remaining():
            return None
        recover_metrics(self.folder, steps_up_to(last))
        collect_validations(self.folder)
        return last

    def _tidy(self) -> None:
        """Remove what an earlier command left for its own processes.

        Ray Train's snapshot goes, too: it names folders of encoders, which Ray Train then deletes, and one that a kill
        has cut would end every later controller. Nothing in it is needed, checkpoints are ours.
        """
        folder = self.folder
        for left in (folder.fatal, folder.ray_snapshot, folder.wanted, folder.reserved):
            left.unlink(missing_ok=True)

    def _controller_lived(self) -> bool:
        """Train until the schedule is done; false when the Train controller died on the way.

        Ray works in a thread, so that this one hears signals: Ray would take Ctrl-C for itself.
        """
        raised: list[BaseException] = []
        stop = threading.Event()

        def fit() -> None:
            try:
                if self.here:
                    self.here(self._settings, self._ledger(), stop)
                else:
                    self._trainer().fit()
            except BaseException as error:
                raised.append(error)

        watchdog = Watchdog(self.folder.run.metrics, self._note, processes_of_run())
        thread = threading.Thread(target=fit, name=f"fit-{self.folder.name}", daemon=True)
        with checkpoint_on_signal(self.folder):
            thread.start()
            try:
                while thread.is_alive():
                    thread.join(LOOK_SECONDS)
                    watchdog.look()
            finally:
                stop.set()
                if self.here:  # an interpreter that ends below a thread that computes aborts
                    thread.join(STOP_SECONDS)
        if not raised:
            return True
        error = raised[0]
        if isinstance(error, ray.exceptions.RayActorError) and ray.is_initialized() and not self.folder.fatal.exists():
            return False
        self._fail(error)

    def _fail(self, error: BaseException) -> NoReturn:
        """Raise what ended the stage, as a sentence that says what to do."""
        name = self.folder.name
        if isinstance(error, ray.train.TrainingFailedError) or self.folder.fatal.exists():
            reason = read_text(self.folder.fatal) if self.folder.fatal.exists() else str(error)
            raise SepsceneError(f"stage {name} failed: {reason}") from error
        if isinstance(error, RayError | ConnectionError):
            raise SepsceneError(
                f"stage {name} ended because Ray did ({type(error).__name__}); continue the run with --resume"
            ) from error
        raise error

    def _trainer(self) -> ray.train.torch.TorchTrainer:
        """What one controller runs. Checkpoints are not given to Ray: it would delete good ones for bad ones.

        All that Ray stores are encoders to validate; it keeps them until they are, and the last one.
        """
        os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", str(POLL_SECONDS))  # Ray hands it to the controller
        environment = {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"), **kept_memory(), **trust_variables()}
        return trainer_class()(
            functools.partial(_work, self.worker, self.folder.reserved),
            train_loop_config=self._settings,
            datasets={"views": self._remaining},
            dataset_config=ray.train.DataConfig(execution_options=self.options),
            scaling_config=_scaling(self.resources),
            run_config=ray.train.RunConfig(
                name=self.folder.shown,
                storage_path=str(self.folder.path),
                checkpoint_config=ray.train.CheckpointConfig(num_to_keep=1),
                failure_config=ray.train.FailureConfig(max_failures=MAX_FAILURES),
                callbacks=[MetricsFile(self.folder), *self.callbacks],  # type: ignore[list-item]
                # Ray's type hints still describe its first Train; this is the second, whose classes these are.
                worker_runtime_env={"env_vars": environment},  # type: ignore[call-arg]
            ),
            validation_config=self.validation,
        )

    def _remaining(self) -> Dataset:
        """The data of a worker group. Ray calls this in the controller, which has settings of its own."""
        configure_data(self.options.preserve_order)
        stream = self.stream(self._ledger())
        stream.set_name(self.folder.shown)
        stream.context.execution_options = self.options  # as Ray Train does, where it trains
        return stream

    def _ledger(self) -> Ledger:
        """What the newest sound checkpoint has consumed, from which training goes on."""
        chosen = choose_resume_point(self.folder)
        if chosen is None:
            return Ledger(self.rows)
        recover_metrics(self.folder, steps_up_to(chosen))
        return read_ledger(chosen).try_again()

    def _free_reserved(self) -> None:
        """Give back what was reserved for the trainers of a controller that died.

        Ray keeps it until the job ends: on two CPU cores the next controller's stream would wait for it without end.
        Ray Train's own process for this runs on clusters only (`ray_compat.trainer_class`).
        """
        if self.folder.reserved.exists():
            reserved = ray.PlacementGroupID.from_hex(read_text(self.folder.reserved).strip())
            remove_placement_group(PlacementGroup(reserved))

    def _note(self, event: str) -> None:
        with suppress(OSError):  # on a full disk, the end of the stage says more
            append_metrics(self.folder, [{"event": event}])


def _work(worker: Callable[[dict[str, Any]], None], note: Path, settings: dict[str, Any]) -> None:
    """What Ray Train runs in each trainer: the worker, after rank 0 has noted what is reserved for the group."""
    reserved = get_current_placement_group()
    if reserved is not None and ray.train.get_context().get_world_rank() == 0:
        write_whole(note, reserved.id.hex())
    worker(settings)


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
