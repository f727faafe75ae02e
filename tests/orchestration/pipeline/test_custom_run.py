"""A whole run with custom code, from Python, with the built packages in a separate environment.

A lab's own package has clips, separators and a channel score. The installed example lab has the encoder, the loss term
and an augmentation.
"""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import numpy as np
import pytest
import soundfile
from typer.testing import CliRunner

from sepscene.augment.store.upkeep import list_store
from sepscene.models.card import read_card
from sepscene.models.custom import CustomCode
from sepscene.orchestration.cli.main import app
from sepscene.orchestration.config import Experiment, load_experiment
from sepscene.orchestration.records.ledger import Ledger
from sepscene.orchestration.records.results import RunResults, read_metrics
from sepscene.orchestration.source import FOLDERS
from sepscene.orchestration.training.replay import replay
from sepscene.tasks.datasets.readers import Manifest
from tests.custom_code import write_package

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]
ROOT = Path(__file__).resolve().parents[3]
EXAMPLE = ROOT / "examples" / "mylab"

SCRIPT = """
import csv
import sys
from pathlib import Path

import sepscene
from mylab.augmentations import Tilt
from mylab.losses import Spread
from mylab.nets import MelGru
from wholelab.nets import Learned, Split, halves


def clips(folder):
    for split in ("train", "test"):
        with (folder / f"{split}.csv").open(newline="") as table:
            yield from ({**row, "uri": folder / row["uri"]} for row in csv.DictReader(table))


checkpoints = {"thirds": {"use": Split, "sources": 3}, "halves": halves}
changes = {"separator.checkpoints": checkpoints, "views.combination": list(checkpoints), "views.channel": Learned}
changes |= {
    "encoder": {"use": MelGru, "width": 8, "embedding_dim": 12},
    "objective.terms.spread": {"use": Spread, "weight": 0.1},
    "augmentations.tilt": {"use": Tilt, "probability": 0.5},
    "augmentations.gain": {"use": "gain"},
    "augmentations.mix_back": {
        "use": "mix-back", "curriculum": [{"at": 0, "probability": 0}, {"at": 1, "probability": 1}]
    },
}
sepscene.pretrain(
    sys.argv[1], changes=changes, clips=clips(Path(sys.argv[3])), storage=sys.argv[2], run_id="own", quiet=True
)
"""


LOADS = """
import mlflow
import numpy
import sepscene

assert "site-packages" in sepscene.__file__, sepscene.__file__
encoder = sepscene.load_encoder("runs/own/encoder")
assert type(encoder.trunk).__module__ == "mylab.nets" and encoder.embedding_dim == 12
mlflow.set_tracking_uri("sqlite:///runs/mlflow.db")
experiments = [each.experiment_id for each in mlflow.search_experiments()]
(model,) = mlflow.search_logged_models(experiments, output_format="list")
h = mlflow.pyfunc.load_model(model.model_uri).predict(numpy.zeros((1, 32000), numpy.float32))
print(h.shape, numpy.isfinite(h).all())
"""


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A lab's folder with a package, and with modules that are called like our packages and must not be imported."""
    folder = tmp_path_factory.mktemp("lab")
    with pytest.MonkeyPatch.context() as patch:
        write_package(folder, "wholelab", patch)
    (folder / "models").mkdir()
    (folder / "models" / "__init__.py").touch()
    (folder / "tasks.py").write_text("raise RuntimeError('this module must not be imported')")
    return folder


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder `bin` of an environment with the wheels of Sepscene and of the example lab.

    Their dependencies are added by a path, because installing them would take minutes. The wheels are built from clean
    copies, because builds leave files behind.
    """
    place = tmp_path_factory.mktemp("installed")
    clean = shutil.ignore_patterns("__pycache__", "*.egg-info")
    checkout = place / "sepscene"
    example = place / "mylab"
    for folder in ("sepscene", *FOLDERS):
        shutil.copytree(ROOT / folder, checkout / folder, ignore=clean)
    for file in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / file, checkout)
    shutil.copytree(EXAMPLE, example, ignore=clean)
    uv = [sys.executable, "-m", "uv"]
    build = [*uv, "build", "--quiet", "--wheel", "--no-build-isolation", "--python", sys.executable]
    for source in (checkout, example):
        subprocess.run([*build, "--out-dir", str(place / "wheels"), str(source)], check=True, timeout=120)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(place / "env")], check=True, timeout=60)
    bin_folder = place / "env" / "bin"
    install = [
        *uv,
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--compile-bytecode",
        "--python",
        str(bin_folder / "python"),
    ]
    wheels = [str(wheel) for wheel in (place / "wheels").glob("*.whl")]
    subprocess.run([*install, *wheels], check=True, timeout=60)
    (packages,) = (place / "env").glob("lib/python*/site-packages")
    assert {path.name for path in packages.iterdir() if path.suffix != ".dist-info"} == {"sepscene", "mylab"}
    assert (packages / "sepscene" / "py.typed").exists()
    (packages / "dependencies.pth").write_text(sysconfig.get_paths()["purelib"])  # its own .pth files are not read
    return bin_folder


@pytest.fixture(scope="module")
def variables(lab: Path, programs: Path) -> dict[str, str]:
    """The environment of the lab's commands."""
    found = {**os.environ, "RAY_AUTH_MODE": "disabled", "RAY_worker_niceness": "0"}
    found["PATH"] = os.pathsep.join((str(programs), os.environ["PATH"]))
    found["PYTHONPATH"] = str(lab)
    found["XDG_CONFIG_HOME"] = str(lab / "configuration")
    for unset in ("MLFLOW_TRACKING_URI", "SEPSCENE_TRUSTED_CODE", "VIRTUAL_ENV"):
        found.pop(unset, None)
    return found


