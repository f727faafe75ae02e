"""A run's report: it has every metric, escapes names, and respects the intervals."""

import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

from sepscene.models.config import SepsceneError
from sepscene.orchestration.formatting import duration
from sepscene.orchestration.records.results import ClassResult, EncoderResult, Metric, RunResults
from sepscene.orchestration.reports import render
from sepscene.orchestration.reports.render import number
from sepscene.orchestration.reports.run_report import (
    class_rows,
    encoder_notes,
    headline_metric,
    learning_curves,
    report_on,
    summary_sentence,
    write_report,
)
from tests.orchestration.reports.pages import Tables, broken_markdown_tables
from tests.orchestration.samples import (
    CLASSES,
    sample_results,
    sample_sweep,
    write_sample_reproduction,
    write_sample_run,
)


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report") / "run"
    write_sample_run(folder)
    write_report(folder)
    return folder


@pytest.fixture(scope="module")
def page(run_dir: Path) -> str:
    return (run_dir / "report.html").read_text()


def _row(tables: Tables, first: str) -> list[list[str]]:
    return [[" ".join(cell.split()) for cell in row] for row in tables.rows if row and row[0].strip() == first]


def test_encoder_table_has_the_metrics_with_their_intervals(page: str) -> None:
    rows = _row(Tables(page), "mix-chan")
    assert rows[0] == [
        "mix-chan",
        "0.412 [0.394, 0.430]",
        "0.392 [0.374, 0.410]",
        "0.522 [0.510, 0.534]",
        "1.620",
    ]


def test_every_class_processor_and_stage_is_in_a_table(page: str, run_dir: Path) -> None:
    tables = Tables(page)
    results = RunResults.load(run_dir)
    for row in class_rows(results.encoders):
        names = ("mix-chan", "mix-mix", "untrained")
        expected = [number(kind[name]) for kind in (row.precision, row.linear) for name in names]
        assert _row(tables, row.name) == [[row.name, str(row.positives), *expected]]
    assert _row(tables, "S2")[0][:5] == [
        "S2",
        "600",
        "3.94 [3.34, 4.54]",
        "5.21 [4.51, 5.91]",
        "−9.10 [−9.40, −8.80]",
    ]
    assert _row(tables, "separate")[0][1:7] == ["3 min 18 s", "5,120", "25.8", "93 %", "–", "314.6 MB"]
    assert _row(tables, "train/00017.flac") == [["train/00017.flac", "holds 0 samples"]]
    assert len(CLASSES) == sum(len(_row(tables, name)) for name in CLASSES)


def test_page_is_self_contained_and_every_anchor_resolves(page: str) -> None:
    tables = Tables(page)
    assert len(tables.ids) == len(set(tables.ids)), "an id is used twice"
    assert {link[1:] for link in tables.links if link.startswith("#")} <= set(tables.ids)
    assert [link for link in tables.links if not link.startswith("#")] == []  # listen.html does not exist yet
    assert not re.findall(r"""(?:src|href)=["'](?:https?:)?//""", page)
    assert not re.findall(r"url\((?!#)", page)
    assert set(re.findall(r"url\(#([^)]+)\)", page)) <= set(tables.ids)


def test_page_is_accessible_and_has_no_fixed_colours_in_pictures(page: str) -> None:
    tables = Tables(page)
    assert tables.headers_without_scope == tables.svgs_without_words == 0
    assert '<html lang="en">' in page
    for svg in re.findall(r"<svg.*?</svg>", page, flags=re.DOTALL):
        assert not re.findall(r"(?:fill|stroke): #", svg)


def test_listening_page_is_linked_once_it_exists(tmp_path: Path) -> None:
    RunResults(run_id="r", experiment="e", scale="tiny", seed=1, started="now", seconds=1.0).save(tmp_path)
    (tmp_path / "listen.html").write_text("")
    assert "listen.html" in Tables(write_report(tmp_path)[0].read_text()).links


def test_markdown_has_the_same_metrics_and_valid_tables(run_dir: Path) -> None:
    text = (run_dir / "report.md").read_text()
    assert broken_markdown_tables(text) == []
    assert "| mix-mix | 0.389 [0.371, 0.407] |" in text
    assert "siren \\| alarm" in text
    for block in re.findall(r"(?:^\|.*\n)+", text, flags=re.MULTILINE):
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}) == 1, block


