"""The commands that make many runs: `sweep` and `reproduce`."""

import time
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from models.config import SepsceneError
from orchestration.arguments import Address, Changes, ExperimentName, Scale, Storage, Verbose, parse_changes, resolve

console = Console()

Id = Annotated[str | None, typer.Option("--id", help="Name of the folder; an existing one is continued.")]


def sweep_command(
    experiment: ExperimentName,
    more: Annotated[list[str] | None, typer.Argument(metavar="[FIELD=VALUES…]", help="Further fields.")] = None,
    over: Annotated[
        list[str] | None,
        typer.Option(help="`combination=S2,N,S2+N`, `temperature=0.1,0.2`, `alpha=0,1`, any dotted field."),
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Runs of each setting.")] = 1,
    trials: Annotated[
        int | None, typer.Option(min=1, help="A random choice of so many settings, instead of all.")
    ] = None,
    hours: Annotated[float | None, typer.Option(min=0, help="Stop after this wall time; continue with `--id`.")] = None,
    scale: Scale = "tiny",
    storage: Storage = Path("runs"),
    sweep_id: Id = None,
    change: Changes = None,
    address: Address = None,
    verbose: Verbose = False,
) -> None:
    """Run an experiment over combinations, temperatures, task weights or any fields, and rank the settings.

    All trials share the data, the separator's ladder and the SeparatedStore. A sweep that was stopped goes on with
    `--id`: what is finished is not repeated, what is not continues from its checkpoint.

    Example: `sepscene sweep demo --over combination=S2,N,S2+N temperature=0.1,0.2 --seeds 3`
    """
    from orchestration.session import ray_session
    from orchestration.sweep import parse_fields, plan_trials, sweep
    from orchestration.tracking import default_tracking_uri

    fields = parse_fields([*(over or []), *(more or [])])
    if not fields:
        raise SepsceneError("nothing to sweep over: give e.g. --over temperature=0.1,0.2")
    base = resolve(experiment, scale, change)
    plan_trials(base, fields, seeds, trials)  # refuses bad fields before anything starts
    folder = (storage / (sweep_id or f"sweep-{base.name.replace('/', '-')}-{time.strftime('%Y%m%d-%H%M%S')}")).resolve()
    with ray_session(base, address, verbose):
        sweep(base, fields, folder, default_tracking_uri(storage), console, seeds, trials, hours)
    console.print(f"report        {folder / 'report.html'}")


def reproduce_command(
    tables: Annotated[list[str], typer.Argument(help="`table2`, `table4`, `table5`.")],
    row: Annotated[
        list[str] | None, typer.Option(help="Only this row, e.g. `table4/S2+N/simclr`. Repeat as needed.")
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Runs of each row.")] = 3,
    data: Annotated[
        str | None, typer.Option(help="`FORMAT:ROOT`, e.g. `esc50:esc10`; synthetic scenes when absent.")
    ] = None,
    scale: Scale = "tiny",
    storage: Storage = Path("runs"),
    reproduction_id: Id = None,
    change: Changes = None,
    address: Address = None,
    verbose: Verbose = False,
) -> None:
    """Run the rows of the paper's tables, put ours beside them, and judge the paper's six claims.

    Example: `sepscene reproduce table2 --scale tiny --seeds 3`
    """
    from orchestration.reproduction import reproduce
    from orchestration.session import ray_session
    from orchestration.tracking import default_tracking_uri

    changes = parse_changes(change)
    if data is not None:
        kind, colon, root = data.partition(":")
        if not colon:
            raise SepsceneError(f"--data {data!r} must look like FORMAT:ROOT, e.g. esc50:esc10")
        changes = {"data.format": kind, "data.root": root, **changes}
    folder = (storage / (reproduction_id or f"{'-'.join(tables)}-{scale}-{time.strftime('%Y%m%d-%H%M%S')}")).resolve()
    base = resolve("table4/S2+N/simclr-cp", scale, None).changed(changes)
    with ray_session(base, address, verbose):
        uri = default_tracking_uri(storage)
        reproduce(tables, row, scale, changes, seeds, folder, uri, console)  # type: ignore[arg-type]
    console.print(f"report        {folder / 'report.html'}")
