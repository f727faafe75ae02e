"""Style and size of the reports' pictures, and their conversion to SVG in the colours of the page.

A picture must be legible on light and dark screens and in black-and-white print. Matplotlib draws with placeholder
colours, which `picture` replaces by CSS variables, so the style sheet of the page defines the colours.
"""

import io
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
from markupsafe import Markup, escape
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas

from sepscene.orchestration.records.files import write_text_atomically
from sepscene.orchestration.terminal import printable

INK = "#010203"
SOFT = "#020304"
LINE = "#030405"
PAPER = "#040506"
SERIES = tuple(f"#0a0b{index:02x}" for index in range(10, 20))
DASHES: tuple = ("-", (0, (5, 2)), (0, (1.5, 1.5)), (0, (7, 2, 1.5, 2)), (0, (3, 1, 1, 1, 1, 1)))
MARKERS = "osD^vPX<>*"

_VARIABLES = {INK: "var(--ink)", SOFT: "var(--soft)", LINE: "var(--line)", PAPER: "var(--paper)"} | {
    colour: f"var(--s{index})" for index, colour in enumerate(SERIES, start=1)
}
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "sepscene",
    "text.parse_math": False,
    "font.size": 9.0,
    "text.color": INK,
    "axes.labelcolor": SOFT,
    "axes.edgecolor": LINE,
    "axes.titlesize": 9.5,
    "axes.titlecolor": INK,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": LINE,
    "grid.linewidth": 0.6,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "lines.linewidth": 1.6,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
}


@dataclass(frozen=True)
class Picture:
    """An inline SVG, and its text alternative for screen readers."""

    name: str
    svg: Markup
    alt: str

    def save(self, path: Path, palette: Mapping[str, str]) -> None:
        """Write the picture to an SVG file that does not need the page.

        Args:
            palette: CSS variable -> colour, e.g. {"--ink": "#1d1f22"}.
        """
        text = re.sub(r"var\((--\w+)\)", lambda found: palette[found[1]], str(self.svg))
        back = f"background: {palette['--paper']}; font-family: sans-serif; --width:"
        write_text_atomically(path, text.replace("--width:", back, 1))


styled = matplotlib.rc_context(_STYLE)
"""Decorator of drawing functions, which sets the style of all pictures."""


def canvas(width: float, height: float) -> tuple[Canvas, Axes]:
    """An empty picture of this size in inches, and its axes."""
    drawing = Canvas(figsize=(width, height), layout="constrained")
    return drawing, drawing.add_subplot()


def picture(drawing: Canvas, name: str, alt: str) -> Picture:
    """The canvas as SVG that can be part of a page: without a fixed size, with unique IDs and the page's colours."""
    buffer = io.StringIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font", category=UserWarning)
        drawing.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = printable(buffer.getvalue())
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    svg = re.sub(r'(id="|href="#|url\(#)', rf"\g<1>{name}-", svg)
    svg = re.sub(r'<style type="text/css">.*?</style>', "", svg)  # it would apply to the whole page
    svg = re.sub(r"font-family: [^;\"]*", "font-family: inherit", svg)
    for colour, variable in _VARIABLES.items():
        svg = svg.replace(colour, variable)
    width = float(re.search(r'width="([\d.]+)pt"', svg)[1])  # type: ignore[index]  # Matplotlib always writes a width
    svg = re.sub(r' (?:width|height)="[\d.]+pt"', "", svg, count=2)
    head = f'<svg role="img" aria-label="{escape(printable(alt))}" style="--width: {width * 1.5:.0f}px"'
    return Picture(name, Markup(svg.replace("<svg", head, 1)), alt)
