"""The pictures of the reports: inline SVG whose colours are CSS variables.

One picture must be legible on light and dark screens and in black-and-white print. Matplotlib draws with
stand-in colours; `_picture` replaces them by the page's variables, so the style sheet decides how they look.
Lines differ by dash and points by marker as well as by colour. Text stays text that can be searched and read.
"""

import io
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any, Literal

import matplotlib
import numpy as np
from markupsafe import Markup, escape
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure as Canvas
from matplotlib.lines import Line2D

from sepscene.orchestration.records.files import write_whole
from sepscene.orchestration.records.results import Metric, ProcessorResult
from sepscene.orchestration.terminal import printable

INK, SOFT, LINE, PAPER = "#010203", "#020304", "#030405", "#040506"
SERIES = tuple(f"#0a0b{index:02x}" for index in range(10, 20))
DASHES: tuple = ("-", (0, (5, 2)), (0, (1.5, 1.5)), (0, (7, 2, 1.5, 2)), (0, (3, 1, 1, 1, 1, 1)))
MARKERS = "osD^vPX<>*"
MOST_POINTS = 2000

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
    """An inline SVG, and what it says in words for those who cannot see it."""

    name: str
    svg: Markup
    alt: str

    def save(self, folder: Path, palette: Mapping[str, str]) -> Path:
        """Write FOLDER/<name>.svg, a file that stands alone.

        Args:
            palette: the page's variables -> colours, e.g. {"--ink": "#1d1f22"}.
        """
        text = re.sub(r"var\((--\w+)\)", lambda found: palette[found[1]], str(self.svg))
        back = f"background: {palette['--paper']}; font-family: sans-serif; --width:"
        path = folder / f"{self.name}.svg"
        write_whole(path, text.replace("--width:", back, 1))
        return path


Curve = tuple[Sequence[float], Sequence[float]]


