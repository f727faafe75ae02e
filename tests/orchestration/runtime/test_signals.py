"""A signal that ends a driver; for drivers that train, see tests/faults/test_faults_driver.py."""

import os
import signal
from pathlib import Path

import pytest

from sepscene.orchestration.records.run_folder import RunFolder
from sepscene.orchestration.runtime.signals import checkpoint_on_signal


@pytest.mark.timeout(20)
def test_a_signal_before_a_stage_has_begun_ends_the_driver_immediately(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    stage = RunFolder(tmp_path / "run").stage("separator")
    with pytest.raises(SystemExit) as exit_, checkpoint_on_signal(stage):
        os.kill(os.getpid(), signal.SIGTERM)
    assert exit_.value.code == 128 + signal.SIGTERM
    assert "saving a checkpoint" not in capfd.readouterr().err and not stage.path.exists()
