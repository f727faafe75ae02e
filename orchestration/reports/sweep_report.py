"""The report of a sweep: the best setting, its interval, and the results of every trial.

It only needs SWEEP/sweep.json and the trials' metrics.jsonl, and can be written while the sweep is running.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path

import numpy as np

from sepscene.orchestration.formatting import duration
from sepscene.orchestration.records.results import Metric, Setting, SweepResults, TrialResult, metric_of, read_metrics
from sepscene.orchestration.records.run_folder import is_pretraining
from sepscene.orchestration.records.sweep_folder import SweepFolder
from sepscene.orchestration.reports import plots
from sepscene.orchestration.reports.render import metric_name, render_report, report_of, with_interval
from sepscene.tasks.evaluation.statistics import t_interval

_STATUSES = ("finished", "stopped early", "failed", "unfinished")
SHORT_NAMES = {"objective.temperature": "τ", "objective.alpha": "α"}


@dataclass(frozen=True)
class Group:
    """The finished trials that differ only in their seed."""

    settings: dict[str, Setting]
    trials: tuple[TrialResult, ...]
    metric: Metric


@dataclass(frozen=True)
class HeatMap:
    """Means of the ranking metric over finished trials by two fields; None if no trial has finished."""

    row_field: str
    column_field: str
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    means: dict[tuple[str, str], float | None]
    low: float
    high: float


def write_sweep_report(sweep_dir: Path) -> tuple[Path, Path]:
    """Write SWEEP/report.html and SWEEP/report.md.

    Raises:
        SepsceneError: when the folder has no sweep.json.
    """
    sweep = SweepResults.load(sweep_dir)
    groups = ranked(sweep)
    headers, rows = sweep_table(sweep)
    files = SweepFolder(sweep_dir)
    return render_report(
        "sweep",
        files,
        sweep=sweep,
        metric_name=metric_name(sweep.metric),
        answer=summary_sentence(sweep, groups),
        groups=groups,
        fields=[field_name(field) for field in sweep.fields],
        shown=format_setting,
        headers=headers,
        rows=rows,
        reports=[report_of(sweep_dir, trial.run_dir) for trial in sweep.trials],
        heat=heat_map(sweep),
        parallel=_parallel(sweep, groups) if sweep.trials and sweep.fields else None,
        effects=_effects(sweep),
        curves=_curves(sweep_dir, sweep),
        listening_page=files.relative(files.shared.listening_page) if files.shared.listening_page.exists() else "",
    )


def field_name(field: str) -> str:
    """The short name of a swept field: τ, α, or its last part, such as "combination"."""
    return SHORT_NAMES.get(field, field.rpartition(".")[2].replace("_", " "))


def format_setting(setting: Setting) -> str:
    """A setting as text: S2∨N for a combination, ✓ and – for booleans."""
    if isinstance(setting, tuple):
        return "∨".join(setting)
    if isinstance(setting, bool):
        return "✓" if setting else "–"
    return f"{setting:g}" if isinstance(setting, float) else str(setting)


def sweep_table(sweep: SweepResults) -> tuple[list[str], list[list[str]]]:
    """The report's table: its headers, and a row per trial."""
    names = list(dict.fromkeys(name for trial in sweep.trials for name in trial.metrics))
    headers = ["Trial", "Status", *map(field_name, sweep.fields), "Seed"]
    headers += [*map(metric_name, names), "Steps", "Time"]
    rows = []
    for trial in sweep.trials:
        settings = [format_setting(trial.settings[field]) for field in sweep.fields]
        metrics = [with_interval(trial.metrics.get(name)) for name in names]
        spent = [f"{trial.steps:,}", duration(trial.seconds)]
        rows.append([trial.name, trial.status, *settings, str(trial.seed), *metrics, *spent])
    return headers, rows


def ranked(sweep: SweepResults) -> list[Group]:
    """The settings with a finished trial, the best mean first; intervals are Student's t over seeds."""
    by_setting: dict[tuple[str, ...], list[TrialResult]] = {}
    for trial in _measured(sweep):
        by_setting.setdefault(tuple(format_setting(trial.settings[field]) for field in sweep.fields), []).append(trial)
    groups = []
    for trials in by_setting.values():
        metrics = [trial.metrics[sweep.metric] for trial in trials]
        metric = metrics[0] if len(metrics) == 1 else metric_of(t_interval([each.value for each in metrics]))
        groups.append(Group(trials[0].settings, tuple(trials), metric))
    return sorted(groups, key=lambda group: -group.metric.value)


def summary_sentence(sweep: SweepResults, groups: Sequence[Group]) -> str:
    """A sentence about the best setting, and whether its interval is above those of the others."""
    counts = Counter[str](trial.status for trial in sweep.trials)
    done = ", ".join(f"{counts[status]} {status}" for status in _STATUSES if counts[status])
    if not groups:
        return f"No trial has a metric yet ({done or 'no trials'})."
    best, *others = groups
    setting = describe_setting(best.settings)
    metric = f"{metric_name(sweep.metric)} {with_interval(best.metric)}"
    summary = f"{setting[0].upper()}{setting[1:]} is best: {metric} ({done})."
    if not others:
        return summary
    similar = [group for group in others if _may_be_equal(best.metric, group.metric)]
    if similar:
        subject = "The other setting" if len(others) == 1 else f"{len(similar)} of the {len(others)} other settings"
        return f"{summary} {subject} may be equally good, because the intervals overlap or are missing."
    return summary + " Its interval is above those of all other settings."


