"""The calls to MLflow, one method for each kind of entry; each raises whatever MLflow raises.

`records.mlflow_mirror` decides when these calls are made, and stores those that failed. All of them can safely be
repeated: a call whose response was lost is made again.
"""

import json
import logging
import os
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")

import mlflow
from mlflow.entities import Dataset, DatasetInput, InputTag, LifecycleStage, Metric, Param, RunTag
from mlflow.exceptions import MlflowException

from sepscene.models.config import SepsceneError, first_line
from sepscene.orchestration.records.files import exclusive_lock
from sepscene.orchestration.records.mlflow_address import SQLITE, artifact_folder, check_local_store, sqlite_path
from sepscene.orchestration.records.mlflow_names import metric_name
from sepscene.orchestration.records.run_folder import mlflow_lock_of

logging.getLogger("mlflow").setLevel(logging.WARNING)
logging.getLogger("alembic").setLevel(logging.WARNING)

_METRICS_PER_CALL = 900  # MLflow's limit is 1000
_PARAMS_PER_CALL = 100  # MLflow's limit; each call is a commit to disk, which is slow
_MAX_PARAM_LENGTH = 5900  # MLflow's limit is 6000 characters; longer values are cut
_REFUSALS = {
    "BAD_REQUEST",
    "ENDPOINT_NOT_FOUND",
    "INVALID_PARAMETER_VALUE",
    "INVALID_STATE",
    "NOT_IMPLEMENTED",
    "PERMISSION_DENIED",
    "RESOURCE_ALREADY_EXISTS",
    "UNAUTHENTICATED",
}
"""MLflow's error codes for calls that would fail again."""


