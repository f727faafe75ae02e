"""MLflow as a mirror of the run's folder.

Nothing here is in the way of training: the metrics file is written first, by the Train controller, and a thread of the
driver follows it, draws the progress and sends what is new to MLflow. While the server is away, training goes on; the
thread tries again, and what could not be sent by the end stays in the file for `sepscene sync`.
"""

import json
import logging
import os
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr
from io import StringIO
from pathlib import Path
from typing import Any

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")

import mlflow
import numpy as np
from mlflow.entities import Metric, RunTag
from mlflow.exceptions import MlflowException
from mlflow.models import ModelSignature
from mlflow.types import Schema, TensorSpec

from models import load_encoder
from orchestration.results import parse_metrics

logger = logging.getLogger("sepscene")
for _name in ("mlflow", "alembic"):
    logging.getLogger(_name).setLevel(logging.WARNING)

POLL_SECONDS = 1.0
_BATCH = 900  # MLflow takes at most 1000 metrics a call


def default_tracking_uri(storage: Path) -> str:
    """MLFLOW_TRACKING_URI, or a SQLite store in the folder."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{(storage / 'mlflow.db').resolve()}"


def tracking_uri_of(run_dir: Path) -> str:
    """MLFLOW_TRACKING_URI, or the store that the run was begun in, or the one beside the run."""
    state = run_dir / "mlflow.json"
    if "MLFLOW_TRACKING_URI" not in os.environ and state.exists():
        return str(json.loads(state.read_text())["uri"])
    return default_tracking_uri(run_dir.parent)


class Tracker:
    """One parent run in MLflow and a child for each stage; every call survives a server that is down."""

    def __init__(self, tracking_uri: str, experiment: str, run_dir: Path) -> None:
        """Find or make the experiment and the parent run; the ids are kept in RUN/mlflow.json."""
        self.run_dir, self.uri, self.experiment = run_dir, tracking_uri, experiment
        self.state_path = run_dir / "mlflow.json"
        self.state: dict[str, Any] = {"uri": tracking_uri, "runs": {}, "position": 0, "spool": []}
        if self.state_path.exists():
            self.state |= json.loads(self.state_path.read_text()) | {"uri": tracking_uri}
        self._lock = threading.RLock()
        self._down_since: float | None = None

    @property
    def client(self) -> mlflow.MlflowClient:
        """A client on this tracker's store."""
        return mlflow.MlflowClient(tracking_uri=self.uri)

    def start(self, tags: dict[str, str], params: dict[str, Any]) -> None:
        """Begin the parent run."""
        self._do("start", "", {"tags": tags, "params": {key: str(value)[:5900] for key, value in params.items()}})

    def start_stage(self, stage: str, tags: dict[str, str], params: dict[str, Any] | None = None) -> None:
        """Begin the child run of a stage."""
        params = {key: str(value)[:5900] for key, value in (params or {}).items()}
        self._do("start", stage, {"tags": tags, "params": params})

    def log_figures(self, stage: str, figures: dict[str, float]) -> None:
        """Log single figures of a stage; "" is the parent."""
        self._do("figures", stage, figures)

    def log_artifact(self, stage: str, path: Path, folder: str | None = None) -> None:
        """Log a file or a folder of the run's folder."""
        self._do("artifact", stage, {"path": str(path), "folder": folder})

    def log_encoder(self, stage: str, bundle: Path, name: str) -> None:
        """Log an encoder bundle as a model with its signature, and register it under `name`."""
        self._do("encoder", stage, {"path": str(bundle), "name": name})

    def finish(self, stage: str, status: str = "FINISHED") -> None:
        """End a stage's run; "" is the parent."""
        self._do("finish", stage, {"status": status})

    def mirror_metrics(self) -> None:
        """Send the lines of the metrics file that MLflow has not had."""
        with self._lock:
            if not self._replay():
                return
            path = self.run_dir / "metrics.jsonl"
            if not path.exists():
                return
            with path.open("rb") as file:
                file.seek(self.state["position"])
                data = file.read()
            whole = data[: data.rfind(b"\n") + 1]
            try:
                self._send_metrics(parse_metrics(whole))
            except Exception as error:  # whatever the client raises, training must go on
                self._note_down(error)
                return
            self.state["position"] += len(whole)
            self._save()

    @property
    def unsent(self) -> int:
        """Calls and bytes of metrics that MLflow has not had yet; 0 when all is sent."""
        path = self.run_dir / "metrics.jsonl"
        size = path.stat().st_size if path.exists() else 0
        return len(self.state["spool"]) + size - self.state["position"]

    def run_id(self, stage: str = "") -> str | None:
        """MLflow's id of a stage's run, when it exists."""
        return self.state["runs"].get(stage)

    def experiment_id(self) -> str | None:
        """MLflow's id of the experiment."""
        found = self.client.get_experiment_by_name(self.experiment)
        return found.experiment_id if found else None

    def _do(self, call: str, stage: str, argument: dict[str, Any]) -> None:
        """Queue a call on disk, then try to empty the queue."""
        with self._lock:
            self.state["spool"].append([call, stage, argument, int(time.time() * 1000)])
            self._save()
            self._replay()

    def _replay(self) -> bool:
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
        client, run_id = self.client, self.run_id(stage)
        if call == "start":
            if run_id is None:
                run_id = self._create(stage, now)
            client.log_batch(run_id, tags=[RunTag(key, str(value)) for key, value in argument["tags"].items()])
            for key, value in argument["params"].items():
                client.set_tag(run_id, f"param.{key}", value) if len(value) > 6000 else client.log_param(
                    run_id, key, value
                )
            client.update_run(run_id, status="RUNNING")
        elif run_id is None:
            raise MlflowException(f"the run of stage {stage!r} was never started")
        elif call == "figures":
            client.log_batch(run_id, metrics=[Metric(key, value, now, 0) for key, value in argument.items()])
        elif call == "encoder":
            self._log_encoder(run_id, Path(argument["path"]), argument["name"])
        elif call == "artifact":
            path = Path(argument["path"])
            send = client.log_artifacts if path.is_dir() else client.log_artifact
            send(run_id, str(path), argument["folder"])
        else:
            client.set_terminated(run_id, argument["status"])

    def _log_encoder(self, run_id: str, bundle: Path, name: str) -> None:
        encoder = load_encoder(bundle)
        wave = TensorSpec(np.dtype("float32"), (-1, -1))
        h = TensorSpec(np.dtype("float32"), (-1, encoder.embedding_dim))
        mlflow.set_tracking_uri(self.uri)
        # MLflow tells its registrations on stderr, in the middle of our progress.
        with mlflow.start_run(run_id=run_id), redirect_stderr(StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            mlflow.pyfunc.log_model(
                name="encoder",
                python_model=str(Path(__file__).with_name("mlflow_encoder.py")),
                artifacts={"bundle": str(bundle)},
                code_paths=[str(Path(__file__).resolve().parent.parent / "models")],
                signature=ModelSignature(inputs=Schema([wave]), outputs=Schema([h])),
                registered_model_name=name,
                pip_requirements=["torch", "torchaudio", "safetensors", "pydantic", "numpy"],
            )

    def _create(self, stage: str, now: int) -> str:
        client = self.client
        found = client.get_experiment_by_name(self.experiment)
        experiment_id = found.experiment_id if found else self._create_experiment()
        tags = {"mlflow.runName": f"{self.run_dir.name}/{stage}" if stage else self.run_dir.name}
        if stage:
            tags["mlflow.parentRunId"] = self.state["runs"][""]
        self.state["runs"][stage] = client.create_run(experiment_id, start_time=now, tags=tags).info.run_id
        self._save()
        return self.state["runs"][stage]

    def _create_experiment(self) -> str:
        location = None
        if self.uri.startswith("sqlite:///"):
            location = (Path(self.uri.removeprefix("sqlite:///")).parent / "mlartifacts").as_uri()
        try:
            return self.client.create_experiment(self.experiment, artifact_location=location)
        except MlflowException:  # another run of a sweep was faster
            found = self.client.get_experiment_by_name(self.experiment)
            if found is None:
                raise
            return found.experiment_id

    def _send_metrics(self, records: list[dict[str, Any]]) -> None:
        by_stage: dict[str, list[Metric]] = {}
        for record in records:
            stamp = int(record["seconds"] * 1000)
            by_stage.setdefault(record["stage"], []).extend(
                Metric(key, float(value), stamp, int(record.get("step", 0)))
                for key, value in record.items()
                if key not in ("stage", "step", "seconds") and isinstance(value, int | float)
            )
        for stage, metrics in by_stage.items():
            run_id = self.run_id(stage)
            if run_id is None:
                continue
            for start in range(0, len(metrics), _BATCH):
                self.client.log_batch(run_id, metrics=metrics[start : start + _BATCH])

    def _note_down(self, error: Exception) -> None:
        if self._down_since is None:
            self._down_since = time.time()
            reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
            logger.warning("MLflow at %s does not answer (%s); the run goes on and sends it later", self.uri, reason)

    def _save(self) -> None:
        partial = self.state_path.with_suffix(".partial")
        partial.write_text(json.dumps(self.state))
        partial.replace(self.state_path)


@contextmanager
def following(run_dir: Path, tracker: Tracker, show: Callable[[dict[str, Any]], None]) -> Iterator[None]:
    """While the block runs, hand every new record of the metrics file to `show` and mirror it to MLflow."""
    path, stop = run_dir / "metrics.jsonl", threading.Event()
    position = path.stat().st_size if path.exists() else 0

    def drain() -> None:
        nonlocal position
        if path.exists():
            with path.open("rb") as file:
                file.seek(position)
                data = file.read()
            whole = data[: data.rfind(b"\n") + 1]
            position += len(whole)
            for record in parse_metrics(whole):
                show(record)
        tracker.mirror_metrics()

    def follow() -> None:
        while not stop.wait(POLL_SECONDS):
            drain()

    thread = threading.Thread(target=follow, name="follow-metrics", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        drain()
