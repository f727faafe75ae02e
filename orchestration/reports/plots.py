"""The pictures of the reports: inline SVG whose colours are CSS variables.

Lines differ by dash and points by marker as well as by colour. Text stays text that can be searched and read.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from sepscene.orchestration.records.results import Metric, ProcessorResult
from sepscene.orchestration.reports.drawing import (
    DASHES,
    INK,
    MARKERS,
    MOST_POINTS,
    PAPER,
    SERIES,
    SOFT,
    Picture,
    brief,
    canvas,
    in_words,
    picture,
    short,
    styled,
    thin,
)

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
    with styled():
        columns = 1 + (len(series) > 4)
        drawing, axes = canvas(3.7, 2.5 + 0.16 * -(-len(series) // columns))
        said = []
        averaged = 1
        for index, (label, (steps, values)) in enumerate(series.items()):
            x = np.asarray(steps, dtype=float)
            y = np.asarray(values, dtype=float)
            look = {"color": SERIES[index % len(SERIES)], "linestyle": DASHES[index % len(DASHES)]}
            if len(y) > 60:
                axes.plot(*thin(x, y, 400), color=look["color"], linewidth=0.7, alpha=0.35)
                averaged = max(averaged, round(len(y) / 25))
                x, y = thin(x, y, 25)
            axes.plot(x, y, label=brief(label), **look)
            start = f"{short(values[0])} at {x_label} {short(steps[0])}"
            said.append(f"{label} goes from {start} to {short(values[-1])} at {short(steps[-1])}")
        axes.set_title(title)
        axes.set_xlabel(x_label if averaged == 1 else f"{x_label} (line: mean of {averaged}, pale: each)")
        axes.margins(x=0.02)
        if y_range:
            axes.set_ylim(y_range)
        drawing.legend(loc="outside lower left", ncols=columns, columnspacing=1)
        return picture(drawing, name, f"{title}. {'; '.join(said)}.")


def intervals(name: str, title: str, metrics: Mapping[str, Metric]) -> Picture:
    """One row for each named metric: a point with its interval."""
    with styled():
        drawing, axes = canvas(4.4, 0.75 + 0.33 * len(metrics))
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
        axes.set_yticks(range(len(rows)), [brief(label) for label, _ in rows], color=INK)
        axes.set_ylim(-0.6, len(rows) - 0.4)
        axes.grid(axis="y", visible=False)
        axes.spines["left"].set_visible(False)
        axes.set_xlabel(title)
        said = "; ".join(f"{label} {in_words(metric)}" for label, metric in metrics.items())
        return picture(drawing, name, f"{title}: {said}.")


def class_gains(name: str, title: str, classes: Sequence[str], columns: Mapping[str, Sequence[float]]) -> Picture:
    """Average precision of each class (rows) for each encoder (markers), joined by a line."""
    with styled():
        drawing, axes = canvas(4.4, 0.95 + 0.23 * len(classes))
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
        drawing.legend(loc="outside upper left", ncols=len(columns), handletextpad=0.1)
        first, *others = columns
        wins = [sum(a > b for a, b in zip(columns[first], columns[other], strict=True)) for other in others]
        said = "; ".join(
            f"{first} is above {other} in {win} of {len(classes)}" for other, win in zip(others, wins, strict=True)
        )
        return picture(
            drawing,
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
    with styled():
        drawing, axes = canvas(3.7, 3.7 + 0.18 * -(-(len(shown) + 1) // 2))
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
            handles = handles[1:] + handles[:1]
            labels = labels[1:] + labels[:1]
        drawing.legend(handles, labels, loc="outside lower left", ncols=2, handletextpad=0.2, columnspacing=1)
        omitted = f"; {len(drawn)} of {len(points)} drawn" if len(drawn) < len(points) else ""
        return picture(drawing, name, f"{title}: {len(points)} clips of {len(counts)} classes{omitted}.")


def ladder(name: str, processors: Sequence[ProcessorResult]) -> Picture:
    """SI-SDR improvement of each processor, in the order of the ladder's steps: of two clips, and of known sources."""
    known = sorted(processors, key=lambda item: item.step)
    lines = {
        "two clips": [item.si_sdr_improvement_db for item in known],
        "sources": [item.source_improvement_db for item in known],
    }
    with styled():
        drawing, axes = canvas(3.7, 2.5)
        said = []
        for number, (line, metrics) in enumerate(lines.items()):
            there = [(place, metric) for place, metric in enumerate(metrics) if metric is not None]
            if not there:
                continue
            color = SERIES[number]
            for place, metric in there:
                if metric.low is not None and metric.high is not None:
                    axes.plot([place, place], [metric.low, metric.high], color=color, linewidth=2.2)
            axes.plot(
                [place for place, _ in there],
                [metric.value for _, metric in there],
                "o",
                color=color,
                linestyle=DASHES[1],
                linewidth=1,
                label=line,
            )
            values = "; ".join(f"{known[place].name} {in_words(metric)}" for place, metric in there)
            said.append(f"{line}: {values}")
        if len(said) > 1:
            axes.legend()
        axes.axhline(0, color=SOFT, linewidth=0.8)
        axes.set_xticks(range(len(known)), [f"{item.name}\n{item.step:,}" for item in known])
        axes.margins(x=0.15, y=0.15)
        axes.set_title("SI-SDR improvement, dB")
        axes.set_xlabel("processor and its training steps")
        return picture(drawing, name, f"SI-SDR improvement in dB by processor; {'. '.join(said)}.")


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
    with styled():
        drawing, axes = canvas(1.7 * (len(axes_values) + 1), 3.4)
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
        drawing.legend(handles, kinds, loc="outside upper left", ncols=len(kinds))
        said = ", ".join(f"{field} ({', '.join(values)})" for field, values in axes_values.items())
        return picture(drawing, name, f"{len(paths)} trials over {said}; {title} from {low:.3f} to {high:.3f}.")


def _even(values: Sequence[str]) -> dict[str, float]:
    return {value: index / (len(values) - 1) if len(values) > 1 else 0.5 for index, value in enumerate(values)}


def _tag(axes: Axes, x: float, y: float, text: str) -> None:
    back = {"facecolor": PAPER, "edgecolor": "none", "alpha": 0.85, "pad": 1.2}
    axes.text(x, y, text, ha="center", va="center", bbox=back)


def effect(name: str, title: str, y_label: str, groups: Mapping[str, Sequence[float]]) -> Picture:
    """One swept field: every trial's metric at each of its values, and a dashed line through the means."""
    with styled():
        drawing, axes = canvas(3.7, 2.5)
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
        return picture(drawing, name, f"{y_label} by {title}. {said}.")


def beside(name: str, title: str, rows: Sequence[tuple[str, float, Metric | None]]) -> Picture:
    """The paper's number (hollow diamond) and ours with its interval (dot) for each row of a table."""
    with styled():
        drawing, axes = canvas(4.6, 0.95 + 0.25 * len(rows))
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
        drawing.legend([ink, hollow], ["ours, with its interval", "paper"], loc="outside upper left", ncols=2)
        said = "; ".join(
            f"{label}: paper {paper:.3f}, {'ours ' + in_words(ours) if ours else 'not run'}"
            for label, paper, ours in rows
        )
        return picture(drawing, name, f"{title}. {said}.")
