"""Configuration: every named experiment is valid, overrides are typed, each mistake is one clear message."""

import os
from pathlib import Path

import pytest
import yaml

from sepscene.models.config import SepsceneError
from sepscene.orchestration.config import Experiment, load_experiment, parse_experiment
from sepscene.orchestration.data_config import Data
from sepscene.orchestration.presets import EXPERIMENTS, SCALES, named_experiment
from sepscene.tasks.paper.claims import PAPER_TABLES

NOT_AT_MINI = "beyond/architectures"  # it needs a separator that scale mini does not have


@pytest.mark.parametrize(
    ("name", "scale"),
    [(name, scale) for name in EXPERIMENTS for scale in SCALES if (name, scale) != (NOT_AT_MINI, "mini")],
)
def test_every_named_experiment_is_unchanged_after_saving_and_loading(name: str, scale: str, tmp_path: Path) -> None:
    experiment = named_experiment(name, scale)  # type: ignore[arg-type]
    experiment.save(tmp_path / "e.yaml")
    again = load_experiment(tmp_path / "e.yaml")
    assert again == experiment and again.digest() == experiment.digest() and again.name == name


def test_an_experiment_that_mini_does_not_support_is_refused() -> None:
    with pytest.raises(SepsceneError, match="--scale tiny"):
        named_experiment(NOT_AT_MINI, "mini")


def test_every_row_of_the_authors_framework_has_an_experiment() -> None:
    ours = {row.name for table in ("table2", "table4") for row in PAPER_TABLES[table]}
    ours |= {"table5/d128", "table5/d1024", "table5/triplet"}
    assert ours <= set(EXPERIMENTS)
    assert len([name for name in EXPERIMENTS if name.startswith("table2")]) == 4
    assert len([name for name in EXPERIMENTS if name.startswith("table4")]) == 14


def test_rows_differ_as_in_the_tables() -> None:
    plain, both = (named_experiment(f"table4/S2+N/{task}", "paper") for task in ("simclr", "simclr-cp"))
    assert plain.objective.alpha == 0 and both.objective.alpha == 1 and both.views.combination == ("S2", "N")
    assert named_experiment("table2/mix-mix", "paper").views.specaugment is False
    assert named_experiment("table5/d1024", "paper").encoder.embedding_dim == 1024
    baseline = named_experiment("table5/triplet", "paper")
    assert baseline.objective.similarity == "triplet" and baseline.objective.alpha == 0
    assert baseline.views.pair == "mix-mix" and baseline.views.specaugment
    assert named_experiment("demo", "paper").encoder.widths[-1] == 2048


def test_an_override_changes_one_field() -> None:
    base = named_experiment("demo", "tiny")
    changed = base.changed({"objective.temperature": 0.1, "views.combination": ["N"]})
    assert changed.objective.temperature == 0.1 and changed.views.combination == ("N",)
    assert changed.training == base.training and changed.digest() != base.digest()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"objective.temperatur": 0.1}, r"objective\.temperatur: unknown field"),
        (
            {"objektive.temperature": 0.1},
            r"objektive\.temperature is not a field .*: there is no section 'objektive' \(did you mean objective\?",
        ),
        (
            {"objective.temperature": -1},
            r"objective\.terms\.similarity\.temperature: Input should be greater than 0 \(got -1\)",
        ),
        ({"views.combination": ["S9"]}, r"no processor 'S9' \(did you mean S2\?\); known names: N, F, S1, S2"),
        (
            {"audio.sample_rate": 22050},
            "sample rates differ: audio.sample_rate 22050, front_end.sample_rate 16000, separator.network.sample_rate",
        ),
        (
            {"separator.beside": {"X": {"sample_rate": 8000}}},
            r"separator\.beside\.X\.sample_rate 8000 Hz; set all of them to the same rate",
        ),
        (
            {"separator.checkpoints": {"S2": "x", "N": "y"}, "front_end.sample_rate": 32000},
            "sample rates differ: audio.sample_rate 16000, front_end.sample_rate 32000 Hz",
        ),
        ({"training.global_batch": 4096, "training.service_rows": 1024}, "312 MiB.*lower training.service_rows"),
        ({"training.global_batch": 50}, "not a multiple of resources.trainers x training.service_rows = 64"),
        ({"views.patch_seconds": 20}, "longer than audio.clip_seconds"),
        ({"data.format": "esc50"}, "data.root is missing"),
        ({"separator.ladder.steps": {"N": -1}}, "N is negative"),
        (
            {"objective.similarity": "triplet", "objective.learn_temperature": True},
            "the triplet loss has no temperature",
        ),
        (
            {"resources.separation_actors": 2, "resources.separation_actors_min": 3},
            "separation_actors_min 3 is more than .separation_actors 2",
        ),
        ({"separator.batch_mixtures": 7}, "separator.batch_mixtures 7 is not a multiple of resources.trainers 2"),
    ],
)
def test_a_bad_value_is_one_message_that_names_the_field(overrides: dict[str, object], message: str) -> None:
    with pytest.raises(SepsceneError, match=message):
        named_experiment("demo", "tiny").changed(overrides)


