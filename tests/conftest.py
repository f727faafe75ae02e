"""Fixtures shared by all tests."""

from pathlib import Path

import pytest
import torch

REPOSITORY = Path(__file__).resolve().parent.parent

LONGEST = ("test_faults.py", "test_faults_driver.py", "test_whole_run.py", "test_trials.py", "test_placed_run.py")
"""Files that take minutes. They come first: where two files run at a time, one that comes last runs alone."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first, the others as they are."""
    items.sort(key=lambda item: item.path.name not in LONGEST)


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """Tests share two cores with Ray's processes: more threads only spin while they wait for each other."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """The folder `shared` beside the checkout, with the reference vectors and the real sound.

    A test that needs it fails without it: a reference that is silently not compared is worth nothing.
    """
    shared = REPOSITORY.parent / "shared"
    assert shared.is_dir(), f"{shared} is missing: the reference vectors live there"
    return shared
