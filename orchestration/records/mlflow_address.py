"""The MLflow address to which a run is mirrored, and the checks that it may be used.

A run's folder can come from an untrusted source, so its content does not decide where data and passwords are sent. The
address is set by the user in `MLFLOW_TRACKING_URI`; otherwise it is a SQLite store in the run's folder or in one of the
folders above it.
"""

import os
import sqlite3
from contextlib import closing
from importlib.resources import files
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from sepscene.models.config import SepsceneError
from sepscene.orchestration.records.files import read_typed_or
from sepscene.orchestration.records.run_folder import LEVELS_BELOW_STORAGE, RunFolder, Storage
from sepscene.orchestration.yaml_files import SECRET_KEYS, secret_in

SQLITE = "sqlite:///"
_ARTIFACT_COLUMNS = {
    "experiments": ("artifact_location",),
    "runs": ("artifact_uri",),
    "logged_models": ("artifact_location",),
    "model_versions": ("source", "storage_location"),
}
"""The columns of an MLflow store that contain addresses of files."""


def default_tracking_uri(storage: Path) -> str:
    """MLFLOW_TRACKING_URI, or a SQLite store in the folder.

    Raises:
        SepsceneError: if the address is invalid; if it contains a secret, which would be written to the run's folder
            and its log; or if MLflow no longer writes to addresses of its kind.
    """
    uri = os.environ.get("MLFLOW_TRACKING_URI")
    return checked_uri(uri) if uri else _sqlite_in(storage)


def tracking_uri_of(run_dir: Path) -> str:
    """The address for an existing run: MLFLOW_TRACKING_URI, or the SQLite store in or above its folder.

    The address in RUN/mlflow.json is used only if it is such a store.

    Raises:
        SepsceneError: as `default_tracking_uri`; or if the run was recorded at another address, which only the user can
            confirm.
    """
    if os.environ.get("MLFLOW_TRACKING_URI"):
        return default_tracking_uri(run_dir)
    recorded = read_typed_or(RunFolder(run_dir).mlflow, dict[str, Any], {}).get("uri")
    if not isinstance(recorded, str) or ":" not in recorded:
        recorded = ""
    whole = run_dir.resolve()
    near = [_sqlite_in(folder) for folder in (whole, *whole.parents[:LEVELS_BELOW_STORAGE])]
    existing = [uri for uri in near if sqlite_path(uri).exists()]
    if recorded in (existing or near):  # a deleted store is created again
        return recorded
    is_server = bool(recorded) and not recorded.startswith(SQLITE)
    if existing and not is_server:
        return existing[0]
    if is_server or (recorded and sqlite_path(recorded).exists()):
        raise SepsceneError(
            f"according to {run_dir}, it was recorded at {recorded}. The folder may come from an untrusted source, so "
            f"data and passwords are not sent there. If that address is yours, set MLFLOW_TRACKING_URI={recorded}"
        )
    return default_tracking_uri(run_dir.parent)


def checked_uri(uri: str) -> str:
    """The validated address; the path of a SQLite file becomes absolute, as workers have another working directory.

    Raises:
        SepsceneError: if it is invalid or contains a secret, or if MLflow no longer writes to addresses of its kind.
    """
    try:
        scheme = urlsplit(uri).scheme
    except ValueError as error:  # not shown, as it can contain a secret
        raise SepsceneError(
            f"MLFLOW_TRACKING_URI is not a valid address ({error}): set it to e.g. https://HOST:5000"
        ) from None
    if secret_in(uri, (*SECRET_KEYS, "key")):
        raise SepsceneError(
            "MLFLOW_TRACKING_URI contains a password or token, which would be written to files: remove it from the "
            "address and set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN, or use "
            "~/.mlflow/credentials"
        )
    if uri.startswith(SQLITE):
        return f"{SQLITE}{sqlite_path(uri).expanduser().resolve()}"
    if scheme in ("", "file"):
        raise SepsceneError(
            f"MLFLOW_TRACKING_URI={uri} is a folder, and MLflow no longer writes to folders: "
            f"use a SQLite file, e.g. {_sqlite_in(Path.cwd())}, or a server"
        )
    return uri


