"""The report of one run: report.html, a self-contained page, and report.md with the same metrics.

It only needs the files of the run's folder (results.json, metrics.jsonl, experiment.yaml), so a report can be written
again at any time, on another machine, without Ray.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any

from sepscene.orchestration.records.files import read_text
from sepscene.orchestration.records.results import EncoderResult, Metric, RunResults, read_metrics
from sepscene.orchestration.records.run_folder import RunFolder
from sepscene.orchestration.records.sweep_folder import SweepFolder
from sepscene.orchestration.reports import plots
from sepscene.orchestration.reports.paper_tables import compared_tables, row_name, run_rows
from sepscene.orchestration.reports.render import light_palette, render_report, with_interval
from sepscene.orchestration.reports.reproduction_report import shortcut_sentence, write_reproduction_report
from sepscene.orchestration.reports.sweep_report import write_sweep_report

HEADLINE_METRICS = ("shallow_map", "linear_map", "knn_map", "qbe_map")
MAX_CLASSES_SHOWN = 30  # in the table of classes
CURVES_SHOWN = 6
"""Learning curves that are visible at once; the others are in a collapsed section."""
MAX_CURVES = 30  # with more, files of long sweeps would become too large


@dataclass(frozen=True)
class ClassRow:
    """Average precision of one class by encoder name: of the main metric, and of the linear probe if it was stored."""

    name: str
    positives: int
    precision: dict[str, float | None]
    linear: dict[str, float | None]

    @property
    def cells(self) -> dict[str, float | None]:
        """The values of the class in the table, by column."""
        return {**self.precision, **{f"{encoder}, linear": value for encoder, value in self.linear.items()}}


def report_on(folder: Path) -> tuple[Path, Path]:
    """Write report.html and report.md of the run, sweep or reproduction in a folder.

    Raises:
        SepsceneError: when the folder contains none of them.
    """
    files = SweepFolder(folder)
    if files.sweep.exists():
        return write_sweep_report(folder)
    return write_reproduction_report(folder) if files.reproduction.exists() else write_report(folder)


def write_report(run_dir: Path) -> tuple[Path, Path]:
    """Write RUN/report.html and RUN/report.md from the files of the run, and the pictures to RUN/plots.

    Raises:
        SepsceneError: when the folder has no results.json.
    """
    results = RunResults.load(run_dir)
    files = RunFolder(run_dir)
    values = _values(results, files)
    _save_pictures([*values["pictures"].values(), *values["curves"], *values["maps"]], files)
    return render_report("run", files, **values)


def _save_pictures(pictures: Sequence[plots.Picture], files: RunFolder) -> None:
    """Write the pictures of the page to files, for slides and for MLflow; remove those of an earlier report."""
    files.plots.mkdir(exist_ok=True)
    for old in files.written_plots():
        old.unlink()
    palette = light_palette()
    for picture in pictures:
        picture.save(files.plot(picture.name), palette)


def _values(results: RunResults, files: RunFolder) -> dict[str, Any]:
    """The values that report.html and report.md show, by the names that the templates use."""
    records = read_metrics(files.path)
    headline = headline_metric(results.encoders)
    classes = class_rows(results.encoders)
    metrics = _metric_order(results.encoders)
    in_headline = {e.name: e.metrics[headline] for e in results.encoders if headline in e.metrics}
    diagnostics = [(e.name, e.diagnostics) for e in results.encoders if e.diagnostics]
    return {
        "results": results,
        "row_name": row_name(results.table_row),
        "headline": headline,
        "headline_metrics": in_headline,
        "interval_method": next((metric.interval for metric in in_headline.values() if metric.interval), ""),
        "answer": summary_sentence(in_headline),
        "metrics": metrics,
        "notes": encoder_notes(results.encoders),
        "encoder_cells": {e.name: [with_interval(e.metrics.get(name)) for name in metrics] for e in results.encoders},
        "diagnostics": diagnostics,
        "shortcut": shortcut_sentence([line for line in diagnostics if line[0] != "untrained"]),
        "tables": compared_tables(run_rows(results)),
        "classes": classes,
        "drawn_classes": min(len(classes), MAX_CLASSES_SHOWN),
        "curves": learning_curves(records),
        "curves_shown": CURVES_SHOWN,
        "events": reported_events(records),
        "pictures": _pictures(results, in_headline, classes),
        "maps": [
            plots.scatter(f"map{index}", encoder.name, encoder.map_2d)
            for index, encoder in enumerate(results.encoders)
            if encoder.map_2d
        ],
        "configuration": read_text(files.experiment) if files.experiment.exists() else "",
        "listening_page": str(RunFolder.listening_page) if files.listening_page.exists() else "",
        "slowest": max((stage.seconds for stage in results.stages), default=0.0),
    }


def encoder_notes(encoders: Sequence[EncoderResult]) -> dict[str, list[str]]:
    """Notes on the metrics of each encoder; notes that all encoders share are under "all"."""
    notes = {encoder.name: [note for note in encoder.description.split("; ") if note] for encoder in encoders}
    common = [note for note in next(iter(notes.values()), []) if all(note in of_one for of_one in notes.values())]
    if len(notes) < 2:
        common = []
    specific = {name: [note for note in of_one if note not in common] for name, of_one in notes.items()}
    return {name: of_one for name, of_one in {**specific, "all": common}.items() if of_one}


def headline_metric(encoders: Sequence[EncoderResult]) -> str:
    """The main metric of the report: the first of `HEADLINE_METRICS` that was measured."""
    measured = {name for encoder in encoders for name in encoder.metrics}
    return next((name for name in HEADLINE_METRICS if name in measured), HEADLINE_METRICS[0])


def summary_sentence(known: dict[str, Metric]) -> str:
    """The result of the run in one or two sentences, which respect the intervals.

    Args:
        known: the headline metric by encoder; the run's own encoder is the first.
    """
    if not known:
        return "No encoder was evaluated in this run."
    (first, ours), *others = known.items()
    gaps = [f"{_difference(ours, other)} {_described(name)} ({other.value:.3f})" for name, other in others]
    sentence = f"{first} reaches an mAP of {ours.value:.3f}" + (f", {' and '.join(gaps)}." if gaps else ".")
    overlapping = [_described(name) for name, other in others if _overlap(ours, other)]
    if overlapping:
        sentence += f" The intervals of {first} and {' and '.join(overlapping)} overlap, "
        sentence += "so this run alone does not show which is better."
    return sentence


def _described(name: str) -> str:
    return f"the {name} encoder" if name == "untrained" else name


def _difference(ours: Metric, other: Metric) -> str:
    gain = ours.value - other.value
    if abs(gain) < 0.0005:
        return "equal to"
    return f"{abs(gain):.3f} {'above' if gain > 0 else 'below'}"


def _overlap(a: Metric, b: Metric) -> bool:
    if a.low is None or a.high is None or b.low is None or b.high is None:
        return False
    return a.low <= b.high and b.low <= a.high


def class_rows(encoders: Sequence[EncoderResult]) -> list[ClassRow]:
    """The classes by name, with each encoder's shallow AP, or query-by-example AP if there is no shallow AP."""
    field = "shallow_ap" if any(item.shallow_ap is not None for e in encoders for item in e.classes) else "qbe_ap"
    positives = {item.name: item.positives for encoder in encoders for item in encoder.classes}
    precision = _precisions(encoders, field)
    probes = _precisions(encoders, "linear_ap")
    linear = {encoder: of_class for encoder, of_class in probes.items() if any(of_class.values())}
    rows = []
    for name, count in sorted(positives.items()):
        of_encoders = {encoder: of_class.get(name) for encoder, of_class in precision.items()}
        of_probes = {encoder: of_class.get(name) for encoder, of_class in linear.items()}
        rows.append(ClassRow(name, count, of_encoders, of_probes))
    return rows


