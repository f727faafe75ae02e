"""The built package in an empty environment, in a folder whose owner has modules of the same names as our rooms."""

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import numpy as np
import pytest
import soundfile

from sepscene.orchestration.config import Experiment
from sepscene.orchestration.source import FOLDERS

REPOSITORY = Path(__file__).resolve().parents[1]
LOADS = """
import mlflow, numpy, sepscene
mlflow.set_tracking_uri("sqlite:///runs/mlflow.db")
experiments = [each.experiment_id for each in mlflow.search_experiments()]
(model,) = mlflow.search_logged_models(experiments, output_format="list")
h = mlflow.pyfunc.load_model(model.model_uri).predict(numpy.zeros((1, 32000), numpy.float32))
assert numpy.isfinite(h).all() and h.shape == (1, 16), h
bundle = sepscene.load_encoder("runs/first/encoder")
assert bundle.embedding_dim == 16
print(sepscene.__file__, sepscene.models.__path__)
"""


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Python with the wheel, and with what it depends on by a path: installing that anew would take minutes."""
    place = tmp_path_factory.mktemp("installed")
    uv = [sys.executable, "-m", "uv"]
    checkout = place / "checkout"  # without what earlier builds have left behind
    for folder in ("sepscene", *FOLDERS):
        shutil.copytree(REPOSITORY / folder, checkout / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for file in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / file, checkout)
    build = [*uv, "build", "--quiet", "--wheel", "--no-build-isolation", "--python", sys.executable]
    subprocess.run([*build, "--out-dir", str(place), str(checkout)], check=True, timeout=120)
    (wheel,) = place.glob("sepscene-*.whl")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(place / "env")], check=True, timeout=60)
    python = place / "env" / "bin" / "python"
    install = [*uv, "pip", "install", "--quiet", "--no-deps", "--compile-bytecode", "--python", str(python)]
    subprocess.run([*install, str(wheel)], check=True, timeout=60)
    (own,) = (place / "env").glob("lib/python*/site-packages")
    assert {path.name for path in own.iterdir() if not path.name.startswith("sepscene-")} <= {"sepscene"}
    assert (own / "sepscene" / "py.typed").exists()
    (own / "dependencies.pth").write_text(sysconfig.get_paths()["purelib"])  # its own .pth files are not read
    return place / "env"


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_wheel_works_beside_the_users_own_modules(environment: Path, nano: Experiment, tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "__init__.py").touch()
    (tmp_path / "tasks.py").write_text("raise RuntimeError('the user has imported nothing of this name')")
    # Few processes: it trains in that of its driver; those that embed import the package as Ray's workers.
    small = {"data.scenes_train": 16, "data.scenes_test": 8, "training.epochs": 1, "views.pair": "mix-mix"}
    few = {"resources.trainers": 1, "evaluation.baselines": False}
    nano.changed(small | few).save(tmp_path / "mine.yaml")
    soundfile.write(tmp_path / "one.wav", np.zeros(32000, np.float32), 16000)
    variables = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    variables |= {"PATH": f"{environment / 'bin'}:{os.environ['PATH']}", "RAY_AUTH_MODE": "disabled"}

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(words, cwd=tmp_path, env=variables, capture_output=True, text=True, timeout=900)

    def call(*words: str) -> str:
        done = run(*words)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
        return done.stdout

    assert "pretrain" in call("sepscene", "--help")
    assert call("sepscene", "--version").startswith("sepscene ")
    found = run("sepscene", "doctor").stdout  # its exit code would also say how full this disk is
    assert "torchaudio 2.11.0" in found
    assert [line for line in found.splitlines() if line.startswith("fail") and "GiB free" not in line] == []
    call("sepscene", "pretrain", "mine.yaml", "--run-id", "first")
    call("python", "-m", "sepscene", "embed", "runs/first", "one.wav", "--out", "h.npy")
    assert np.isfinite(np.load(tmp_path / "h.npy")).all()
    assert str(environment) in call("python", "-c", LOADS)
