"""MLflow as a mirror of the run's folder.

Nothing here is in the way of training: calls and metrics are written to the run's folder first. While a stage runs, a
thread of the driver follows them, draws the progress and sends what is new to MLflow. While the server is away,
training goes on; the thread tries again, and what could not be sent by the end stays in the folder for
`sepscene sync`.

The folder holds all that MLflow is to know: the calls in mlflow-calls.jsonl, the metrics in the files of
`RunFolder.mirrored`. How far they are sent, and to which runs, is in mlflow.json. Where MLflow has lost the run, all
of it is sent again.
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

from sepscene.models.config import Config, SepsceneError, first_line
from sepscene.orchestration.records.files import append_lines, parse_records, read_lines, read_typed_or, write_whole
from sepscene.orchestration.records.run_folder import RunFolder
from sepscene.orchestration.records.sweep_folder import SweepFolder
from sepscene.orchestration.repeating import again_and_again

if TYPE_CHECKING:
    # It brings MLflow, which takes seconds: a run loads it beside its first stage.
    from sepscene.orchestration.records.mlflow_client import MlflowStore
    from sepscene.tasks.datasets.readers import Manifest

logger = logging.getLogger("sepscene")

POLL_SECONDS = 1.0
RETRY_SECONDS = 5.0
"""While the server is away it is asked again this often, and nobody waits for it in between."""


class MirrorState(Config):
    """RUN/mlflow.json: how much MLflow has had."""

    uri: str = ""
    runs: dict[str, str] = Field(default_factory=dict, description='stage -> id of its run; "" is the parent')
    calls: int = Field(0, ge=0, description="calls that MLflow has had")
    positions: dict[str, int] = Field(default_factory=dict, description="file of records -> bytes that MLflow has had")
    encoders: dict[str, str] = Field(default_factory=dict, description="stage -> digest of the card it was logged with")


class Call(Config):
    """One line of RUN/mlflow-calls.jsonl."""

    kind: Literal["start", "tag", "metrics", "data", "artifact", "encoder", "finish"]
    stage: str = Field(description='"" is the parent')
    milliseconds: int
    argument: dict[str, Any]


class Tracker:
    """One parent run in MLflow and a child for each stage; every call survives a server that is down.

    A call is written to the folder, so that it outlives this process, and waits there until `send`. Several threads may
    make calls and send.
    """

    def __init__(self, tracking_uri: str, experiment: str, run_dir: Path) -> None:
        """A tracker of the run in the folder `run_dir`, for MLflow's experiment of that name; nothing is sent yet."""
        self.run_dir = run_dir
        self.folder = RunFolder(run_dir)
        self.uri = tracking_uri
        self.experiment = experiment
        self.fault: str | None = None
        """Why MLflow will not take what is sent, until somebody changes something; None while it may."""
        self.state = self._read_state()
        self._unwritten: list[str] = []
        self._queue = self._read_calls()[self.state.calls :]
        self._lock = threading.RLock()
        """Held while the queue or the state changes, and never while MLflow is asked."""
        self._sending = threading.Lock()
        self._checked = False
        self._down_since: float | None = None
        self._asked = 0.0

    @cached_property
    def store(self) -> "MlflowStore":
        """Where the calls go."""
        from sepscene.orchestration.records.mlflow_client import MlflowStore

        return MlflowStore(self.uri, self.experiment)

    def start(self, stage: str, tags: dict[str, str], params: dict[str, Any]) -> None:
        """Begin the child run of a stage; "" begins the parent."""
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
        """Log an encoder bundle as a model with its signature and card; register it where a name is given.

        A bundle that MLflow has had already, weights and card, is not logged again.
        """
        self._do("encoder", stage, {"path": self._relative(bundle), "name": name, "registered_name": registered_name})

    def finish(self, stage: str, status: str = "FINISHED") -> None:
        """End a stage's run; "" is the parent, with which all that waits is sent."""
        self._do("finish", stage, {"status": status})
        if not stage:
            self.send(urgent=True)

    def send(self, urgent: bool = False) -> None:
        """Send the calls and the records of the run's files that MLflow has not had.

        Args:
            urgent: ask a server that was away a moment ago, too.
        """
        with self._sending:
            with self._lock:
                self._write_calls()
            if self.fault or (self._down_since and not urgent and time.time() - self._asked < RETRY_SECONDS):
                return
            try:
                self._begin_again_where_lost()
                self._send_calls()
                self._send_records()
                self._down_since = None
            except Exception as error:  # whatever the client raises, training must go on
                self._note_fault(error)

    @property
    def unsent(self) -> int:
        """Calls, and bytes of records, that MLflow has not had yet; 0 when all is sent."""
        paths = [path for path in self.folder.mirrored if path.exists()]
        sizes = sum(path.stat().st_size - self.state.positions.get(path.name, 0) for path in paths)
        return len(self._queue) + sizes

    def run_id(self, stage: str = "") -> str | None:
        """MLflow's id of a stage's run, when it exists."""
        return self.state.runs.get(stage)

    def stages(self) -> tuple[str, ...]:
        """The stages that have a run; "" is the parent."""
        return tuple(self.state.runs)

    def _do(self, kind: Any, stage: str, argument: dict[str, Any]) -> None:
        """Queue a call, on disk, too."""
        with self._lock:
            call = Call(kind=kind, stage=stage, milliseconds=int(time.time() * 1000), argument=argument)
            self._queue.append(call)
            self._unwritten.append(call.model_dump_json())
            self._write_calls()

    def _send_calls(self) -> None:
        """Make the queued calls in their order."""
        while self._queue:
            try:
                self._call(self._queue[0])
            except (_UnusableCall, FileNotFoundError) as error:  # it alone: the next ones may be fine
                logger.warning("MLflow is not sent %s: %s", self._queue[0].kind, error)
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
        """The id of a stage's run, which is made the first time, below the parent."""
        if stage not in self.state.runs:
            parent = self._run("", now) if stage else None
            name = f"{self.run_dir.name}/{stage}" if stage else self.run_dir.name
            self._save(runs={**self.state.runs, stage: self.store.create_run(name, parent, now)})
        return self.state.runs[stage]

    def _begin_again_where_lost(self) -> None:
        """Send everything anew to a store that does not know our run: another server, or a file that was deleted."""
        if self._checked or "" not in self.state.runs:
            return
        self.store.check_file()
        if not self.store.has_run(self.state.runs[""]):
            logger.warning("MLflow at %s does not have this run; all of it is sent from %s", self.uri, self.run_dir)
            with self._lock:
                self._save(runs={}, positions={}, encoders={}, calls=0)
                self._queue = self._read_calls()
        self._checked = True

    def _log_encoder(self, stage: str, run_id: str, argument: dict[str, Any]) -> None:
        from sepscene.orchestration.records.mlflow_registry import log_encoder

        bundle = self._inside(argument["path"])
        digest = hashlib.sha256((bundle / "config.json").read_bytes()).hexdigest()
        if self.state.encoders.get(stage) == digest:
            return
        log_encoder(self.store, run_id, bundle, argument["name"], argument["registered_name"])
        self._save(encoders={**self.state.encoders, stage: digest})

    def _send_records(self) -> None:
        """Send what is new in the files of records, each as a whole."""
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
        """A path of the run's folder. Neither it nor what lies below it may lead elsewhere: the folder may be a
        stranger's, and name the user's own files."""
        top = self.run_dir.resolve()
        path = (top / name).resolve()
        for each in (path, *(path.rglob("*") if path.is_dir() else ())):
            if not each.resolve().is_relative_to(top):
                raise _UnusableCall(f"{each} is not in {self.run_dir}")
        return path

    def _note_fault(self, error: Exception) -> None:
        """Say once that MLflow is away, or what is wrong with it that only the user can change."""
        from sepscene.orchestration.records.mlflow_client import lasting_fault

        self._asked = time.time()
        self._checked = False  # it may have lost our run
        if reason := lasting_fault(error):
            self.fault = reason
            logger.warning("MLflow at %s: %s. The run goes on; later: sepscene sync %s", self.uri, reason, self.run_dir)
        elif self._down_since is None:
            self._down_since = self._asked
            said = "MLflow at %s does not answer (%s); the run goes on and sends it later"
            logger.warning(said, self.uri, first_line(error)[:200])

    def _read_state(self) -> MirrorState:
        state = read_typed_or(self.folder.mlflow, MirrorState, MirrorState(), "MLflow is sent everything again")
        return state.changed({"uri": self.uri})

    def _read_calls(self) -> list[Call]:
        """All calls of the run so far, those of this process included."""
        path = self.folder.mlflow_calls
        lines = path.read_text(errors="replace").splitlines() if path.exists() else []
        calls = []
        for line in (*lines, *self._unwritten):
            with suppress(ValidationError):  # a torn or strange one
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
                self._save()  # the address, for `sepscene sync` after a run that MLflow has heard nothing of
        except OSError as error:  # the mirror of a run must not end it: the next call writes it again
            logger.warning("%s cannot be written (%s)", path, error)

    def _save(self, **changes: Any) -> None:
        path = self.folder.mlflow
        with self._lock:
            self.state = self.state.changed(changes)
            try:
                write_whole(path, self.state.model_dump_json())
            except OSError as error:
                logger.warning("%s cannot be written (%s)", path, error)


