"""The command `doctor`: checks whether this machine is ready. Each check returns what it found or raises an error."""

import os
import shutil
import tempfile
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import typer
from rich.text import Text

from sepscene.orchestration.cli.arguments import Address, Storage
from sepscene.orchestration.terminal import Terminal

console = Terminal()

NEEDED_FREE_BYTES = 3 * 2**30
"""The demo writes 2.2 GiB: scenes, the store of separated clips, checkpoints and reports."""


def doctor(storage: Storage = Path("runs"), address: Address = None) -> None:
    """Check whether this machine is ready.

    Checks the versions of the main packages, CPUs and GPUs, write access and the SeparatedStore. The exit code is 1 if
    a check fails.

    Example: `sepscene doctor --storage runs`
    """
    checks: dict[str, Callable[[], str]] = {
        "torch and torchaudio": _torch,
        "ray": _ray,
        "temporary files": _temp_folder,
        "mlflow": _mlflow,
        "sound files": _soundfile,
        "CPUs and GPUs": lambda: _devices(address),
        "write access": lambda: _writable(storage),
        "SeparatedStore": lambda: _store(storage),
    }
    faults = 0
    for name, check in checks.items():
        try:
            console.print(Text("ok  ", "green"), f"{name}: {check()}")
        except Exception as error:  # any error is a failed check
            faults += 1
            console.print(Text("fail", "red"), f"{name}: {str(error) or type(error).__name__}")
    raise typer.Exit(1 if faults else 0)


def _installed(name: str) -> str:
    """The version of a package.

    Raises:
        RuntimeError: when it is not installed.
    """
    try:
        return version(name)
    except PackageNotFoundError:
        raise RuntimeError(f"{name} is not installed; run `make setup`") from None


def _torch() -> str:
    torch_version = _installed("torch")
    torchaudio_version = _installed("torchaudio")
    number = tuple(int(part) for part in torch_version.split("+")[0].split(".")[:2])
    if not (2, 11) <= number < (2, 15) or not torchaudio_version.startswith("2.11.0"):
        raise RuntimeError(
            f"torch {torch_version} with torchaudio {torchaudio_version}: Sepscene needs torch >= 2.11, < 2.15 and "
            "torchaudio 2.11.0; run `make setup`"
        )
    import torchaudio  # noqa: F401  # fails here if its binaries were built for another version of torch

    return f"torch {torch_version}, torchaudio {torchaudio_version}"


def _ray() -> str:
    found = _installed("ray")
    if not found.startswith("2.60."):
        raise RuntimeError(f"ray {found}: Sepscene needs ray 2.60; run `make setup`")
    import ray.data
    import ray.job_submission
    import ray.train
    import ray.tune  # noqa: F401

    return f"ray {found} with data, train, tune and jobs"


def _temp_folder() -> str:
    from sepscene.orchestration.runtime.private_files import private_temp_folder
    from sepscene.orchestration.runtime.reachable import check_temp_folder

    folder = private_temp_folder()
    check_temp_folder(folder)
    return f"{folder} is short enough for Ray's sockets"


def _mlflow() -> str:
    import mlflow

    from sepscene.orchestration.records.mlflow_address import checked_uri
    from sepscene.orchestration.records.mlflow_client import MlflowStore

    uri = os.environ.get("MLFLOW_TRACKING_URI", "")
    if uri:
        uri = checked_uri(uri)
        MlflowStore(uri, "sepscene").experiment_id()  # raises what a run would raise
    return f"mlflow {mlflow.__version__}, " + (f"server {uri} is reachable" if uri else "SQLite in the storage folder")


def _soundfile() -> str:
    import soundfile

    missing = {"WAV", "FLAC", "OGG", "MP3"} - set(soundfile.available_formats())
    if missing:
        raise RuntimeError(
            f"libsndfile {soundfile.__libsndfile_version__} cannot read {', '.join(missing)}; update soundfile"
        )
    return f"libsndfile {soundfile.__libsndfile_version__}: WAV, FLAC, OGG, MP3"


def _devices(address: str | None) -> str:
    if address and address.startswith("http"):
        return _job_server(address)
    if address or os.environ.get("RAY_ADDRESS"):
        import ray

        from sepscene.orchestration.runtime.session import connect, disconnect

        connect(address)
        resources = ray.cluster_resources()
        disconnect()
        return f"cluster: {resources.get('CPU', 0):g} CPUs, {resources.get('GPU', 0):g} GPUs"
    import torch

    gpus = [torch.cuda.get_device_name(n) for n in range(torch.cuda.device_count())]
    cpus = os.cpu_count() or 1
    if cpus < 2:
        raise RuntimeError(f"{cpus} CPU: even the smallest runs need 2")
    return f"{cpus} CPUs, {', '.join(gpus) or 'no GPU: everything runs on the CPU'}"


def _job_server(address: str) -> str:
    """Check that `sepscene submit` can reach the job server; mentions what Ray's own commands need."""
    from sepscene.orchestration.runtime.jobs import connect

    jobs = len(connect(address).list_jobs())
    result = f"the job server at {address} is reachable and accepts this token; {jobs} jobs so far"
    if os.environ.get("RAY_AUTH_MODE") != "token":
        result += "; before using Ray's own commands (`ray job submit`): export RAY_AUTH_MODE=token"
    return result


def _writable(storage: Path) -> str:
    storage.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=storage):
        free = shutil.disk_usage(storage).free
    if free < NEEDED_FREE_BYTES:
        raise RuntimeError(
            f"{storage} has {free / 2**30:.1f} GiB free, but the demo needs {NEEDED_FREE_BYTES >> 30}; free some "
            "space, or choose another folder with --storage"
        )
    return f"{storage} is writable, {free / 2**30:.0f} GiB free"


def _store(storage: Path) -> str:
    from sepscene.augment.store.separated_store import SeparatedStore
    from sepscene.orchestration.records.run_folder import Storage

    folder = Storage(storage).store
    if not folder.exists():
        return "none yet; the first run creates it"
    with SeparatedStore(str(folder.resolve())) as store:
        return f"{len(store)} separated clips in {folder}"
