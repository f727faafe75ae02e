"""MLflow as a mirror of the run's folder.

Nothing here is in the way of training: the metrics file is written first, by the Train controller, and a thread of the
driver follows it, draws the progress and sends what is new to MLflow. While the server is away, training goes on; the
thread tries again, and what could not be sent by the end stays in the file for `sepscene sync`.
"""

import hashlib
import json
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from sepscene.models.config import SepsceneError
from sepscene.orchestration.records.mlflow_client import MlflowStore
from sepscene.orchestration.records.results import parse_metrics
from sepscene.orchestration.repeating import again_and_again

logger = logging.getLogger("sepscene")

FOLLOWED = ("metrics.jsonl", "system.jsonl")
"""Files of a run's folder whose records are mirrored to MLflow."""
POLL_SECONDS = 1.0
RETRY_SECONDS = 5.0
"""While the server is away it is asked again this often, and nobody waits for it in between."""


def default_tracking_uri(storage: Path) -> str:
    """MLFLOW_TRACKING_URI, or a SQLite store in the folder.

    Raises:
        SepsceneError: when the address holds a password: it would be written into the run's folder and its log.
    """
    uri = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{(storage / 'mlflow.db').resolve()}"
    if urlsplit(uri).password:
        raise SepsceneError(
            "MLFLOW_TRACKING_URI holds a password, which would be written down: leave it out of the address and set "
            "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or ~/.mlflow/credentials"
        )
    return uri


def tracking_uri_of(run_dir: Path) -> str:
    """MLFLOW_TRACKING_URI, or the store that the run was begun in, or the one beside the run.

    Raises:
        SepsceneError: as `default_tracking_uri` does.
    """
    state = run_dir / "mlflow.json"
    if "MLFLOW_TRACKING_URI" not in os.environ and state.exists():
        uri = str(json.loads(state.read_text())["uri"])
        if not uri.startswith("sqlite:///") or Path(uri.removeprefix("sqlite:///")).exists():
            return uri
        if (run_dir / "mlflow.db").exists():  # the runs were moved, and their store with them
            return default_tracking_uri(run_dir)
    return default_tracking_uri(run_dir.parent)


