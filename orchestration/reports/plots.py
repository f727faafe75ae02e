"""The pictures of the reports: inline SVG whose colours are CSS variables.

Lines also differ by dash pattern, and points by marker. Text remains text, so it can be searched.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Any, Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from sepscene.orchestration.records.results import Metric, ProcessorResult
from sepscene.orchestration.reports.drawing import (
    DASHES,
    INK,
    MARKERS,
    PAPER,
    SERIES,
    SOFT,
    Picture,
    canvas,
    picture,
    styled,
)
from sepscene.orchestration.reports.paper_tables import Table

MAX_POINTS = 2000  # of a curve; a longer one is thinned out, because a page could not show more

Curve = tuple[Sequence[float], Sequence[float]]


@styled
def curves(
    name: str,
    title: str,
    x_label: str,
    series: Mapping[str, Curve],
    y_range: tuple[float, float] | None = None,
) -> Picture:
    """One line over steps for each of `series`.

    For a long series, the line is the mean over several steps, and a pale line shows the single steps.

    Args:
        y_range: the same scale for small multiples.
    """
    columns = 2 if len(series) > 4 else 1
    drawing, axes = canvas(3.7, 2.5 + 0.16 * -(-len(series) // columns))
    texts = []
    averaged = 1
    for index, (label, (steps, values)) in enumerate(series.items()):
        look = {"color": SERIES[index % len(SERIES)], "linestyle": DASHES[index % len(DASHES)]}
        points = len(steps)
        if len(steps) > 60:
            axes.plot(_averaged(steps, 400), _averaged(values, 400), color=look["color"], linewidth=0.7, alpha=0.35)
            points = 25
            averaged = max(averaged, round(len(steps) / points))
        axes.plot(_averaged(steps, points), _averaged(values, points), label=_shortened(label), **look)
        start = f"{_short(values[0])} at {x_label} {_short(steps[0])}"
        texts.append(f"{label} goes from {start} to {_short(values[-1])} at {_short(steps[-1])}")
    axes.set_title(title)
    axes.set_xlabel(x_label if averaged == 1 else f"{x_label} (line: mean of {averaged}, pale: single steps)")
    axes.margins(x=0.02)
    if y_range:
        axes.set_ylim(y_range)
    drawing.legend(loc="outside lower left", ncols=columns, columnspacing=1)
    return picture(drawing, name, f"{title}. {'; '.join(texts)}.")


@styled
def intervals(metrics: Mapping[str, Metric]) -> Picture:
    """One row per encoder: a point at its mAP, with its interval."""
    drawing, axes = canvas(4.4, 0.75 + 0.33 * len(metrics))
    for place, metric in enumerate(metrics.values()):
        colour = SERIES[place % len(SERIES)]
        _draw_interval(axes.hlines, place, metric, colour)
        axes.plot([metric.value], [place], MARKERS[place % len(MARKERS)], color=colour, markersize=6)
    _label_rows(axes, "mAP", [_shortened(label) for label in metrics])
    axes.spines["left"].set_visible(False)
    text = "; ".join(f"{label} {_in_words(metric)}" for label, metric in metrics.items())
    return picture(drawing, "answer", f"mAP: {text}.")


def _draw_interval(draw: Callable[..., object], place: int, metric: Metric, colour: str) -> None:
    """A thick line along the metric's interval, if it has one; `draw` is `hlines` or `vlines` of the axes."""
    if metric.low is not None and metric.high is not None:
        draw(place, metric.low, metric.high, color=colour, linewidth=2.2)


def _label_rows(axes: Axes, title: str, labels: Sequence[str]) -> None:
    """A label for each row, the first at the top, and the title of the horizontal axis."""
    axes.set_yticks(range(len(labels)), labels, color=INK)
    axes.set_ylim(len(labels) - 0.4, -0.6)
    axes.grid(axis="y", visible=False)
    axes.set_xlabel(title)


