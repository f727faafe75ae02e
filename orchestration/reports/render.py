"""Renders the templates of the reports, and formats their numbers and text."""

import base64
import hashlib
import re
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from math import isfinite
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from rich import filesize

from sepscene.orchestration.formatting import duration
from sepscene.orchestration.records.files import write_text_atomically
from sepscene.orchestration.records.results import Metric
from sepscene.orchestration.records.run_folder import RunFolder
from sepscene.orchestration.records.sweep_folder import SweepFolder
from sepscene.orchestration.terminal import printable

_TEMPLATES = Path(__file__).parent / "templates"
METRIC_NAMES = {
    "shallow_map": "Shallow classifier mAP",
    "linear_map": "Linear probe mAP",
    "knn_map": "k-NN mAP",
    "validation_knn_map": "Validation k-NN mAP",
    "qbe_map": "Query by example mAP",
    "accuracy": "Accuracy",
    "d_prime": "d′",
}


def render(template: str, path: Path, script: str | None = None, **values: Any) -> Path:
    """Render a template and write it to `path` atomically.

    Args:
        template: file name of the template. Strings in its values are escaped for HTML or Markdown.
        path: the page.
        script: file name of the page's script. The content security policy of the page only allows the digest of this
            script, so an injected script does not run.
        values: of the template.
    """
    if path.suffix == ".html":
        code = _HTML.get_template(script).render() if script else ""
        digest = base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()
        policy = Markup(f"'sha256-{digest}'" if script else "'none'")
        text = _HTML.get_template(template).render(script=Markup(code), script_policy=policy, **values)
    else:
        text = _MARKDOWN.get_template(template).render(**values)
        text = re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"
    write_text_atomically(path, text)
    return path


def render_report(name: str, folder: RunFolder | SweepFolder, **values: Any) -> tuple[Path, Path]:
    """Write report.html and report.md of a folder from the two templates with this name."""
    return (
        render(f"{name}.html.j2", folder.report_html, **values),
        render(f"{name}.md.j2", folder.report_md, **values),
    )


def report_of(folder: Path, run_dir: str) -> str:
    """The link from a page in `folder` to the report of one of its runs; empty if the run has none."""
    report = RunFolder(Path(run_dir)).report_html
    return report.as_posix() if run_dir and (folder / report).exists() else ""


def light_palette() -> dict[str, str]:
    """The style sheet's colours on a light screen, by CSS variable, for pictures outside of the page."""
    root = (_TEMPLATES / "style.css").read_text().split("}", 1)[0]
    return dict(re.findall(r"(--\w+): (#\w+);", root))


def metric_name(metric: str) -> str:
    """A metric's name in reports."""
    return METRIC_NAMES.get(metric, metric)


def number(value: float | None, digits: int = 3) -> str:
    """Such as "0.412"; a dash for None."""
    if value is None:
        return "–"
    return f"{value:.{digits}f}".replace("-", "−") if isfinite(value) else "not a number"


def interval(metric: Metric | None, digits: int = 3) -> str:
    """Such as "[0.396, 0.428]"; empty if the metric has no interval."""
    if metric is None or metric.low is None or metric.high is None:
        return ""
    return f"[{number(metric.low, digits)}, {number(metric.high, digits)}]"


def with_interval(metric: Metric | None, digits: int = 3) -> str:
    """Such as "0.412 [0.396, 0.428]"."""
    return f"{number(metric.value if metric else None, digits)} {interval(metric, digits)}".strip()


def percent(share: float | None) -> str:
    """Such as "83 %"; a dash for None."""
    return "–" if share is None else f"{100 * share:.0f}\u00a0%"


def moment(started: str) -> str:
    """Such as "22 November 2026, 17:02 UTC", from ISO 8601; other text is not changed."""
    try:
        when = datetime.fromisoformat(started)
    except ValueError:
        return started
    when = when.astimezone(UTC) if when.tzinfo else when
    return f"{when.day} {when:%B %Y, %H:%M} UTC"


def sentence(text: str) -> str:
    """The text with a capital first letter, unless it starts with a symbol of one letter."""
    return text[:1].upper() + text[1:] if text[1:2].isalpha() else text


_INTERVAL = r"\[[−\d.]+, [−\d.]+\](?![(\[:])"
_MARKDOWN_SIGNS = re.compile(rf"({_INTERVAL})|([\\`*\[\]|])")


def cell(value: object) -> Markup:
    """Text escaped for Markdown, also in a table: without links, pictures, pipes, line breaks or HTML."""
    text = " ".join(printable(str(value)).split())
    text = text.replace("&", "&amp;").replace("<", "&lt;")
    return Markup(_MARKDOWN_SIGNS.sub(lambda found: found[1] or f"\\{found[2]}", text))


def markdown_row(values: Iterable[object]) -> Markup:
    """A row of a table: "| a | b |"."""
    return Markup(f"| {' | '.join(cell(value) for value in values)} |")


def fenced(text: str) -> Markup:
    """A block of code, whose fence is longer than any fence in the text."""
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", text)), default=0))
    return Markup(f"{fence}\n{printable(text)}\n{fence}")


def _environment(escape: Callable[[str], str], autoescape: bool) -> Environment:
    """The environment of one kind of page; `escape` is applied to strings that are not markup."""

    def finalize(value: Any) -> Any:
        return escape(value) if isinstance(value, str) and not isinstance(value, Markup) else value

    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=autoescape,
        finalize=finalize,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    filters = (metric_name, number, interval, with_interval, duration, percent, moment, sentence, fenced)
    environment.filters |= {each.__name__: each for each in filters}
    environment.filters["row"] = markdown_row
    environment.filters["size"] = filesize.decimal
    return environment


_HTML = _environment(printable, autoescape=True)
_MARKDOWN = _environment(cell, autoescape=False)
