"""What Sepscene writes into MLflow, one method for each kind of thing; every call may raise whatever MLflow raises.

`records.mlflow_mirror` decides when these calls are made, and keeps those that failed. All of them may be made twice:
a call whose answer was lost is made again.
"""

import fcntl
import json
import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from functools import cached_property
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")

import mlflow
import numpy as np
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, RunTag
from mlflow.exceptions import MlflowException
from mlflow.models import ModelSignature
from mlflow.types import Schema, TensorSpec

from sepscene.models.card import read_card
from sepscene.models.encoders.encoder import read_encoder_config
from sepscene.orchestration.source import copy_source

for _name in ("mlflow", "alembic"):
    logging.getLogger(_name).setLevel(logging.WARNING)

_METRICS_AT_ONCE = 900  # MLflow takes at most 1000 a call
_LONGEST_PARAM = 5900
_LONGEST_DESCRIPTION = 5000


class MlflowStore:
    """An MLflow server, or a SQLite store, and the experiment in it that holds our runs."""

    def __init__(self, uri: str, experiment: str) -> None:
        self.uri, self.experiment = uri, experiment

    @cached_property
    def client(self) -> mlflow.MlflowClient:
        """A client of the store.

        The client makes a SQLite store that is not there, or brings it to MLflow's present schema, when it is made
        itself. Two that do so at once leave a broken file behind, so they take turns.
        """
        if not self.uri.startswith("sqlite:///"):
            return mlflow.MlflowClient(tracking_uri=self.uri)
        with Path(self.uri.removeprefix("sqlite:///")).with_suffix(".lock").open("w") as turn:
            fcntl.flock(turn, fcntl.LOCK_EX)
            return mlflow.MlflowClient(tracking_uri=self.uri)

    def experiment_id(self) -> str | None:
        """MLflow's id of the experiment, when it exists."""
        found = self.client.get_experiment_by_name(self.experiment)
        return found.experiment_id if found else None

    def has_run(self, run_id: str) -> bool:
        """Whether the store knows a run."""
        try:
            self.client.get_run(run_id)
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return False
            raise
        return True

    def create_run(self, name: str, parent_id: str | None, now: int) -> str:
        """A new run, its id. `now` is in milliseconds."""
        experiment_id = self.experiment_id() or self._create_experiment()
        tags = {"mlflow.runName": name} | ({"mlflow.parentRunId": parent_id} if parent_id else {})
        return self.client.create_run(experiment_id, start_time=now, tags=tags).info.run_id

    def _create_experiment(self) -> str:
        location = None
        if self.uri.startswith("sqlite:///"):
            location = (Path(self.uri.removeprefix("sqlite:///")).parent / "mlartifacts").as_uri()
        try:
            return self.client.create_experiment(self.experiment, artifact_location=location)
        except MlflowException:  # another run of a sweep was faster
            found = self.experiment_id()
            if found is None:
                raise
            return found

    def begin(self, run_id: str, tags: dict[str, str], params: dict[str, str]) -> None:
        """Set a run's tags and parameters, and that it is running.

        MLflow lets no parameter change. A run that goes on with other resources, or a sweep with a larger budget, has
        the new value as a tag `now.<parameter>`.
        """
        known = self.client.get_run(run_id).data.params
        new = {key: value[:_LONGEST_PARAM] for key, value in params.items()}
        self.tag(run_id, {**tags, **{f"now.{key}": new[key] for key in new.keys() & known if new[key] != known[key]}})
        for key in new.keys() - known:
            self.client.log_param(run_id, key, new[key])
        self.client.update_run(run_id, status="RUNNING")

    def tag(self, run_id: str, tags: dict[str, str]) -> None:
        """Set tags."""
        self.client.log_batch(run_id, tags=[RunTag(key, str(value)) for key, value in tags.items()])

    def log_figures(self, run_id: str, figures: dict[str, float], now: int) -> None:
        """Log single figures."""
        self.client.log_batch(run_id, metrics=[Metric(key, value, now, 0) for key, value in figures.items()])

    def log_records(self, run_id: str, records: list[dict[str, Any]]) -> None:
        """Log records of a metrics file: every number in them, at the record's step and time of day."""
        metrics = [
            Metric(key, float(value), int(record["seconds"] * 1000), int(record.get("step", 0)))
            for record in records
            for key, value in record.items()
            if key not in ("stage", "step", "seconds") and isinstance(value, int | float)
        ]
        for start in range(0, len(metrics), _METRICS_AT_ONCE):
            self.client.log_batch(run_id, metrics=metrics[start : start + _METRICS_AT_ONCE])

    def log_data(self, run_id: str, data: dict[str, Any]) -> None:
        """Log a data set as a run's input.

        Args:
            data: `name`, `digest` (of the manifest), `source` (folder or URI), `context` ("training", "evaluation"),
                and `profile`: plain facts.
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
        self.client.log_inputs(run_id, [DatasetInput(dataset, [context])])

    def log_artifact(self, run_id: str, path: Path, folder: str | None) -> None:
        """Log a file or a folder."""
        send = self.client.log_artifacts if path.is_dir() else self.client.log_artifact
        send(run_id, str(path), folder)

    def finish(self, run_id: str, status: str) -> None:
        """End a run."""
        self.client.set_terminated(run_id, status)

    def log_encoder(self, run_id: str, bundle: Path, registered_name: str | None) -> None:
        """Log an encoder bundle as a model: signature, model card, facts; register it where a name is given."""
        dim = read_encoder_config(bundle).trunk.embedding_dim
        wave_BT = TensorSpec(np.dtype("float32"), (-1, -1), name=None)
        h_BD = TensorSpec(np.dtype("float32"), (-1, dim), name=None)
        card = read_card(bundle)
        # MLflow tells its registrations on stderr, in the middle of our progress.
        with (
            TemporaryDirectory(prefix="sepscene-") as folder,
            _pointed_at(self.uri),
            mlflow.start_run(run_id=run_id),
            redirect_stderr(StringIO()),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore")
            info = mlflow.pyfunc.log_model(
                name="encoder",
                python_model=str(Path(__file__).with_name("mlflow_model.py")),
                artifacts={"bundle": str(bundle)},
                code_paths=[str(copy_source(Path(folder), ("models",)))],
                signature=ModelSignature(inputs=Schema([wave_BT]), outputs=Schema([h_BD])),
                registered_model_name=registered_name,
                pip_requirements=["torch", "torchaudio", "safetensors", "pydantic", "numpy"],
                metadata=card.metadata,
                tags={"sha256": card.sha256},
            )
        if registered_name and info.registered_model_version:
            version = str(info.registered_model_version)
            text = _without_header((bundle / "README.md").read_text())[:_LONGEST_DESCRIPTION]
            self.client.update_model_version(registered_name, version, description=text)
            self.client.set_model_version_tag(registered_name, version, "sha256", card.sha256)


@contextmanager
def _pointed_at(uri: str) -> Iterator[None]:
    """MLflow's fluent calls go to `uri` for this long; it also keeps the address in the environment."""
    before = os.environ.get("MLFLOW_TRACKING_URI")
    mlflow.set_tracking_uri(uri)
    try:
        yield
    finally:
        mlflow.set_tracking_uri(None)  # type: ignore[arg-type]  # forgets it, and deletes the variable
        if before is not None:
            os.environ["MLFLOW_TRACKING_URI"] = before


def _without_header(card: str) -> str:
    """A model card's Markdown without its YAML header."""
    return card.split("---\n", 2)[2].lstrip() if card.startswith("---\n") else card
