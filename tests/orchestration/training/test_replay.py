"""Replay of the rows of a run in one process."""

from pathlib import Path

import numpy as np
import pytest
import torch

from sepscene.models.config import SepsceneError
from sepscene.models.encoders.encoder import save_encoder
from sepscene.orchestration.config import Experiment
from sepscene.orchestration.records.checkpoints import write_checkpoint
from sepscene.orchestration.records.run_folder import RunFolder
from sepscene.orchestration.training import replay as module
from sepscene.orchestration.training.builders import encoder_of
from sepscene.orchestration.training.pretrainer import Pretrainer
from sepscene.orchestration.training.replay import replay
from sepscene.orchestration.training.stream import schedule_of
from sepscene.tasks.datasets.readers import Manifest


def test_rows_are_reported_separately_and_their_loss_is_that_of_one_batch(
    nano: Experiment,
    train_clips: Manifest,
    ladder: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    nano.changed({"separator.checkpoints": ladder}).save(tmp_path / "experiment.yaml")
    rows = [17, 3, 40, 41, 90]
    found, loss = replay(tmp_path, train_clips, rows)
    assert [one.row for one in found] == rows and all(not one.fault for one in found)
    uris = train_clips.clips["uri"].to_pylist()
    clip_N = schedule_of(nano, len(train_clips.clips)).clip(np.array(rows))
    assert [one.uri for one in found] == [uris[clip] for clip in clip_N]
    assert all(0 < one.peak_1 <= 1 and one.h_norm > 0 for one in found)
    monkeypatch.setattr(module, "_BLOCK_ROWS", 2)
    again, chunked = replay(tmp_path, train_clips, rows)
    assert chunked == pytest.approx(loss, rel=1e-5) and [one.peak_2 for one in again] == [one.peak_2 for one in found]
    with pytest.raises(SepsceneError, match="the rows 0 to 95, not 96"):
        replay(tmp_path, train_clips, [0, 96])


def test_a_run_without_a_checkpoint_is_replayed_with_the_encoder_from_which_it_starts(
    nano: Experiment, train_clips: Manifest, tmp_path: Path
) -> None:
    mixtures = nano.changed({"views.pair": "mix-mix"})
    save_encoder(encoder_of(mixtures.changed({"seed": 5}), None), tmp_path / "start", {})
    norms = []
    for start in (None, str(tmp_path / "start")):
        experiment = mixtures.changed({"training.start_encoder": start})
        run = tmp_path / str(len(norms))
        run.mkdir()
        experiment.save(run / "experiment.yaml")
        norms.append([one.h_norm for one in replay(run, train_clips, [3, 17])[0]])
    assert norms[0] != norms[1]
    untrained = Pretrainer(experiment, len(train_clips), torch.device("cpu"))
    write_checkpoint(RunFolder(run).stage("pretrain-mix-mix").path / "step-00000001", untrained.state())
    assert norms[1] == pytest.approx([one.h_norm for one in replay(run, train_clips, [3, 17])[0]])