def test_a_bad_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(SepsceneError, match="does not exist"):
        load_experiment(tmp_path / "none.yaml")
    (tmp_path / "bad.yaml").write_text("{")
    with pytest.raises(SepsceneError, match="cannot be read as YAML"):
        load_experiment(tmp_path / "bad.yaml")
    (tmp_path / "half.yaml").write_text(yaml.safe_dump({"name": "x"}))
    with pytest.raises(SepsceneError, match="scale: Field required"):
        load_experiment(tmp_path / "half.yaml")


def test_configurations_are_frozen() -> None:
    experiment: Experiment = named_experiment("demo", "tiny")
    with pytest.raises(ValueError, match="frozen"):
        experiment.seed = 3


def test_elastic_trainers_must_divide_every_batch_and_have_their_own_nodes() -> None:
    elastic = {"resources": {"trainers": 3, "trainers_min": 1, "trainer_accelerator": "H100"}}
    fits = {"training": {"global_batch": 96, "service_rows": 16}, "separator": {"batch_mixtures": 12}}
    base = {"name": "x", "scale": "tiny"}
    assert list(parse_experiment(base | elastic | fits, "test").resources.trainer_counts) == [1, 2, 3]
    with pytest.raises(SepsceneError, match=r"= 48; change one of the three"):
        parse_experiment(base | elastic | fits | {"training": {"global_batch": 64, "service_rows": 16}}, "test")
    with pytest.raises(SepsceneError, match=r"resources.trainers 2 \(resources.trainers_min allows that many\)"):
        parse_experiment(base | elastic | fits | {"separator": {"batch_mixtures": 9}}, "test")
    for where in ({}, {"trainer_labels": {"a": "b"}}, {"trainer_accelerator": "L4", "separation_accelerator": "L4"}):
        with pytest.raises(SepsceneError, match=r"Set resources.trainer_accelerator"):
            parse_experiment(base | fits | {"resources": {"trainers": 3, "trainers_min": 1, **where}}, "test")
    with pytest.raises(SepsceneError, match="is more than"):
        parse_experiment(base | {"resources": elastic["resources"] | {"trainers_min": 4}}, "test")


def test_the_root_becomes_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs can be continued, and workers can read the saved file, in another folder; addresses stay unchanged."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for given, kept in (("data/esc50", "data/esc50"), ("../x", "../x"), ("~/esc50", "home/esc50"), ("/a b", "/a b")):
        changes = {"data.format": "table", "data.root": given, "data.train": [1, 2], "data.test": [3]}
        experiment = named_experiment("demo", "tiny").changed(changes)
        assert experiment.data.root == os.path.normpath(tmp_path / kept)
        assert experiment.data.train == ("1", "2") and experiment.data.test == ("3",)
        experiment.save(tmp_path / "experiment.yaml")
        monkeypatch.chdir("/")
        assert load_experiment(tmp_path / "experiment.yaml") == experiment
        monkeypatch.chdir(tmp_path)
    for address in ("s3://bucket/clips", "gs://b/c?region=x", "file:///data/x"):
        assert Data(format="table", root=address).root == address
