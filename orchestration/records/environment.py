"""The software and hardware of a run: versions, devices, commit."""

import os
import platform
import shlex
import subprocess
import sys
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path

import torch

from sepscene.orchestration.source import source_folder
from sepscene.orchestration.terminal import printable

PACKAGES = ("ray", "torch", "torchaudio", "mlflow", "numpy", "pydantic", "scikit-learn")
COMMIT_VARIABLE = "SEPSCENE_COMMIT"


def environment() -> dict[str, str]:
    """Versions of the main packages, the machine's devices, and the commit of the code."""
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
    """The commit of this code, followed by "+changes" if there are uncommitted ones; "" if unknown.

    It is read from the checkout. In a submitted job, which has no checkout, it is the variable `SEPSCENE_COMMIT`, which
    `submit` sets.
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
    """The `sepscene` command of this process, quoted so that it can be run again; empty in a user's Python program."""
    program = Path(sys.argv[0])
    if program.name != "sepscene" and program.parts[-2:] != ("sepscene", "__main__.py"):
        return ""
    return printable(shlex.join(["sepscene", *sys.argv[1:]]))