@styled
def class_gains(classes: Sequence[str], columns: Mapping[str, Sequence[float]]) -> Picture:
    """Average precision of each class (rows) for each encoder (markers), connected by a line."""
    drawing, axes = canvas(4.4, 0.95 + 0.23 * len(classes))
    places = range(len(classes))
    table = np.array(list(columns.values()), dtype=float)
    axes.hlines(places, table.min(axis=0), table.max(axis=0), color=SOFT, linewidth=1)
    for index, (label, values) in enumerate(columns.items()):
        axes.plot(
            values, places, MARKERS[index], color=SERIES[index], label=_shortened(label), linestyle="", markersize=5
        )
    _label_rows(axes, "Average precision", [_shortened(label, 34) for label in classes])
    axes.set_xlim(-0.02, 1.02)
    drawing.legend(loc="outside upper left", ncols=len(columns), handletextpad=0.1)
    first, *others = columns
    wins = {other: np.greater(columns[first], columns[other]).sum() for other in others}
    text = "; ".join(f"{first} is above {other} in {win} of {len(classes)}" for other, win in wins.items()) or first
    alt = f"Average precision of {len(classes)} classes. {text}. The metrics are in the table below."
    return picture(drawing, "classes", alt)


@styled
def scatter(name: str, title: str, points: Sequence[tuple[float, float, str]]) -> Picture:
    """Points in two dimensions by label. The ten most frequent labels have a colour and a marker; all others are grey.

    At most `MAX_POINTS` are drawn, evenly chosen from the list.
    """
    drawn = list(points)[:: -(-len(points) // MAX_POINTS)]
    counts = Counter(label for *_, label in drawn)
    shown = sorted(sorted(counts, key=lambda label: (-counts[label], label))[: len(SERIES)])
    drawing, axes = canvas(3.7, 3.7 + 0.18 * -(-(len(shown) + 1) // 2))
    for label, colour, marker in zip(shown, SERIES, MARKERS, strict=False):
        x, y = np.array([(x, y) for x, y, other in drawn if other == label]).T
        axes.scatter(x, y, s=18, c=colour, marker=marker, linewidths=0, alpha=0.9, label=_shortened(label))
    others = [(x, y) for x, y, label in drawn if label not in shown]
    if others:
        x, y = np.array(others).T
        text = f"{len(counts) - len(shown)} other classes"
        axes.scatter(x, y, s=6, c=SOFT, linewidths=0, alpha=0.8, label=text, zorder=0)  # behind the labelled points
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(True)
    axes.set_aspect("equal", adjustable="datalim")
    drawing.legend(loc="outside lower left", ncols=2, handletextpad=0.2, columnspacing=1)
    omitted = f"; {len(drawn)} of {len(points)} drawn" if len(drawn) < len(points) else ""
    return picture(drawing, name, f"{title}: {len(points)} clips of {len(counts)} classes{omitted}.")


@styled
def ladder(processors: Sequence[ProcessorResult]) -> Picture:
    """SI-SDR improvement of each processor, ordered by steps: for mixtures of two clips, and for known sources."""
    known = sorted(processors, key=lambda item: item.step)
    lines = {
        "two clips": [item.si_sdr_improvement_db for item in known],
        "sources": [item.source_improvement_db for item in known],
    }
    drawing, axes = canvas(3.7, 2.5)
    texts = []
    for number, (line, metrics) in enumerate(lines.items()):
        measured = [(place, metric) for place, metric in enumerate(metrics) if metric is not None]
        if not measured:
            continue
        for place, metric in measured:
            _draw_interval(axes.vlines, place, metric, SERIES[number])
        places = [place for place, _ in measured]
        values = [metric.value for _, metric in measured]
        axes.plot(places, values, "o", color=SERIES[number], linestyle=DASHES[1], linewidth=1, label=line)
        text = "; ".join(f"{known[place].name} {_in_words(metric)}" for place, metric in measured)
        texts.append(f"{line}: {text}")
    if len(texts) > 1:
        axes.legend()
    axes.axhline(0, color=SOFT, linewidth=0.8)
    axes.set_xticks(range(len(known)), [f"{item.name}\n{item.step:,}" for item in known])
    axes.margins(x=0.15, y=0.15)
    axes.set_title("SI-SDR improvement, dB")
    axes.set_xlabel("processor and its training steps")
    return picture(drawing, "ladder", f"SI-SDR improvement in dB by processor; {'. '.join(texts)}.")


@dataclass(frozen=True)
class TrialPath:
    """The line of one trial in the parallel coordinates."""

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


@styled
def parallel(axes_values: Mapping[str, Sequence[str]], title: str, paths: Sequence[TrialPath]) -> Picture:
    """Parallel coordinates: a vertical axis per swept field, one for the metric, and a line per trial."""
    drawing, axes = canvas(1.7 * (len(axes_values) + 1), 3.4)
    height = {field: _evenly_spaced(values) for field, values in axes_values.items()}
    measured = [path.metric for path in paths if path.metric is not None]
    low = min(measured, default=0.0)
    high = max(measured, default=1.0)
    span = high - low or 1.0
    for index, path in enumerate(sorted(paths, key=lambda path: list(_LOOK).index(path.kind))):
        offset = 0.03 * ((index * 7) % 5 - 2) / 2  # so that lines of trials with the same setting do not overlap
        y = [height[field][place] + offset for field, place in zip(axes_values, path.places, strict=True)]
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
    drawing.legend(handles, kinds, loc="outside upper left", ncols=len(kinds))
    text = ", ".join(f"{field} ({', '.join(values)})" for field, values in axes_values.items())
    return picture(drawing, "parallel", f"{len(paths)} trials over {text}; {title} from {low:.3f} to {high:.3f}.")


def _evenly_spaced(values: Sequence[str]) -> dict[str, float]:
    return {value: index / (len(values) - 1) if len(values) > 1 else 0.5 for index, value in enumerate(values)}


def _tag(axes: Axes, x: float, y: float, text: str) -> None:
    back = {"facecolor": PAPER, "edgecolor": "none", "alpha": 0.85, "pad": 1.2}
    axes.text(x, y, text, ha="center", va="center", bbox=back)


@styled
def effect(name: str, title: str, y_label: str, groups: Mapping[str, Sequence[float]]) -> Picture:
    """The effect of one swept field: the metrics of all trials by its value, and a dashed line through the means."""
    drawing, axes = canvas(3.7, 2.5)
    for place, values in enumerate(groups.values()):
        offsets = np.linspace(-0.12, 0.12, len(values)) if len(values) > 1 else np.zeros(1)
        axes.plot(place + offsets, values, "o", color=SERIES[0], markersize=4, alpha=0.6)
    means = [float(np.mean(values)) for values in groups.values()]
    axes.plot(range(len(means)), means, "D", color=SERIES[1], linestyle=DASHES[1], linewidth=1.2)
    axes.set_xticks(range(len(groups)), list(groups))
    if sum(map(len, groups)) > 36:
        axes.tick_params(axis="x", rotation=40)
    axes.margins(x=0.1)
    axes.set_title(title)
    axes.set_ylabel(y_label)
    text = "; ".join(f"{value}: mean {mean:.3f}" for value, mean in zip(groups, means, strict=True))
    return picture(drawing, name, f"{y_label} by {title}. {text}.")


@styled
def comparison(table: Table) -> Picture:
    """The paper's metric (hollow diamond) and ours with its interval (dot) for each row of a table."""
    title = "Shallow classifier mAP"
    drawing, axes = canvas(4.6, 0.95 + 0.25 * len(table.lines))
    for place, line in enumerate(table.lines):
        axes.plot([line.paper], [place], "D", color=SERIES[1], fillstyle="none", markersize=6)
        if line.ours:
            _draw_interval(axes.hlines, place, line.ours, SERIES[0])
            axes.plot([line.ours.value], [place], "o", color=SERIES[0], markersize=5)
    _label_rows(axes, title, [line.label for line in table.lines])
    ink = Line2D([], [], color=SERIES[0], marker="o", linewidth=2.2)
    hollow = Line2D([], [], color=SERIES[1], marker="D", fillstyle="none", linestyle="")
    drawing.legend([ink, hollow], ["ours, with its interval", "paper"], loc="outside upper left", ncols=2)
    text = "; ".join(
        f"{line.label}: paper {line.paper:.3f}, {'ours ' + _in_words(line.ours) if line.ours else 'not run'}"
        for line in table.lines
    )
    return picture(drawing, table.name, f"{title}. {text}.")


def _shortened(label: str, max_characters: int = 26) -> str:
    """A label cut to `max_characters` characters, so that it fits next to a picture."""
    return label if len(label) <= max_characters else label[: max_characters - 1].rstrip() + "…"


def _in_words(metric: Metric) -> str:
    """Such as "0.412, interval 0.396 to 0.428", for text alternatives."""
    if metric.low is None or metric.high is None:
        return _short(metric.value)
    return f"{_short(metric.value)}, interval {_short(metric.low)} to {_short(metric.high)}"


def _short(value: float) -> str:
    """A number with four significant digits."""
    return f"{value:,.4g}".replace("-", "−") if isfinite(value) else "not a number"


def _averaged(values: Sequence[float], max_values: int) -> np.ndarray:
    """At most `max_values` values, each the mean of consecutive values."""
    return np.array([np.mean(run) for run in np.array_split(values, min(max_values, len(values)))])
