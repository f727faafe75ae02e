"""A Ray of our own and an experiment so small that a whole run takes seconds."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from augment.audio import AudioFormat
from augment.scenes import SceneConfig, write_scenes
from augment.views import Views
from models.separators import save_separator
from models.settings import Cnn14Config, TDCNppConfig
from models.tdcnpp import TDCNpp
from orchestration.config import Evaluation, Experiment, Ladder, Objective, Resources, Separator, Training
from tasks.judge_settings import JudgeSettings
from tasks.manifests import Manifest, read_manifest


@pytest.fixture(scope="session")
def ray_of_our_own() -> Iterator[None]:
    """The Ray that a command of ours starts for itself, with four logical CPUs; leaves no process behind."""
    os.environ.update(RAY_AUTH_MODE="disabled", OMP_NUM_THREADS="1")
    from orchestration.session import connect, disconnect

    connect(None, cpus=4)
    yield
    disconnect()


@pytest.fixture(scope="session")
def nano() -> Experiment:
    """The real classes at the smallest sizes: 2 s clips, networks of a few thousand weights."""
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
        training=Training(epochs=4, global_batch=16, service_rows=4, checkpoint_every_steps=2),
        evaluation=Evaluation(
            judge=JudgeSettings(shallow_hidden=16, shallow_epochs=5, bootstrap=20), separator_mixtures=2
        ),
        resources=Resources(trainers=2, trainer_cpus=0.25, separation_actors=1, separation_cpus=0.25, reader_cpus=0.25),
    )


@pytest.fixture(scope="session")
def scenes_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 training and 12 test scenes of 2 s."""
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
    """Two different untrained separators in the places of S2 and N."""
    import torch

    root = tmp_path_factory.mktemp("ladder")
    for seed, name in enumerate(("S2", "N")):
        torch.manual_seed(seed)
        save_separator(TDCNpp(nano.separator.network), root / name, {"name": name, "step": seed})
    return {name: str(root / name) for name in ("S2", "N")}
