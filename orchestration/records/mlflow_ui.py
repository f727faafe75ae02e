"""The MLflow UI of a run's store, opened at the view of the training runs.

The server listens on loopback and requires a password that is generated at each start. Other users of the machine can
connect to loopback too, and an MLflow server without a password would let them change runs and read the user's files.
"""

import os
import secrets
import signal
import subprocess
import sys
import time
import urllib.request
import webbrowser
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory, TemporaryFile
from urllib.parse import quote

from mlflow import MlflowClient
from rich.console import Console

from sepscene.models.config import SepsceneError
from sepscene.orchestration.records.files import write_text_atomically
from sepscene.orchestration.records.mlflow_address import (
    SQLITE,
    artifact_folder,
    check_local_store,
    sqlite_path,
    tracking_uri_of,
)
from sepscene.orchestration.records.mlflow_names import metric_name

HOST = "127.0.0.1"
USER = "sepscene"


def tracking_store(folder: Path) -> str:
    """The tracking URI of a run's folder, or of a folder of runs.

    Raises:
        SepsceneError: if there is no store or `check_local_store` refuses it; as `tracking_uri_of`.
    """
    uri = tracking_uri_of(folder)
    if uri.startswith(SQLITE):
        check_local_store(uri)
    if not os.environ.get("MLFLOW_TRACKING_URI") and not sqlite_path(uri).exists():
        raise SepsceneError(f"no mlflow.db in {folder} or in the folders above it: give a folder of runs")
    return uri


def mlflow_ui_command(uri: str, port: int) -> list[str]:
    """The command that serves the MLflow UI of a store on loopback, with a password."""
    return [
        *(sys.executable, "-m", "mlflow", "server", "--app-name", "basic-auth"),
        *("--backend-store-uri", uri),
        *("--artifacts-destination", artifact_folder(uri).as_uri()),
        *("--host", HOST, "--port", str(port), "--workers", "1"),
    ]


def deep_link(server: str, experiment_id: str, order_by: str = "shallow_map") -> str:
    """The address of the page with an experiment's training runs and their charts, best run first.

    Without `workflowType` the UI opens in its mode for generative AI, which does not show training runs. The table view
    shows no metric until columns are selected, so the link opens the charts. Sorting by a metric also expands the child
    runs, which are collapsed otherwise.

    Args:
        server: its address, e.g. http://127.0.0.1:5000.
        order_by: a metric by its name in the run's folder, largest first.
    """
    key = quote(f"metrics.`{metric_name(order_by)}`", safe="")
    return (
        f"{server.rstrip('/')}/#/experiments/{experiment_id}/runs"
        f"?workflowType=machine_learning&compareRunsMode=CHART&orderByKey={key}&orderByAsc=false"
    )


def newest_experiment(uri: str) -> str | None:
    """MLflow's id of the experiment with the newest run; None if no run has been logged."""
    client = MlflowClient(tracking_uri=uri)
    ids = [experiment.experiment_id for experiment in client.search_experiments()]
    newest = client.search_runs(ids, order_by=["attributes.start_time DESC"], max_results=1) if ids else []
    return newest[0].info.experiment_id if newest else None


@dataclass(frozen=True)
class Ui:
    """A running MLflow server and its password."""

    process: subprocess.Popen[bytes]
    port: int
    password: str
    private: Path
    """Folder of its settings and user database, which other users cannot read."""

    @property
    def address(self) -> str:
        """The address of the page."""
        return f"http://{HOST}:{self.port}"


@contextmanager
def running_ui(uri: str, port: int, timeout_seconds: float = 120.0) -> Iterator[Ui]:
    """Run the MLflow UI of a store while the block runs; the block begins when it responds.

    Args:
        uri: from `tracking_store`; not a server, which has its own UI.

    Raises:
        SepsceneError: if it ends or does not respond in time; the message contains the last lines of its log.
    """
    if _responds(port):  # otherwise the other server would be mistaken for ours
        raise SepsceneError(f"port {port} is in use by another server; choose another with --port")
    password = secrets.token_urlsafe(12)
    with TemporaryDirectory(prefix="sepscene-ui-") as private, TemporaryFile(dir=private) as log:
        process = subprocess.Popen(
            mlflow_ui_command(uri, port),
            stdout=log,
            stderr=subprocess.STDOUT,
            env=_environment(Path(private), password),
            start_new_session=True,
        )
        try:
            deadline = time.monotonic() + timeout_seconds
            while not _responds(port):
                if process.poll() is not None or time.monotonic() > deadline:
                    log.seek(0)
                    last = log.read().decode(errors="replace").strip().splitlines()[-5:]
                    raise SepsceneError(
                        f"the MLflow UI did not start on port {port}; choose another with --port; its log ends: {last}"
                    )
                time.sleep(0.2)
            yield Ui(process, port, password, Path(private))
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGTERM)  # the server and its workers
                try:
                    process.wait(timeout=20)
                except subprocess.TimeoutExpired:
                    os.killpg(process.pid, signal.SIGKILL)
                    process.wait()


def _environment(private: Path, password: str) -> dict[str, str]:
    """The server's environment: a user with a password, without the credentials for other MLflow servers."""
    settings = private / "auth.ini"
    write_text_atomically(
        settings,
        "[mlflow]\ndefault_permission = NO_PERMISSIONS\nauth_cache_ttl_seconds = 3600\n"
        f"database_uri = {SQLITE}{private / 'users.db'}\n",
    )
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_TRACKING_")}
    return inherited | {
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # two processes instead of nine
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
        "MLFLOW_AUTH_CONFIG_PATH": str(settings),
        "MLFLOW_AUTH_ADMIN_USERNAME": USER,
        "MLFLOW_AUTH_ADMIN_PASSWORD": password,
        "MLFLOW_FLASK_SERVER_SECRET_KEY": secrets.token_urlsafe(32),
    }


def serve(folder: Path, port: int, console: Console) -> None:
    """Serve the MLflow UI of `folder` until Ctrl-C and open it at our runs; for a server, open its own UI.

    A browser is opened only on a desktop. Otherwise, e.g. over SSH, the address is printed.

    Raises:
        SepsceneError: as `tracking_store` and `running_ui`; or if no run has been logged yet.
    """
    uri = tracking_store(folder)
    experiment_id = newest_experiment(uri)
    if experiment_id is None:
        raise SepsceneError(f"the store of {folder} contains no run yet: start one, e.g. with `sepscene demo`")
    if uri.startswith(("http://", "https://")):
        link = deep_link(uri, experiment_id)
        console.print(f"MLflow shows the runs at\n{link}", soft_wrap=True)
        _browse(link, console)
        return
    with running_ui(uri, port) as server:
        link = deep_link(server.address, experiment_id)
        text = f"MLflow shows the runs at\n{link}\nuser {USER}, password {server.password}\nPress Ctrl-C to end it."
        console.print(text, soft_wrap=True, highlight=False, markup=False)
        _browse(link, console)
        try:
            server.process.wait()
        except KeyboardInterrupt:
            console.print("The MLflow UI has ended.")


def _browse(link: str, console: Console) -> None:
    """Open the link in a desktop's browser; never in a text browser in the terminal."""
    desktop = sys.platform in ("darwin", "win32") or any(os.environ.get(k) for k in ("DISPLAY", "WAYLAND_DISPLAY"))
    if console.is_terminal and desktop:
        webbrowser.open(link)


def _responds(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://{HOST}:{port}/health", timeout=5) as response:
            return response.status == 200
    except OSError:
        return False
