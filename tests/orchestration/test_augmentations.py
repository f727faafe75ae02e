"""Augmentations in a configuration: old files, short forms, sweeps, and errors before a run starts."""

from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from sepscene.augment.augmentations.augmentation import Augmenter
from sepscene.augment.augmentations.settings import SpecAugment
from sepscene.models.config import SepsceneError
from sepscene.models.encoders.frontend import LogMel
from sepscene.models.names import trust_code
from sepscene.orchestration.config import Experiment, load_experiment, parse_experiment
from sepscene.orchestration.planning.plan import views_bytes
from sepscene.orchestration.presets import EXPERIMENTS, named_experiment, resolve
from sepscene.orchestration.sweeps.reproduction_plan import row_experiments
from sepscene.orchestration.sweeps.search_space import checked_space
from sepscene.orchestration.training.builders import check_parts
from sepscene.orchestration.training.pretrainer import Pretrainer, pcm_pair
from tests.custom_code import write_package
from tests.orchestration.training.test_pretraining import CPU, batch, consumed

MORE = {"gain": {"db": 3.0}, "mix-back": {"probability": 0.5}, "crop-resize": {}, "specaugment": {}}


def test_a_file_of_an_earlier_version_is_the_same_experiment() -> None:
    for name in ("table2/mix-mix", "table2/mix-chan+specaug", "table4/S2+N/simclr-cp"):
        today = named_experiment(name, "mini")
        tree = today.model_dump(mode="json")
        sizes = tree.pop("augmentations")["specaugment"]
        tree["specaugment"] = {key: sizes[key] for key in ("time_mask_frames", "frequency_mask_bands", "warp_frames")}
        assert tree["specaugment"]["time_mask_frames"] == 8
        old = parse_experiment(tree, "an old file")
        assert old == today and old.digest() == today.digest()
        assert ("specaugment" in old.used_augmentations) == name.endswith(("specaug", "cp"))


def test_rows_of_the_tables_have_their_augmentations() -> None:
    for name in EXPERIMENTS:
        row = named_experiment(name, "tiny")
        off = name in ("table2/mix-mix", "table2/mix-chan")
        assert row.used_augmentations == ({} if off else {"specaugment": SpecAugment()}), name


def test_short_forms_change_the_augmentation(nano: Experiment) -> None:
    changed = nano.changed({"specaugment.time_mask_frames": 4, "views.specaugment": False})
    assert changed.augmentations["specaugment"] == SpecAugment(time_mask_frames=4)
    assert changed.used_augmentations == {} and changed.changed({"views.specaugment": True}).used_augmentations
    assert nano.changed({"augmentations.specaugment.probability": 0}).used_augmentations == {}
    space = {"specaugment.warp_frames": [0, 3], "augmentations.specaugment.probability": ["0.5", 1]}
    assert checked_space(nano, space)["augmentations.specaugment.probability"] == [0.5, 1]
    with pytest.raises(SepsceneError, match=r"no section 'specaugment'; known are gain"):
        nano.changed({"augmentations": {"gain": {}}}).changed({"specaugment.warp_frames": 3})
    with pytest.raises(SepsceneError, match="augmentations has no specaugment"):
        parse_experiment({"name": "x", "scale": "tiny", "augmentations": {}, "specaugment": {}}, "x")


def test_yaml_keeps_augmentations_and_their_order(nano: Experiment, tmp_path: Path) -> None:
    more = nano.changed({"augmentations": MORE})
    more.save(tmp_path / "more.yaml")
    again = load_experiment(tmp_path / "more.yaml")
    assert again.digest() == more.digest() and list(again.augmentations) == [
        "gain",
        "mix_back",
        "crop_resize",
        "specaugment",
    ]
    reordered = nano.changed({"augmentations": dict(reversed(MORE.items()))})
    assert reordered.digest() != more.digest() != nano.digest()
    added = nano.changed({"augmentations.gain": {"use": "gain", "db": 3.0}})
    assert list(added.used_augmentations) == ["specaugment", "gain"]
    assert yaml.safe_load((tmp_path / "more.yaml").read_text())["augmentations"]["gain"]["db"] == 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"augmentations": {"gian": {}}}, r"augmentations: there is no augmentation 'gian' \(did you mean gain\?\)"),
        ({"augmentations.gain": {"use": "gain", "dB": 1}}, r"augmentations\.gain\.dB: unknown field"),
        ({"augmentations.specaugment.probability": 2}, r"augmentations\.specaugment\.probability: Input should be"),
    ],
)
def test_mistakes_are_reported_in_our_own_words(nano: Experiment, change: dict[str, object], message: str) -> None:
    with pytest.raises(SepsceneError, match=message):
        nano.changed(change)


