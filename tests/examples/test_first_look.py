"""The notebook first_look.ipynb: every cell runs in an IPython shell, and it is stored without outputs."""

import json
from pathlib import Path

import matplotlib as mpl
import pytest
import torch
from IPython.core.interactiveshell import InteractiveShell

from sepscene.augment.synthetic.scenes import SceneConfig, write_scenes
from sepscene.models.encoders.encoder import save_encoder
from sepscene.orchestration.config import Experiment
from sepscene.orchestration.training.builders import encoder_of

NOTEBOOK = Path(__file__).resolve().parents[2] / "examples" / "first_look.ipynb"
CELLS = json.loads(NOTEBOOK.read_text())["cells"]


def test_it_is_stored_without_outputs() -> None:
    code = [cell for cell in CELLS if cell["cell_type"] == "code"]
    assert len(code) == 5 and not any(cell["outputs"] or cell["execution_count"] for cell in code)


@pytest.mark.slow
def test_every_cell_runs(
    nano: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(0)
    save_encoder(encoder_of(nano, None), tmp_path / "runs" / "demo" / "encoder", {})
    write_scenes(tmp_path / "runs" / "demo" / "scenes", 4, 0, "test", SceneConfig(clip_seconds=2.0))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    mpl.use("Agg")
    shell = InteractiveShell()
    for cell in CELLS:
        if cell["cell_type"] == "code":
            shell.run_cell("".join(cell["source"])).raise_error()
    shell.user_ns["figure"].savefig("seen.png")
    said = capsys.readouterr().out
    assert "h has 16 features, sound at 16000 Hz" in said and "(4, 16)" in said and "nearest: " in said
    assert shell.user_ns["wave_BT"].shape == (4, 160_000) and (tmp_path / "seen.png").stat().st_size > 5_000