def _precisions(encoders: Sequence[EncoderResult], field: str) -> dict[str, dict[str, float | None]]:
    """A field of the classes: encoder -> class -> value."""
    values: dict[str, dict[str, float | None]] = {}
    for encoder in encoders:
        if encoder.classes:
            values[encoder.name] = {item.name: getattr(item, field) for item in encoder.classes}
    return values


def learning_curves(records: Sequence[dict[str, float | str]]) -> list[plots.Picture]:
    """One picture per quantity and kind of stage, losses first.

    Stages that differ after their first hyphen ("pretrain-mix-chan", "pretrain-mix-mix") share a picture, and so do
    metrics that differ before their last slash ("train/loss", "val/loss"). If a step was repeated after a failure of
    workers, only the last values count. Non-finite values and constant quantities are left out.
    """
    panels: dict[tuple[str, str], dict[str, dict[float, float]]] = {}
    for record in records:
        stage, _, variant = str(record["stage"]).partition("-")
        for metric, value in record.items():
            if metric in _NOT_DRAWN or "step" not in record:
                continue
            if isinstance(value, int | float) and isfinite(value):
                prefix, _, quantity = metric.rpartition("/")
                label = " ".join(filter(None, (variant, prefix))) or quantity
                panels.setdefault((stage, quantity), {}).setdefault(label, {})[float(record["step"])] = float(value)
    drawn: list[plots.Picture] = []
    for (stage, quantity), panel in sorted(panels.items(), key=lambda item: _importance(item[0][1])):
        curves = {label: sorted(curve.items()) for label, curve in panel.items() if len(curve) > 1}
        series: dict[str, plots.Curve] = {}
        values = set[float]()
        for label, curve in curves.items():
            steps = [step for step, _ in curve]
            series[label] = (steps, [value for _, value in curve])
            values.update(series[label][1])
        changes = len(values) > 1
        if changes and len(drawn) < MAX_CURVES:
            title = f"{stage}: {quantity.replace('_', ' ')}"
            drawn.append(plots.curves(f"curve{len(drawn)}", title, "step", series))
    return drawn


