"""MLflow as a mirror of the run's folder.

Training never waits for MLflow: calls and metrics are first written to the run's folder. While a stage runs, a thread
of the driver reads them, displays the progress and sends new ones to MLflow. If the server is unavailable, training
continues and the thread retries; what could not be sent by the end stays in the folder for `sepscene sync`.

The folder contains everything that is sent to MLflow: the calls in mlflow-calls.jsonl, and the metrics in the files of
`RunFolder.mirrored`. What has been sent, and to which MLflow runs, is in mlflow.json. If MLflow has lost the run,
everything is sent again.
"""

import hashlib
import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, ValidationError

from sepscene.models.card import CARD_FILE
from sepscene.models.config import Config, SepsceneError, first_line
from sepscene.orchestration.records.files import (
    append_lines,
    parse_records,
    read_lines,
    read_typed_or,
    write_text_atomically,
)
from sepscene.orchestration.records.run_folder import RunFolder
from sepscene.orchestration.records.sweep_folder import SweepFolder
from sepscene.orchestration.repeating import repeat_in_background

if TYPE_CHECKING:
    # It imports MLflow, which takes seconds: a run imports it in parallel with its first stage.
    from sepscene.orchestration.records.mlflow_client import MlflowStore
    from sepscene.tasks.datasets.readers import Manifest

logger = logging.getLogger("sepscene")

POLL_SECONDS = 1.0  # interval at which the folder is checked for new records
RETRY_SECONDS = 5.0
"""Time between two attempts while the server is unavailable."""


class MirrorState(Config):
    """RUN/mlflow.json: what has been sent to MLflow."""

    uri: str = ""
    runs: dict[str, str] = Field(default_factory=dict, description='stage -> id of its run; "" is the parent')
    calls: int = Field(0, ge=0, description="number of calls sent")
    positions: dict[str, int] = Field(default_factory=dict, description="file of records -> number of bytes sent")
    encoders: dict[str, str] = Field(default_factory=dict, description="stage -> digest of the card it was logged with")


class Call(Config):
    """One line of RUN/mlflow-calls.jsonl."""

    kind: Literal["start", "tag", "metrics", "data", "artifact", "encoder", "finish"]
    stage: str = Field(description='"" is the parent')
    milliseconds: int
    argument: dict[str, Any]


