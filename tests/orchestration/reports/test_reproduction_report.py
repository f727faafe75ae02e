"""A reproduction's report: every row of the paper compared with ours, and verdicts over seeds."""

import re
from pathlib import Path

import pytest

from sepscene.models.config import SepsceneError
from sepscene.orchestration.records.results import Metric, ReproducedRun, ReproductionResults
from sepscene.orchestration.reports.paper_tables import compared_tables, row_name, run_rows
from sepscene.orchestration.reports.reproduction_report import our_tables, runs_by_row, write_reproduction_report
from sepscene.tasks.evaluation.statistics import t_interval
from sepscene.tasks.paper.claims import PAPER_TABLES
from tests.orchestration.reports.pages import Tables, broken_markdown_tables
from tests.orchestration.samples import sample_results, write_sample_reproduction


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> tuple[ReproductionResults, str, str]:
    folder = tmp_path_factory.mktemp("reproduction")
    results = write_sample_reproduction(folder)
    html, text = write_reproduction_report(folder)
    return results, html.read_text(), text.read_text()


def test_the_report_has_every_row_of_the_paper_with_our_mean_and_t_interval(
    reports: tuple[ReproductionResults, str, str],
) -> None:
    results, html, _ = reports
    rows = [[" ".join(cell.split()) for cell in row] for row in Tables(html).rows]
    row = PAPER_TABLES["table4"][3]
    seeds = t_interval([run.metric.value for run in results.runs if run.row == row.name])
    ours = f"{seeds.value:.3f} [{seeds.low:.3f}, {seeds.high:.3f}]"
    assert [row.label, f"{row.value:.3f}", ours, "0, 1, 2"] in rows
    for table in PAPER_TABLES.values():
        for known in table:
            assert any(found[0].startswith(known.label) and found[1] == f"{known.value:.3f}" for found in rows)


def test_a_row_under_two_names_is_shown_under_both(reports: tuple[ReproductionResults, str, str]) -> None:
    tables = {table.name: table for table in our_tables(runs_by_row(reports[0]))}
    shared = next(line for line in tables["table5"].lines if line.name == "table5/d128")
    original = next(line for line in tables["table4"].lines if line.name == "table4/S2+F+N/simclr-cp")
    assert shared.ours == original.ours is not None
    assert next(line for line in tables["table5"].lines if line.name == "table5/d1024").ours is None


def test_six_claims_with_verdict_and_reason(reports: tuple[ReproductionResults, str, str]) -> None:
    _, html, text = reports
    verdicts = re.findall(r'class="verdict \w*">. (\w+)<', html)
    assert len(verdicts) == 6
    assert verdicts[4:] == ["supported", "undecided"]  # coincidence prediction helps; d = 1024 was not run
    assert "| d = 1024 beats d = 128 | undecided |  | table5/d1024 was not run |" in text
    assert f"{verdicts.count('supported')} supported" in text


def test_both_reports_describe_the_tests_and_the_papers_rows(
    reports: tuple[ReproductionResults, str, str],
) -> None:
    _, html, text = reports
    for page in (html, text):
        assert "both rows share, one-sided, level 0.05" in page
        assert "without a correction for testing six claims" in page
        assert "another framework; ours is its loss on mix-mix views" in page
    assert "Further differences" not in text
    assert broken_markdown_tables(text) == []


def test_an_experiment_with_two_names_has_the_seeds_of_both_and_one_interval() -> None:
    def run(row: str, seed: int) -> ReproducedRun:
        return ReproducedRun(row=row, seed=seed, metric=Metric(value=0.3, low=0.2, high=0.4, interval="bootstrap"))

    one = ReproductionResults(
        reproduction_id="r", scale="tiny", started="", seconds=1.0, runs=(run("table2/mix-chan+specaug", 0),)
    )
    two = one.changed({"runs": (*one.runs, run("table4/S2/simclr", 1))})
    for results, seeds in ((one, [0]), (two, [0, 1])):
        rows = runs_by_row(results)
        lines = {line.name: line.ours for table in our_tables(rows) for line in table.lines if line.ours}
        assert set(lines) == {"table2/mix-chan+specaug", "table4/S2/simclr"}
        first, second = lines.values()
        assert first == second and (first.low == 0.2) == (len(seeds) == 1)
        assert [run.seed for run in rows["table4/S2/simclr"]] == seeds


