"""The mirror with an MLflow store that was deleted, moved, changed or written by an untrusted source."""

import json
import multiprocessing
import shutil
import sqlite3
from contextlib import closing as closing_file
from pathlib import Path

import pytest
from mlflow import MlflowClient

from sepscene.models.config import SepsceneError
from sepscene.orchestration.records.mlflow_address import check_local_store, default_tracking_uri, tracking_uri_of
from sepscene.orchestration.records.mlflow_mirror import Tracker, closing, sync
from sepscene.orchestration.records.mlflow_ui import tracking_store
from tests.orchestration.records.test_mlflow_mirror import check_the_run, track_a_run


@pytest.fixture(autouse=True)
def _no_server_of_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


@pytest.mark.slow
def test_a_deleted_store_is_created_again_from_the_folder(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    uri = default_tracking_uri(tmp_path)
    tracker = track_a_run(uri, tmp_path / "run")
    caplog.clear()
    for path in tmp_path.glob("mlflow.db*"):
        path.unlink()
    for _ in range(5):
        tracker.tag("", {"after": "it was deleted"})
        tracker.send()
    assert [record.levelname for record in caplog.records] == ["WARNING"] and "sepscene sync" in caplog.text
    # MLflow keeps a deleted file open until the process ends.
    process = multiprocessing.get_context("spawn").Process(target=sync, args=(tmp_path / "run", uri))
    process.start()
    process.join(120)
    assert process.exitcode == 0
    again = Tracker(uri, "sepscene", tmp_path / "run")
    assert again.run_id() != tracker.run_id()
    found = MlflowClient(tracking_uri=f"sqlite:///{tmp_path}/./mlflow.db").get_run(str(again.run_id())).data
    assert found.metrics == {"2_quality/shallow_map": 0.31} and found.tags["after"] == "it was deleted"
    assert found.params == {"objective.alpha": "1.0"}


@pytest.mark.slow
def test_trials_of_a_lost_sweep_become_children_of_their_sweep_again(tmp_path: Path) -> None:
    first = f"sqlite:///{tmp_path}/first.db"
    second = f"sqlite:///{tmp_path}/second.db"
    sweep = tmp_path / "sweep"
    parent = track_a_run(first, sweep)
    (sweep / "trials" / "a").mkdir(parents=True)
    trial = Tracker(first, "sepscene", sweep / "trials" / "a")
    trial.start("", {"mlflow.parentRunId": str(parent.run_id())}, {})
    trial.finish("")
    sync(sweep, second)
    again = [Tracker(second, "sepscene", folder) for folder in (sweep, sweep / "trials" / "a")]
    check_the_run(second, again[0])
    child = MlflowClient(tracking_uri=second).get_run(str(again[1].run_id()))
    assert child.data.tags["mlflow.parentRunId"] == again[0].run_id() != parent.run_id()


@pytest.mark.slow
def test_private_files_of_the_user_are_not_sent(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """An untrusted folder refers to a private file by path, by a link and in a folder; only its own file is sent."""
    secret = tmp_path / "id_rsa"
    run_dir = tmp_path / "run"
    secret.write_text("private")
    (run_dir / "plots").mkdir(parents=True)
    (run_dir / "plots" / "innocent.svg").symlink_to(secret)
    (run_dir / "link").symlink_to(secret)
    (run_dir / "own.txt").write_text("own")
    paths = [str(secret), "../id_rsa", "link", "plots", "own.txt"]
    calls = [
        {"kind": "artifact", "stage": "", "milliseconds": 1, "argument": {"path": path, "folder": None}}
        for path in paths
    ]
    (run_dir / "mlflow-calls.jsonl").write_text("torn\n" + "".join(json.dumps(call) + "\n" for call in calls))
    tracker = Tracker(default_tracking_uri(tmp_path), "sepscene", run_dir)
    tracker.send()
    assert tracker.unsent == 0
    client = MlflowClient(tracking_uri=tracker.uri)
    assert [found.path for found in client.list_artifacts(str(tracker.run_id()))] == ["own.txt"]
    assert caplog.text.count("is not in") == 4


@pytest.mark.parametrize(
    ("error", "status"), [(KeyboardInterrupt(), "KILLED"), (SystemExit(143), "KILLED"), (ValueError(), "FAILED")]
)
def test_a_block_that_fails_ends_its_run_with_the_right_status(
    tmp_path: Path, error: BaseException, status: str
) -> None:
    tracker = Tracker(default_tracking_uri(tmp_path), "sepscene", tmp_path)
    with pytest.raises(type(error)), closing(tracker, "pretrain-mix-chan"):
        raise error
    (call,) = (json.loads(line) for line in (tmp_path / "mlflow-calls.jsonl").read_text().splitlines())
    assert (call["kind"], call["stage"], call["argument"]) == ("finish", "pretrain-mix-chan", {"status": status})


@pytest.mark.parametrize("uri", ["http://192.0.2.1:5000", "https://tracking.example.org"])
def test_a_server_that_only_the_folder_names_is_not_used(tmp_path: Path, uri: str) -> None:
    (tmp_path / "mlflow.json").write_text(json.dumps({"uri": uri}))
    (tmp_path / "mlflow.db").write_text("")
    with pytest.raises(SepsceneError, match="may come from an untrusted source"):
        tracking_uri_of(tmp_path)


def test_an_invalid_address_is_refused_and_not_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:swordfish@[::1")
    with pytest.raises(SepsceneError, match="MLFLOW_TRACKING_URI is not a valid address") as refusal:
        default_tracking_uri(tmp_path)
    assert "swordfish" not in str(refusal.value)


def test_an_empty_variable_names_no_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")
    (tmp_path / "mlflow.db").write_text("")
    assert tracking_uri_of(tmp_path / "run") == f"sqlite:///{tmp_path.resolve()}/mlflow.db"


def test_a_store_that_only_the_folder_names_is_not_used(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    other = tmp_path / "of the user" / "mlflow.db"
    other.parent.mkdir()
    other.write_text("")
    (tmp_path / "run" / "mlflow.json").write_text(json.dumps({"uri": f"sqlite:///{other}"}))
    with pytest.raises(SepsceneError, match="may come from an untrusted source"):
        tracking_uri_of(tmp_path / "run")


@pytest.mark.parametrize("content", ["", "null", "[]", "{", '{"uri": null}', '{"uri": 7, "runs": 3}', "\x00\xff"])
def test_an_invalid_state_is_ignored(tmp_path: Path, content: str) -> None:
    (tmp_path / "mlflow.json").write_text(content)
    (tmp_path / "mlflow-calls.jsonl").write_text(content)
    tracking_uri_of(tmp_path)
    assert Tracker(default_tracking_uri(tmp_path), "sepscene", tmp_path).stages() == ()


@pytest.mark.parametrize("location", ["//[a", "/etc", "file:///etc", "s3://bucket/a", "../a"])
def test_an_address_outside_the_artifact_folder_is_refused(tmp_path: Path, location: str) -> None:
    with sqlite3.connect(tmp_path / "mlflow.db") as store:
        store.execute("CREATE TABLE runs (artifact_uri TEXT)")
        store.execute("INSERT INTO runs VALUES (?)", (location,))
    with pytest.raises(SepsceneError, match="untrusted source"):
        check_local_store(f"sqlite:///{tmp_path}/mlflow.db")


def test_a_store_whose_writer_was_killed_is_used(tmp_path: Path) -> None:
    """SQLite undoes the unfinished write from its journal when the store is opened."""
    (tmp_path / "killed").mkdir()
    with closing_file(sqlite3.connect(tmp_path / "mlflow.db")) as store:
        store.execute("CREATE TABLE runs (artifact_uri TEXT)")
        store.commit()
        store.execute("PRAGMA cache_size = 2")  # so that the write reaches the file before it is committed
        store.executemany("INSERT INTO runs VALUES (?)", [("/etc" + 500 * "x",)] * 1000)
        for path in tmp_path.glob("mlflow.db*"):
            shutil.copy(path, tmp_path / "killed")
    assert (tmp_path / "killed" / "mlflow.db-journal").exists()
    check_local_store(f"sqlite:///{tmp_path}/killed/mlflow.db")


@pytest.mark.slow
def test_a_store_with_files_outside_its_folder_is_refused(tmp_path: Path) -> None:
    """Otherwise artifacts would be written there, and the UI would read files from there."""
    uri = default_tracking_uri(tmp_path)
    client = MlflowClient(tracking_uri=uri)
    client.create_experiment("sepscene", artifact_location=(tmp_path / "of the user").as_uri())
    tracker = Tracker(uri, "sepscene", tmp_path)
    tracker.start("", {}, {})
    tracker.send()
    assert "untrusted source" in str(tracker.fault) and not (tmp_path / "of the user").exists()
    with pytest.raises(SepsceneError, match="untrusted source"):
        tracking_store(tmp_path)


@pytest.mark.slow
def test_permanent_errors_are_logged_once_and_not_retried(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    uri = default_tracking_uri(tmp_path)
    client = MlflowClient(tracking_uri=uri)
    client.delete_experiment(client.create_experiment("sepscene", (tmp_path / "mlartifacts").as_uri()))
    caplog.clear()
    tracker = Tracker(uri, "sepscene", tmp_path)
    for _ in range(3):
        tracker.start("", {}, {})
        tracker.send()
    assert "mlflow experiments restore" in str(tracker.fault) and len(caplog.records) == 1
    with pytest.raises(SepsceneError, match="mlflow experiments restore"):
        sync(tmp_path, uri)


@pytest.mark.slow
@pytest.mark.parametrize(("schema", "remedy"), [("0584bdc529eb", "mlflow db upgrade"), ("ffffffffffff", "update mlfl")])
def test_a_store_of_another_mlflow_version_is_not_changed(tmp_path: Path, schema: str, remedy: str) -> None:
    uri = default_tracking_uri(tmp_path)
    MlflowClient(tracking_uri=uri).search_experiments()
    with sqlite3.connect(tmp_path / "mlflow.db") as store:
        store.execute("UPDATE alembic_version SET version_num = ?", (schema,))
    before = (tmp_path / "mlflow.db").read_bytes()
    tracker = Tracker(uri, "sepscene", tmp_path)
    tracker.start("", {}, {})
    tracker.send()
    assert remedy in str(tracker.fault)
    assert (tmp_path / "mlflow.db").read_bytes() == before


@pytest.mark.slow
def test_a_relative_sqlite_address_is_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///mlflow.db")
    uri = default_tracking_uri(tmp_path / "anywhere")
    assert uri == f"sqlite:///{tmp_path.resolve()}/mlflow.db"
    check_the_run(uri, track_a_run(uri, tmp_path / "run"))
