"""What a run was made with: versions, devices, commit."""

import os
import platform
import shlex
import subprocess
import sys
from functools import lru_cache
from importlib.metadata import version

import torch

from sepscene.orchestration.source import source_folder
from sepscene.orchestration.terminal import printable

PACKAGES = ("ray", "torch", "torchaudio", "mlflow", "numpy", "pydantic", "scikit-learn")
COMMIT_VARIABLE = "SEPSCENE_COMMIT"


def environment() -> dict[str, str]:
    """Versions of what matters, the machine's devices, and the commit of the code."""
    gpus = [torch.cuda.get_device_name(n) for n in range(torch.cuda.device_count())]
    return {
        "python": platform.python_version(),
        **{package: version(package) for package in PACKAGES},
        "machine": f"{platform.machine()}, {os.cpu_count()} CPUs",
        "gpus": ", ".join(gpus) or "none",
        "commit": commit() or "unknown",
    }


@lru_cache
def commit() -> str:
    """The commit of this code, with "+changes" where there are uncommitted ones; "" when it is not known.

    That of the checkout that the code runs from; in a job, whose code comes without one, the variable
    `SEPSCENE_COMMIT`, which `submit` sets.
    """
    root = source_folder().parent
    if not (root / ".git").exists():
        return os.environ.get(COMMIT_VARIABLE, "")
    try:
        shown = subprocess.run(
            ["git", "describe", "--always", "--dirty=+changes", "--abbrev=12"],
            cwd=root, capture_output=True, text=True, timeout=10, check=False,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return shown.stdout.strip()


def command_line() -> str:
    """The command that was given, as it can be given again."""
    return printable(shlex.join(["sepscene", *sys.argv[1:]]))
