"""The separator's training: a supervised ladder on scenes with known sources, evaluated on held-out clips."""

from pathlib import Path

import pytest
import torch

from sepscene.augment.synthetic.scenes import SceneConfig, write_scenes
from sepscene.models.card import read_card
from sepscene.models.config import SepsceneError
from sepscene.models.separators.folder import load_separator
from sepscene.models.separators.tdcnpp import TDCNpp
from sepscene.orchestration.config import Experiment
from sepscene.orchestration.records.results import read_metrics
from sepscene.orchestration.records.run_folder import RunFolder
from sepscene.orchestration.runtime.ray_compat import configure_data
from sepscene.orchestration.training.separator_training import add_to_ladder, read_ladder, train_separator
from sepscene.tasks.datasets.readers import read_manifest


@pytest.mark.slow
@pytest.mark.usefixtures("local_ray")
def test_a_supervised_ladder_with_its_scores_and_an_additional_network_of_another_shape(
    nano: Experiment, tmp_path: Path
) -> None:
    write_scenes(tmp_path, 12, 0, "train", SceneConfig(clip_seconds=2.0), with_sources=True)
    write_scenes(tmp_path, 4, 0, "test", SceneConfig(clip_seconds=2.0))
    both = read_manifest("scenes", str(tmp_path))
    configure_data(ordered=True)
    stft = {"basis": "stft", "window_samples": 64, "hop_samples": 32, "bottleneck": 8, "hidden": 8, "blocks": 2}
    experiment = nano.changed({"separator.objective": "supervised", "separator.beside": {"STFT": stft}})
    ladder = train_separator(experiment, both.select("train"), tmp_path, held_out=both.select("test"))
    assert set(ladder) == {"N", "F", "S2", "STFT"}
    for name, step in experiment.separator.ladder.steps.items():
        card = read_card(ladder[name])
        assert card.metadata["step"] == step and card.metadata["held_out_mixtures"] == 2
        assert {"held_out_loss", "held_out_improvement_db", "held_out_source_improvement_db"} <= set(card.metadata)
    losses = [float(record["supervised_loss"]) for record in read_metrics(tmp_path) if "supervised_loss" in record]
    assert len(losses) == 4 and losses[-1] < losses[0]
    wave_BT = torch.randn(1, 4000)
    for folder in ladder.values():
        separated_BST = load_separator(folder)(wave_BT)
        torch.testing.assert_close(separated_BST.sum(1), wave_BT, atol=1e-4, rtol=0)  # mixture consistency
    assert read_card(ladder["STFT"]).digest != read_card(ladder["N"]).digest
    assert train_separator(experiment, both.select("train"), tmp_path) == ladder
    RunFolder(tmp_path).ladder_index.unlink()
    with pytest.raises(SepsceneError, match="although the separator is trained: restore the folder"):
        train_separator(experiment, both.select("train"), tmp_path)


def test_a_checkpoint_without_its_entry_in_the_index_is_entered_again(nano: Experiment, tmp_path: Path) -> None:
    separator = TDCNpp(nano.separator.network)
    for _ in range(2):
        add_to_ladder(tmp_path, "N", 0, separator, {})
        index = RunFolder(tmp_path).ladder_index
        (folder,) = (path for path in index.parent.iterdir() if path != index)
        assert read_ladder(tmp_path) == {"N": str(folder)}
        index.unlink()


def test_supervised_is_for_scenes_only(nano: Experiment) -> None:
    with pytest.raises(SepsceneError, match="which only synthetic scenes at 16000 Hz have"):
        nano.changed({"separator.objective": "supervised", "data.format": "esc50", "data.root": "x"})


def test_an_additional_network_needs_a_unique_name(nano: Experiment) -> None:
    with pytest.raises(SepsceneError, match="both have N"):
        nano.changed({"separator.beside": {"N": {"basis": "stft"}}})