def _importance(quantity: str) -> int:
    """Rank in the order of pictures: losses, then their parts, then validation metrics, then the others."""
    ranks = ("loss" in quantity, quantity in ("similarity", "coincidence"), "validation" in quantity, True)
    return ranks.index(True)


_NOT_DRAWN = ("stage", "step", "seconds", "rows", "balance_seconds")


def reported_events(records: Sequence[dict[str, float | str]]) -> list[str]:
    """Events of the run, in order, such as "pretrain-mix-chan: worker group failed (…), restarting"."""
    return [f"{record['stage']}: {record['event']}" for record in records if "event" in record]


def _metric_order(encoders: Sequence[EncoderResult]) -> list[str]:
    measured = list(dict.fromkeys(name for encoder in encoders for name in encoder.metrics))
    first = [name for name in HEADLINE_METRICS if name in measured]
    return first + [name for name in measured if name not in first]


def _pictures(
    results: RunResults, headline: dict[str, Metric], classes: Sequence[ClassRow]
) -> dict[str, plots.Picture]:
    """The pictures for which the run has metrics, by their names in the templates."""
    pictures: dict[str, plots.Picture] = {}
    if headline:
        pictures["answer"] = plots.intervals(headline)
    complete = [row for row in classes if row.precision and None not in row.precision.values()]
    if complete:
        drawn = _largest_changes(complete)
        columns = {name: [row.precision[name] or 0.0 for row in drawn] for name in drawn[0].precision}
        pictures["classes"] = plots.class_gains([row.name for row in drawn], columns)
    if any(one.si_sdr_improvement_db or one.source_improvement_db for one in results.ladder):
        pictures["ladder"] = plots.ladder(results.ladder)
    return pictures


def _largest_changes(rows: Sequence[ClassRow]) -> list[ClassRow]:
    """At most `MAX_CLASSES_SHOWN` classes on which the encoders differ most, sorted by the first encoder's AP."""

    def spread(row: ClassRow) -> float:
        values = [value for value in row.precision.values() if value is not None]
        return max(values) - min(values)

    chosen = sorted(rows, key=spread, reverse=True)[:MAX_CLASSES_SHOWN]
    return sorted(chosen, key=lambda row: next(iter(row.precision.values())) or 0.0, reverse=True)
