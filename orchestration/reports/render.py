"""From a template and values to a page: one environment, one way to write numbers, one way to write files."""

import base64
import hashlib
import os
import re
from collections.abc import Iterable
from datetime import UTC, datetime
from math import isfinite
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from sepscene.orchestration.records.results import Figure

_TEMPLATES = Path(__file__).parent / "templates"
FIGURE_NAMES = {
    "shallow_map": "Shallow classifier mAP",
    "linear_map": "Linear probe mAP",
    "knn_map": "k-NN mAP",
    "validation_knn_map": "Validation k-NN mAP",
    "qbe_map": "Query by example mAP",
    "lwlrap": "lwlrap",
    "accuracy": "Accuracy",
    "d_prime": "d′",
}


def render(template: str, path: Path, **values: Any) -> Path:
    """Fill a template of orchestration/templates and write it to `path`, whole or not at all."""
    text = _ENVIRONMENT.get_template(template).render(**values)
    if path.suffix == ".html":
        text = text.replace("SCRIPT-HASHES", _script_hashes(text))
    else:
        text = re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.write_text(text, encoding="utf-8")
    draft.replace(path)
    return path


def light_palette() -> dict[str, str]:
    """The style sheet's colours on a light screen, by variable: for pictures that leave the page."""
    root = (_TEMPLATES / "style.css").read_text().split("}", 1)[0]
    return dict(re.findall(r"(--\w+): (#\w+);", root))


def _script_hashes(html: str) -> str:
    """The page's own scripts by their digests: its content security policy lets no other script run."""
    scripts = re.findall(r"<script>(.*?)</script>", html, flags=re.DOTALL)
    digests = (base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts)
    return " ".join(f"'sha256-{digest}'" for digest in digests) or "'none'"


def number(value: float | None, digits: int = 3) -> str:
    """0.412; a dash where nothing was measured."""
    if value is None:
        return "–"
    return f"{value:.{digits}f}".replace("-", "−") if isfinite(value) else "not a number"


def interval(figure: Figure | None, digits: int = 3) -> str:
    """[0.396, 0.428]; empty where there is none."""
    if figure is None or figure.low is None or figure.high is None:
        return ""
    return f"[{number(figure.low, digits)}, {number(figure.high, digits)}]"


def with_interval(figure: Figure | None, digits: int = 3) -> str:
    """0.412 [0.396, 0.428]."""
    return f"{number(figure.value if figure else None, digits)} {interval(figure, digits)}".strip()


def duration(seconds: float) -> str:
    """12.3 s, 4 min 5 s, 3 h 20 min."""
    if seconds < 100:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"


def size(count: float) -> str:
    """12.3 MB, in powers of ten."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if abs(count) < 1000 or unit == "TB":
            break
        count /= 1000
    return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"


def percent(share: float | None) -> str:
    """83 %; a dash where nothing was measured."""
    return "–" if share is None else f"{100 * share:.0f}\u00a0%"


def moment(started: str) -> str:
    """22 November 2026, 17:02 UTC, from ISO 8601; other text is left as it is."""
    try:
        when = datetime.fromisoformat(started)
    except ValueError:
        return started
    when = when.astimezone(UTC) if when.tzinfo else when
    return f"{when.day} {when:%B %Y, %H:%M} UTC"


def sentence(text: str) -> str:
    """The text with a capital at its start, unless it starts with a symbol of one letter."""
    return text[:1].upper() + text[1:] if text[1:2].isalpha() else text


def cell(value: object) -> str:
    """Text that is safe inside a Markdown table: no pipes, no line ends, no HTML."""
    text = " ".join(str(value).split())
    return text.replace("&", "&amp;").replace("<", "&lt;").replace("|", "\\|")


def markdown_row(values: Iterable[object]) -> str:
    """| a | b |"""
    return f"| {' | '.join(cell(value) for value in values)} |"


def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=lambda name: name is not None and ".html" in name,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    filters = (number, interval, with_interval, duration, size, percent, moment, sentence, cell)
    environment.filters |= {each.__name__: each for each in filters}
    environment.filters["row"] = markdown_row
    environment.globals["figure_names"] = FIGURE_NAMES
    return environment


_ENVIRONMENT = _environment()
