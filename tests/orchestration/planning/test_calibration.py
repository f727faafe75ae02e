"""The calibration runs the real modules; its times agree with theirs, as far as a busy machine allows."""

import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from torch.overrides import TorchFunctionMode
from typer.testing import CliRunner

from sepscene.augment.audio import read_sound
from sepscene.augment.separation import reader
from sepscene.models.config import SepsceneError
from sepscene.models.separators.folder import save_separator
from sepscene.models.separators.tdcnpp import TDCNpp
from sepscene.models.settings import TDCNppConfig
from sepscene.orchestration.cli.main import app
from sepscene.orchestration.presets import named_experiment
from sepscene.tasks.distributed.batchnorm import SynchronisedBatchNorm

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


class Products(TorchFunctionMode):
    """Records the precisions in which matrix products are computed."""

    def __init__(self) -> None:
        super().__init__()
        self.precisions: set[torch.dtype] = set()

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func in (torch.Tensor.matmul, torch.Tensor.__matmul__, torch.matmul):
            self.precisions.add(args[0].dtype)
        return func(*args, **(kwargs or {}))


def test_separators_are_measured_with_the_settings_of_the_run(tmp_path):
    """Batch and precision of the actors, and one processor of each kind."""
    from sepscene.orchestration.planning.calibration import calibrate

    save_separator(TDCNpp(TDCNppConfig.tiny(sources=3)), tmp_path / "F", {})
    save_separator(TDCNpp(TDCNppConfig.tiny(blocks=2)), tmp_path / "S2", {})
    folders = {name: str(tmp_path / folder) for name, folder in (("S2", "S2"), ("F", "F"), ("N", "F"))}
    run = named_experiment("table4/S2+F+N/simclr-cp", "tiny").changed(
        {"resources.separation_batch": 4, "separator.checkpoints": folders}
    )
    for precision in ("float32", "bfloat16"):
        with Products() as products:
            # In so little time, only the smallest block is measured: one batch of the actors.
            found = calibrate(run.changed({"resources.separation_precision": precision}), seconds=0.01)
        assert found.separation_rows == 4
        assert (torch.bfloat16 in products.precisions) == (precision == "bfloat16")
        assert found.separation_seconds.keys() == {"S2", "F", "N"}
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
    decoded: set[tuple[str, float]] = set()

    def read(uri, audio, offset=0.0):
        decoded.add((Path(uri).stem, offset))
        return read_sound(uri, audio, offset)

    monkeypatch.setattr(reader, "read_sound", read)
    rows = ["uri,labels,split,offset_seconds"]
    for n in range(20):
        soundfile.write(tmp_path / f"{n:02}.wav", 0.1 * np.sin(np.arange(48_000)), 16_000)
        rows.append(f"{n:02}.wav,x,{'train' if n < 18 else 'test'},{n / 100}")
    (tmp_path / "03.wav").write_text("no sound")
    (tmp_path / "manifest.csv").write_text("\n".join(rows))
    epochs = named_experiment("demo", "tiny").training.epochs
    words = ["plan", "demo", "--set", "data.format=table", "--set", f"data.root={tmp_path}", "--seconds", "1"]
    result = CliRunner().invoke(app, words, env={"COLUMNS": "160"})
    assert result.exit_code == 0, (result.output, result.exception)
    assert (
        f"= 18 clips x {epochs} epochs" in result.output and "1 of the first 16 clips cannot be read" in result.output
    )
    assert decoded == {(f"{n:02}", n / 100) for n in range(16) if n != 3}
    result = CliRunner().invoke(app, [*words, "--clips", "1000"], env={"COLUMNS": "160"})
    assert f"= 1,000 clips x {epochs} epochs" in result.output
    away = ["plan", "demo", "--set", "data.format=table", "--set", f"data.root={tmp_path}/nowhere"]
    with pytest.raises(SepsceneError, match=r"nowhere.*--clips N"):
        raise CliRunner().invoke(app, away).exception
    decoded.clear()
    assert CliRunner().invoke(app, [*away, "--clips", "10", "--seconds", "1"]).exit_code == 0
    assert decoded and {offset for _, offset in decoded} == {0.0}, "generated scenes are decoded instead"
