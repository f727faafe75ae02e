"""The log's index has a line for each entry, in the same order, with a link to its heading."""

import re
from pathlib import Path

DOCS = Path(__file__).resolve().parents[2] / "docs"


def test_the_index_lists_every_entry() -> None:
    expected = [
        f"- [{heading}](log/{page.name}#{anchor(heading)})"
        for page in sorted((DOCS / "log").glob("*.md"), reverse=True)
        for heading in re.findall(r"^## (.+)$", page.read_text(), re.MULTILINE)
    ]
    listed = [line for line in (DOCS / "log.md").read_text().splitlines() if line.startswith("- [")]
    assert listed == expected


def anchor(heading: str) -> str:
    """GitHub's anchor of a heading: lower case, without punctuation, a hyphen for each space."""
    return re.sub(r"\s", "-", re.sub(r"[^\w\s-]", "", heading.lower()))
