"""A small disk that a test can fill."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 4 MB; an ordinary folder if mounting is not allowed (check with `Path.is_mount`).

    In CI, which sets SEPSCENE_SHARED_REQUIRED, that is a failure, so that a missing check is noticed.
    """
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(disk)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    mounted = disk.is_mount()
    if not mounted and os.environ.get("SEPSCENE_SHARED_REQUIRED"):
        pytest.fail(f"no disk can be mounted for the tests with a full disk: {done.stderr}")
    yield disk
    if mounted:
        subprocess.run(["umount", "--lazy", str(disk)], check=True)