def call(lab: Path, variables: dict[str, str], *words: str, code: int = 0) -> str:
    """Run a command in the lab's folder; returns its output."""
    done = subprocess.run(words, cwd=lab, env=variables, capture_output=True, text=True, timeout=560, check=False)
    assert done.returncode == code, done.stdout[-2000:] + done.stderr[-3000:]
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def finished(lab: Path, variables: dict[str, str], nano: Experiment, scenes_dir: Path) -> Path:
    """The folder of a finished run. Its store is read-through, so views are separated and also read from the store."""
    short = {"training.epochs": 2, "evaluation.baselines": False, "store.mode": "read-through", "resources.trainers": 1}
    nano.changed(short).save(lab / "nano.yaml")
    (lab / "script.py").write_text(SCRIPT)
    call(lab, variables, "python", "script.py", "nano.yaml", str(lab / "runs"), str(scenes_dir))
    return lab / "runs" / "own"


def test_the_installed_commands_work(programs: Path, lab: Path, variables: dict[str, str]) -> None:
    assert "pretrain" in call(lab, variables, "sepscene", "--help")
    assert call(lab, variables, "sepscene", "--version").startswith("sepscene ")
    doctor = subprocess.run(["sepscene", "doctor"], cwd=lab, env=variables, capture_output=True, text=True, timeout=100)
    found = doctor.stdout  # the exit code would also depend on the free disk space
    assert "torchaudio 2.11.0" in found
    assert [line for line in found.splitlines() if line.startswith("fail") and "GiB free" not in line] == []


def test_custom_parts_are_recorded_like_our_own(finished: Path) -> None:
    results = RunResults.load(finished)
    kept = {name: read_card(finished / "ladder" / name) for name in ("thirds", "halves")}
    assert {processor.name: processor.digest for processor in results.ladder} == {
        name: card.digest for name, card in kept.items()
    }
    assert Ledger.load(finished / "ledger.json").intervals == [(0, 48)]
    store = list_store(str(finished.parent / "store"))
    assert {card.digest for card in kept.values()} < {group.processor for group in store.groups}
    assert sum(group.entries for group in store.groups if group.processor.startswith("scores-")) > 24
    experiment = load_experiment(finished / "experiment.yaml")
    assert experiment.separator.checkpoints["halves"] == CustomCode(use="wholelab.nets:halves")
    assert {"mylab.augmentations:Tilt", "mylab.losses:Spread", "mylab.nets:MelGru"} < set(experiment.custom_code)
    assert experiment.data.format == "clips" and Path(experiment.data.root or "").parent == finished.parent / "clips"
    assert (finished / "report.html").exists() and (finished / "listen.html").exists()


def test_later_commands_also_need_the_code_and_the_trust(
    finished: Path, lab: Path, train_clips: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(lab / "another"))
    monkeypatch.delenv("SEPSCENE_TRUSTED_CODE", raising=False)
    experiment = load_experiment(finished / "experiment.yaml")
    words = ["plan", str(finished / "experiment.yaml"), "--seconds", "1"]
    refused = CliRunner().invoke(app, words)
    assert "is code that does not come with Sepscene" in str(refused.exception)
    for folder in (lab, EXAMPLE):
        monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setenv("SEPSCENE_TRUSTED_CODE", ",".join(experiment.custom_code))
    planned = CliRunner().invoke(app, words)
    assert planned.exit_code == 0, (planned.output, planned.exception)
    rows, loss = replay(finished, train_clips, [0, 1, 2, 3])
    assert [row.fault for row in rows] == [""] * 4 and loss == loss
    folders = experiment.changed(
        {"views.channel": "uniform", "separator.checkpoints.thirds": str(finished / "ladder" / "thirds")}
    )
    assert {"wholelab.nets:Split", "wholelab.nets:halves"} < set(folders.custom_code), (
        "the code of a folder must also be sent"
    )


def test_the_custom_encoder_was_trained_and_its_bundle_loads_and_embeds(
    finished: Path, lab: Path, variables: dict[str, str]
) -> None:
    steps = [record for record in read_metrics(finished) if "spread" in record]
    assert len(steps) == 3
    for step in steps:
        parts = float(step["similarity"]) + float(step["coincidence"]) + 0.1 * float(step["spread"])
        assert step["loss"] == pytest.approx(parts, rel=1e-4) and 0 < float(step["spread"]) <= 1
    card = json.loads((finished / "encoder" / "config.json").read_text())
    assert '"package": "mylab", "use": "mylab.nets:MelGru", "version": "0.1.0"' in json.dumps(card, sort_keys=True)
    (encoder,) = [one for one in RunResults.load(finished).encoders if one.name == "mix-chan"]
    assert 0 < encoder.metrics["shallow_map"].value <= 1
    soundfile.write(lab / "one.wav", np.random.default_rng(0).normal(0, 0.1, 32_000), 16_000)
    assert "is code that does not come with Sepscene" in call(lab, variables, "python", "-c", LOADS, code=1)
    call(lab, variables, "python", "-m", "sepscene", "embed", "runs/own", "one.wav", "--out", "h.npy", "--trust-code")
    h_BD = np.load(lab / "h.npy")
    assert h_BD.shape == (1, 12) and np.isfinite(h_BD).all()
    assert "(1, 12) True" in call(lab, variables, "python", "-c", LOADS), "it is trusted from now on"
