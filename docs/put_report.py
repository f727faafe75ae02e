"""Insert the report of a run, a sweep or a reproduction into a page that is partly written by hand.

    python docs/put_report.py docs/results.md runs/tables

The report is inserted between `<!-- begin NAME -->` and `<!-- end NAME -->`, where NAME is the folder's name, which is
added to its headings; the rest of the page stays the same.
"""

import re
import sys
from pathlib import Path

from sepscene.models.config import SepsceneError
from sepscene.models.files import write_atomically


def put_into(page: Path, name: str, report: Path) -> None:
    """Replace the text between the markers of `name` by a report, or append markers and report to the page.

    The report's headings move down one level, since the page has its own title, and end with `name`, since a page can
    have several reports.

    Raises:
        SepsceneError: the page does not exist, or has only one of the two markers, or one of them twice.
    """
    if not page.exists():
        raise SepsceneError(f"{page} does not exist: create it first, with a title and your own text")
    text = page.read_text()
    begin = f"<!-- begin {name} -->"
    end = f"<!-- end {name} -->"
    if (begin in text) != (end in text) or text.count(begin) > 1:
        raise SepsceneError(f"{page} must have {begin!r} and {end!r} once each, or neither")
    body = f"{begin}\n{_as_part(report.read_text(), name).strip()}\n{end}"
    if begin in text:
        before, rest = text.split(begin)
        text = before + body + rest.split(end, 1)[1]
    else:
        text = f"{text.rstrip()}\n\n{body}\n"
    write_atomically(page, text.encode())


def _as_part(markdown: str, name: str) -> str:
    """Move every heading down one level and add the name to it, except for lines inside code blocks."""
    lines = []
    code = False
    for line in markdown.splitlines():
        code ^= line.startswith("```")
        lines.append(line if code else re.sub(r"^(#+ .+)$", rf"#\1 ({name})", line))
    return "\n".join(lines)


if __name__ == "__main__":
    put_into(Path(sys.argv[1]), Path(sys.argv[2]).resolve().name, Path(sys.argv[2]) / "report.md")
