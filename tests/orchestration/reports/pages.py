"""Parses a report: its tables, its links, and its attributes for screen readers."""

import re
from html.parser import HTMLParser
from itertools import groupby


class Tables(HTMLParser):
    """Every table of a page as rows of cell texts; also all ids, links and images."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.headers_without_scope = 0
        self.svgs_without_words = 0
        self._in_cell = False
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = dict(attrs)
        self.ids += [value for key, value in attrs if key == "id" and value]
        if tag == "a":
            self.links.append(attributes["href"] or "")
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self._in_cell = True
            self.rows[-1].append("")
            self.headers_without_scope += tag == "th" and "scope" not in attributes
        if tag == "svg":
            self.svgs_without_words += not (attributes.get("role") == "img" and attributes.get("aria-label"))

    def handle_endtag(self, tag: str) -> None:
        self._in_cell = self._in_cell and tag not in ("td", "th")

    def handle_data(self, data: str) -> None:
        if self._in_cell:
            self.rows[-1][-1] += data


def broken_markdown_tables(text: str) -> list[str]:
    """Lines of Markdown tables that have more or fewer cells than the first line, or first lines without a rule."""
    broken = []
    for inside, group in groupby(text.splitlines(), lambda line: line.startswith("|")):
        if not inside:
            continue
        lines = list(group)
        cells = [len(re.findall(r"(?<!\\)\|", line)) for line in lines]
        broken += [line for line, count in zip(lines, cells, strict=True) if count != cells[0]]
        if len(lines) < 2 or not re.fullmatch(r"\|(:?-+:?\|)+", lines[1]):
            broken.append(lines[0])
    return broken
