"""What a reproduction will run: the paper's rows as experiments, planned before anything starts and without Ray."""

from typing import Any

from sepscene.models.config import SepsceneError
from sepscene.models.spelling import unknown
from sepscene.orchestration.config import Experiment
from sepscene.orchestration.presets import EXPERIMENTS, OF_COINCIDENCE, OWN, resolve
from sepscene.tasks.paper.beyond import BEYOND
from sepscene.tasks.paper.claims import PAPER_TABLES, TWINS


def planned_rows(tables: list[str], rows: list[str] | None) -> list[str]:
    """The experiments of the tables' rows; one that two of the tables share is run once, under its first name.

    The rows beyond the paper come with those that they are compared with.

    Raises:
        SepsceneError: for an unknown table or row.
    """
    rows_of = {table: [row.name for row in known] for table, known in PAPER_TABLES.items()}
    rows_of["beyond"] = [*dict.fromkeys(row.beside for row in BEYOND), *(row.name for row in BEYOND)]
    for table in tables:
        if table not in rows_of:
            raise SepsceneError(unknown(table, rows_of, "table"))
    names = list(dict.fromkeys(name for table in tables for name in rows_of[table] if name in EXPERIMENTS))
    for row in rows or []:
        if row not in names:
            raise SepsceneError(unknown(row, names, f"row of {', '.join(tables)}"))
    wanted = rows or names
    return [name for n, name in enumerate(wanted) if TWINS.get(name) not in wanted[:n]]


def row_experiments(rows: list[str], scale: str, changes: dict[str, Any]) -> list[Experiment]:
    """The experiments of some rows with the same changes in each.

    Raises:
        SepsceneError: for a change that would redefine rows, or that the configuration refuses.
    """
    for field, value in changes.items():
        own = [one for one in OWN if f"{one}.".startswith(f"{field}.") or field.startswith(f"{one}.")]
        if own:
            raise SepsceneError(
                f"--set {field}: the tables' rows differ in {', '.join(own)}, so that it cannot be set for all of "
                "them; change another field, or run one experiment with `sepscene pretrain`"
            )
        if field in ("objective.alpha", "objective.terms.coincidence.weight") and value == 0:
            raise SepsceneError(f"--set {field}=0: rows with coincidence prediction would lose it; set it above 0")
    return [_changed(resolve(row, scale, None), changes) for row in rows]


def _changed(row: Experiment, changes: dict[str, Any]) -> Experiment:
    if row.objective.alpha == 0:
        changes = {field: value for field, value in changes.items() if field not in OF_COINCIDENCE}
    return row.changed(changes)
