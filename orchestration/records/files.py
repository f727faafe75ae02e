"""Reading and writing the files of a run: written whole or not at all, read with a check of what they hold.

A run's folder may come from anywhere, and a killed machine leaves files of any content. So nothing here trusts a file:
its size is bounded before it is read, and what it holds is checked against a type.
"""

import fcntl
import json
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from sepscene.models.config import SepsceneError
from sepscene.models.files import write_atomically
from sepscene.orchestration.renamed import renamed_field

logger = logging.getLogger("sepscene")

T = TypeVar("T")

MOST_BYTES = 512 * 2**20
"""Larger files of a run are not read: the ledger and the results of millions of clips stay below."""


def write_whole(path: Path, text: str) -> None:
    """Write a text that is either complete or not there; its folder is made where it is missing.

    What is no character (bytes of a file name that an error quotes) is written out, e.g. `\\udce9`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, text.encode("utf-8", "backslashreplace"))


def append_lines(path: Path, lines: list[str]) -> None:
    """Append lines to a file that grows; a line that a killed process left torn is ended first, so it alone is lost.

    Raises:
        OSError: when the disk refuses; then the file is as it was.
    """
    with path.open("a+b", buffering=0) as file:
        size = file.seek(0, os.SEEK_END)
        if size:
            file.seek(-1, os.SEEK_END)
        torn = size > 0 and file.read(1) != b"\n"
        content = memoryview(("\n" * torn + "".join(f"{line}\n" for line in lines)).encode())
        try:
            while content:
                content = content[file.write(content) :]
        except OSError:
            file.truncate(size)
            raise


def read_lines(path: Path, position: int) -> tuple[bytes, int]:
    """The whole lines of a growing file from a position on, and the position after them."""
    if not path.exists():
        return b"", position
    with path.open("rb") as file:
        file.seek(max(0, position))
        data = file.read()
    whole = data[: data.rfind(b"\n") + 1]
    return whole, position + len(whole)


def read_last_lines(path: Path, size: int) -> bytes:
    """The whole lines among the last `size` bytes of a growing file; none where there is no file."""
    begin = max(0, path.stat().st_size - size) if path.exists() else 0
    lines, _ = read_lines(path, begin)
    return lines[lines.find(b"\n") + 1 :] if begin else lines  # the first one is cut


@contextmanager
def one_at_a_time(path: Path) -> Iterator[None]:
    """While the block runs, no other process of this machine is in such a block with the same lock file."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextmanager
def claimed(path: Path) -> Iterator[bool]:
    """Whether this process alone has a piece of work, while the block runs. A claim ends with its process.

    The lock file `path` is removed at the end.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True
        path.unlink(missing_ok=True)


def read_bytes(path: Path, most: int = MOST_BYTES) -> bytes:
    """The content of a file of a run.

    Raises:
        FileNotFoundError: when there is none.
        SepsceneError: when it is larger than `most` bytes, or cannot be read.
    """
    try:
        size = path.stat().st_size
        if size > most:
            raise SepsceneError(f"{path} has {size:,} bytes, more than the {most:,} that are read: it is no such file")
        return path.read_bytes()
    except FileNotFoundError:
        raise
    except OSError as error:
        raise SepsceneError(f"{path} cannot be read: {error.strerror or error}") from None


def read_text(path: Path) -> str:
    """The text of a file of a run.

    Raises:
        FileNotFoundError: when there is none.
        SepsceneError: when it is too large, cannot be read or is not UTF-8.
    """
    try:
        return read_bytes(path).decode()
    except UnicodeDecodeError as error:
        raise SepsceneError(f"{path} is damaged: not UTF-8 at byte {error.start}") from None


def read_typed(path: Path, kind: type[T], remedy: str = "delete it, and what makes it will make it again") -> T:
    """What a JSON file of a run holds, checked.

    Args:
        path: the file.
        kind: any type that pydantic can check, e.g. `dict[str, float]` or a `Config`.
        remedy: what a user can do when the file is damaged.

    Raises:
        FileNotFoundError: when there is none.
        SepsceneError: when it holds anything else; names the file, the fault and the remedy.
    """
    content = read_bytes(path)
    try:
        return TypeAdapter(kind).validate_json(content)
    except ValidationError as error:
        raise SepsceneError(f"{path} is damaged: {first_fault(error)}; {remedy}") from None


def read_typed_or(path: Path, kind: type[T], default: T, remedy: str = "it is left out") -> T:
    """What a JSON file of a run holds; `default` where there is none, and, with a warning, where it is damaged."""
    try:
        return read_typed(path, kind, remedy)
    except FileNotFoundError:
        return default
    except SepsceneError as error:
        logger.warning("%s", error)
        return default


Record = dict[str, float | str]


def parse_records(content: bytes, origin: Path | str) -> list[Record]:
    """The records of a file with one JSON object a line; lines that hold anything else are left out, with a warning.

    Every record has a "stage" that is text and "seconds" that are a number; "step", where it is there, is a number.
    """
    records: list[Record] = []
    lines = [line for line in content.splitlines() if line.strip()]
    for line in lines:
        with suppress(ValueError, RecursionError):
            record = json.loads(line)
            if _is_record(record):
                records.append(record)
    if len(records) < len(lines):
        logger.warning("%s: %d damaged lines are left out", origin, len(lines) - len(records))
    return records


def first_fault(error: ValidationError) -> str:
    """The first thing that is wrong, in one line; a field of an earlier version comes first."""
    if renamed := renamed_field(error):
        return renamed
    fault = error.errors(include_url=False, include_input=False)[0]
    where = ".".join(str(part) for part in fault["loc"])
    return f"{where}: {fault['msg']}" if where else str(fault["msg"])


def _is_record(record: Any) -> bool:
    return (
        isinstance(record, dict)
        and isinstance(record.get("stage"), str)
        and _is_number(record.get("seconds", 0.0))
        and _is_number(record.get("step", 0))
        and all(isinstance(value, str | int | float) for value in record.values())
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
