"""A batch that does not fit in memory ends the stage, with a message."""

from pathlib import Path

import pytest
import torch

from sepscene.orchestration.config import Experiment
from sepscene.orchestration.records.run_folder import RunFolder
from sepscene.orchestration.training.health import fatal_when_out_of_memory, out_of_memory
from sepscene.orchestration.training.pretraining import memory_advice


def test_a_failed_allocation_is_fatal_and_gives_advice(nano: Experiment, tmp_path: Path) -> None:
    folder = RunFolder(tmp_path).stage("pretrain")
    folder.path.mkdir(parents=True)
    with pytest.raises(RuntimeError), fatal_when_out_of_memory(folder, memory_advice(nano, local_rows=64)):
        torch.empty(1 << 58)
    message = folder.fatal.read_text()
    assert "you tried to allocate" in message and "set training.microbatch=32" in message
    less = nano.changed({"training.microbatch": 4})
    assert "set training.microbatch=2 " in memory_advice(less, local_rows=64)


def test_other_errors_are_not_fatal(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path).stage("pretrain")
    with pytest.raises(RuntimeError, match="shape"), fatal_when_out_of_memory(folder, "advice"):
        torch.empty(2, 3) @ torch.empty(2, 3)
    assert not folder.fatal.exists()
    assert "advice" in out_of_memory(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), "advice")
