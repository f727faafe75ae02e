"""A small disk that a test can fill."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 4 MB; an ordinary folder if mounting is not allowed (check with `Path.is_mount`)."""
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(disk)], capture_output=True, check=False)
    mounted = disk.is_mount()
    yield disk
    if mounted:
        subprocess.run(["umount", "--lazy", str(disk)], check=True)
