"""The content of MLflow after a run: in a SQLite store, on a server, and after concurrent runs."""

import json
import multiprocessing
import os
import shutil
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pytest
from mlflow import MlflowClient

import sepscene
from sepscene.models.config import SepsceneError
from sepscene.models.encoders.encoder import Encoder, EncoderConfig, load_encoder, save_encoder, update_card
from sepscene.models.settings import Cnn14Config
from sepscene.orchestration.records.metrics_log import append_metrics
from sepscene.orchestration.records.mlflow_address import default_tracking_uri, tracking_uri_of
from sepscene.orchestration.records.mlflow_client import MlflowStore
from sepscene.orchestration.records.mlflow_mirror import Tracker
from sepscene.orchestration.records.mlflow_registry import _describe_version
from sepscene.orchestration.records.mlflow_ui import USER, Ui, running_ui, tracking_store
from sepscene.orchestration.records.run_folder import RunFolder
from sepscene.orchestration.records.system_metrics import sampled
from sepscene.tasks.datasets.manifest import Clip, make_manifest
from tests.faults.hosts import free_port

DATA = make_manifest((Clip(f"{n}", f"/{n}", (f"class {n % 3}",), "train") for n in range(12)), "test")


def track_a_run(uri: str, run_dir: Path, steps: int = 20) -> Tracker:
    """Send everything that a run sends to MLflow, except the encoder."""
    run_dir.mkdir(parents=True, exist_ok=True)
    tracker = Tracker(uri, "sepscene", run_dir)
    tracker.start("", {"experiment": "table4/S2+N/simclr-cp", "temperature": "0.2"}, {"objective.alpha": 1.0})
    tracker.log_data("esc50 1+2", "training", "s3://bucket/esc50", DATA)
    tracker.start("pretrain-mix-chan", {"stage": "pretrain-mix-chan"}, {})
    records = [{"step": step, "loss": 5.0 - step / 10, "waiting_share": 0.01} for step in range(steps)]
    append_metrics(RunFolder(run_dir).stage("pretrain-mix-chan"), records)
    tracker.send()
    with sampled(run_dir, "pretrain-mix-chan"):
        pass
    tracker.tag("", {"separator_digest": "S2=0123456789ab"})
    (run_dir / "ledger.json").write_text("{}")
    tracker.log_artifact("", run_dir / "ledger.json")
    tracker.finish("pretrain-mix-chan")
    tracker.log_metrics("", {"shallow_map": 0.31})
    tracker.finish("")
    return tracker


def check_the_run(uri: str, tracker: Tracker, steps: int = 20) -> None:
    """Everything that was sent is in MLflow, once."""
    assert tracker.unsent == 0
    client = MlflowClient(tracking_uri=uri)
    parent, child = (client.get_run(str(tracker.run_id(stage))) for stage in ("", "pretrain-mix-chan"))
    assert (parent.info.run_name, parent.info.status) == (tracker.run_dir.name, "FINISHED")
    assert child.info.run_name == f"{tracker.run_dir.name}/pretrain-mix-chan"
    assert child.data.tags["mlflow.parentRunId"] == parent.info.run_id
    assert parent.data.tags["separator_digest"] == "S2=0123456789ab"
    assert parent.data.params == {"objective.alpha": "1.0"}
    assert parent.data.metrics["2_quality/shallow_map"] == 0.31
    history = client.get_metric_history(child.info.run_id, "1_loss/loss")
    assert [(one.step, one.value) for one in history] == [(n, 5.0 - n / 10) for n in range(steps)]
    assert 0 <= child.data.metrics["system/cpu_utilization_percentage"] <= 100
    assert child.data.metrics["system/system_memory_usage_megabytes"] > 100
    (given,) = parent.inputs.dataset_inputs
    assert (given.dataset.name, given.dataset.digest) == ("esc50 1+2", DATA.digest()[:36])
    assert json.loads(given.dataset.profile) == {"clips": 12, "classes": 3, "absent": 0}
    assert json.loads(given.dataset.source) == {"uri": "s3://bucket/esc50"}
    assert (given.dataset.source_type, given.tags[0].value) == ("s3", "training")
    assert [artifact.path for artifact in client.list_artifacts(parent.info.run_id)] == ["ledger.json"]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundle") / "encoder"
    trunk = Cnn14Config(widths=(2, 4, 4, 8, 8, 8), embedding_dim=16)
    save_encoder(Encoder(EncoderConfig(trunk=trunk)), folder, {"title": "nano", "steps": 40, "license": "MIT"})
    update_card(folder, {"metrics": {"shallow_map": {"value": 0.31, "low": 0.27, "high": 0.36}}})
    return folder


