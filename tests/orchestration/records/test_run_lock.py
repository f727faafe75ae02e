"""Two processes never work in one run's folder; a lock that is left over does not block a run."""

import contextlib
import json
import multiprocessing
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from sepscene.models.config import SepsceneError
from sepscene.orchestration.records import run_lock
from sepscene.orchestration.records.run_folder import RunFolder
from sepscene.orchestration.records.run_lock import STALE_SECONDS, Holder, check_free, locked


def test_blocks_of_the_same_process_can_be_nested(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    with locked(folder):
        with locked(folder):
            check_free(folder)
        assert folder.lock.exists()
    assert not folder.lock.exists()


def test_a_lock_of_another_process_is_reported(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    code = (
        "import sys, pathlib; from sepscene.orchestration.records.run_lock import locked; "
        "from sepscene.orchestration.records.run_folder import RunFolder\n"
        f"with locked(RunFolder(pathlib.Path({str(tmp_path)!r}))): print('held', flush=True); sys.stdin.read()"
    )
    other = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert other.stdout is not None
        assert other.stdout.readline() == b"held\n"
        with pytest.raises(SepsceneError, match=f"in use by process {other.pid} on .* since"):
            check_free(folder)
        with pytest.raises(SepsceneError, match="in use"), locked(folder):
            pass
    finally:
        other.kill()
        other.wait(30)
    check_free(folder)  # kill -9 left the lock behind
    with locked(folder):
        assert json.loads(folder.lock.read_text())["pid"] == os.getpid()


def test_a_lock_of_another_host_is_stale_once_it_is_no_longer_touched(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    holder = Holder(host="elsewhere", pid=1, process_began=1.0, since="2026-11-29T10:00:00+00:00")
    folder.lock.write_text(holder.model_dump_json())
    with pytest.raises(SepsceneError, match="process 1 on elsewhere"):
        check_free(folder)
    old = time.time() - STALE_SECONDS - 1
    os.utime(folder.lock, (old, old))
    check_free(folder)
    with locked(folder):
        pass


def test_a_damaged_lock_does_not_block_a_run(tmp_path: Path) -> None:
    negative = json.dumps({"host": socket.gethostname(), "pid": -1, "process_began": 1.0, "since": ""})
    for content in (b"", b"null", b"{", b"\xff", negative.encode(), negative.replace("-1", "9" * 30).encode()):
        RunFolder(tmp_path).lock.write_bytes(content)
        with locked(RunFolder(tmp_path)):
            pass


def test_a_lock_that_is_being_written_is_not_taken_over(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.lock.touch()
    holder = Holder(host="elsewhere", pid=1, process_began=1.0, since="2026-11-29T10:00:00+00:00")
    writing = threading.Timer(0.1, folder.lock.write_text, [holder.model_dump_json()])
    writing.start()
    try:
        with pytest.raises(SepsceneError, match="process 1 on elsewhere"), locked(folder):
            pass
    finally:
        writing.join()
    assert json.loads(folder.lock.read_text())["host"] == "elsewhere"


def test_a_deleted_folder_ends_with_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = RunFolder(tmp_path / "run")
    folder.path.mkdir()
    monkeypatch.setattr(run_lock, "BEAT_SECONDS", 0.01)
    with pytest.raises(SepsceneError, match="was deleted while it ran"), locked(folder):
        shutil.rmtree(folder.path)


def test_one_of_several_processes_takes_over_a_lock(tmp_path: Path) -> None:
    """Three processes find the lock of an ended one at the same moment, 100 times; one of them gets it each time."""
    context = multiprocessing.get_context("spawn")
    together = context.Barrier(3)
    results = context.Queue()
    processes = [context.Process(target=_take_over, args=(tmp_path, together, results)) for _ in range(3)]
    for process in processes:
        process.start()
    taken = [results.get(timeout=120) for _ in processes]
    for process in processes:
        process.join(60)
    assert [sum(each) for each in zip(*taken, strict=True)] == [1] * 100


def _take_over(path: Path, together: Any, results: Any) -> None:
    folder = RunFolder(path)
    taken = []
    for _ in range(100):
        if together.wait(60) == 0:
            gone = Holder(host=socket.gethostname(), pid=2**31 - 1, process_began=1.0, since="")
            folder.lock.write_text(gone.model_dump_json())
        together.wait(60)
        with contextlib.suppress(SepsceneError), contextlib.ExitStack() as held:
            try:
                held.enter_context(locked(folder))
                taken.append(True)
            except SepsceneError:
                taken.append(False)
            together.wait(60)
    results.put(taken)
