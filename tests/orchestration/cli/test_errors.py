"""Errors from outside become one message; errors that only a programmer can fix keep their traceback."""

from pathlib import Path

import pytest

from sepscene.models.config import SepsceneError
from sepscene.orchestration.cli.errors import user_message


def words(error: BaseException) -> str:
    """The message for the user; fails when the error would show a traceback instead."""
    message = user_message(error)
    assert message is not None
    return message


def raised(action: object, *arguments: object) -> BaseException:
    """The error that a call raises."""
    with pytest.raises(Exception) as caught:  # each test checks the message
        action(*arguments)  # type: ignore[operator]
    return caught.value


def test_errors_of_the_system_name_the_file_and_a_remedy(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("")
    assert words(raised((file / "runs").mkdir)) == (
        f"{file}/runs: Not a directory: a folder was expected, but there is a file; choose another folder, or remove "
        "the file"
    )
    assert words(raised(file.mkdir)) == f"{file}: File exists: choose another name, or remove it"
    assert words(raised((tmp_path / "no" / "where").read_text)).endswith("No such file or directory: check the path")
    with Path("/dev/full").open("w") as full:
        full.write("x")
        message = words(raised(full.flush))
        with pytest.raises(OSError, match="No space"):
            full.close()
    assert "the disk is full; free some space" in message and "--resume" in message


def test_text_of_another_encoding_says_what_to_rename(tmp_path: Path) -> None:
    message = words(raised(b"caf\xe9".decode))
    assert "0xe9" in message and "not UTF-8" in message
    message = words(raised("\udce9".encode))
    assert "rename the file" in message


@pytest.mark.slow
def test_errors_of_ray_and_of_a_device_are_messages() -> None:
    import ray.exceptions
    import torch

    lost = ray.exceptions.RaySystemError("the raylet died\nwith a long log")
    assert words(lost).startswith("Ray: ") and "the raylet died" in words(lost) and "--resume" in words(lost)
    assert "with a long log" not in words(lost)
    absent = ConnectionError("Could not find any running Ray instance. Please specify the one to connect to.")
    assert words(absent).startswith("Ray: Could not find any running Ray instance")
    memory = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
    assert "CUDA out of memory" in words(memory) and "`--device cpu` avoids it" in words(memory)


def test_our_own_messages_stay_unchanged_and_programming_errors_are_not_hidden() -> None:
    assert user_message(SepsceneError("data.root: no such folder")) == "data.root: no such folder"
    assert user_message(KeyError("field")) is None and user_message(AssertionError()) is None
    assert user_message(OSError("only words")) is None
