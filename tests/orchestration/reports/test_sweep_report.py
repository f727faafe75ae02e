"""A sweep's report: the ranking of finished trials over seeds, and overlapping intervals."""

import json
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from sepscene.models.config import SepsceneError
from sepscene.orchestration.records.results import SweepResults
from sepscene.orchestration.reports.sweep_report import (
    heat_map,
    ranked,
    summary_sentence,
    sweep_table,
    write_sweep_report,
)
from tests.orchestration.reports.pages import Tables, broken_markdown_tables
from tests.orchestration.samples import metric, sample_sweep, write_sample_sweep


def _with_values(values: dict[str, float]) -> SweepResults:
    """The sample sweep with only these trials, and with these metrics."""
    sweep = sample_sweep()
    trials = [
        trial.changed({"metrics": {"shallow_map": metric(values[trial.name], 0.001)}})
        for trial in sweep.trials
        if trial.name in values
    ]
    return sweep.changed({"trials": tuple(trials)})


def test_settings_are_ranked_by_their_mean_over_seeds_with_a_t_interval() -> None:
    values = {"S2-t0.2-s0": 0.30, "S2-t0.2-s1": 0.34, "N-t0.2-s0": 0.33, "N-t0.2-s1": 0.33}
    best, second = ranked(_with_values(values))
    assert best.settings["views.combination"] == ("N",)
    assert second.metric.value == pytest.approx(0.32, abs=1e-12)
    half = stats.t.ppf(0.975, 1) * np.std([0.30, 0.34], ddof=1) / np.sqrt(2)
    assert second.metric.low == pytest.approx(0.32 - half, abs=1e-9)
    assert second.metric.count == 2


def test_trials_that_failed_or_were_stopped_early_are_not_ranked() -> None:
    groups = ranked(sample_sweep())
    assert {trial.status for group in groups for trial in group.trials} == {"finished"}
    assert sum(len(group.trials) for group in groups) == 13


def test_the_answer_respects_the_intervals() -> None:
    apart = _with_values({"S2-t0.2-s0": 0.30, "N-t0.2-s0": 0.40})
    assert summary_sentence(apart, ranked(apart)) == (
        "Combination N, τ 0.2 is best: Shallow classifier mAP 0.400 [0.399, 0.401] (2 finished). "
        "Its interval is above those of all other settings."
    )
    level = _with_values({"S2-t0.2-s0": 0.3995, "N-t0.2-s0": 0.40})
    assert "The other setting may be equally good" in summary_sentence(level, ranked(level))
    nothing = sample_sweep().changed({"trials": ()})
    assert summary_sentence(nothing, ranked(nothing)) == "No trial has a metric yet (no trials)."


def test_heat_map_is_combination_by_temperature_with_gaps_for_unfinished_settings() -> None:
    heat = heat_map(sample_sweep())
    assert heat is not None
    assert (heat.row_field, heat.rows) == ("combination", ("S2", "N", "S2∨N"))
    assert (heat.column_field, heat.columns) == ("τ", ("0.1", "0.2", "0.5"))
    assert heat.means["S2", "0.5"] is None
    two = [t.metrics["shallow_map"].value for t in sample_sweep().trials if t.name.startswith("N-t0.2")]
    assert heat.means["N", "0.2"] == pytest.approx(np.mean(two), abs=1e-12)


def test_every_trial_is_a_row_of_the_live_table_the_page_and_the_markdown(tmp_path: Path) -> None:
    sweep = write_sample_sweep(tmp_path)
    report = tmp_path / sweep.trials[0].run_dir / "report.html"
    report.write_text("")
    html, text = write_sweep_report(tmp_path)
    headers, rows = sweep_table(sweep)
    assert headers[:5] == ["Trial", "Status", "combination", "τ", "Seed"]
    assert rows[1][:6] == ["S2-t0.1-s1", "failed", "S2", "0.1", "1", "–"]
    page = Tables(html.read_text())
    for row in rows:
        assert row in page.rows
    assert [link for link in page.links if not link.startswith("#")] == ["trials/S2-t0.1-s0%2C100%25/report.html"]
    assert len(page.ids) == len(set(page.ids))
    assert broken_markdown_tables(text.read_text()) == []
    assert text.read_text().count("| S2∨N | 0.2 |") == 3  # once ranked, twice as a trial
    assert "worker lost 3 times \\| see its log" in text.read_text()
    for report in (html, text):
        assert "The test metric of the best of many trials is optimistically biased" in report.read_text()


def test_a_sweep_without_trials_gets_a_report_and_a_folder_without_a_sweep_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SepsceneError, match=r"sweep\.json"):
        write_sweep_report(tmp_path)
    sample_sweep().changed({"trials": ()}).save(tmp_path)
    assert "No trial has a metric yet" in write_sweep_report(tmp_path)[1].read_text()


def test_trial_with_other_fields_than_the_sweep_is_refused() -> None:
    trial = sample_sweep().trials[0].changed({"settings": {"seed": 1}})
    with pytest.raises(ValueError, match=r"S2-t0\.1-s0"):
        SweepResults.model_validate(sample_sweep().model_dump() | {"trials": [trial.model_dump()]})


@pytest.mark.parametrize("path", ["../../../etc", "/etc", "a/../../b"])
def test_a_trial_whose_folder_is_outside_of_the_sweep_is_refused(path: str, tmp_path: Path) -> None:
    """The report of a sweep from an untrusted source would read files there, and link to them."""
    write_sample_sweep(tmp_path)
    file = tmp_path / "sweep.json"
    tree = json.loads(file.read_text())
    tree["trials"][0]["run_dir"] = path
    file.write_text(json.dumps(tree))
    with pytest.raises(SepsceneError, match="leads out of the folder"):
        SweepResults.load(tmp_path)
