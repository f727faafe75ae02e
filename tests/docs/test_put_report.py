"""Inserting a report between its markers keeps the rest of the page."""

import runpy
from pathlib import Path

import pytest

from sepscene.models.config import SepsceneError

put_into = runpy.run_path(str(Path(__file__).resolve().parents[2] / "docs" / "put_report.py"))["put_into"]


def test_a_report_is_inserted_between_its_markers_and_replaced(tmp_path: Path) -> None:
    page = tmp_path / "results.md"
    report = tmp_path / "report.md"
    page.write_text("# Results\n\nOurs.\n\n<!-- begin a -->\nold\n<!-- end a -->\n\nAfter.\n")
    report.write_text("# Title\n\n```\n# no heading\n```\n\n## Part\n")
    put_into(page, "a", report)
    wanted = "<!-- begin a -->\n## Title (a)\n\n```\n# no heading\n```\n\n### Part (a)\n<!-- end a -->"
    assert page.read_text() == f"# Results\n\nOurs.\n\n{wanted}\n\nAfter.\n"
    put_into(page, "a", report)
    put_into(page, "b", report)
    text = page.read_text()
    assert text.count("## Title (a)\n") == 1
    assert text.count("## Title (b)\n") == 1
    assert text.endswith("<!-- end b -->\n")
    assert text.index("After.") < text.index("<!-- begin b -->")


def test_a_page_with_only_one_marker_is_not_changed(tmp_path: Path) -> None:
    page = tmp_path / "results.md"
    report = tmp_path / "report.md"
    page.write_text("# Results\n<!-- begin a -->\n")
    report.write_text("# Title\n")
    with pytest.raises(SepsceneError, match="once each, or neither"):
        put_into(page, "a", report)
    assert page.read_text() == "# Results\n<!-- begin a -->\n"
    with pytest.raises(SepsceneError, match="does not exist"):
        put_into(tmp_path / "none.md", "a", report)
