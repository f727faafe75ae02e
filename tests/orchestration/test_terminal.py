"""File names are plain text: they cannot control a terminal, a log or a page."""

import base64
import hashlib
import io
import logging
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest
from markupsafe import Markup
from rich.table import Table

from sepscene.orchestration.records.results import ClassResult, EncoderResult, Metric
from sepscene.orchestration.reports.plots import curves
from sepscene.orchestration.reports.render import cell, fenced, light_palette, render
from sepscene.orchestration.reports.run_report import write_report
from sepscene.orchestration.reports.sweep_report import write_sweep_report
from sepscene.orchestration.terminal import PlainFormatter, Terminal, printable
from tests.orchestration.samples import sample_results, write_sample_sweep

NASTY = "a\x1b[2J\x1b]0;owned\x07\u202e[/x] ![p](https://evil.example/p.png)[q](javascript:alert(1)) \x00`|<b>"
NOT_UTF_8 = "\udcff"


def test_a_terminal_shows_names_with_escaped_controls() -> None:
    out = io.StringIO()
    console = Terminal(file=out, width=400, force_terminal=True, color_system=None)
    table = Table("name", title=NASTY)
    table.add_row(NASTY)
    console.print(NASTY + NOT_UTF_8, highlight=False)
    console.print(table)
    shown = out.getvalue()
    assert "\x1b[2J" not in shown and "\x1b]" not in shown and "\x07" not in shown and "\u202e" not in shown
    assert shown.count("\\x1b[2J") == 3 and shown.count("[/x]") == 3 and "\\xff" in shown


def test_a_log_shows_names_with_escaped_controls() -> None:
    record = logging.LogRecord("sepscene", logging.WARNING, "", 0, "%s can't be read", (NASTY + NOT_UTF_8,), None)
    line = PlainFormatter("%(message)s").format(record)
    assert not re.search("[\x00-\x1f\x7f-\x9f\u202e\udcff]", line) and "\\x1b" in line


@pytest.mark.parametrize("text", ["plain", "雨 \u0301é", "two\nlines\tand a tab", "S2∨N τ −0.1 😀"])
def test_harmless_text_is_unchanged(text: str) -> None:
    assert printable(text) == text


@pytest.mark.parametrize(
    "text",
    [
        "[x](javascript:alert(1))",
        "![](https://evil.example/pixel.png)",
        "[0.1, 0.2](javascript:alert(1))",
        "[x]",  # a definition, with the colon that follows in the page
        "[x][y]",
        "<img src=x>",
        "`code`",
    ],
)
def test_markdown_from_outside_creates_no_links_images_or_html(text: str) -> None:
    unescaped = re.sub(r"\\.", "", str(cell(text)))
    assert not re.search(r"[\[\]<`]", unescaped)


def test_intervals_stay_readable_in_markdown() -> None:
    assert cell("0.389 [0.371, 0.407]") == "0.389 [0.371, 0.407]"


def test_a_command_cannot_close_its_code_block() -> None:
    text = str(fenced("sepscene ```` \n````\n![](https://evil.example)"))
    fence = text.splitlines()[0]
    assert fence == "`````" and text.count(fence) == 2


def test_no_part_of_a_report_is_active(tmp_path: Path) -> None:
    encoder = EncoderResult(
        name=NASTY,
        description=NASTY,
        metrics={"shallow_map": Metric(value=0.5)},
        classes=(ClassResult(name=NASTY, positives=3, shallow_ap=0.5),),
        map_2d=((0.0, 1.0, NASTY), (1.0, 0.0, NASTY)),
    )
    fields = {"encoders": (encoder,), "experiment": NASTY, "run_id": NASTY, "data": {NASTY: NASTY}}
    sample_results().changed(fields).save(tmp_path)
    html, markdown = write_report(tmp_path)
    for path in (html, markdown, *(tmp_path / "plots").glob("*.svg")):
        text = path.read_text(encoding="utf-8")
        assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e]", text), path
    for path in (tmp_path / "plots").glob("*.svg"):
        ElementTree.parse(path)
    assert not re.search(r"(?<!\\)\]\(", markdown.read_text())


def test_no_part_of_a_sweeps_report_is_active(tmp_path: Path) -> None:
    sweep = write_sample_sweep(tmp_path)
    trials = tuple(trial.changed({"reason": NASTY}) for trial in sweep.trials)
    sweep.changed({"command": f"sepscene\n```\n{NASTY}", "experiment": NASTY, "trials": trials}).save(tmp_path)
    markdown = write_sweep_report(tmp_path)[1].read_text()
    prose = re.sub(r"^(`{3,})\n.*?^\1$", "", markdown, flags=re.MULTILINE | re.DOTALL)
    assert not re.search(r"(?<!\\)\]\(", prose) and "\x1b" not in markdown


def test_a_script_that_is_injected_into_a_page_does_not_run(tmp_path: Path) -> None:
    """The page's policy allows only the digest of our own script, not of other script tags."""
    values = {"scenes": (), "queries": (), "seconds": "5", "report": ""}
    injected = Markup("<script>alert(1)</script>")
    page = render("listen.html.j2", tmp_path / "listen.html", script="listen.js", title=injected, **values).read_text()
    assert "<script>alert(1)</script>" in page
    (allowed,) = re.findall(r"script-src ([^;\"]+)", page)
    digest = base64.b64encode(hashlib.sha256(b"alert(1)").digest()).decode()
    assert allowed.startswith("'sha256-") and " " not in allowed and digest not in allowed


def test_a_plot_with_unusual_names_is_valid_xml(tmp_path: Path) -> None:
    name = printable(NASTY)
    plot = curves("c", name, "step", {name: ([0, 1], [1, 2])})
    plot.save(tmp_path / "c.svg", light_palette())
    ElementTree.parse(tmp_path / "c.svg")