def test_one_experiment_under_two_names_counts_for_the_claims_of_both_tables(tmp_path: Path) -> None:
    means = {"table4/S2/simclr": 0.282, "table2/mix-chan": 0.272, "table2/mix-mix+specaug": 0.265}
    runs = tuple(
        ReproducedRun(row=row, seed=seed, metric=Metric(value=mean + 1e-4 * seed * seed, interval="none"))
        for row, mean in means.items()
        for seed in range(4)
    )
    ReproductionResults(reproduction_id="r", scale="tiny", started="", seconds=1.0, runs=runs).save(tmp_path)
    _, text = write_reproduction_report(tmp_path)
    assert "both together beat either alone | supported | " in text.read_text()


def test_one_seed_keeps_the_runs_own_interval(tmp_path: Path) -> None:
    one = ReproducedRun(
        row="table2/mix-mix",
        seed=3,
        metric=Metric(value=0.3, low=0.2, high=0.4, interval="95 % bootstrap over clips"),
        differs=("40 steps",),
    )
    results = ReproductionResults(reproduction_id="r", scale="tiny", started="now", seconds=1.0, runs=(one,))
    results.save(tmp_path)
    page, text = write_reproduction_report(tmp_path)
    html = page.read_text()
    assert "| mix vs mix | 0.248 | 0.300 [0.200, 0.400] | 3 | 40 steps |" in text.read_text()
    rows = [[" ".join(cell.split()) for cell in row] for row in Tables(html).rows]
    assert ["mix vs mix", "0.248", "0.300 [0.200, 0.400]", "3", "40 steps"] in rows
    assert "Intervals: 95 % bootstrap over clips." in html


def test_a_folder_without_a_reproduction_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SepsceneError, match=r"reproduction\.json"):
        write_reproduction_report(tmp_path)


def test_a_run_gives_its_own_row_and_that_of_its_baseline_if_the_paper_has_it() -> None:
    joint = sample_results()
    assert set(run_rows(joint)) == {"table4/S2+N/simclr-cp"}
    alone = joint.changed({"table_row": "table4/S2+N/simclr"})
    assert run_rows(alone)["table2/mix-mix+specaug"].value == pytest.approx(0.389)
    bare = joint.changed({"table_row": "table2/mix-chan"})
    assert {row: metric.value for row, metric in run_rows(bare).items()} == pytest.approx(
        {"table2/mix-chan": 0.412, "table2/mix-mix": 0.389}
    )
    assert run_rows(joint.changed({"table_row": None})) == {}
    lines = [line for table in compared_tables(run_rows(joint)) for line in table.lines if line.ours]
    assert [(line.label, line.paper) for line in lines] == [("S2∨N, SimCLR & CP", 0.306)]


def test_rows_have_the_names_of_the_paper() -> None:
    assert row_name("table4/S2+N/simclr-cp") == "Table 4, S2∨N, SimCLR & CP"
    assert (row_name("mine"), row_name(None)) == ("mine", "")


def test_a_learned_shortcut_is_reported(tmp_path: Path) -> None:
    def run(row: str, share: float) -> ReproducedRun:
        found = {"background": share, "level": 0.1, "rank": 12.0}
        return ReproducedRun(row=row, seed=0, metric=Metric(value=0.3), diagnostics=found)

    runs = (run("table2/mix-mix", 0.2), run("table2/mix-chan", 0.6))
    ReproductionResults(reproduction_id="r", scale="mini", started="2026-11-29T00:00:00Z", seconds=1.0, runs=runs).save(
        tmp_path
    )
    for page in (path.read_text() for path in write_reproduction_report(tmp_path)):
        assert "table2/mix-chan: The background of a clip explain" in page and "0.60" in page
        assert "table2/mix-mix: The background" not in page
