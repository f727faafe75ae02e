"""The table of encoders by tasks: on the terminal, as CSV and as LaTeX."""

from collections.abc import Sequence
from math import isnan

import pandas as pd
from rich.table import Table

from sepscene.orchestration.evaluation.downstream import TaskResult, headline


def task_frame(results: Sequence[TaskResult]) -> pd.DataFrame:
    """One row per task and metric, one column per encoder; rounded to three digits, NaN for missing results."""
    rows: dict[tuple[str, str], dict[str, float]] = {}
    for task in sorted({result.task for result in results}):
        of_task = {result.encoder: result for result in results if result.task == task}
        for metric in headline(of_task.values()):
            rows[task, metric] = {name: round(result.metrics[metric], 3) for name, result in of_task.items()}
    index = pd.MultiIndex.from_tuples(rows, names=["task", "metric"])
    return pd.DataFrame(list(rows.values()), index, sorted({result.encoder for result in results}), dtype=float)


def terminal_table(results: Sequence[TaskResult]) -> Table:
    """The table for a terminal."""
    frame = task_frame(results)
    table = Table("task", "metric")
    for name in frame.columns:
        table.add_column(name, justify="right", no_wrap=True)
    for names, values in frame.iterrows():
        table.add_row(*names, *("–" if isnan(value) else f"{value:.3f}" for value in values))
    return table


def csv_table(results: Sequence[TaskResult]) -> str:
    """The table as CSV: task, metric, one column per encoder; a missing result is an empty cell."""
    return task_frame(results).to_csv(float_format="%.3f", lineterminator="\n")


def latex_table(results: Sequence[TaskResult]) -> str:
    """The table as LaTeX (packages: booktabs), the best encoder of each row in bold."""
    frame = task_frame(results)
    table = frame.reset_index(names=["Task", "Metric"]).style.hide(axis="index")
    table.highlight_max(axis=1, subset=frame.columns, props="textbf:--rwrap;")
    table.format(precision=3, na_rep="--", escape="latex")
    table.format_index(axis=1, escape="latex")
    return table.to_latex(column_format="ll" + "r" * len(frame.columns), hrules=True)
