"""The example lab: as long as promised, word for word in the guide, installed, and through the whole pipeline."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from sepscene.models.encoders.encoder import load_encoder, save_encoder
from sepscene.models.names import trust_code
from sepscene.orchestration.config import Experiment, load_experiment
from sepscene.orchestration.records.results import RunResults, read_metrics
from sepscene.orchestration.training.builders import check_parts
from sepscene.orchestration.training.pretraining import Pretrainer
from tests.orchestration.training.test_pretraining import CPU, batch, consumed

ROOT = Path(__file__).resolve().parents[2]
LAB = ROOT / "examples" / "mylab"
FILES = sorted(path for path in LAB.rglob("*") if path.suffix in (".py", ".toml"))
LOADS = """
import sepscene, torch
encoder = sepscene.load_encoder("runs/lab/encoder")
assert type(encoder.trunk).__module__ == "mylab.nets", type(encoder.trunk)
h = encoder(torch.zeros(1, 32000))
print(tuple(h.shape), bool(h.isfinite().all()))
"""


def test_it_has_fewer_than_120_lines() -> None:
    assert len(FILES) == 5 and sum(len(path.read_text().splitlines()) for path in FILES) < 120


@pytest.mark.parametrize("path", [path for path in FILES if path.stat().st_size > 200], ids=lambda path: path.name)
def test_the_guide_shows_each_file_word_for_word(path: Path) -> None:
    blocks = re.findall(r"^```\w+\n(.*?)^```", (ROOT / "docs" / "extending.md").read_text(), re.MULTILINE | re.DOTALL)
    assert path.read_text() in blocks


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_own_code_goes_through_ray_to_a_bundle_that_loads_and_embeds(
    nano: Experiment, scenes_dir: Path, ladder: dict[str, str], tmp_path: Path
) -> None:
    """Installed into a folder of its own on PYTHONPATH, trusted once; two trainers, all three seams, both domains."""
    site = tmp_path / "site"
    uv = [sys.executable, "-m", "uv", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation"]
    source = tmp_path / "mylab"
    for path in FILES:  # a copy: a build leaves files beside its sources
        (source / path.relative_to(LAB)).parent.mkdir(parents=True, exist_ok=True)
        (source / path.relative_to(LAB)).write_text(path.read_text())
    subprocess.run([*uv, "--python", sys.executable, "--target", str(site), str(source)], check=True, timeout=120)
    few = {"data.root": str(scenes_dir), "training.epochs": 2, "separator.checkpoints": ladder}
    nano.changed({**few, "evaluation.baselines": False}).save(tmp_path / "nano.yaml")
    soundfile.write(tmp_path / "one.wav", np.random.default_rng(0).normal(0, 0.1, 32_000), 16_000)
    variables = {**os.environ, "PYTHONPATH": f"{ROOT}:{site}", "XDG_CONFIG_HOME": str(tmp_path / "trust")}
    variables |= {"RAY_AUTH_MODE": "disabled", "OMP_NUM_THREADS": "1"}
    for unset in ("MLFLOW_TRACKING_URI", "SEPSCENE_TRUSTED_CODE"):
        variables.pop(unset, None)

    def call(*words: str, code: int = 0) -> str:
        done = subprocess.run(
            [sys.executable, *words], cwd=tmp_path, env=variables, capture_output=True, text=True, timeout=500
        )
        assert done.returncode == code, done.stdout[-2000:] + done.stderr[-3000:]
        return done.stdout + done.stderr

    changes = (
        "encoder={use: 'mylab.nets:MelGru', width: 8, embedding_dim: 12}",
        "objective.terms.spread={use: 'mylab.losses:Spread', weight: 0.1}",
        "augmentations.tilt={use: 'mylab.augmentations:Tilt', probability: 0.5}",
        "augmentations.gain={use: gain}",
        "augmentations.mix_back={use: mix-back, curriculum: [{at: 0, probability: 0}, {at: 1, probability: 1}]}",
    )
    run = ("-m", "sepscene", "pretrain", "nano.yaml", "--run-id", "lab")
    run += tuple(word for change in changes for word in ("--set", change))
    assert "is code that does not come with Sepscene" in call(*run, code=2)
    misspelt = call(*(word.replace("MelGru", "MelGro") for word in run), "--trust-code", code=2)
    assert "cannot be imported" in misspelt and "MelGro" in misspelt
    call(*run, "--trust-code")
    experiment = load_experiment(tmp_path / "runs" / "lab" / "experiment.yaml")
    assert experiment.own_code == ("mylab.augmentations:Tilt", "mylab.losses:Spread", "mylab.nets:MelGru")
    steps = [record for record in read_metrics(tmp_path / "runs" / "lab") if "spread" in record]
    assert len(steps) == 3
    for step in steps:
        parts = float(step["similarity"]) + float(step["coincidence"]) + 0.1 * float(step["spread"])
        assert step["loss"] == pytest.approx(parts, rel=1e-4) and 0 < float(step["spread"]) <= 1
    card = json.loads((tmp_path / "runs" / "lab" / "encoder" / "config.json").read_text())
    assert '"package": "mylab", "use": "mylab.nets:MelGru", "version": "0.1.0"' in json.dumps(card, sort_keys=True)
    (encoder,) = [one for one in RunResults.load(tmp_path / "runs" / "lab").encoders if one.name == "mix-chan"]
    assert 0 < encoder.metrics["shallow_map"].value <= 1
    call("-m", "sepscene", "embed", "runs/lab", "one.wav", "--out", "h.npy")
    h_BD = np.load(tmp_path / "h.npy")
    assert h_BD.shape == (1, 12) and np.isfinite(h_BD).all()
    assert call("-c", LOADS).strip().endswith("(1, 12) True")
    variables["XDG_CONFIG_HOME"] = str(tmp_path / "strangers")
    assert "is code that does not come with Sepscene" in call("-c", LOADS, code=1)


def test_a_step_with_all_three_leaves_a_bundle_that_loads(
    nano: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(LAB))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "trust"))
    monkeypatch.delenv("SEPSCENE_TRUSTED_CODE", raising=False)
    experiment = nano.changed(
        {
            "encoder": {"use": "mylab.nets:MelGru", "width": 8, "embedding_dim": 12},
            "objective.terms.spread": {"use": "mylab.losses:Spread", "weight": 0.1},
            "augmentations.tilt": {"use": "mylab.augmentations:Tilt"},
        }
    )
    for name in experiment.own_code:
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