class MlflowStore:
    """An MLflow server or SQLite store, and its experiment that contains our runs."""

    def __init__(self, uri: str, experiment: str) -> None:
        self.uri = uri
        self.experiment = experiment

    @cached_property
    def client(self) -> mlflow.MlflowClient:
        """A client of the store.

        Creating a client also creates a missing SQLite store. Two processes that do so at the same time would leave a
        broken file, so a lock is held.

        Raises:
            SepsceneError: if a SQLite store cannot be used (`check_local_store`).
        """
        if not self.uri.startswith(SQLITE):
            return mlflow.MlflowClient(tracking_uri=self.uri)
        path = sqlite_path(self.uri)
        with exclusive_lock(mlflow_lock_of(path)):
            check_local_store(self.uri)
            client = mlflow.MlflowClient(tracking_uri=self.uri)
            client.search_experiments(max_results=1)
            self._file = path.stat().st_ino
            return client

    def check_file(self) -> None:
        """Check that the file of an open SQLite store was not deleted or replaced.

        Raises:
            SepsceneError: if it was. Further writes would be lost; a later process creates the store again.
        """
        if "client" not in self.__dict__ or not self.uri.startswith(SQLITE):
            return
        path = sqlite_path(self.uri)
        if not path.exists() or path.stat().st_ino != self._file:
            raise SepsceneError(f"{path} was deleted or replaced while it was in use; no data is lost")

    def experiment_id(self) -> str | None:
        """MLflow's id of the experiment; None if it does not exist.

        Raises:
            SepsceneError: if it was deleted: MLflow keeps its name but accepts no run for it.
        """
        found = self.client.get_experiment_by_name(self.experiment)
        if found and found.lifecycle_stage == LifecycleStage.DELETED:
            raise SepsceneError(
                f"the experiment {self.experiment!r} was deleted in MLflow: restore it with `MLFLOW_TRACKING_URI="
                f"{self.uri} mlflow experiments restore --experiment-id {found.experiment_id}`"
            )
        return found.experiment_id if found else None

    def has_run(self, run_id: str) -> bool:
        """Whether the store contains a run.

        Raises:
            SepsceneError: if it was deleted and can be restored.
        """
        try:
            found = self.client.get_run(run_id)
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return False
            raise
        if found.info.lifecycle_stage == LifecycleStage.DELETED:
            self.experiment_id()
            raise SepsceneError(
                f"the run was deleted in MLflow: restore it with `MLFLOW_TRACKING_URI={self.uri} "
                f"mlflow runs restore --run-id {run_id}`"
            )
        return True

    def create_run(self, name: str, parent_id: str | None, now: int) -> str:
        """Create a run and return its id; `now` is in milliseconds."""
        experiment_id = self.experiment_id() or self._create_experiment()
        tags = {"mlflow.runName": name} | ({"mlflow.parentRunId": parent_id} if parent_id else {})
        return self.client.create_run(experiment_id, start_time=now, tags=tags).info.run_id

    def _create_experiment(self) -> str:
        location = artifact_folder(self.uri).as_uri() if self.uri.startswith(SQLITE) else None
        try:
            return self.client.create_experiment(self.experiment, artifact_location=location)
        except MlflowException:  # another run of a sweep has created it in the meantime
            found = self.experiment_id()
            if found is None:
                raise
            return found

    def begin(self, run_id: str, tags: dict[str, str], params: dict[str, str]) -> None:
        """Set a run's tags and parameters, and its status to running.

        MLflow does not allow a parameter to change. If a run continues with other resources, or a sweep with a larger
        budget, the new value is the tag `now.<parameter>`.
        """
        known = self.client.get_run(run_id).data.params
        new = {key: value[:_MAX_PARAM_LENGTH] for key, value in params.items()}
        changed = {f"now.{key}": new[key] for key in new.keys() & known if new[key] != known[key]}
        self.tag(run_id, {**tags, **changed})
        unknown = [Param(key, value) for key, value in new.items() if key not in known]
        for start in range(0, len(unknown), _PARAMS_PER_CALL):
            self.client.log_batch(run_id, params=unknown[start : start + _PARAMS_PER_CALL])
        self.client.update_run(run_id, status="RUNNING")

    def tag(self, run_id: str, tags: dict[str, str]) -> None:
        """Set tags of a run; values are converted to strings."""
        self.client.log_batch(run_id, tags=[RunTag(key, str(value)) for key, value in tags.items()])

    def log_metrics(self, run_id: str, metrics: dict[str, float], now: int) -> None:
        """Log metrics without steps."""
        logged = [Metric(metric_name(key), value, now, 0) for key, value in metrics.items()]
        self.client.log_batch(run_id, metrics=logged)

    def log_records(self, run_id: str, records: list[dict[str, Any]]) -> None:
        """Log the numbers in records of a metrics file, with each record's step and time."""
        metrics = [
            Metric(metric_name(key), float(value), int(record["seconds"] * 1000), int(record.get("step", 0)))
            for record in records
            for key, value in record.items()
            if key not in ("stage", "step", "seconds") and isinstance(value, int | float)
        ]
        for start in range(0, len(metrics), _METRICS_PER_CALL):
            self.client.log_batch(run_id, metrics=metrics[start : start + _METRICS_PER_CALL])

    def log_data(self, run_id: str, data: dict[str, Any]) -> None:
        """Log a data set as a run's input.

        Args:
            data: `name`, `digest` (of the manifest), `source` (folder or URI), `context` ("training", "evaluation"),
                and `profile` (counts).
        """
        scheme, found, _ = data["source"].partition("://")
        dataset = Dataset(
            name=data["name"],
            digest=data["digest"][:36],
            source_type=scheme if found else "local",
            source=json.dumps({"uri": data["source"]}),
            profile=json.dumps(data["profile"]),
        )
        context = InputTag("mlflow.data.context", data["context"])
        repeat_if_refused(self.client.log_inputs, run_id, [DatasetInput(dataset, [context])])

    def log_artifact(self, run_id: str, path: Path, folder: str | None) -> None:
        """Log a file or a folder."""
        send = self.client.log_artifacts if path.is_dir() else self.client.log_artifact
        send(run_id, str(path), folder)

    def finish(self, run_id: str, status: str, now: int) -> None:
        """End a run; `now` is in milliseconds."""
        self.client.set_terminated(run_id, status, end_time=now)


def repeat_if_refused(call: Callable[..., None], *arguments: Any) -> None:
    """Make a call that adds an entry which other runs add as well, e.g. their common data set.

    If two runs add it at the same moment, MLflow refuses one of the calls; repeated, this call finds the entry.
    """
    try:
        call(*arguments)
    except MlflowException:
        call(*arguments)


def permanent_error(error: Exception) -> str | None:
    """Why repeating a call cannot succeed; None if it might."""
    if isinstance(error, SepsceneError):
        return str(error)
    if not isinstance(error, MlflowException):
        return None
    status = error.get_http_status_code()
    if error.error_code not in _REFUSALS and status not in (400, 401, 403, 404):
        return None
    reason = first_line(error)[:300]
    if status in (401, 403):
        return f"{reason}. Set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN"
    return reason
