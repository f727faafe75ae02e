"""Reading and writing the files of a run: written atomically, and validated when they are read.

A run's folder can come from an untrusted source, and a machine that crashes can leave files with any content. So the
size of a file is checked before it is read, and its content is checked against a type.
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

from sepscene.models.config import SepsceneError, dotted
from sepscene.models.files import write_atomically
from sepscene.orchestration.renamed import new_name

logger = logging.getLogger("sepscene")

T = TypeVar("T")

MAX_BYTES = 512 * 2**20
"""Larger files of a run are not read. The ledger and the results of millions of clips are smaller."""


def write_text_atomically(path: Path, text: str) -> None:
    """Write a text file atomically; its folder is created if it is missing.

    Bytes that are not UTF-8 (of a file name that an error quotes) are escaped, e.g. `\\udce9`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, text.encode("utf-8", "backslashreplace"))


def append_lines(path: Path, lines: list[str]) -> None:
    """Append lines to a file. A partial last line, left by a killed process, is terminated first: only it is lost.

    Raises:
        OSError: if the write fails; the file is then unchanged.
    """
    with path.open("a+b", buffering=0) as file:
        size = file.seek(0, os.SEEK_END)
        if size:
            file.seek(-1, os.SEEK_END)
        text = "".join(f"{line}\n" for line in lines)
        if size > 0 and file.read(1) != b"\n":
            text = "\n" + text
        content = memoryview(text.encode())
        try:
            while content:
                content = content[file.write(content) :]
        except OSError:
            file.truncate(size)
            raise


def read_lines(path: Path, position: int) -> tuple[bytes, int]:
    """The complete lines of a growing file after a position, and the position after them."""
    if not path.exists():
        return b"", position
    with path.open("rb") as file:
        file.seek(max(0, position))
        data = file.read()
    whole = data[: data.rfind(b"\n") + 1]
    return whole, position + len(whole)


def read_last_lines(path: Path, size: int) -> bytes:
    """The complete lines in the last `size` bytes of a growing file; empty if the file does not exist."""
    begin = max(0, path.stat().st_size - size) if path.exists() else 0
    lines, _ = read_lines(path, begin)
    return lines[lines.find(b"\n") + 1 :] if begin else lines  # without the first one, which is cut off


@contextmanager
def exclusive_lock(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on a file while the block runs; other processes of this machine wait for it."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextmanager
def claimed(path: Path) -> Iterator[bool]:
    """Try to claim a piece of work while the block runs: True if no other process has claimed it.

    A claim ends with its process. The lock file `path` is removed at the end.
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


def read_bytes(path: Path, max_bytes: int = MAX_BYTES) -> bytes:
    """The content of a file of a run.

    Raises:
        FileNotFoundError: if the file does not exist.
        SepsceneError: if it is larger than `max_bytes` or cannot be read.
    """
    try:
        size = path.stat().st_size
        if size > max_bytes:
            raise SepsceneError(
                f"{path} has {size:,} bytes, which exceeds the limit of {max_bytes:,} for such a file: it is damaged "
                "or another file; restore or remove it"
            )
        return path.read_bytes()
    except FileNotFoundError:
        raise
    except OSError as error:
        raise SepsceneError(
            f"{path} cannot be read: {error.strerror or error}; check its permissions and its disk"
        ) from None


def read_text(path: Path) -> str:
    """The text of a file of a run.

    Raises:
        FileNotFoundError: if the file does not exist.
        SepsceneError: if it is too large, cannot be read or is not UTF-8.
    """
    try:
        return read_bytes(path).decode()
    except UnicodeDecodeError as error:
        raise SepsceneError(f"{path} is damaged: not UTF-8 at byte {error.start}") from None


def read_typed(path: Path, kind: type[T], remedy: str = "delete it; it will be written again") -> T:
    """The validated content of a JSON file of a run.

    Args:
        path: the file.
        kind: any type that pydantic can validate, e.g. `dict[str, float]` or a `Config`.
        remedy: what a user can do if the file is damaged.

    Raises:
        FileNotFoundError: if the file does not exist.
        SepsceneError: if it contains anything else; the message gives the file, the error and the remedy.
    """
    content = read_bytes(path)
    try:
        return TypeAdapter(kind).validate_json(content)
    except ValidationError as error:
        raise SepsceneError(f"{path} is damaged: {_first_error(error)}; {remedy}") from None


def read_typed_or(path: Path, kind: type[T], default: T, remedy: str = "it is ignored") -> T:
    """The content of a JSON file of a run; `default` if it does not exist or, with a warning, if it is damaged."""
    try:
        return read_typed(path, kind, remedy)
    except FileNotFoundError:
        return default
    except SepsceneError as error:
        logger.warning("%s", error)
        return default


Record = dict[str, float | str]


def parse_records(content: bytes, origin: Path | str) -> list[Record]:
    """The records of a file with one JSON object per line; other lines are skipped with a warning.

    In every record "stage" is a string, and "seconds" and "step", if present, are numbers.
    """
    records: list[Record] = []
    lines = [line for line in content.splitlines() if line.strip()]
    for line in lines:
        with suppress(ValueError, RecursionError):
            record = json.loads(line)
            if _is_record(record):
                records.append(record)
    if len(records) < len(lines):
        logger.warning("%s: %d damaged lines are skipped", origin, len(lines) - len(records))
    return records


def _first_error(error: ValidationError) -> str:
    """The first error in one line; a field of an earlier version has precedence."""
    faults = error.errors(include_url=False, include_input=False)
    for fault in faults:
        new = new_name(dotted(fault["loc"]))
        if new and fault["type"] == "extra_forbidden":
            return f"{dotted(fault['loc'])} was renamed to {new}; the file was written by an earlier version"
    field = dotted(faults[0]["loc"])
    return f"{field}: {faults[0]['msg']}" if field else str(faults[0]["msg"])


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