class Tracker:
    """One parent run in MLflow and one child run per stage; no call is lost if the server is down.

    A call is written to the folder, so that it is kept if this process ends, and waits there until `send`. Several
    threads may make calls and send.
    """

    def __init__(self, tracking_uri: str, experiment: str, run_dir: Path) -> None:
        """Track the run in the folder `run_dir` in the given MLflow experiment; nothing is sent yet."""
        self.run_dir = run_dir
        self.folder = RunFolder(run_dir)
        self.uri = tracking_uri
        self.experiment = experiment
        self.fault: str | None = None
        """Why MLflow refuses the calls until the user changes something; None if it does not."""
        self.state = self._read_state()
        self._unwritten: list[str] = []
        self._queue = self._read_calls()[self.state.calls :]
        self._lock = threading.RLock()
        """Held while the queue or the state changes, never during a call to MLflow."""
        self._sending = threading.Lock()
        self._checked = False
        self._failed_at: float | None = None
        """When the newest attempt failed; None if it succeeded."""

    @cached_property
    def store(self) -> "MlflowStore":
        """The MLflow store that receives the calls."""
        from sepscene.orchestration.records.mlflow_client import MlflowStore

        return MlflowStore(self.uri, self.experiment)

    def start(self, stage: str, tags: dict[str, str], params: dict[str, Any]) -> None:
        """Start the child run of a stage; "" starts the parent."""
        self._do("start", stage, {"tags": tags, "params": {key: str(value) for key, value in params.items()}})

    def tag(self, stage: str, tags: dict[str, str]) -> None:
        """Set tags of a stage's run; "" is the parent."""
        self._do("tag", stage, tags)

    def log_metrics(self, stage: str, metrics: dict[str, float]) -> None:
        """Log metrics without steps of a stage; "" is the parent."""
        self._do("metrics", stage, metrics)

    def log_data(self, name: str, context: str, source: str, manifest: "Manifest") -> None:
        """Log a data set as an input of the parent run; the arguments are those of `MlflowStore.log_data`."""
        profile = {"clips": len(manifest), "classes": len(manifest.classes), "absent": len(manifest.absent)}
        data = {"name": name, "digest": manifest.digest(), "context": context, "source": source, "profile": profile}
        self._do("data", "", data)

    def log_artifact(self, stage: str, path: Path, folder: str | None = None) -> None:
        """Log a file or a folder of the run's folder."""
        self._do("artifact", stage, {"path": self._relative(path), "folder": folder})

    def log_encoder(self, stage: str, bundle: Path, name: str, registered_name: str | None) -> None:
        """Log an encoder bundle as a model with its signature and card; register it if a name is given.

        A bundle that was already logged with the same weights and card is skipped.
        """
        self._do("encoder", stage, {"path": self._relative(bundle), "name": name, "registered_name": registered_name})

    def finish(self, stage: str, status: str = "FINISHED") -> None:
        """End a stage's run; "" ends the parent and sends everything that is waiting."""
        self._do("finish", stage, {"status": status})
        if not stage:
            self.send(urgent=True)

    def send(self, urgent: bool = False) -> None:
        """Send the calls and the records of the run's files that have not been sent.

        Args:
            urgent: try even if the server was unavailable less than `RETRY_SECONDS` ago.
        """
        with self._sending:
            with self._lock:
                self._write_calls()
            if self.fault or (self._failed_at and not urgent and time.time() - self._failed_at < RETRY_SECONDS):
                return
            try:
                self._start_over_if_lost()
                self._send_calls()
                self._send_records()
                self._failed_at = None
            except Exception as error:  # whatever the client raises, training must continue
                self._note_failure(error)

    @property
    def unsent(self) -> int:
        """Number of calls, plus bytes of records, that have not been sent; 0 if everything has been sent."""
        paths = [path for path in self.folder.mirrored if path.exists()]
        sizes = sum(path.stat().st_size - self.state.positions.get(path.name, 0) for path in paths)
        return len(self._queue) + sizes

    def run_id(self, stage: str = "") -> str | None:
        """MLflow's id of a stage's run; None if it does not exist yet."""
        return self.state.runs.get(stage)

    def stages(self) -> tuple[str, ...]:
        """The stages that have a run in MLflow; "" is the parent."""
        return tuple(self.state.runs)

    def _do(self, kind: Any, stage: str, argument: dict[str, Any]) -> None:
        """Queue a call in memory and on disk."""
        with self._lock:
            call = Call(kind=kind, stage=stage, milliseconds=int(time.time() * 1000), argument=argument)
            self._queue.append(call)
            self._unwritten.append(call.model_dump_json())
            self._write_calls()

    def _send_calls(self) -> None:
        """Make the queued calls in order."""
        while self._queue:
            try:
                self._call(self._queue[0])
            except (_UnusableCall, FileNotFoundError) as error:  # skip only this one
                logger.warning("not sent to MLflow: %s (%s)", self._queue[0].kind, error)
            with self._lock:
                self._queue.pop(0)
                self._save(calls=self.state.calls + 1)

    def _call(self, call: Call) -> None:
        self.store.check_file()
        run_id = self._run(call.stage, call.milliseconds)
        argument = call.argument
        match call.kind:
            case "start":
                self.store.begin(run_id, argument["tags"], argument["params"])
            case "tag":
                self.store.tag(run_id, argument)
            case "metrics":
                self.store.log_metrics(run_id, argument, call.milliseconds)
            case "data":
                self.store.log_data(run_id, argument)
            case "encoder":
                self._log_encoder(call.stage, run_id, argument)
            case "artifact":
                self.store.log_artifact(run_id, self._inside(argument["path"]), argument["folder"])
            case "finish":
                self.store.finish(run_id, argument["status"], call.milliseconds)

    def _run(self, stage: str, now: int) -> str:
        """The id of a stage's run; it is created on first use, as a child of the parent."""
        if stage not in self.state.runs:
            parent = self._run("", now) if stage else None
            name = f"{self.run_dir.name}/{stage}" if stage else self.run_dir.name
            self._save(runs={**self.state.runs, stage: self.store.create_run(name, parent, now)})
        return self.state.runs[stage]

    def _start_over_if_lost(self) -> None:
        """Send everything again if the store does not contain our run: another server, or a deleted file."""
        if self._checked or "" not in self.state.runs:
            return
        self.store.check_file()
        if not self.store.has_run(self.state.runs[""]):
            logger.warning("MLflow at %s does not contain this run; it is sent again from %s", self.uri, self.run_dir)
            with self._lock:
                self._save(runs={}, positions={}, encoders={}, calls=0)
                self._queue = self._read_calls()
        self._checked = True

    def _log_encoder(self, stage: str, run_id: str, argument: dict[str, Any]) -> None:
        from sepscene.orchestration.records.mlflow_registry import log_encoder

        bundle = self._inside(argument["path"])
        digest = hashlib.sha256((bundle / CARD_FILE).read_bytes()).hexdigest()
        if self.state.encoders.get(stage) == digest:
            return
        log_encoder(self.store, run_id, bundle, argument["name"], argument["registered_name"])
        self._save(encoders={**self.state.encoders, stage: digest})

    def _send_records(self) -> None:
        """Send the new lines of each file of records."""
        for path in self.folder.mirrored:
            whole, position = read_lines(path, self.state.positions.get(path.name, 0))
            if not whole:
                continue
            self.store.check_file()
            by_stage: dict[str, list[dict[str, Any]]] = {}
            for record in parse_records(whole, path):
                if "seconds" in record:
                    by_stage.setdefault(str(record["stage"]), []).append(record)
            for stage, records in by_stage.items():
                self.store.log_records(self._run(stage, int(records[0]["seconds"] * 1000)), records)
            self._save(positions={**self.state.positions, path.name: position})

    def _relative(self, path: Path) -> str:
        return str(path.resolve().relative_to(self.run_dir.resolve()))

    def _inside(self, name: str) -> Path:
        """A path in the run's folder. Neither it nor anything below it may lead out of the folder, which can come from
        an untrusted source and refer to private files of the user."""
        top = self.run_dir.resolve()
        path = (top / name).resolve()
        for each in (path, *(path.rglob("*") if path.is_dir() else ())):
            if not each.resolve().is_relative_to(top):
                raise _UnusableCall(f"{each} is not in {self.run_dir}")
        return path

    def _note_failure(self, error: Exception) -> None:
        """Warn once that MLflow is unavailable, or that it has an error that only the user can fix."""
        from sepscene.orchestration.records.mlflow_client import permanent_error

        is_first = self._failed_at is None
        self._failed_at = time.time()
        self._checked = False  # it may have lost our run
        if reason := permanent_error(error):
            self.fault = reason
            message = "MLflow at %s: %s. The run continues; send it later with `sepscene sync %s`"
            logger.warning(message, self.uri, reason, self.run_dir)
        elif is_first:
            message = "MLflow at %s does not respond (%s); the run continues and retries"
            logger.warning(message, self.uri, first_line(error)[:200])

    def _read_state(self) -> MirrorState:
        state = read_typed_or(self.folder.mlflow, MirrorState, MirrorState(), "everything is sent to MLflow again")
        return state.changed({"uri": self.uri})

    def _read_calls(self) -> list[Call]:
        """All calls of the run so far, including those of this process."""
        path = self.folder.mlflow_calls
        lines = path.read_text(errors="replace").splitlines() if path.exists() else []
        calls = []
        for line in (*lines, *self._unwritten):
            with suppress(ValidationError):  # a partial or invalid line
                calls.append(Call.model_validate_json(line))
        return calls

    def _write_calls(self) -> None:
        if not self._unwritten:
            return
        path = self.folder.mlflow_calls
        try:
            append_lines(path, self._unwritten)
            self._unwritten = []
            if not self.folder.mlflow.exists():
                self._save()  # the address, for `sepscene sync` after a run of which nothing was sent
        except OSError as error:  # must not end the run: the next call writes these calls again
            logger.warning("%s cannot be written (%s)", path, error)

    def _save(self, **changes: Any) -> None:
        path = self.folder.mlflow
        with self._lock:
            self.state = self.state.changed(changes)
            try:
                write_text_atomically(path, self.state.model_dump_json())
            except OSError as error:
                logger.warning("%s cannot be written (%s)", path, error)