class Tracker:
    """One parent run in MLflow and a child for each stage; every call survives a server that is down.

    A call is written to RUN/mlflow.json before it is made and struck out when it has come through, so that it
    outlives this process as well.
    """

    def __init__(self, tracking_uri: str, experiment: str, run_dir: Path) -> None:
        """A tracker of the run in `run_dir`; nothing is sent yet.

        Args:
            tracking_uri: MLflow's.
            experiment: its name in MLflow.
            run_dir: the run's folder.
        """
        self.run_dir, self.uri = run_dir, tracking_uri
        self.store = MlflowStore(tracking_uri, experiment)
        self.state_path = run_dir / "mlflow.json"
        self.state: dict[str, Any] = {"runs": {}, "positions": {}, "encoders": {}, "spool": []}
        if self.state_path.exists():
            self.state |= json.loads(self.state_path.read_text())
        self.state["uri"] = tracking_uri
        self._lock = threading.RLock()
        self._down_since: float | None = None
        self._asked = 0.0

    def start(self, tags: dict[str, str], params: dict[str, Any]) -> None:
        """Begin the parent run."""
        self._do("start", "", {"tags": tags, "params": {key: str(value) for key, value in params.items()}})

    def start_stage(self, stage: str, tags: dict[str, str]) -> None:
        """Begin the child run of a stage."""
        self._do("start", stage, {"tags": tags, "params": {}})

    def tag(self, stage: str, tags: dict[str, str]) -> None:
        """Set tags of a stage's run; "" is the parent."""
        self._do("tag", stage, tags)

    def log_figures(self, stage: str, figures: dict[str, float]) -> None:
        """Log single figures of a stage; "" is the parent."""
        self._do("figures", stage, figures)

    def log_data(self, stage: str, data: dict[str, Any]) -> None:
        """Log a data set as a stage's input, as `MlflowStore.log_data` takes it."""
        self._do("data", stage, data)

    def log_artifact(self, stage: str, path: Path, folder: str | None = None) -> None:
        """Log a file or a folder of the run's folder."""
        self._do("artifact", stage, {"path": str(path), "folder": folder})

    def log_encoder(self, stage: str, bundle: Path, registered_name: str | None) -> None:
        """Log an encoder bundle as a model with its signature and card; register it where a name is given.

        A bundle that MLflow has had already, weights and card, is not logged again.
        """
        self._do("encoder", stage, {"path": str(bundle), "name": registered_name})

    def finish(self, stage: str, status: str = "FINISHED") -> None:
        """End a stage's run; "" is the parent, and the last chance to send what waits."""
        self._do("finish", stage, {"status": status}, urgent=not stage)
        if not stage:
            self.mirror_metrics()

    def mirror_metrics(self) -> None:
        """Send the records of the run's files that MLflow has not had."""
        with self._lock:
            if not self._replay():
                return
            for name in FOLLOWED:
                whole, position = read_lines(self.run_dir / name, self.state["positions"].get(name, 0))
                if not whole:
                    continue
                try:
                    self._send(parse_metrics(whole))
                except Exception as error:  # whatever the client raises, training must go on
                    self._note_down(error)
                    return
                self.state["positions"][name] = position
                self._save()

    @property
    def unsent(self) -> int:
        """Calls, and bytes of records, that MLflow has not had yet; 0 when all is sent."""
        paths = [self.run_dir / name for name in FOLLOWED]
        sizes = sum(path.stat().st_size - self.state["positions"].get(path.name, 0) for path in paths if path.exists())
        return len(self.state["spool"]) + sizes

    def run_id(self, stage: str = "") -> str | None:
        """MLflow's id of a stage's run, when it exists."""
        return self.state["runs"].get(stage)

    def stages(self) -> tuple[str, ...]:
        """The stages that have a run; "" is the parent."""
        return tuple(self.state["runs"])

    def _do(self, call: str, stage: str, argument: dict[str, Any], urgent: bool = False) -> None:
        """Queue a call on disk, then try to empty the queue."""
        with self._lock:
            self.state["spool"].append([call, stage, argument, int(time.time() * 1000)])
            self._save()
            self._replay(urgent)

    def _replay(self, urgent: bool = False) -> bool:
        """Make the queued calls in their order; False when the server does not answer."""
        if self._down_since and not urgent and time.time() - self._asked < RETRY_SECONDS:
            return False
        while self.state["spool"]:
            call, stage, argument, now = self.state["spool"][0]
            try:
                self._call(call, stage, argument, now)
            except Exception as error:  # whatever the client raises, training must go on
                self._note_down(error)
                return False
            self._down_since = None
            self.state["spool"].pop(0)
            self._save()
        return True

    def _call(self, call: str, stage: str, argument: dict[str, Any], now: int) -> None:
        if call == "start" and not stage:
            self._forget_lost_runs()
        run_id = self._run(stage, now)
        match call:
            case "start":
                self.store.begin(run_id, argument["tags"], argument["params"])
            case "tag":
                self.store.tag(run_id, argument)
            case "figures":
                self.store.log_figures(run_id, argument, now)
            case "data":
                self.store.log_data(run_id, argument)
            case "encoder":
                self._log_encoder(stage, run_id, Path(argument["path"]), argument["name"])
            case "artifact":
                self.store.log_artifact(run_id, Path(argument["path"]), argument["folder"])
            case "finish":
                self.store.finish(run_id, argument["status"])

    def _run(self, stage: str, now: int) -> str:
        """The id of a stage's run, which is made the first time, below the parent."""
        if stage not in self.state["runs"]:
            parent = self._run("", now) if stage else None
            name = f"{self.run_dir.name}/{stage}" if stage else self.run_dir.name
            self.state["runs"][stage] = self.store.create_run(name, parent, now)
            self._save()
        return self.state["runs"][stage]

    def _forget_lost_runs(self) -> None:
        """Begin anew in a store that does not know our runs: another server, or a file that was deleted."""
        if "" in self.state["runs"] and not self.store.has_run(self.state["runs"][""]):
            self.state |= {"runs": {}, "positions": {}, "encoders": {}}
            self._save()

    def _log_encoder(self, stage: str, run_id: str, bundle: Path, name: str | None) -> None:
        told = hashlib.sha256((bundle / "config.json").read_bytes()).hexdigest()
        if self.state["encoders"].get(stage) == told:
            return
        self.store.log_encoder(run_id, bundle, name)
        self.state["encoders"][stage] = told
        self._save()

    def _send(self, records: list[dict[str, Any]]) -> None:
        by_stage: dict[str, list[dict[str, Any]]] = {}
        for record in records:
            by_stage.setdefault(record["stage"], []).append(record)
        for stage, of_stage in by_stage.items():
            self.store.log_records(self._run(stage, int(of_stage[0]["seconds"] * 1000)), of_stage)

    def _note_down(self, error: Exception) -> None:
        self._asked = time.time()
        if self._down_since is None:
            self._down_since = self._asked
            reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
            logger.warning("MLflow at %s does not answer (%s); the run goes on and sends it later", self.uri, reason)

    def _save(self) -> None:
        partial = self.state_path.with_suffix(".partial")
        try:
            partial.write_text(json.dumps(self.state))
            partial.replace(self.state_path)
        except OSError as error:  # the mirror of a run must not end it: the next call writes it again
            logger.warning("%s cannot be written (%s)", self.state_path, error)


def read_lines(path: Path, position: int) -> tuple[bytes, int]:
    """The whole lines of a growing file from a position on, and the position after them."""
    if not path.exists():
        return b"", position
    with path.open("rb") as file:
        file.seek(position)
        data = file.read()
    whole = data[: data.rfind(b"\n") + 1]
    return whole, position + len(whole)


@contextmanager
def following(run_dir: Path, tracker: Tracker, show: Callable[[dict[str, Any]], None]) -> Iterator[None]:
    """While the block runs, hand every new record of the metrics file to `show` and mirror it to MLflow."""
    path = run_dir / "metrics.jsonl"
    position = path.stat().st_size if path.exists() else 0

    def drain() -> None:
        nonlocal position
        whole, position = read_lines(path, position)
        for record in parse_metrics(whole):
            show(record)
        tracker.mirror_metrics()

    try:
        with again_and_again(drain, POLL_SECONDS, "follow-metrics"):
            yield
    finally:
        drain()
