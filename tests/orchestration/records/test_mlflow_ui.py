"""`sepscene ui` finds the store and listens only on loopback, and its link opens the page of the runs."""

import base64
import io
import json
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from rich.console import Console

from sepscene.models.config import SepsceneError
from sepscene.orchestration.records import mlflow_ui
from sepscene.orchestration.records.mlflow_ui import (
    USER,
    Ui,
    deep_link,
    mlflow_ui_command,
    newest_experiment,
    running_ui,
    serve,
    tracking_store,
)
from tests.faults.hosts import free_port


@pytest.fixture(autouse=True)
def _no_server_of_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


def test_store_is_found_from_the_runs_folder_and_from_a_run(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").write_text("")
    (tmp_path / "run").mkdir()
    expected = f"sqlite:///{tmp_path.resolve()}/mlflow.db"
    assert tracking_store(tmp_path) == tracking_store(tmp_path / "run") == expected
    command = mlflow_ui_command(expected, 5000)
    assert command[command.index("--host") + 1] == "127.0.0.1"
    assert command[command.index("--backend-store-uri") + 1] == expected


def test_a_run_is_shown_from_the_store_in_which_it_was_started(tmp_path: Path) -> None:
    run_dir = tmp_path / "demo"
    run_dir.mkdir()
    for folder in (tmp_path, run_dir):
        (folder / "mlflow.db").write_text("")
        (run_dir / "mlflow.json").write_text(json.dumps({"uri": f"sqlite:///{folder}/mlflow.db"}))
        assert tracking_store(run_dir) == f"sqlite:///{folder}/mlflow.db"


def test_a_missing_store_is_reported_and_the_variable_has_precedence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    with pytest.raises(SepsceneError, match="give a folder of runs"):
        tracking_store(tmp_path / "a" / "b")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://tracking.example.org")
    (tmp_path / "mlflow.db").write_text("")
    assert tracking_store(tmp_path) == "https://tracking.example.org"


def test_link_requests_training_runs_best_first() -> None:
    address = urlsplit(deep_link("http://127.0.0.1:5001", "7", "mix-chan/shallow_map"))
    path, _, query = address.fragment.partition("?")
    assert (address.netloc, path) == ("127.0.0.1:5001", "/experiments/7/runs")
    assert parse_qs(query) == {
        "workflowType": ["machine_learning"],
        "compareRunsMode": ["CHART"],
        "orderByKey": ["metrics.`2_quality/mix-chan/shallow_map`"],
        "orderByAsc": ["false"],
    }


@pytest.fixture(scope="module")
def logged(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A SQLite store with two parent runs with one child each, as the tracker writes them; and the experiment's id."""
    from mlflow import MlflowClient

    folder = tmp_path_factory.mktemp("runs")
    client = MlflowClient(tracking_uri=f"sqlite:///{folder}/mlflow.db")
    experiment = client.create_experiment("demo", artifact_location=(folder / "mlartifacts").as_uri())
    for name, value in (("demo-tiny-1", 0.31), ("demo-tiny-2", 0.42)):
        parent = client.create_run(experiment, tags={"mlflow.runName": name}).info.run_id
        client.log_metric(parent, "2_quality/shallow_map", value)
        tags = {"mlflow.runName": f"{name}/pretrain", "mlflow.parentRunId": parent}
        child = client.create_run(experiment, tags=tags).info.run_id
        for step in range(5):
            client.log_metric(child, "1_loss/loss", 5.0 - step, step=step)
        for run in (child, parent):
            client.set_terminated(run)
    return folder, experiment


@pytest.fixture(scope="module")
def served(logged: tuple[Path, str]) -> Iterator[tuple[Ui, str]]:
    with running_ui(tracking_store(logged[0]), free_port()) as server:
        yield server, logged[1]


def test_a_server_ends_if_the_command_is_interrupted_while_it_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    processes: list[subprocess.Popen[bytes]] = []

    def responds(port: int) -> bool:
        if processes:
            raise KeyboardInterrupt
        return False

    def start(*arguments: Any, popen: Any = subprocess.Popen, **options: Any) -> Any:
        processes.append(popen(*arguments, **options))
        return processes[-1]

    monkeypatch.setattr(mlflow_ui, "_responds", responds)
    monkeypatch.setattr(mlflow_ui, "mlflow_ui_command", lambda uri, port: ["sleep", "60"])
    monkeypatch.setattr(subprocess, "Popen", start)
    with pytest.raises(KeyboardInterrupt), running_ui(f"sqlite:///{tmp_path}/mlflow.db", 5000):
        pass
    assert processes[0].poll() is not None


@pytest.mark.slow
def test_newest_experiment_is_the_one_with_the_newest_run(logged: tuple[Path, str]) -> None:
    assert newest_experiment(tracking_store(logged[0])) == logged[1]


@pytest.mark.slow
def test_a_store_without_a_run_is_reported(tmp_path: Path) -> None:
    from mlflow import MlflowClient

    MlflowClient(tracking_uri=f"sqlite:///{tmp_path}/mlflow.db").search_experiments()
    with pytest.raises(SepsceneError, match="contains no run yet"):
        serve(tmp_path, free_port(), Console())


@pytest.mark.slow
def test_link_opens_on_our_runs_and_their_metrics(served: tuple[Ui, str]) -> None:
    from tests.orchestration.reports.chromium import browser

    credentials = base64.b64encode(f"{USER}:{served[0].password}".encode()).decode()
    with browser() as driver:
        driver.set_window_size(1600, 2400)  # charts further down are drawn when they are scrolled to
        driver.execute_cdp_cmd("Network.enable", {})
        driver.execute_cdp_cmd("Network.setExtraHTTPHeaders", {"headers": {"Authorization": f"Basic {credentials}"}})
        driver.get(deep_link(served[0].address, served[1]))
        wanted = ("demo-tiny-1", "demo-tiny-2", "demo-tiny-1/pretrain", "0.42")
        deadline = time.monotonic() + 120
        text = ""
        while time.monotonic() < deadline and not all(word in text for word in wanted):
            time.sleep(0.5)
            text = driver.execute_script("return document.body.innerText")
        assert [word for word in wanted if word not in text] == [], text[:2000]
        assert text.index("demo-tiny-2") < text.index("demo-tiny-1"), "the best run is not first"


@pytest.mark.slow
def test_other_users_of_the_machine_have_no_access(served: tuple[Ui, str]) -> None:
    """All of them can connect to loopback: without the password nothing is shown and nothing can be changed."""
    server = served[0]
    wrong = base64.b64encode(f"{USER}:wrong".encode()).decode()
    for headers in ({}, {"Authorization": f"Basic {wrong}"}):
        for path, body in (
            ("/", None),
            ("/api/2.0/mlflow/experiments/search?max_results=1", None),
            ("/ajax-api/2.0/mlflow/experiments/create", b'{"name": "x", "artifact_location": "/etc"}'),
            ("/api/2.0/mlflow-artifacts/artifacts", None),
        ):
            all_headers = {"Content-Type": "application/json", **headers}
            request = urllib.request.Request(server.address + path, body, all_headers)
            with pytest.raises(urllib.error.HTTPError) as refusal:
                urllib.request.urlopen(request, timeout=30)
            assert refusal.value.code in (401, 403), path
    assert server.private.stat().st_mode & 0o077 == 0
    assert server.password not in " ".join(map(str, server.process.args))


@pytest.mark.slow
def test_runs_on_a_server_are_shown_by_that_server(
    served: tuple[Ui, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = served[0].address
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server)
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", USER)
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", served[0].password)
    out = io.StringIO()
    serve(tmp_path, free_port(), Console(file=out, width=200))
    assert deep_link(server, served[1]) in out.getvalue()


@pytest.mark.slow
def test_server_listens_only_on_loopback_and_reports_a_port_in_use(
    served: tuple[Ui, str], logged: tuple[Path, str]
) -> None:
    port = served[0].port
    with socket.create_connection(("127.0.0.1", port), timeout=5):
        pass
    addresses = {info[4][0] for info in socket.getaddrinfo(socket.gethostname(), None, socket.AF_INET)}
    for address in addresses - {"127.0.0.1", "127.0.1.1"}:
        with pytest.raises(OSError), socket.create_connection((str(address), port), timeout=5):
            pass
    with pytest.raises(SepsceneError, match="in use"), running_ui(tracking_store(logged[0]), port):
        pass
