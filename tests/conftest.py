"""Fixtures shared by all tests."""

from pathlib import Path

import pytest
import torch

REPOSITORY = Path(__file__).resolve().parent.parent


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
