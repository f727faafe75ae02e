"""A reproduction is planned before Ray starts: changes must not redefine rows, and data sets must have their splits."""

from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from sepscene.models.config import SepsceneError
from sepscene.orchestration.cli.main import app
from sepscene.orchestration.cli.sweep_commands import _report
from sepscene.orchestration.dataset_presets import check_splits, data_changes
from sepscene.orchestration.presets import EXPERIMENTS
from sepscene.orchestration.sweeps.reproduction_plan import planned_rows, row_experiments


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"views.specaugment": False}, "views.specaugment"),
        ({"views.pair": "mix-mix"}, "views.pair"),
        ({"views.combination": ["S2"]}, "views.combination"),
        ({"views.weights": [1]}, "views.weights"),
        ({"views.curriculum": []}, "views.curriculum"),
        ({"views.channel": "loudest"}, "views.channel"),
        ({"views": {}}, "views.pair"),
        ({"objective": {"alpha": 1}}, "objective.similarity"),
        ({"objective.similarity": "triplet"}, "objective.similarity"),
        ({"encoder.embedding_dim": 64}, "encoder.embedding_dim"),
        ({"name": "x"}, "name"),
        ({"objective.alpha": 0}, "set it above 0"),
        ({"training.epoch": 3}, "training.epoch: unknown field"),
    ],
)
def test_changes_that_redefine_rows_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(SepsceneError, match=message):
        row_experiments(["table4/S2/simclr"], "tiny", changes)


def test_alpha_is_changed_only_in_rows_with_coincidence_prediction() -> None:
    rows = [name for name in EXPERIMENTS if name != "demo"]
    before = {row.name: row.objective.alpha for row in row_experiments(rows, "tiny", {})}
    changes = {"objective.alpha": 0.5, "objective.alpha_warmup_steps": 3, "training.epochs": 7}
    after = row_experiments(rows, "tiny", changes)
    assert {row.training.epochs for row in after} == {7}
    assert {row.name: row.objective.alpha for row in after} == {
        row: 0.5 if alpha else 0.0 for row, alpha in before.items()
    }


def test_shared_rows_are_run_once_and_unknown_ones_are_refused() -> None:
    rows = planned_rows(["table2", "table4", "table5"], None)
    assert len(rows) == len(set(rows)) == 4 + 14 + len([name for name in rows if name.startswith("table5/")]) - 1
    assert "table2/mix-chan+specaug" in rows and "table4/S2/simclr" not in rows  # one experiment, two names
    assert "table4/S2+F+N/simclr-cp" in rows and "table5/d128" not in rows
    assert planned_rows(["table5"], ["table5/d128"]) == ["table5/d128"]
    with pytest.raises(
        SepsceneError, match=r"there is no table 'table3' \(did you mean table5\?\); known names: table2"
    ):
        planned_rows(["table3"], None)
    with pytest.raises(SepsceneError, match="no row of table2 'table4/N/simclr'"):
        planned_rows(["table2"], ["table4/N/simclr"])


def test_rows_beyond_the_paper_include_those_that_they_are_compared_with() -> None:
    rows = planned_rows(["beyond"], None)
    assert rows[0] == "table4/S2+N/simclr-cp" and len(rows) == 8
    both = planned_rows(["table4", "beyond"], None)
    assert len(both) == len(set(both)) == 14 + 7
    assert planned_rows(["beyond"], ["beyond/weights"]) == ["beyond/weights"]


@pytest.fixture
def esc50(tmp_path: Path) -> str:
    """A data set in the layout of ESC-50, with folds 1 to 3."""
    (tmp_path / "meta").mkdir()
    (tmp_path / "audio").mkdir()
    lines = ["filename,fold,category"]
    for fold in (1, 2, 3):
        for category in ("dog", "rain"):
            name = f"{fold}-{category}.wav"
            (tmp_path / "audio" / name).write_bytes(b"")
            lines.append(f"{name},{fold},{category}")
    (tmp_path / "meta" / "esc50.csv").write_text("\n".join(lines) + "\n")
    return str(tmp_path)


def test_esc50_has_defaults_for_its_folds_and_its_clip_length(esc50: str) -> None:
    defaults = data_changes("esc50", esc50, {})
    assert defaults == {
        "data.format": "esc50",
        "data.root": esc50,
        "audio.clip_seconds": 5.0,
        "data.train": ["1", "2", "3"],
        "data.test": ["folds"],
    }
    (row,) = row_experiments(["table2/mix-mix"], "tiny", defaults)
    check_splits(row.data)
    changed = data_changes("esc50", esc50, {"data.test": ["3"], "audio.clip_seconds": 4.0})
    assert (changed["data.train"], changed["data.test"], changed["audio.clip_seconds"]) == (["1", "2"], ["3"], 4.0)


def test_a_split_without_clips_is_refused_before_anything_starts(esc50: str) -> None:
    for field, splits in (("data.train", ["1", "9"]), ("data.test", ["9"])):
        (row,) = row_experiments(["table2/mix-mix"], "tiny", data_changes("esc50", esc50, {field: splits}))
        with pytest.raises(SepsceneError, match=rf"{field}: no clip .* is in split 9; the data has 1, 2, 3"):
            check_splits(row.data)
    check_splits(row_experiments(["table2/mix-mix"], "tiny", {})[0].data)  # scenes do not exist yet


@pytest.mark.parametrize(
    ("format", "train", "test"), [("audioset", "balanced_train", "eval"), ("fsd50k", "val", "test")]
)
def test_other_public_data_sets_use_their_existing_splits(
    format: str, train: str, test: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sepscene.orchestration.dataset_presets.splits_of", lambda format, root: (train, test))
    changes = data_changes(format, "root", {})
    assert (changes["data.train"], changes["data.test"]) == ([train], [test])


def test_the_command_refuses_empty_splits_before_ray_starts(esc50: str, tmp_path: Path) -> None:
    given = ["reproduce", "table2", "--data", f"esc50:{esc50}", "--storage", str(tmp_path / "runs")]
    result = CliRunner().invoke(app, [*given, "--set", 'data.test=["9"]'])
    with pytest.raises(SepsceneError, match=r"data\.test: no clip .* is in split 9"):
        raise result.exception or AssertionError(result.output)
    result = CliRunner().invoke(app, [*given, "--set", "views.specaugment=false"])
    with pytest.raises(SepsceneError, match=r"the tables' rows differ in views\.specaugment"):
        raise result.exception or AssertionError(result.output)
    assert not (tmp_path / "runs").exists()


def test_exit_code_three_when_trials_have_not_finished(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _report(tmp_path, [])
    assert "failed" not in capsys.readouterr().out
    with pytest.raises(typer.Exit) as ended:
        _report(tmp_path, ["table2-mix-mix,seed=0"])
    assert ended.value.exit_code == 3
    assert "failed        1, e.g. table2-mix-mix,seed=0" in capsys.readouterr().out
