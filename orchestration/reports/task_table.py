"""The table of encoders by tasks: on the terminal, as CSV and as LaTeX."""

import csv
import io
from collections.abc import Sequence

from rich.table import Table

from sepscene.orchestration.evaluation.downstream import TaskResult, headline

Row = tuple[str, str, list[str]]


def task_rows(results: Sequence[TaskResult]) -> tuple[list[str], list[Row]]:
    """Names of the encoders, and for each metric of each task one row (task, metric, a cell for each encoder)."""
    encoders = sorted({result.encoder for result in results})
    rows: list[Row] = []
    for task in sorted({result.task for result in results}):
        of_task = {result.encoder: result for result in results if result.task == task}
        for metric in headline(of_task.values()):
            cells = [f"{of_task[name].metrics[metric]:.3f}" if name in of_task else "" for name in encoders]
            rows.append((task, metric, cells))
    return encoders, rows


def terminal_table(results: Sequence[TaskResult]) -> Table:
    """The table for a terminal."""
    encoders, rows = task_rows(results)
    table = Table("task", "metric")
    for name in encoders:
        table.add_column(name, justify="right", no_wrap=True)
    for task, metric, cells in rows:
        table.add_row(task, metric, *(cell or "–" for cell in cells))
    return table


def csv_table(results: Sequence[TaskResult]) -> str:
    """The table as CSV: task, metric, one column for each encoder; a missing result is an empty cell."""
    encoders, rows = task_rows(results)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["task", "metric", *encoders])
    writer.writerows([task, metric, *cells] for task, metric, cells in rows)
    return text.getvalue()


def latex_table(results: Sequence[TaskResult]) -> str:
    """The table as LaTeX (packages: booktabs), the best encoder of each row in bold."""
    encoders, rows = task_rows(results)
    lines = [
        rf"\begin{{tabular}}{{ll{'r' * len(encoders)}}}",
        r"\toprule",
        " & ".join(["Task", "Metric", *map(_latex, encoders)]) + r" \\",
        r"\midrule",
    ]
    for task, metric, cells in rows:
        best = max(cells)  # three decimals between 0 and 1 sort as text
        shown = [rf"\textbf{{{cell}}}" if cell == best else cell or "--" for cell in cells]
        lines.append(" & ".join([_latex(task), _latex(metric), *shown]) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", ""])


def _latex(text: str) -> str:
    for letter in r"&%$#_{}":
        text = text.replace(letter, "\\" + letter)
    return text