def describe_setting(settings: dict[str, Setting]) -> str:
    """Such as "combination S2∨N, τ 0.2"."""
    parts = [f"{field_name(field)} {format_setting(value)}" for field, value in settings.items()]
    return ", ".join(parts) or "The only setting"


def _may_be_equal(best: Metric, other: Metric) -> bool:
    """Whether the intervals overlap, or one is missing."""
    return best.low is None or other.high is None or other.high >= best.low


def heat_map(sweep: SweepResults) -> HeatMap | None:
    """Combination by τ if both are swept, else the first two fields that vary; None if fewer than two vary."""
    varied = [field for field in sweep.fields if len(_values(sweep, field)) > 1]
    preferred = [field for field in ("views.combination", "objective.temperature") if field in varied]
    row_field, column_field = (preferred + [f for f in varied if f not in preferred] + ["", ""])[:2]
    measured = _measured(sweep)
    if not column_field or not measured:
        return None
    cells: dict[tuple[str, str], list[float]] = {}
    for trial in measured:
        key = (format_setting(trial.settings[row_field]), format_setting(trial.settings[column_field]))
        cells.setdefault(key, []).append(trial.metrics[sweep.metric].value)
    means = {key: float(np.mean(values)) for key, values in cells.items()}
    rows = _values(sweep, row_field)
    columns = _values(sweep, column_field)
    whole = {(row, column): means.get((row, column)) for row in rows for column in columns}
    values = means.values()
    return HeatMap(field_name(row_field), field_name(column_field), rows, columns, whole, min(values), max(values))


def _measured(sweep: SweepResults) -> list[TrialResult]:
    """The finished trials with a finite ranking metric; trials that were stopped early are not compared with them."""
    return [
        trial
        for trial in sweep.trials
        if trial.status == "finished" and sweep.metric in trial.metrics and isfinite(trial.metrics[sweep.metric].value)
    ]


def _values(sweep: SweepResults, field: str) -> tuple[str, ...]:
    """The values of a field as text: numbers in increasing order, others in the order of the trials."""
    values = list(dict.fromkeys(trial.settings[field] for trial in sweep.trials))
    if all(isinstance(value, int | float) for value in values):
        values.sort(key=lambda value: float(value))  # type: ignore[arg-type]  # all are numbers here
    return tuple(dict.fromkeys(format_setting(value) for value in values))


def _parallel(sweep: SweepResults, groups: Sequence[Group]) -> plots.Picture:
    best = {trial.name for trial in groups[0].trials} if groups else set()
    paths = []
    for trial in sweep.trials:
        metric = trial.metrics.get(sweep.metric)
        places = tuple(format_setting(trial.settings[field]) for field in sweep.fields)
        value = metric.value if metric and isfinite(metric.value) else None
        paths.append(plots.TrialPath(places, value, "best" if trial.name in best else trial.status))
    axes = {field_name(field): _values(sweep, field) for field in sweep.fields}
    return plots.parallel(axes, metric_name(sweep.metric), paths)


def _effects(sweep: SweepResults) -> list[plots.Picture]:
    """One small multiple per field that varies."""
    pictures = []
    for index, field in enumerate(sweep.fields):
        groups: dict[str, list[float]] = {value: [] for value in _values(sweep, field)}
        for trial in _measured(sweep):
            groups[format_setting(trial.settings[field])].append(trial.metrics[sweep.metric].value)
        filled = {value: metrics for value, metrics in groups.items() if metrics}
        if len(filled) > 1:
            pictures.append(plots.effect(f"effect{index}", field_name(field), metric_name(sweep.metric), filled))
    return pictures


def _curves(sweep_dir: Path, sweep: SweepResults) -> list[plots.Picture]:
    """The training loss of the trials, one small multiple per value of the first field that varies."""
    field = next((field for field in sweep.fields if len(_values(sweep, field)) > 1), None)
    panels: dict[str, dict[str, plots.Curve]] = {}
    for trial in sweep.trials:
        curve = _training_loss(sweep_dir / trial.run_dir) if trial.run_dir else None
        if curve:
            rest = [format_setting(trial.settings[other]) for other in sweep.fields if other != field]
            label = ", ".join([*rest, f"seed {trial.seed}"])
            title = f"{field_name(field)} {format_setting(trial.settings[field])}" if field else "loss"
            panels.setdefault(title, {})[label] = curve
    values: list[float] = []
    for panel in panels.values():
        for _, losses in panel.values():
            values += losses
    return [
        plots.curves(f"loss{index}", f"{title}: training loss", "step", series, (min(values), max(values)))
        for index, (title, series) in enumerate(panels.items())
    ]


def _training_loss(run_dir: Path) -> plots.Curve | None:
    """The loss of the first pre-training stage by step; the stage of a baseline comes later."""
    records = [record for record in read_metrics(run_dir) if is_pretraining(record["stage"])]
    curve: dict[float, float] = {}
    for record in records:
        value = record.get("train/loss", record.get("loss"))
        if record["stage"] == records[0]["stage"] and isinstance(value, int | float) and isfinite(value):
            curve[float(record["step"])] = float(value)
    steps = sorted(curve)
    return (steps, [curve[step] for step in steps]) if len(steps) > 1 else None