def test_names_are_escaped(tmp_path: Path) -> None:
    results = sample_results()
    name = '<script>alert("1")</script> $x_1$ 雨'
    encoder = EncoderResult(
        name=name,
        metrics={"shallow_map": Metric(value=0.5)},
        classes=(ClassResult(name=name, positives=3, shallow_ap=0.5),),
        map_2d=((0.0, 1.0, name), (1.0, 0.0, name)),
    )
    results.changed({"encoders": (encoder,)}).save(tmp_path)
    for path in write_report(tmp_path):
        assert "<script>alert" not in path.read_text()
    assert Tables((tmp_path / "report.html").read_text()).rows[1][0] == name


def test_a_run_with_few_results_gets_a_report(tmp_path: Path) -> None:
    RunResults(run_id="r", experiment="e", scale="tiny", seed=1, started="now", seconds=1.0).save(tmp_path)
    html, text = write_report(tmp_path)
    assert "No encoder was evaluated" in html.read_text()
    assert "This run has no ledger" in text.read_text()


def test_each_kind_of_folder_gets_its_report(tmp_path: Path) -> None:
    nothing = sample_sweep().changed({"trials": ()})
    nothing.save(tmp_path)
    assert "# Sweep of" in report_on(tmp_path)[1].read_text()
    write_sample_reproduction(tmp_path / "again")
    assert "## Six claims" in report_on(tmp_path / "again")[1].read_text()
    with pytest.raises(SepsceneError, match="not a finished run"):
        report_on(tmp_path / "elsewhere")


def test_an_unfinished_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SepsceneError, match=re.escape(str(tmp_path))):
        write_report(tmp_path)


def test_the_answer_respects_the_intervals() -> None:
    ours = Metric(value=0.40, low=0.38, high=0.42)
    near = Metric(value=0.39, low=0.37, high=0.41)
    far = Metric(value=0.20, low=0.19, high=0.21)
    assert summary_sentence({"mix-chan": ours, "mix-mix": near, "untrained": far}) == (
        "mix-chan reaches an mAP of 0.400, 0.010 above mix-mix (0.390) "
        "and 0.200 above the untrained encoder (0.200). "
        "The intervals of mix-chan and mix-mix overlap, so this run alone does not show which is better."
    )
    assert summary_sentence({"mix-chan": far, "mix-mix": ours}) == (
        "mix-chan reaches an mAP of 0.200, 0.200 below mix-mix (0.400)."
    )


def test_the_headline_metric_is_one_that_was_measured() -> None:
    knn = EncoderResult(name="a", metrics={"qbe_map": Metric(value=0.1), "knn_map": Metric(value=0.2)})
    assert headline_metric([knn]) == "knn_map"


def test_curves_share_a_panel_by_quantity_and_leave_out_non_finite_values() -> None:
    records: list[dict[str, float | str]] = [
        {
            "stage": "pretrain",
            "step": step,
            "seconds": 1.0,
            "lr": 0.1 * step,
            "pairs": 64.0,
            "train/loss": 5.0 - step,
            "val/loss": 6.0 - step,
        }
        for step in range(3)
    ]
    records.append({"stage": "pretrain", "step": 3, "seconds": 1.0, "train/loss": float("nan")})
    records.append({"stage": "pretrain", "seconds": 1.0, "event": "worker group failed, restarting"})
    first, second = learning_curves(records)
    assert first.alt == ("pretrain: loss. train goes from 5 at step 0 to 3 at 2; val goes from 6 at step 0 to 4 at 2.")
    assert second.alt.startswith("pretrain: lr")


def test_long_names_are_cut_in_pictures_and_complete_in_tables(tmp_path: Path) -> None:
    long = "Heart sounds, heartbeat, and some more words that are not needed"
    results = sample_results()
    encoder = results.encoders[0].changed(
        {
            "classes": (ClassResult(name=long, positives=3, shallow_ap=0.5),),
            "map_2d": ((0.0, 1.0, long), (1.0, 0.0, "b")),
        }
    )
    results.changed({"encoders": (encoder,)}).save(tmp_path)
    page = write_report(tmp_path)[0].read_text()
    assert "Heart sounds, heartbeat,…" in page
    assert _row(Tables(page), long) == [[long, "3", "0.500"]]


