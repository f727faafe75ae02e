"""The calibration runs the real modules; its times agree with theirs, as far as a busy machine allows."""

import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from typer.testing import CliRunner

from sepscene.models.config import SepsceneError
from sepscene.models.separators.folder import save_separator
from sepscene.models.separators.tdcnpp import TDCNpp
from sepscene.models.settings import TDCNppConfig
from sepscene.orchestration.cli.main import app
from sepscene.orchestration.presets import named_experiment
from sepscene.tasks.distributed.batchnorm import SynchronisedBatchNorm
from tests.orchestration.planning.test_plan import MEASURED

pytestmark = pytest.mark.slow  # imports Ray, though it starts none


def test_calibrate_measures_each_stage():
    from sepscene.orchestration.planning.calibration import calibrate

    experiment = named_experiment("demo", "tiny")
    begin = time.perf_counter()
    found = calibrate(experiment, seconds=6)
    assert time.perf_counter() - begin < 60
    assert found.stored_seconds < found.decode_seconds + found.separation_seconds["S2"]
    assert 1 <= found.separation_rows <= experiment.training.service_rows
    assert 2 <= found.train_rows <= experiment.training.global_batch // experiment.resources.trainers
    assert (found.separation_device, found.train_device) == ("CPU", "CPU")
    assert 0.2 < found.separation_seconds["S2"] / forward_seconds(experiment) < 5
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


def test_separators_are_measured_with_the_settings_of_the_run(tmp_path, monkeypatch):
    """Batch and precision of the actors, one processor of each kind, and the objective that a worker trains."""
    import sepscene.orchestration.planning.calibration as module

    class Spy(module.SeparationService):
        def __init__(self, settings, **given):
            made.append((settings.processors, settings.precision, given["clips_per_forward"]))
            super().__init__(settings, **given)

    made: list[tuple] = []
    monkeypatch.setattr(module, "SeparationService", Spy)
    save_separator(TDCNpp(TDCNppConfig.tiny(sources=3)), tmp_path / "F", {})
    save_separator(TDCNpp(TDCNppConfig.tiny(blocks=2)), tmp_path / "S2", {})
    folders = {name: str(tmp_path / folder) for name, folder in (("S2", "S2"), ("F", "F"), ("N", "F"))}
    experiment = named_experiment("table4/S2+F+N/simclr-cp", "tiny").changed(
        {
            "resources.separation_batch": 4,
            "resources.separation_precision": "bfloat16",
            "separator.checkpoints": folders,
        }
    )
    found = module.calibrate(experiment, seconds=1)
    assert sorted(made) == [(("N",), "bfloat16", 4), (("S2",), "bfloat16", 4)]
    assert found.separation_seconds.keys() == {"S2", "F", "N"} and found.separation_rows >= 4
    assert found.separation_seconds["F"] == found.separation_seconds["N"] != found.separation_seconds["S2"]


def test_mixtures_beside_the_views_are_measured_as_the_run_has_them(tmp_path):
    """`mix-back` reads the mixture at the place of each view: twice the crops of every row."""
    from sepscene.orchestration.planning.calibration import _settings
    from sepscene.orchestration.planning.processors import processors_of

    plain = named_experiment("demo", "tiny")
    mixed = plain.changed({"augmentations.mix_back": {"use": "mix-back"}})
    crops = [_settings(each, processors_of(each)[0], tmp_path / str(n)).crops for n, each in enumerate((plain, mixed))]
    assert crops == [2, 4]


def test_the_objective_is_the_one_that_workers_train():
    from sepscene.orchestration.training.pretrainer import prepared_objective

    objective = prepared_objective(named_experiment("demo", "tiny"), torch.device("cpu"))
    assert any(p.is_contiguous(memory_format=torch.channels_last) for p in objective.parameters() if p.ndim == 4)
    assert any(isinstance(module, SynchronisedBatchNorm) for module in objective.modules())


def test_given_clips_are_used_and_unreadable_ones_are_named(tmp_path):
    from sepscene.orchestration.planning.calibration import calibrate

    experiment = named_experiment("table2/mix-mix", "tiny")
    good = tmp_path / "good.wav"
    bad = tmp_path / "bad.wav"
    soundfile.write(good, 0.1 * np.sin(np.arange(160_000)), 16_000)
    bad.write_text("no sound")
    assert calibrate(experiment, seconds=1, clips=[str(good)]).decode_seconds > 0
    with pytest.raises(SepsceneError, match=r"cannot calibrate with .*bad\.wav"):
        calibrate(experiment, seconds=1, clips=[str(good), str(bad)])


def test_a_plan_counts_and_decodes_the_clips_of_a_local_data_set(tmp_path, monkeypatch):
    import sepscene.orchestration.planning.calibration as module

    calibrated: list[tuple] = []

    def spy(experiment, seconds, clips, offsets):
        calibrated.append((list(clips), list(offsets)))
        return MEASURED

    monkeypatch.setattr(module, "calibrate", spy)
    rows = ["uri,labels,split,offset_seconds"]
    for n in range(20):
        soundfile.write(tmp_path / f"{n:02}.wav", 0.1 * np.sin(np.arange(48_000)), 16_000)
        rows.append(f"{n:02}.wav,x,{'train' if n < 18 else 'test'},{n / 100}")
    (tmp_path / "03.wav").write_text("no sound")
    (tmp_path / "manifest.csv").write_text("\n".join(rows))
    epochs = named_experiment("demo", "tiny").training.epochs
    words = ["plan", "demo", "--set", "data.format=table", "--set", f"data.root={tmp_path}"]
    result = CliRunner().invoke(app, words, env={"COLUMNS": "160"})
    assert result.exit_code == 0, (result.output, result.exception)
    assert (
        f"= 18 clips x {epochs} epochs" in result.output and "1 of the first 16 clips cannot be read" in result.output
    )
    ((clips, offsets),) = calibrated
    assert [Path(uri).stem for uri in clips] == [f"{n:02}" for n in range(16) if n != 3]
    assert offsets == [n / 100 for n in range(16) if n != 3]
    result = CliRunner().invoke(app, [*words, "--clips", "1000"], env={"COLUMNS": "160"})
    assert f"= 1,000 clips x {epochs} epochs" in result.output
    away = ["plan", "demo", "--set", "data.format=table", "--set", f"data.root={tmp_path}/nowhere"]
    with pytest.raises(SepsceneError, match=r"nowhere.*--clips N"):
        raise CliRunner().invoke(app, away).exception
    assert CliRunner().invoke(app, [*away, "--clips", "10"]).exit_code == 0 and calibrated[-1] == ([], [])
