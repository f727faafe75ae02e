"""The command `doctor`: is this machine ready? Each check says what it found and what to do about a fault."""

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
"""The demo writes 2.2 GiB: its scenes, the store of separated sound, checkpoints and pages."""


def doctor(storage: Storage = Path("runs"), address: Address = None) -> None:
    """Check this machine: versions (torch and torchaudio above all), CPUs and GPUs, the store, write access.

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
        except Exception as error:  # a doctor reports whatever is wrong
            faults += 1
            console.print(Text("fail", "red"), f"{name}: {str(error) or type(error).__name__}")
    raise typer.Exit(1 if faults else 0)


def _installed(name: str) -> str:
    """The version of a package."""
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
            f"torch {torch_version} with torchaudio {torchaudio_version}: needed are torch >= 2.11, < 2.15 and "
            "torchaudio 2.11.0; run `make setup`"
        )
    import torchaudio  # noqa: F401  # its binary part fails here when built for another torch

    return f"torch {torch_version}, torchaudio {torchaudio_version}"


def _ray() -> str:
    found = _installed("ray")
    if not found.startswith("2.60."):
        raise RuntimeError(f"ray {found}: 2.60 is needed; run `make setup`")
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
        MlflowStore(uri, "sepscene").experiment_id()  # refuses what would refuse a run
    return f"mlflow {mlflow.__version__}, " + (f"server {uri} answers" if uri else "SQLite in the storage folder")


def _soundfile() -> str:
    import soundfile

    missing = {"WAV", "FLAC", "OGG", "MP3"} - set(soundfile.available_formats())
    if missing:
        raise RuntimeError(
            f"libsndfile {soundfile.__libsndfile_version__} reads no {', '.join(missing)}; update soundfile"
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
        raise RuntimeError(f"{cpus} CPU: the smallest runs need 2")
    return f"{cpus} CPUs, {', '.join(gpus) or 'no GPU: everything runs on the CPU'}"


def _job_server(address: str) -> str:
    """Whether jobs can be submitted there, with `sepscene submit` and with Ray's own command."""
    from sepscene.orchestration.runtime.jobs import connect

    jobs = len(connect(address).list_jobs())
    says = f"the job server at {address} answers and takes this token; {jobs} jobs so far"
    if os.environ.get("RAY_AUTH_MODE") != "token":
        says += "; for Ray's own commands (`ray job submit`): export RAY_AUTH_MODE=token"
    return says


def _writable(storage: Path) -> str:
    storage.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=storage):
        free = shutil.disk_usage(storage).free
    if free < NEEDED_FREE_BYTES:
        raise RuntimeError(
            f"{storage} has {free / 2**30:.1f} GiB free, the demo needs {NEEDED_FREE_BYTES >> 30}; free "
            "some, or name another folder with --storage"
        )
    return f"{storage} is writable, {free / 2**30:.0f} GiB free"


def _store(storage: Path) -> str:
    from sepscene.augment.store.separated_store import SeparatedStore
    from sepscene.orchestration.records.run_folder import store_of

    folder = store_of(storage)
    if not folder.exists():
        return "none yet; the first run makes it"
    with SeparatedStore(str(folder.resolve())) as store:
        return f"{len(store)} separated clips in {folder}"
