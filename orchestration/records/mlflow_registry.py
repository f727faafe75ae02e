"""Encoders as MLflow models: logged with their metrics, registered under one name for all comparable runs.

Shapes: B sounds, T samples.
"""

import os
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory

import mlflow
import numpy as np
from mlflow.entities import Metric
from mlflow.models import ModelSignature
from mlflow.types import Schema, TensorSpec

from sepscene import __version__
from sepscene.models.card import read_card
from sepscene.models.encoders.encoder import read_encoder_config
from sepscene.models.names import is_custom, package_of
from sepscene.models.weights import README
from sepscene.orchestration.records.mlflow_client import MlflowStore, repeat_if_refused
from sepscene.orchestration.records.mlflow_names import metric_name
from sepscene.orchestration.source import code_to_send, copy_custom_code, copy_source

BEST = "best"
"""Alias of the registered version with the largest ranking metric."""
RANKING = ("shallow_map", "linear_map", "knn_map", "qbe_map")
"""Versions are ranked by the first of these metrics that was measured."""
_MAX_DESCRIPTION_LENGTH = 5000  # MLflow's limit for the description of a version
_INPUT = """\
**Input**: one waveform (T) or several (B, T) at {rate:,} Hz, floats of full scale 1 or integers; an array, a list or a
DataFrame. **Output**: h, (B, {dim}), float32.
"""


def log_encoder(store: MlflowStore, run_id: str, bundle: Path, name: str, registered_name: str | None) -> None:
    """Log an encoder bundle as a model with its metrics, signature, card and an example; register it if requested.

    Args:
        store: the store of the run.
        run_id: the run that trained the encoder.
        bundle: the encoder's folder.
        name: name of the model, e.g. "table4-S2-N-simclr-cp mix-chan".
        registered_name: name in the model registry; None: not registered. The best of its versions has the alias
            `best`.
    """
    config = read_encoder_config(bundle)
    card = read_card(bundle)
    custom = [config.trunk.use] if is_custom(config.trunk.use) else []
    dim = config.embedding_dim
    tags = {"sha256": card.sha256, "sepscene_version": __version__}
    rate = config.front_end.sample_rate
    example_BT = (0.1 * np.sin(2 * np.pi * 440 * np.arange(rate) / rate, dtype=np.float32))[None].astype(np.float32)
    with TemporaryDirectory(prefix="sepscene-") as folder, _active_run(store.uri, run_id):
        code = Path(folder)
        info = mlflow.pyfunc.log_model(
            name=re.sub(r"[^\w .+-]+", "-", name),  # MLflow allows no other characters
            python_model=str(Path(__file__).with_name("mlflow_model.py")),
            artifacts={"bundle": str(bundle)},
            code_paths=[str(copy_source(code, ("models",))), *map(str, copy_custom_code(code, custom))],
            # No schema for the input: it would refuse float64, lists and single waveforms, which `predict` accepts.
            signature=ModelSignature(outputs=Schema([TensorSpec(np.dtype("float32"), (-1, dim))])),
            input_example=example_BT,
            registered_model_name=registered_name,
            pip_requirements=["torch", "torchaudio", "safetensors", "pydantic", "numpy", *_requirements(custom)],
            metadata=card.metadata,
            tags=tags,
        )
    metrics = {key: float(value["value"]) for key, value in card.metadata.get("metrics", {}).items()}
    now = store.client.get_run(run_id).info.start_time
    linked = [Metric(metric_name(key), value, now, 0, model_id=info.model_id) for key, value in metrics.items()]
    if linked:
        store.client.log_batch(run_id, metrics=linked)
    if registered_name and info.registered_model_version:
        text = _INPUT.format(rate=rate, dim=dim) + "\n" + _without_header((bundle / README).read_text())
        number = str(info.registered_model_version)
        store.client.update_model_version(registered_name, number, description=text[:_MAX_DESCRIPTION_LENGTH])
        _describe_version(store, registered_name, number, tags, metrics)


def _describe_version(
    store: MlflowStore, name: str, number: str, tags: dict[str, str], metrics: dict[str, float]
) -> None:
    ranked_by = next((key for key in RANKING if key in metrics), None)
    if ranked_by:
        tags = {**tags, ranked_by: f"{metrics[ranked_by]:.4f}"}
    for key, value in tags.items():
        store.client.set_model_version_tag(name, number, key, value)
    about = "Sound encoders trained by Sepscene. The description of each version is its model card."
    if ranked_by:
        about += f" The alias `{BEST}` marks the version with the largest {ranked_by}."
        _mark_best(store, name, ranked_by)
    store.client.update_registered_model(name, description=about)


def _mark_best(store: MlflowStore, name: str, ranked_by: str) -> None:
    """Give the alias to the best version. Another run may give it to its own at the same time, so it is checked."""
    for _ in range(10):
        versions = {str(one.version): one.tags for one in store.client.search_model_versions(f"name = '{name}'")}
        best = max(versions, key=lambda number: (float(versions[number].get(ranked_by, "-inf")), int(number)))
        if str(store.client.get_registered_model(name).aliases.get(BEST)) == best:
            return
        repeat_if_refused(store.client.set_registered_model_alias, name, BEST, best)


def _requirements(custom: list[str]) -> list[str]:
    """Requirements for custom code that is installed here as a package."""
    packages = [package_of(name) for name in custom if not code_to_send([name])]
    return [f"{package['package']}=={package['version']}" for package in packages]


@contextmanager
def _active_run(uri: str, run_id: str) -> Iterator[None]:
    """While the block runs, MLflow's fluent calls use this run; MLflow also sets MLFLOW_TRACKING_URI, restored here.

    MLflow's messages about registrations on stderr are discarded, as they would disturb the progress display.
    """
    before = os.environ.get("MLFLOW_TRACKING_URI")
    mlflow.set_tracking_uri(uri)
    try:
        with mlflow.start_run(run_id=run_id), redirect_stderr(StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        mlflow.set_tracking_uri(None)  # type: ignore[arg-type]  # resets it and deletes the variable
        if before is not None:
            os.environ["MLFLOW_TRACKING_URI"] = before


def _without_header(card: str) -> str:
    """A model card's Markdown without its YAML header."""
    return card.split("---\n", 2)[2].lstrip() if card.startswith("---\n") else card
