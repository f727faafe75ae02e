"""The calibration runs the real modules; its figures are what they cost, to the accuracy of a busy machine."""

import time

import numpy as np
import pytest
import soundfile
import torch

from models.config import SepsceneError
from models.tdcnpp import TDCNpp
from orchestration.experiments import named_experiment

pytestmark = pytest.mark.slow  # imports Ray, though it starts none


def test_calibrate_measures_each_stage():
    from orchestration.calibration import calibrate

    experiment = named_experiment("demo", "tiny")
    begin = time.perf_counter()
    found = calibrate(experiment, seconds=6)
    assert time.perf_counter() - begin < 60
    assert found.stored_seconds < found.decode_seconds + found.separation_seconds
    assert 1 <= found.separation_rows <= experiment.training.service_rows
    assert 2 <= found.train_rows <= experiment.training.global_batch // experiment.resources.trainers
    assert (found.separation_device, found.train_device) == ("CPU", "CPU")
    assert 0.2 < found.separation_seconds / forward_seconds(experiment) < 5
    assert torch.get_num_threads() == 2, "the caller's threads are left as they were"


def forward_seconds(experiment) -> float:
    """Seconds of the bare separator for one clip with one thread."""
    separator = TDCNpp(experiment.separator.network).eval()
    wave_BT = torch.zeros(1, experiment.audio.samples)
    torch.set_num_threads(1)
    with torch.inference_mode():
        separator(wave_BT)
        begin = time.perf_counter()
        for _ in range(3):
            separator(wave_BT)
    torch.set_num_threads(2)
    return (time.perf_counter() - begin) / 3


def test_given_clips_are_used_and_bad_ones_named(tmp_path):
    from orchestration.calibration import calibrate

    experiment = named_experiment("table2/mix-mix", "tiny")
    good, bad = tmp_path / "good.wav", tmp_path / "bad.wav"
    soundfile.write(good, 0.1 * np.sin(np.arange(160_000)), 16_000)
    bad.write_text("no sound")
    assert calibrate(experiment, seconds=1, clips=[str(good)]).decode_seconds > 0
    with pytest.raises(SepsceneError, match=r"cannot calibrate with .*bad\.wav"):
        calibrate(experiment, seconds=1, clips=[str(good), str(bad)])
