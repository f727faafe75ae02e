"""A stage that must end before its schedule is complete."""

import os
import signal
import threading
import time
from pathlib import Path

import pytest

from sepscene.orchestration.records.run_folder import RunFolder
from sepscene.orchestration.training.stage import Stage


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.usefixtures("local_ray")
def test_a_signal_ends_the_thread_of_a_stage_before_the_driver_exits(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run").stage("pretrain-mix-mix")
    folder.path.mkdir(parents=True)
    ended = threading.Event()

    class Stopped(Stage):
        def fit(self, stop: threading.Event) -> None:
            os.kill(os.getpid(), signal.SIGHUP)  # the main thread handles it, while it waits for this one
            while not folder.wanted.exists():
                time.sleep(0.01)
            folder.wanted.unlink()  # as if the checkpoint had been saved
            stop.wait(30)
            time.sleep(0.3)  # the rest of the step
            ended.set()

    stage = Stopped(folder, rows=8)
    with pytest.raises(SystemExit) as exit_:
        stage.run()
    assert exit_.value.code == 128 + signal.SIGHUP
    assert ended.is_set()