def test_stages_of_one_kind_share_a_panel_and_a_repeated_step_counts_once() -> None:
    records: list[dict[str, float | str]] = [
        {"stage": f"pretrain-{pair}", "step": step, "seconds": 1.0, "rows": step, "loss": value}
        for pair in ("mix-chan", "mix-mix")
        for step, value in ((1, 5.0), (2, 9.0), (2, 4.0), (3, 3.0))
    ]
    (only,) = learning_curves(records)
    assert only.alt == (
        "pretrain: loss. mix-chan goes from 5 at step 1 to 3 at 3; mix-mix goes from 5 at step 1 to 3 at 3."
    )


def test_notes_that_all_encoders_share_are_given_once() -> None:
    texts = ("14 epochs; chance 0.058", "10 epochs; chance 0.058")
    encoders = [EncoderResult(name=name, metrics={}, description=text) for name, text in zip("ab", texts, strict=True)]
    assert encoder_notes(encoders) == {"a": ["14 epochs"], "b": ["10 epochs"], "all": ["chance 0.058"]}
    assert encoder_notes(encoders[:1]) == {"a": ["14 epochs", "chance 0.058"]}
    assert encoder_notes([]) == {}


def test_pictures_are_also_written_to_files(run_dir: Path) -> None:
    names = {path.stem for path in (run_dir / "plots").iterdir()}
    assert {"answer", "classes", "ladder", "map0", "curve0"} <= names
    for path in (run_dir / "plots").iterdir():
        text = path.read_text()
        assert "var(--" not in text
        assert ElementTree.fromstring(text).tag == "{http://www.w3.org/2000/svg}svg"


def test_lost_workers_are_reported(tmp_path: Path) -> None:
    RunResults(run_id="r", experiment="e", scale="tiny", seed=1, started="now", seconds=1.0).save(tmp_path)
    line = '{"stage": "pretrain", "seconds": 1.0, "event": "worker group failed (worker 1), restarting"}\n'
    (tmp_path / "metrics.jsonl").write_text(line)
    for path in write_report(tmp_path):
        assert "pretrain: worker group failed (worker 1), restarting" in path.read_text()


def test_number_and_duration_formats() -> None:
    assert [duration(s) for s in (1.23, 99.9, 125, 12345)] == ["1.2 s", "99.9 s", "2 min 5 s", "3 h 25 min"]
    assert [number(x) for x in (-0.5, None, float("nan"))] == ["−0.500", "–", "not a number"]


def test_left_out_files_and_clips_are_listed_with_the_reason(tmp_path: Path) -> None:
    left_out = {"files: suffix .m4a is not read": 3, "test clips without a label, in the evaluation only": 40}
    sample_results().changed({"left_out": left_out}).save(tmp_path)
    assert RunResults.load(tmp_path).left_out == left_out
    html, markdown = (path.read_text() for path in write_report(tmp_path))
    assert "<dt>files: suffix .m4a is not read</dt><dd>3</dd>" in html
    assert "- left out, test clips without a label, in the evaluation only: 40" in markdown


def test_all_elements_and_classes_of_the_style_sheet_exist_in_the_pages() -> None:
    """A search and replace over all files once renamed an element in the style sheet."""
    folder = Path(render.__file__).parent / "templates"
    pages = "".join(page.read_text() for page in folder.glob("*.html.j2"))
    style = re.sub(r"/\*.*?\*/", "", (folder / "style.css").read_text(), flags=re.DOTALL)
    selectors = re.findall(r"(?:^|[{};])\s*([^{};@]+?)\s*\{", style)
    elements = {name for one in selectors for name in re.findall(r"(?<![.#\w:\[-])[a-z]+\d?(?![\w-]*\()", one)}
    classes = {name for one in selectors for name in re.findall(r"\.([a-z][\w-]*)", one)}
    assert "figure" in elements and "pictures" in classes
    assert {name for name in elements if f"<{name}" not in pages and name not in ("root", "svg", "i", "code")} == set()
    assert {name for name in classes if not re.search(rf"[\"' ]{name}[\"' ]", pages)} == set()