def curves(
    name: str,
    title: str,
    x_label: str,
    series: Mapping[str, Curve],
    y_range: tuple[float, float] | None = None,
) -> Picture:
    """Lines over steps, one for each of `series`. Of a long series the line is the mean of some steps, which is said,
    and single steps are pale.

    `y_range` puts small multiples on one scale.
    """
    with matplotlib.rc_context(_STYLE):
        columns = 1 + (len(series) > 4)
        canvas, axes = _canvas(3.7, 2.5 + 0.16 * -(-len(series) // columns))
        said, averaged = [], 1
        for index, (label, (steps, values)) in enumerate(series.items()):
            x, y = np.asarray(steps, dtype=float), np.asarray(values, dtype=float)
            look = {"color": SERIES[index % len(SERIES)], "linestyle": DASHES[index % len(DASHES)]}
            if len(y) > 60:
                axes.plot(*_thin(x, y, 400), color=look["color"], linewidth=0.7, alpha=0.35)
                averaged = max(averaged, round(len(y) / 25))
                x, y = _thin(x, y, 25)
            axes.plot(x, y, label=brief(label), **look)
            start = f"{_short(values[0])} at {x_label} {_short(steps[0])}"
            said.append(f"{label} goes from {start} to {_short(values[-1])} at {_short(steps[-1])}")
        axes.set_title(title)
        axes.set_xlabel(x_label if averaged == 1 else f"{x_label} (line: mean of {averaged}, pale: each)")
        axes.margins(x=0.02)
        if y_range:
            axes.set_ylim(y_range)
        canvas.legend(loc="outside lower left", ncols=columns, columnspacing=1)
        return _picture(canvas, name, f"{title}. {'; '.join(said)}.")


def intervals(name: str, title: str, metrics: Mapping[str, Metric], reference: float | None = None) -> Picture:
    """One row for each named metric: a point with its interval; `reference` is a dashed upright line."""
    with matplotlib.rc_context(_STYLE):
        canvas, axes = _canvas(4.4, 0.75 + 0.33 * len(metrics))
        rows = list(metrics.items())[::-1]
        for place, (_, metric) in enumerate(rows):
            colour = SERIES[(len(rows) - 1 - place) % len(SERIES)]
            if metric.low is not None and metric.high is not None:
                axes.plot(
                    [metric.low, metric.high],
                    [place, place],
                    color=colour,
                    linewidth=2.2,
                    solid_capstyle="butt",
                )
            marker = MARKERS[(len(rows) - 1 - place) % len(MARKERS)]
            axes.plot([metric.value], [place], marker, color=colour, markersize=6)
        if reference is not None:
            axes.axvline(reference, color=SOFT, linestyle=DASHES[1], linewidth=1)
        axes.set_yticks(range(len(rows)), [brief(label) for label, _ in rows], color=INK)
        axes.set_ylim(-0.6, len(rows) - 0.4)
        axes.grid(axis="y", visible=False)
        axes.spines["left"].set_visible(False)
        axes.set_xlabel(title)
        said = "; ".join(f"{label} {in_words(metric)}" for label, metric in metrics.items())
        return _picture(canvas, name, f"{title}: {said}.")


def class_gains(name: str, title: str, classes: Sequence[str], columns: Mapping[str, Sequence[float]]) -> Picture:
    """Average precision of each class (rows) for each encoder (markers), joined by a line."""
    with matplotlib.rc_context(_STYLE):
        canvas, axes = _canvas(4.4, 0.95 + 0.23 * len(classes))
        places = np.arange(len(classes))[::-1]
        table = np.array(list(columns.values()), dtype=float)
        axes.hlines(places, table.min(axis=0), table.max(axis=0), color=SOFT, linewidth=1)
        for index, (label, values) in enumerate(columns.items()):
            axes.plot(
                values, places, MARKERS[index], color=SERIES[index], label=brief(label), linestyle="", markersize=5
            )
        axes.set_yticks(places, [brief(label, 34) for label in classes], color=INK)
        axes.set_ylim(-0.7, len(classes) - 0.3)
        axes.set_xlim(-0.02, 1.02)
        axes.grid(axis="y", visible=False)
        axes.set_xlabel(title)
        canvas.legend(loc="outside upper left", ncols=len(columns), handletextpad=0.1)
        first, *others = columns
        wins = [sum(a > b for a, b in zip(columns[first], columns[other], strict=True)) for other in others]
        said = "; ".join(
            f"{first} is above {other} in {win} of {len(classes)}" for other, win in zip(others, wins, strict=True)
        )
        return _picture(
            canvas,
            name,
            f"{title} of {len(classes)} classes. {said or first}. The metrics are in the table below.",
        )


def scatter(name: str, title: str, points: Sequence[tuple[float, float, str]]) -> Picture:
    """Points in the plane by label. The ten largest labels get a colour and a marker, all others are grey.

    At most `MOST_POINTS` are drawn, taken evenly from the list.
    """
    drawn = list(points)[:: -(-len(points) // MOST_POINTS)]
    counts: dict[str, int] = {}
    for *_, label in drawn:
        counts[label] = counts.get(label, 0) + 1
    shown = sorted(sorted(counts, key=lambda label: (-counts[label], label))[: len(SERIES)])
    with matplotlib.rc_context(_STYLE):
        canvas, axes = _canvas(3.7, 3.7 + 0.18 * -(-(len(shown) + 1) // 2))
        groups = [(label, SERIES[i], MARKERS[i], 18) for i, label in enumerate(shown)]
        others = np.array([(x, y) for x, y, label in drawn if label not in shown])
        if len(others):
            axes.scatter(
                others[:, 0],
                others[:, 1],
                s=6,
                c=SOFT,
                alpha=0.8,
                linewidths=0,
                label=f"{len(counts) - len(shown)} other classes",
            )
        for label, colour, marker, size in groups:
            place = np.array([(x, y) for x, y, other in drawn if other == label])
            axes.scatter(
                place[:, 0],
                place[:, 1],
                s=size,
                c=colour,
                marker=marker,
                linewidths=0,
                alpha=0.9,
                label=brief(label),
            )
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_visible(True)
        axes.set_aspect("equal", adjustable="datalim")
        handles, labels = axes.get_legend_handles_labels()
        if len(others):  # drawn first, named last
            handles, labels = handles[1:] + handles[:1], labels[1:] + labels[:1]
        canvas.legend(handles, labels, loc="outside lower left", ncols=2, handletextpad=0.2, columnspacing=1)
        omitted = f"; {len(drawn)} of {len(points)} drawn" if len(drawn) < len(points) else ""
        return _picture(canvas, name, f"{title}: {len(points)} clips of {len(counts)} classes{omitted}.")


def ladder(name: str, processors: Sequence[ProcessorResult]) -> Picture:
    """SI-SDR improvement of each processor, in the order of the ladder's steps."""
    known = [item for item in sorted(processors, key=lambda item: item.step) if item.si_sdr_improvement_db]
    metrics = [item.si_sdr_improvement_db for item in known if item.si_sdr_improvement_db]
    with matplotlib.rc_context(_STYLE):
        canvas, axes = _canvas(3.7, 2.5)
        for place, metric in enumerate(metrics):
            if metric.low is not None and metric.high is not None:
                axes.plot([place, place], [metric.low, metric.high], color=SERIES[0], linewidth=2.2)
        axes.plot(
            range(len(metrics)),
            [metric.value for metric in metrics],
            "o",
            color=SERIES[0],
            linestyle=DASHES[1],
            linewidth=1,
        )
        axes.axhline(0, color=SOFT, linewidth=0.8)
        axes.set_xticks(range(len(known)), [f"{item.name}\n{item.step:,}" for item in known])
        axes.margins(x=0.15, y=0.15)
        axes.set_title("SI-SDR improvement, dB")
        axes.set_xlabel("processor and its training steps")
        said = "; ".join(f"{item.name} {in_words(metric)}" for item, metric in zip(known, metrics, strict=True))
        return _picture(canvas, name, f"SI-SDR improvement in dB by processor: {said}.")


@dataclass(frozen=True)
class TrialPath:
    """One trial's way through the parallel coordinates."""

    places: tuple[str, ...]
    metric: float | None
    kind: Literal["best", "finished", "stopped early", "failed", "unfinished"]


_LOOK: dict[str, dict[str, Any]] = {
    "failed": {"color": SERIES[5], "linestyle": DASHES[2], "linewidth": 1.2},
    "unfinished": {"color": SERIES[7], "linestyle": DASHES[2], "linewidth": 1},
    "stopped early": {"color": SERIES[7], "linestyle": DASHES[1], "linewidth": 1},
    "finished": {"color": SERIES[0], "linewidth": 1, "alpha": 0.75},
    "best": {"color": SERIES[1], "linewidth": 3},
}


def parallel(name: str, axes_values: Mapping[str, Sequence[str]], title: str, paths: Sequence[TrialPath]) -> Picture:
    """An upright axis for each swept field, a last one for the metric, and a line for each trial."""
    with matplotlib.rc_context(_STYLE):
        canvas, axes = _canvas(1.7 * (len(axes_values) + 1), 3.4)
        height = {field: _even(values) for field, values in axes_values.items()}
        measured = [path.metric for path in paths if path.metric is not None]
        low, high = (min(measured), max(measured)) if measured else (0.0, 1.0)
        span = high - low or 1.0
        for index, path in enumerate(sorted(paths, key=lambda path: list(_LOOK).index(path.kind))):
            aside = 0.03 * ((index * 7) % 5 - 2) / 2  # so that trials with the same setting stay apart
            y = [height[field][place] + aside for field, place in zip(axes_values, path.places, strict=True)]
            if path.metric is not None:
                y.append((path.metric - low) / span)
            axes.plot(range(len(y)), y, **_LOOK[path.kind])
        for x, field in enumerate(axes_values):
            axes.axvline(x, color=SOFT, linewidth=0.8)
            for value, y_value in height[field].items():
                _tag(axes, x, y_value, value)
        axes.axvline(len(axes_values), color=SOFT, linewidth=0.8)
        for share in (0, 0.5, 1) if measured else ():
            _tag(axes, len(axes_values), share, f"{low + share * span:.3f}")
        axes.set_xticks(range(len(axes_values) + 1), [*axes_values, title], color=INK)
        axes.set(yticks=[], ylim=(-0.12, 1.12), xlim=(-0.35, len(axes_values) + 0.35))
        axes.grid(visible=False)
        axes.spines[:].set_visible(False)
        kinds = [kind for kind in _LOOK if any(path.kind == kind for path in paths)][::-1]
        handles = [Line2D([], [], **_LOOK[kind]) for kind in kinds]
        canvas.legend(handles, kinds, loc="outside upper left", ncols=len(kinds))
        said = ", ".join(f"{field} ({', '.join(values)})" for field, values in axes_values.items())
        return _picture(canvas, name, f"{len(paths)} trials over {said}; {title} from {low:.3f} to {high:.3f}.")


def _even(values: Sequence[str]) -> dict[str, float]:
    return {value: index / (len(values) - 1) if len(values) > 1 else 0.5 for index, value in enumerate(values)}


def _tag(axes: Axes, x: float, y: float, text: str) -> None:
    back = {"facecolor": PAPER, "edgecolor": "none", "alpha": 0.85, "pad": 1.2}
    axes.text(x, y, text, ha="center", va="center", bbox=back)


def effect(name: str, title: str, y_label: str, groups: Mapping[str, Sequence[float]]) -> Picture:
    """One swept field: every trial's metric at each of its values, and a dashed line through the means."""
    with matplotlib.rc_context(_STYLE):
        canvas, axes = _canvas(3.7, 2.5)
        for place, values in enumerate(groups.values()):
            aside = np.linspace(-0.12, 0.12, len(values)) if len(values) > 1 else np.zeros(1)
            axes.plot(place + aside, values, "o", color=SERIES[0], markersize=4, alpha=0.6)
        means = [float(np.mean(values)) for values in groups.values()]
        axes.plot(range(len(means)), means, "D", color=SERIES[1], linestyle=DASHES[1], linewidth=1.2)
        axes.set_xticks(range(len(groups)), list(groups))
        if sum(map(len, groups)) > 36:
            axes.tick_params(axis="x", rotation=40)
        axes.margins(x=0.1)
        axes.set_title(title)
        axes.set_ylabel(y_label)
        said = "; ".join(f"{value}: mean {mean:.3f}" for value, mean in zip(groups, means, strict=True))
        return _picture(canvas, name, f"{y_label} by {title}. {said}.")


def beside(name: str, title: str, rows: Sequence[tuple[str, float, Metric | None]]) -> Picture:
    """The paper's number (hollow diamond) and ours with its interval (dot) for each row of a table."""
    with matplotlib.rc_context(_STYLE):
        canvas, axes = _canvas(4.6, 0.95 + 0.25 * len(rows))
        for place, (_, paper, ours) in enumerate(rows):
            axes.plot([paper], [place], "D", color=SERIES[1], fillstyle="none", markersize=6)
            if ours and ours.low is not None and ours.high is not None:
                axes.plot([ours.low, ours.high], [place, place], color=SERIES[0], linewidth=2.2)
            if ours:
                axes.plot([ours.value], [place], "o", color=SERIES[0], markersize=5)
        axes.set_yticks(range(len(rows)), [label for label, *_ in rows], color=INK)
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.grid(axis="y", visible=False)
        axes.set_xlabel(title)
        ink = Line2D([], [], color=SERIES[0], marker="o", linewidth=2.2)
        hollow = Line2D([], [], color=SERIES[1], marker="D", fillstyle="none", linestyle="")
        canvas.legend([ink, hollow], ["ours, with its interval", "paper"], loc="outside upper left", ncols=2)
        said = "; ".join(
            f"{label}: paper {paper:.3f}, {'ours ' + in_words(ours) if ours else 'not run'}"
            for label, paper, ours in rows
        )
        return _picture(canvas, name, f"{title}. {said}.")


def brief(label: str, most: int = 26) -> str:
    """A label that fits beside a picture: cut at `most` characters."""
    return label if len(label) <= most else label[: most - 1].rstrip() + "…"


def in_words(metric: Metric) -> str:
    """A metric as it is read aloud: '0.412, interval 0.396 to 0.428'."""
    if metric.low is None or metric.high is None:
        return _short(metric.value)
    return f"{_short(metric.value)}, interval {_short(metric.low)} to {_short(metric.high)}"


def _short(value: float) -> str:
    return f"{value:,.4g}".replace("-", "−") if isfinite(value) else "not a number"


def _thin(x: np.ndarray, y: np.ndarray, most: int) -> tuple[np.ndarray, np.ndarray]:
    """At most `most` points, each the mean of a run of neighbours."""
    if len(x) <= most:
        return x, y
    edges = np.linspace(0, len(x), most + 1).astype(int)[:-1]
    sizes = np.diff(np.append(edges, len(x)))
    return np.add.reduceat(x, edges) / sizes, np.add.reduceat(y, edges) / sizes


def _canvas(width: float, height: float) -> tuple[Canvas, Axes]:
    canvas = Canvas(figsize=(width, height), layout="constrained")
    FigureCanvasSVG(canvas)
    return canvas, canvas.add_subplot()


def _picture(canvas: Canvas, name: str, alt: str) -> Picture:
    """The canvas as SVG that can stand in a page: no fixed size, its own names, the page's colours."""
    buffer = io.StringIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font", category=UserWarning)
        canvas.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = printable(buffer.getvalue())
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    svg = re.sub(r'(id="|href="#|url\(#)', rf"\g<1>{name}-", svg)
    svg = re.sub(r'<style type="text/css">.*?</style>', "", svg)  # would apply to the whole page
    svg = re.sub(r"font-family: [^;\"]*", "font-family: inherit", svg)
    for colour, variable in _VARIABLES.items():
        svg = svg.replace(colour, variable)
    width = float(re.search(r'width="([\d.]+)pt"', svg)[1])  # type: ignore[index]  # Matplotlib always writes it
    svg = re.sub(r' (?:width|height)="[\d.]+pt"', "", svg, count=2)
    head = f'<svg role="img" aria-label="{escape(printable(alt))}" style="--width: {width * 1.5:.0f}px"'
    return Picture(name, Markup(svg.replace("<svg", head, 1)), alt)