def test_unsuitable_augmentations_are_refused_before_anything_starts(nano: Experiment) -> None:
    more = nano.changed({"augmentations": MORE})
    check_parts(more)
    assert views_bytes(more) == 2 * views_bytes(nano)
    with pytest.raises(SepsceneError, match=r"augmentations\.mix_back mixes sound into separated channels"):
        check_parts(more.changed({"views.pair": "mix-mix"}))
    for field in ("augmentations", "augmentations.specaugment.probability"):
        with pytest.raises(SepsceneError, match="the tables' rows differ in"):
            row_experiments(["table2/mix-mix"], "mini", {field: 0})
    (row,) = row_experiments(["table2/mix-mix"], "mini", {"augmentations.gain": {"use": "gain"}})
    assert list(row.used_augmentations) == ["gain"]


def test_training_with_a_custom_augmentation(nano: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_package(tmp_path, "auglab", monkeypatch)
    experiment = nano.changed({"augmentations": {"mine": {"use": "auglab.nets:Flip", "share": 0.5}}})
    assert experiment.custom_code == ("auglab.nets:Flip",)
    with pytest.raises(SepsceneError, match="is code that does not come with"):
        check_parts(experiment)
    trust_code("auglab.nets:Flip")
    check_parts(experiment)
    rows = batch(0) | {"mine_u": np.tile(np.array([0.1, 0.9], np.float32), (8, 1))}
    one = Pretrainer(experiment, 24, CPU)
    wave = pcm_pair(rows, "view", CPU)
    seen = one.views(wave, rows)
    front_end = LogMel(experiment.front_end)
    torch.testing.assert_close(seen[0], front_end(-wave[:, 0]), rtol=0, atol=1e-6)
    torch.testing.assert_close(seen[1], front_end(wave[:, 1]), rtol=0, atol=1e-6)
    assert consumed(one, rows)["loss"] > 0
    with pytest.raises(SepsceneError, match=r"augmentations\.mine \(auglab\.nets:Flip\): share: "):
        check_parts(nano.changed({"augmentations": {"mine": {"use": "auglab.nets:Flip", "share": "much"}}}))
    trust_code("auglab.nets:FlipNoSettings")
    with pytest.raises(SepsceneError, match=r"\(auglab\.nets:FlipNoSettings\) needs a class attribute Config"):
        check_parts(nano.changed({"augmentations": {"mine": {"use": "auglab.nets:FlipNoSettings"}}}))


def test_views_are_augmented_in_both_domains_in_their_order(nano: Experiment) -> None:
    """Compared with mix-back and gain on waveforms, their log-mels, then SpecAugment and crop-resize, step by step."""
    experiment = nano.changed({"augmentations": dict(reversed(MORE.items()))})
    draws = np.random.default_rng(0)
    rows = batch(0) | {f"mixture_{n}": draws.integers(-9000, 9000, (8, 15_360)).astype(np.int16) for n in (1, 2)}
    for name, uniforms in (("gain", 1), ("mix_back", 1), ("crop_resize", 4)):
        rows[f"{name}_u"] = draws.random((8, 2 * uniforms), np.float32)
    rows["mix_back_on"] = draws.random((8, 2)) < 0.5
    one = {name: Augmenter({name: choice}) for name, choice in experiment.used_augmentations.items()}
    wave = pcm_pair(rows, "view", CPU)
    wave = one["mix_back"]("waveform", wave, rows, pcm_pair(rows, "mixture", CPU))
    wave = one["gain"]("waveform", wave, rows)
    logmel = LogMel(experiment.front_end)(wave.flatten(0, 1)).unflatten(0, (8, 2))
    logmel = one["crop_resize"]("log-mel", one["specaugment"]("log-mel", logmel, rows), rows)
    seen = Pretrainer(experiment, 24, CPU).views(pcm_pair(rows, "view", CPU), rows)
    assert torch.equal(torch.stack(seen, dim=1), logmel)


def test_specaugment_can_still_be_swept_by_its_switch() -> None:
    base = resolve("demo", "tiny", None)
    assert checked_space(base, {"views.specaugment": [True, False]}) == {"views.specaugment": [True, False]}
