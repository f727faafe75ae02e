"""A disk that a test can fill."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 4 MB; where nobody may mount one, a folder like any other (`Path.is_mount` tells)."""
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(disk)], capture_output=True, check=False)
    mounted = disk.is_mount()
    yield disk
    if mounted:
        subprocess.run(["umount", "--lazy", str(disk)], check=True)
