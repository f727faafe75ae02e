"""The example package mylab: its length, its code in the guide, its use by name. test_custom_run.py runs it."""

import re
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from sepscene.models.encoders.encoder import load_encoder, save_encoder
from sepscene.models.names import trust_code
from sepscene.orchestration.cli.main import app
from sepscene.orchestration.config import Experiment
from sepscene.orchestration.training.builders import check_parts
from sepscene.orchestration.training.pretrainer import Pretrainer
from tests.orchestration.training.test_pretraining import CPU, batch, consumed

ROOT = Path(__file__).resolve().parents[2]
LAB = ROOT / "examples" / "mylab"
FILES = sorted(path for path in LAB.rglob("*") if path.suffix in (".py", ".toml"))


@pytest.fixture
def _untrusted_lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The package can be imported, but is not trusted yet."""
    monkeypatch.syspath_prepend(str(LAB))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "trust"))
    monkeypatch.delenv("SEPSCENE_TRUSTED_CODE", raising=False)


def test_it_has_fewer_than_120_lines() -> None:
    assert len(FILES) == 5 and sum(len(path.read_text().splitlines()) for path in FILES) < 120


@pytest.mark.parametrize("path", [path for path in FILES if path.stat().st_size > 200], ids=lambda path: path.name)
def test_the_guide_contains_each_file(path: Path) -> None:
    blocks = re.findall(r"^```\w+\n(.*?)^```", (ROOT / "docs" / "extending.md").read_text(), re.MULTILINE | re.DOTALL)
    assert path.read_text() in blocks


@pytest.mark.slow
@pytest.mark.usefixtures("_untrusted_lab")
def test_the_command_requires_trust_and_names_a_failed_import(nano: Experiment, tmp_path: Path) -> None:
    """Before Ray is started. tests/orchestration/pipeline/test_custom_run.py has the run itself."""
    nano.save(tmp_path / "nano.yaml")
    words = ["plan", str(tmp_path / "nano.yaml"), "--seconds", "1", "--set"]
    right = "encoder={use: 'mylab.nets:MelGru', width: 8, embedding_dim: 12}"
    refused = CliRunner().invoke(app, [*words, right])
    assert "is code that does not come with Sepscene" in str(refused.exception)
    misspelt = CliRunner().invoke(app, [*words, right.replace("MelGru", "MelGro"), "--trust-code"])
    assert "cannot be imported" in str(misspelt.exception) and "MelGro" in str(misspelt.exception)
    planned = CliRunner().invoke(app, [*words, right, "--trust-code"])
    assert planned.exit_code == 0, (planned.output, planned.exception)


@pytest.mark.usefixtures("_untrusted_lab")
def test_a_step_with_all_three_leaves_a_bundle_that_loads(nano: Experiment, tmp_path: Path) -> None:
    experiment = nano.changed(
        {
            "encoder": {"use": "mylab.nets:MelGru", "width": 8, "embedding_dim": 12},
            "objective.terms.spread": {"use": "mylab.losses:Spread", "weight": 0.1},
            "augmentations.tilt": {"use": "mylab.augmentations:Tilt"},
        }
    )
    for name in experiment.custom_code:
        trust_code(name)
    check_parts(experiment)
    one = Pretrainer(experiment, 24, CPU)
    step = consumed(one, batch(0) | {"tilt_u": torch.rand(8, 2).numpy()})
    parts = step["similarity"] + step["coincidence"] + 0.1 * step["spread"]
    assert step["loss"] == pytest.approx(parts, rel=1e-5) and 0 < step["spread"] <= 1
    save_encoder(one.encoder().eval(), tmp_path / "bundle", {})
    wave_BT = torch.randn(2, 32_000) / 10
    h_BD = load_encoder(tmp_path / "bundle")(wave_BT)
    assert h_BD.shape == (2, 12) and torch.equal(h_BD, one.encoder().eval()(wave_BT))
