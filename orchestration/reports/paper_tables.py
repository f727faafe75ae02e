"""The paper's tables compared with our metrics, for the reports of a run and of a reproduction."""

from collections.abc import Mapping
from dataclasses import dataclass

from sepscene.orchestration.records.results import Metric, RunResults
from sepscene.tasks.paper.claims import OTHER_NAMES, PAPER_TABLES

TITLES = {
    "table2": "Table 2: separation and SpecAugment (SimCLR)",
    "table4": "Table 4: combinations of processors (TP + SpecAug)",
    "table5": "Table 5: comparison with other methods",
}


@dataclass(frozen=True)
class Line:
    """A row of a paper's table with our metric; None if it was not run."""

    name: str
    label: str
    note: str
    paper: float
    ours: Metric | None


@dataclass(frozen=True)
class Table:
    """A table of the paper, by its name in sepscene.tasks.paper.claims."""

    name: str
    title: str
    lines: tuple[Line, ...]


def compared_tables(ours: Mapping[str, Metric]) -> tuple[Table, ...]:
    """All of the paper's tables with our metrics by row name; a row of two tables is found by either of its names."""
    tables = []
    for table, rows in PAPER_TABLES.items():
        lines = []
        for row in rows:
            found = ours.get(row.name) or ours.get(OTHER_NAMES.get(row.name, ""))
            lines.append(Line(row.name, row.label, row.note, row.value, found))
        tables.append(Table(table, TITLES[table], tuple(lines)))
    return tuple(tables)


def run_rows(results: RunResults) -> dict[str, Metric]:
    """The rows of the paper for which this run has a metric: its own row, and that of its baseline, if there is one.

    The mix-mix baseline differs from the run in the pair only, so it is a row of Table 2 only if the run has SimCLR as
    its only loss.
    """
    row = results.table_row
    metrics = {encoder.name: encoder.metrics.get("shallow_map") for encoder in results.encoders}
    if row is None or not metrics:
        return {}
    rows = {row: next(iter(metrics.values()))}
    if row.startswith("table2/mix-chan"):
        rows[row.replace("mix-chan", "mix-mix")] = metrics.get("mix-mix")
    elif row.endswith("/simclr"):
        rows["table2/mix-mix+specaug"] = metrics.get("mix-mix")
    return {name: metric for name, metric in rows.items() if metric}


def row_name(row: str | None) -> str:
    """Such as "Table 4, S2∨N, SimCLR & CP"; the given name if the paper has no such row."""
    for table, rows in PAPER_TABLES.items():
        for known in rows:
            if known.name == row:
                return f"{table[:-1].capitalize()} {table[-1]}, {known.label}"
    return row or ""
