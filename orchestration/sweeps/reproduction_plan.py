"""What a reproduction will run: the paper's rows as experiments, planned before anything starts and without Ray."""

from typing import Any

from sepscene.models.config import SepsceneError
from sepscene.orchestration.config import Experiment
from sepscene.orchestration.presets import OF_COINCIDENCE, OWN, resolve


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