class _UnusableCall(SepsceneError):
    """A call that would fail even if MLflow were available, so it is not repeated."""


def sync(run_dir: Path, tracking_uri: str) -> None:
    """Send everything of a run, or of a sweep with its trials, that MLflow lacks.

    Raises:
        SepsceneError: if MLflow is unavailable or refuses it.
    """
    sweep = SweepFolder(run_dir)
    folders = [RunFolder(run_dir), sweep.shared, *sweep.runs()]
    trackers = [Tracker(tracking_uri, "sepscene", folder.path) for folder in folders if folder.mlflow.exists()]
    if not trackers:
        raise SepsceneError(f"{run_dir} has no mlflow.json: it is not the folder of a run")
    parent = trackers[0]
    for tracker in trackers:
        tracker.send()
        if tracker.fault:
            raise SepsceneError(f"MLflow at {tracking_uri}: {tracker.fault}")
        if tracker.unsent:
            raise SepsceneError(f"MLflow at {tracking_uri} does not respond; no data is lost, try again later")
        run_id = tracker.run_id()
        parent_id = parent.run_id()
        if tracker is not parent and run_id and parent_id:
            tracker.store.tag(run_id, {"mlflow.parentRunId": parent_id})  # a lost parent was created with a new id


STOPPED = (KeyboardInterrupt, SystemExit)
"""Exceptions of a block that a signal ends: Ctrl-C and SIGTERM."""


@contextmanager
def closing(tracker: Tracker, stage: str = "") -> Iterator[None]:
    """End a stage's run when the block ends, also after an exception; "" is the parent."""
    try:
        yield
    except BaseException as error:
        tracker.finish(stage, "KILLED" if isinstance(error, STOPPED) else "FAILED")
        raise
    tracker.finish(stage)


@contextmanager
def following(run_dir: Path, tracker: Tracker, show: Callable[[dict[str, Any]], None]) -> Iterator[None]:
    """While the block runs, pass each new record of the metrics file to `show` and mirror it to MLflow."""
    path = RunFolder(run_dir).metrics
    position = path.stat().st_size if path.exists() else 0

    def drain() -> None:
        nonlocal position
        whole, position = read_lines(path, position)
        for record in parse_records(whole, path):
            show(record)
        tracker.send()

    try:
        with repeat_in_background(drain, POLL_SECONDS, "follow-metrics"):
            yield
    finally:
        drain()