def sqlite_path(uri: str) -> Path:
    """The file of a SQLite address."""
    return Path(uri.removeprefix(SQLITE))


def _sqlite_in(folder: Path) -> str:
    return f"{SQLITE}{Storage(folder).mlflow.expanduser().resolve()}"


def artifact_folder(uri: str) -> Path:
    """The folder for the artifacts of a SQLite store: `mlartifacts` next to it."""
    return Storage(sqlite_path(uri).parent).mlflow_artifacts


def check_local_store(uri: str) -> None:
    """Refuse a SQLite store that this MLflow cannot use as it is, or whose artifacts are outside `mlartifacts`.

    A store that does not exist yet passes the check.

    Raises:
        SepsceneError: if the file is not an MLflow store, has another schema, or refers to files outside `mlartifacts`.
    """
    path = sqlite_path(uri)
    if not path.exists() or path.stat().st_size == 0:
        return
    try:
        # Not mode=ro: SQLite could not undo the unfinished write of a killed process, and would refuse the store.
        with closing(sqlite3.connect(f"{path.as_uri()}?mode=rw", uri=True, timeout=10)) as store:
            _check_schema(uri, store)
            _check_artifacts(uri, store)
    except sqlite3.DatabaseError as error:
        if "locked" not in str(error):  # locked by another process: the file itself is fine
            raise SepsceneError(
                f"{path} cannot be read as an MLflow store ({error}): move it away, then `sepscene sync RUN` creates "
                "it again from the run's folder"
            ) from error


def _check_schema(uri: str, store: sqlite3.Connection) -> None:
    """Refuse another schema: MLflow would migrate an older store without asking, and fail on a newer one."""
    if not store.execute("SELECT 1 FROM sqlite_master WHERE name = 'alembic_version'").fetchone():
        return  # still empty: another process is creating it
    found = store.execute("SELECT version_num FROM alembic_version").fetchone()
    import mlflow
    from alembic.config import Config
    from alembic.script import ScriptDirectory

    config = Config()
    config.set_main_option("script_location", str(files("mlflow.store") / "db_migrations").replace("%", "%%"))
    script = ScriptDirectory.from_config(config)
    newest = script.get_current_head()
    if not found or found[0] == newest:
        return
    path = sqlite_path(uri)
    if found[0] in {revision.revision for revision in script.walk_revisions()}:
        raise SepsceneError(
            f"{path} was created by an older MLflow than the installed one ({mlflow.__version__}), and is not upgraded "
            f"automatically: make a copy, then run `mlflow db upgrade {uri}`"
        )
    raise SepsceneError(
        f"{path} was created by a newer MLflow than the installed one ({mlflow.__version__}): update mlflow, or set "
        "MLFLOW_TRACKING_URI to another store"
    )


def _check_artifacts(uri: str, store: sqlite3.Connection) -> None:
    tables = {row[0] for row in store.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    allowed = artifact_folder(uri).resolve()
    for table in tables & _ARTIFACT_COLUMNS.keys():
        unused = " WHERE experiment_id != 0" if table == "experiments" else ""  # "Default", which MLflow creates
        for column in _ARTIFACT_COLUMNS[table]:
            for (address,) in store.execute(f"SELECT DISTINCT {column} FROM {table}{unused}"):
                if address and not _is_inside(address, allowed):
                    raise SepsceneError(
                        f"{sqlite_path(uri)} stores files at {address}, outside {allowed}, so it is not used: it may "
                        "come from an untrusted source, or its folder was moved. Move the file away, then `sepscene "
                        "sync RUN` creates it again from the run's folder. Or, if it is yours, serve it with `mlflow "
                        "server` and set MLFLOW_TRACKING_URI to that server"
                    )


def _is_inside(address: str, folder: Path) -> bool:
    try:
        parts = urlsplit(address)
    except ValueError:  # invalid, e.g. "//["
        return False
    if parts.scheme in ("models", "runs", "mlflow-artifacts"):  # references within the same store
        return True
    if parts.scheme not in ("", "file") or parts.netloc:
        return False
    return Path(unquote(parts.path)).resolve().is_relative_to(folder)
