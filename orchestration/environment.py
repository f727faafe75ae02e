"""What a run was made with: versions, devices, commit."""

import platform
import subprocess
from importlib.metadata import version
from pathlib import Path

import torch

PACKAGES = ("ray", "torch", "torchaudio", "mlflow", "numpy", "pydantic", "scikit-learn")


def environment() -> dict[str, str]:
    """Versions of what matters, the machine's devices, and the commit of the code."""
    gpus = [torch.cuda.get_device_name(n) for n in range(torch.cuda.device_count())]
    return {
        "python": platform.python_version(),
        **{package: version(package) for package in PACKAGES},
        "machine": platform.machine(),
        "gpus": ", ".join(gpus) or "none",
        "commit": commit() or "unknown",
    }


def commit() -> str:
    """The commit of the checkout that this code runs from, with "+changes" where it has uncommitted ones."""
    root = Path(__file__).resolve().parent.parent
    try:
        shown = subprocess.run(
            ["git", "describe", "--always", "--dirty=+changes", "--abbrev=12"],
            cwd=root, capture_output=True, text=True, timeout=10, check=False,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return shown.stdout.strip()
