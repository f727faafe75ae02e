"""The plan of a reproduction: the paper's rows as experiments, checked without Ray before anything starts."""

from typing import Any

from sepscene.models.config import SepsceneError
from sepscene.models.spelling import unknown
from sepscene.orchestration.config import Experiment
from sepscene.orchestration.presets import COINCIDENCE_FIELDS, EXPERIMENTS, ROW_FIELDS, resolve
from sepscene.tasks.paper.beyond import BEYOND
from sepscene.tasks.paper.claims import OTHER_NAMES, PAPER_TABLES


def planned_rows(tables: list[str], rows: list[str] | None) -> list[str]:
    """The names of all rows of the tables, or of those in `rows`.

    A row that two of the tables share is run once, under its first name. The table `beyond` includes the rows that its
    rows are compared with.

    Raises:
        SepsceneError: when a table or row is unknown.
    """
    rows_of = {table: [row.name for row in known] for table, known in PAPER_TABLES.items()}
    rows_of["beyond"] = [*dict.fromkeys(row.reference for row in BEYOND), *(row.name for row in BEYOND)]
    for table in tables:
        if table not in rows_of:
            raise SepsceneError(unknown(table, rows_of, "table"))
    names = list(dict.fromkeys(name for table in tables for name in rows_of[table] if name in EXPERIMENTS))
    for row in rows or []:
        if row not in names:
            raise SepsceneError(unknown(row, names, f"row of {', '.join(tables)}"))
    wanted = rows or names
    return [name for n, name in enumerate(wanted) if OTHER_NAMES.get(name) not in wanted[:n]]


def row_experiments(rows: list[str], scale: str, changes: dict[str, Any]) -> list[Experiment]:
    """The experiments of rows, with the same changes in each.

    Raises:
        SepsceneError: when a change would redefine rows, or the configuration refuses it.
    """
    for field, value in changes.items():
        affected = [one for one in ROW_FIELDS if f"{one}.".startswith(f"{field}.") or field.startswith(f"{one}.")]
        if affected:
            raise SepsceneError(
                f"--set {field}: the tables' rows differ in {', '.join(affected)}, so it cannot be set for all rows: "
                "change another field, or run one experiment with `sepscene pretrain`"
            )
        if field in ("objective.alpha", "objective.terms.coincidence.weight") and value == 0:
            raise SepsceneError(
                f"--set {field}=0: this would remove coincidence prediction from the rows that have it: set it above 0"
            )
    return [_changed(resolve(row, scale, None), changes) for row in rows]


def _changed(row: Experiment, changes: dict[str, Any]) -> Experiment:
    if row.objective.alpha == 0:
        changes = {field: value for field, value in changes.items() if field not in COINCIDENCE_FIELDS}
    return row.changed(changes)