class _UnusableCall(SepsceneError):
    """A call that can never be made, whatever MLflow answers."""


def sync(run_dir: Path, tracking_uri: str) -> None:
    """Send to MLflow what it misses of a run, or of a sweep with its trials.

    Raises:
        SepsceneError: when MLflow does not take it.
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
            raise SepsceneError(f"MLflow at {tracking_uri} still does not answer; nothing is lost, try again later")
        if tracker is not parent and (run_id := tracker.run_id()) and (parent_id := parent.run_id()):
            tracker.store.tag(run_id, {"mlflow.parentRunId": parent_id})  # a parent that was lost is another one now


STOPPED = (KeyboardInterrupt, SystemExit)
"""How a block ends that a signal stops: SIGTERM is the latter."""


@contextmanager
def closing(tracker: Tracker, stage: str = "") -> Iterator[None]:
    """End a stage's run when the block ends, in whatever way; "" is the parent."""
    try:
        yield
    except BaseException as error:
        tracker.finish(stage, "KILLED" if isinstance(error, STOPPED) else "FAILED")
        raise
    tracker.finish(stage)


@contextmanager
def following(run_dir: Path, tracker: Tracker, show: Callable[[dict[str, Any]], None]) -> Iterator[None]:
    """While the block runs, hand every new record of the metrics file to `show` and mirror it to MLflow."""
    path = RunFolder(run_dir).metrics
    position = path.stat().st_size if path.exists() else 0

    def drain() -> None:
        nonlocal position
        whole, position = read_lines(path, position)
        for record in parse_records(whole, path):
            show(record)
        tracker.send()

    try:
        with again_and_again(drain, POLL_SECONDS, "follow-metrics"):
            yield
    finally:
        drain()