def check_the_model(uri: str, bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One registered version with signature, card and metrics; its predictions equal those of the bundle."""
    client = MlflowClient(tracking_uri=uri)
    (version,) = client.search_model_versions("name = 'sepscene-nano'")
    assert "| shallow_map | 0.3100 | 0.2700 to 0.3600 |" in version.description
    assert version.tags["sha256"] == json.loads((bundle / "config.json").read_text())["sha256"]
    assert version.tags["shallow_map"] == "0.3100" and version.tags["sepscene_version"] == sepscene.__version__
    logged = client.get_logged_model(version.source.removeprefix("models:/"))
    assert logged.name == "nano mix-chan"
    assert ("2_quality/shallow_map", 0.31) in [(one.key, one.value) for one in logged.metrics or ()]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    model = mlflow.pyfunc.load_model("models:/sepscene-nano@best")
    assert model.metadata.signature.outputs.inputs[0].shape == (-1, 16)
    assert model.metadata.metadata["metrics"]["shallow_map"]["value"] == 0.31
    assert np.shape(model.input_example) == (1, 16_000)
    wave_BT = np.random.default_rng(0).normal(0, 0.1, (2, 16_000)).astype(np.float32)
    import torch

    with torch.inference_mode():
        expected_BD = load_encoder(bundle)(torch.from_numpy(wave_BT)).numpy()
    np.testing.assert_array_equal(model.predict(wave_BT), expected_BD)
    frames = (pd.DataFrame(wave_BT), pd.DataFrame({"wave": [*wave_BT]}))
    for given in (wave_BT.astype(np.float64), wave_BT.tolist(), *frames):
        np.testing.assert_array_equal(model.predict(given), expected_BD)
    np.testing.assert_array_equal(model.predict(wave_BT[0]), model.predict(wave_BT[:1]))
    integers_BT = (wave_BT * 32768).round().astype(np.int16)
    np.testing.assert_allclose(model.predict(integers_BT), expected_BD, rtol=0.05, atol=1e-3)


def check_that_the_alias_stays_on_the_best(store: MlflowStore) -> None:
    """Of versions registered later, a better one gets the alias, a worse one does not."""
    (first,) = store.client.search_model_versions("name = 'sepscene-nano'")
    for shallow_map, best in ((0.25, "1"), (0.35, "3")):
        number = str(store.client.create_model_version("sepscene-nano", first.source).version)
        _describe_version(store, "sepscene-nano", number, {}, {"shallow_map": shallow_map})
        assert str(store.client.get_model_version_by_alias("sepscene-nano", "best").version) == best


def log_encoder_twice(tracker: Tracker, bundle: Path) -> None:
    shutil.copytree(bundle, tracker.run_dir / "encoder")
    for _ in range(2):
        tracker.log_encoder("pretrain-mix-chan", tracker.run_dir / "encoder", "nano mix-chan", "sepscene-nano")
    tracker.finish("")
    assert tracker.unsent == 0
    assert "MLFLOW_TRACKING_URI" not in os.environ


@pytest.mark.slow
def test_run_data_and_model_are_in_a_sqlite_store(
    tmp_path: Path, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    tracker = track_a_run(uri, tmp_path / "first")
    check_the_run(uri, tracker)
    log_encoder_twice(tracker, bundle)
    check_the_model(uri, bundle, monkeypatch)
    check_that_the_alias_stays_on_the_best(tracker.store)


def log_in(server: Ui, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", USER)
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", server.password)


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    MlflowClient(tracking_uri=f"sqlite:///{tmp_path}/mlflow.db").search_experiments()
    port = free_port()
    with running_ui(tracking_store(tmp_path), port) as running:
        log_in(running, monkeypatch)
        yield running.address


@pytest.mark.slow
def test_run_data_and_model_are_on_a_server(
    tmp_path: Path, bundle: Path, server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracker = track_a_run(server, tmp_path / "runs" / "first")
    check_the_run(server, tracker)
    log_encoder_twice(tracker, bundle)
    with pytest.raises(SepsceneError, match="MLFLOW_TRACKING_URI=http://127"):  # the folder does not decide
        tracking_uri_of(tmp_path / "runs" / "first")
    check_the_model(server, bundle, monkeypatch)


@pytest.mark.slow
def test_concurrent_runs_can_create_the_same_store(tmp_path: Path) -> None:
    """Three processes start at the same time; each tries to create the database, the experiment and its runs."""
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    context = multiprocessing.get_context("spawn")
    runs = [tmp_path / f"trial-{n}" for n in range(3)]
    processes = [context.Process(target=_track_until_all_is_sent, args=(uri, run)) for run in runs]
    for process in processes:
        process.start()
    for process in processes:
        process.join(240)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    for run in runs:
        check_the_run(uri, Tracker(uri, "sepscene", run), steps=300)


@pytest.mark.slow
def test_concurrent_runs_can_add_the_same_data_and_the_best_model(tmp_path: Path) -> None:
    """Three threads add the same entries at the same moment, twenty times; the best version has the alias each time."""
    rounds = 20
    stores = [MlflowStore(f"sqlite:///{tmp_path}/mlflow.db", "sepscene") for _ in range(3)]
    runs = [store.create_run(f"trial-{n}", None, 1) for n, store in enumerate(stores)]
    client = stores[0].client
    for number in range(rounds):
        client.create_registered_model(f"model-{number}")
        for run in runs:
            client.create_model_version(f"model-{number}", f"{client.get_run(run).info.artifact_uri}/encoder", run)
    together = threading.Barrier(len(stores))

    def add(trial: int) -> None:
        for number in range(rounds):
            data = {"name": f"data-{number}", "digest": "0", "source": "/data", "context": "training", "profile": {}}
            together.wait(60)
            stores[trial].log_data(runs[trial], data)
            together.wait(60)
            _describe_version(stores[trial], f"model-{number}", str(trial + 1), {}, {"shallow_map": trial / 10})

    with ThreadPoolExecutor(len(stores)) as pool:
        list(pool.map(add, range(len(stores))))
    aliases = [client.get_model_version_by_alias(f"model-{number}", "best").version for number in range(rounds)]
    assert [str(version) for version in aliases] == ["3"] * rounds
    assert all(len(client.get_run(run).inputs.dataset_inputs) == rounds for run in runs)


def _track_until_all_is_sent(uri: str, run_dir: Path) -> None:
    import time

    tracker = track_a_run(uri, run_dir, steps=300)
    deadline = time.monotonic() + 120
    while tracker.unsent and time.monotonic() < deadline:  # as the thread of `following` does
        time.sleep(1)
        tracker.send()


@pytest.mark.slow
def test_missing_records_are_sent_once_the_server_is_available(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole run takes place without a server; then another tracker sends the queue."""
    MlflowClient(tracking_uri=f"sqlite:///{tmp_path}/mlflow.db").search_experiments()
    port = free_port()
    uri = f"http://127.0.0.1:{port}"
    missed = track_a_run(uri, tmp_path / "runs" / "first")
    assert missed.unsent > 0
    assert missed.run_id() is None
    with running_ui(tracking_store(tmp_path), port) as server:
        log_in(server, monkeypatch)
        later = Tracker(uri, "sepscene", tmp_path / "runs" / "first")
        later.send()
        check_the_run(uri, later)


@pytest.mark.slow
def test_a_store_that_lost_the_run_gets_it_again(tmp_path: Path) -> None:
    first = f"sqlite:///{tmp_path}/first.db"
    second = f"sqlite:///{tmp_path}/second.db"
    track_a_run(first, tmp_path / "run")
    tracker = Tracker(second, "sepscene", tmp_path / "run")
    tracker.send()
    check_the_run(second, tracker)


@pytest.mark.slow
def test_no_call_waits_for_a_server_that_does_not_respond(tmp_path: Path) -> None:
    """A server that accepts connections but never responds blocks only the thread that sends."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        tracker = Tracker(f"http://127.0.0.1:{silent.getsockname()[1]}", "sepscene", tmp_path)
        tracker.start("", {}, {})
        sending = threading.Thread(target=tracker.send)
        sending.start()
        silent.settimeout(60)
        with silent.accept()[0]:
            tracker.tag("", {"made": "meanwhile"})
            assert sending.is_alive()
    sending.join(60)
    assert not sending.is_alive() and tracker.unsent == 2
    assert "meanwhile" in (tmp_path / "mlflow-calls.jsonl").read_text()


def test_a_password_in_the_address_is_refused_and_not_shown(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for address in (
        "https://me:swordfish@mlflow.example.org",
        "https://swordfish@mlflow.example.org",
        "postgresql://mlflow.example.org/db?user=me&password=swordfish",
    ):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
        with pytest.raises(SepsceneError, match="MLFLOW_TRACKING_USERNAME") as refusal:
            default_tracking_uri(tmp_path)
        assert "swordfish" not in str(refusal.value)


def test_the_store_of_runs_that_were_moved_is_found(tmp_path: Path) -> None:
    (tmp_path / "mlflow.json").write_text('{"uri": "sqlite:////gone/mlflow.db"}')
    (tmp_path / "mlflow.db").write_text("")
    assert tracking_uri_of(tmp_path) == f"sqlite:///{tmp_path.resolve()}/mlflow.db"


@pytest.mark.slow
def test_a_parameter_that_changed_when_a_run_is_continued_becomes_a_tag(tmp_path: Path) -> None:
    uri = default_tracking_uri(tmp_path)
    for trainers in (2, 1):
        tracker = Tracker(uri, "sepscene", tmp_path)
        tracker.start("", {"kind": "sweep"}, {"resources.trainers": trainers, "seed": 0})
        tracker.send()
        assert tracker.unsent == 0
    found = MlflowClient(tracking_uri=uri).get_run(str(tracker.run_id())).data
    assert found.params == {"resources.trainers": "2", "seed": "0"}
    assert found.tags["now.resources.trainers"] == "1" and "now.seed" not in found.tags
