"""A trainer in the driver's process gives exactly the numbers of a Ray Train trainer, also in validation."""

from pathlib import Path
from typing import Any

import pytest
import ray.train

from sepscene.models.encoders.encoder import load_encoder
from sepscene.orchestration.config import Experiment
from sepscene.orchestration.records.checkpoints import newest_intact, read_checkpoint, read_ledger
from sepscene.orchestration.records.files import write_text_atomically
from sepscene.orchestration.records.results import read_metrics
from sepscene.orchestration.records.run_folder import RunFolder
from sepscene.orchestration.training.builders import encoder_of
from sepscene.orchestration.training.local_trainer import trains_in_driver
from sepscene.orchestration.training.pretraining import pretrain
from sepscene.orchestration.training.validation import best_metric, choose_probe, probe
from sepscene.tasks.datasets.readers import Manifest

STAGE = "pretrain-mix-mix"
CHANGES = {
    "views.pair": "mix-mix",
    "resources.trainers": 1,
    "training.ordered": True,
    "training.validation_every_steps": 4,
    "training.validation_clips": 12,
}
MEASURED = ("loss", "similarity", "gradient_norm", "learning_rate", "rows", "validation_knn_map")


def metrics_of(run_dir: Path) -> list[dict[str, Any]]:
    """The metrics that do not depend on the clock, ordered by step; a step's validation comes after its losses."""
    records = sorted(
        (record for record in read_metrics(run_dir) if "step" in record),
        key=lambda record: (record["step"], "validation_knn_map" in record),
    )
    return [{key: record[key] for key in ("step", *MEASURED) if key in record} for record in records]


class RunName(ray.train.UserCallback):
    """A user's callback that writes the name of the Ray Train run to a file."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:
        write_text_atomically(self.file, run_context.run_config.name)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.usefixtures("local_ray")
def test_a_local_trainer_gives_the_same_numbers_and_continues_from_its_checkpoint(
    nano: Experiment, train_clips: Manifest, tmp_path: Path
) -> None:
    experiment = nano.changed(CHANGES)
    assert trains_in_driver(experiment)
    assert not trains_in_driver(experiment.changed({"resources.trainers": 2}))
    assert not trains_in_driver(experiment.changed({"views.pair": "mix-chan"}))  # separates live
    name = tmp_path / "name"
    pretrain(experiment, train_clips, {}, tmp_path / "train", STAGE, callbacks=[RunName(name)])
    pretrain(experiment, train_clips, {}, tmp_path / "local", STAGE)
    assert name.read_text() == f"train-{STAGE}"  # so the dashboard distinguishes the runs of a sweep
    expected = metrics_of(tmp_path / "train")
    found = metrics_of(tmp_path / "local")
    assert [record["step"] for record in expected if "loss" in record] == [1, 2, 3, 4, 5, 6]
    assert [record["step"] for record in expected if "validation_knn_map" in record] == [4, 6]
    assert found == expected  # to the last bit
    stages = [tmp_path / name / "checkpoints" / STAGE for name in ("train", "local")]
    newest = [newest_intact(stage) for stage in stages]
    assert newest[0] and newest[1]
    assert read_ledger(newest[0]).to_json() == read_ledger(newest[1]).to_json()
    clips = choose_probe(train_clips, 12)
    by_hand = probe(encoder_of(experiment, read_checkpoint(newest[0])), clips, experiment)
    validated = [record["validation_knn_map"] for record in expected if "validation_knn_map" in record]
    assert validated[-1] == pytest.approx(by_hand, abs=1e-6)
    for folder in ("train", "local"):
        stage = RunFolder(tmp_path / folder).stage(STAGE)
        assert best_metric(stage) == max(validated)
        assert probe(load_encoder(stage.best), clips, experiment) == pytest.approx(max(validated), abs=1e-6)

    newest[1].rename(tmp_path / "lost")  # as if the driver had been killed before the last checkpoint
    assert newest_intact(stages[1]) is not None
    again = pretrain(experiment, train_clips, {}, tmp_path / "local", STAGE)
    assert read_ledger(again).to_json() == read_ledger(newest[0]).to_json()
    losses = {record["step"]: record["loss"] for record in metrics_of(tmp_path / "local") if "loss" in record}
    assert losses == {record["step"]: record["loss"] for record in expected if "loss" in record}
