"""Fixtures shared by all tests."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from sepscene.augment.audio import AudioFormat
from sepscene.augment.synthetic.scenes import SceneConfig, write_scenes
from sepscene.augment.views import Views
from sepscene.models import names
from sepscene.models.separators.folder import save_separator
from sepscene.models.separators.tdcnpp import TDCNpp
from sepscene.models.settings import Cnn14Config, TDCNppConfig
from sepscene.models.trust import CODE, PROGRAMS
from sepscene.orchestration.config import Evaluation, Experiment, Resources, Training
from sepscene.orchestration.objective_config import Objective
from sepscene.orchestration.separator_config import Ladder, Separator
from sepscene.tasks.datasets.readers import Manifest, read_manifest
from sepscene.tasks.evaluation.settings import ScoringSettings

REPOSITORY = Path(__file__).resolve().parent.parent

LONGEST = (
    *("test_faults.py", "test_faults_driver.py", "test_whole_run.py", "test_gpu_check.py", "test_placed_run.py"),
    *("test_custom_run.py", "test_run_trials.py", "test_stream.py", "test_local_trainer.py"),
)
"""Files that take minutes. They run first: with several files at a time, a long one at the end would run alone."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the longest files first, and skip tests that need a GPU if there is none."""
    items.sort(key=lambda item: item.path.name not in LONGEST)
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="needs a GPU"))


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    """Use one thread: tests share two cores with Ray's processes, and more threads only spin while they wait.

    It is set for each test, because a test can change it, and the order of sums, and so the last bits, depends on it.
    """
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _no_trusted_code(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Start each test without trusted code, neither the developer's nor that of earlier tests."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path_factory.getbasetemp() / "configuration"))
    for trusted in (CODE, PROGRAMS):  # restored after the test
        monkeypatch.setenv(trusted.variable, os.environ.get(trusted.variable, ""))
    monkeypatch.setattr(names, "_trust_all", False)


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """The folder `shared` next to the checkout, with the reference vectors and the real sound.

    Without it the tests that use it are skipped. In CI, which sets SEPSCENE_SHARED_REQUIRED, they fail, so that a
    missing comparison is noticed.
    """
    shared = REPOSITORY.parent / "shared"
    if not shared.is_dir():
        reason = f"the reference vectors and the real sound are not at {shared}"
        if os.environ.get("SEPSCENE_SHARED_REQUIRED"):
            pytest.fail(reason)
        pytest.skip(reason)
    return shared


@pytest.fixture(scope="session")
def local_ray() -> Iterator[None]:
    """A local Ray with four logical CPUs, as a command starts it; it is stopped at the end."""
    os.environ.update(RAY_AUTH_MODE="disabled", OMP_NUM_THREADS="1")
    from sepscene.orchestration.runtime.session import connect, disconnect

    connect(None, cpus=4)
    yield
    disconnect()


@pytest.fixture(scope="session")
def nano() -> Experiment:
    """An experiment of the smallest sizes: 2 s clips, networks with a few thousand weights."""
    return Experiment(
        name="nano",
        scale="tiny",
        audio=AudioFormat(clip_seconds=2.0),
        separator=Separator(
            network=TDCNppConfig.tiny(coefficients=16, bottleneck=8, hidden=8, blocks=3),
            ladder=Ladder(steps={"N": 0, "F": 2, "S2": 4}),
            batch_mixtures=4,
            segment_seconds=1.0,
        ),
        views=Views(combination=("S2", "N")),
        encoder=Cnn14Config(widths=(2, 4, 4, 8, 8, 8), embedding_dim=16),
        objective=Objective(head_hidden=16, projection_dim=8),
        training=Training(epochs=4, global_batch=16, service_rows=4, checkpoint_every_steps=2, precision="float32"),
        evaluation=Evaluation(
            scoring=ScoringSettings(shallow_hidden=16, shallow_epochs=5, bootstrap=20), separator_mixtures=2
        ),
        resources=Resources(
            trainers=2,
            trainer_cpus=0.25,
            separation_actors=1,
            separation_cpus=0.25,
            separation_precision="float32",
            reader_cpus=0.25,
        ),
    )


@pytest.fixture(scope="session")
def scenes_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with 24 training and 12 test scenes of 2 s."""
    root = tmp_path_factory.mktemp("scenes")
    for split, count in (("train", 24), ("test", 12)):
        write_scenes(root, count, 0, split, SceneConfig(clip_seconds=2.0))
    return root


@pytest.fixture(scope="session")
def train_clips(scenes_dir: Path) -> Manifest:
    """The training split as a manifest."""
    return read_manifest("scenes", str(scenes_dir)).select("train")


@pytest.fixture(scope="session")
def ladder(nano: Experiment, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Two different untrained separators, as checkpoints S2 and N."""
    root = tmp_path_factory.mktemp("ladder")
    for seed, name in enumerate(("S2", "N")):
        torch.manual_seed(seed)
        save_separator(TDCNpp(nano.separator.network), root / name, {"name": name, "step": seed})
    return {name: str(root / name) for name in ("S2", "N")}
