"""The commands that make many runs: `sweep` and `reproduce`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sepscene.orchestration.cli.arguments import Address, Changes, Dashboard, Scale, Storage, TrustCode, Verbose
from sepscene.orchestration.terminal import Terminal

if TYPE_CHECKING:
    from sepscene.orchestration.sweeps.config import SweepConfig

console = Terminal()

Id = Annotated[str | None, typer.Option("--id", help="Name of the folder; an existing one is continued.")]


def sweep_command(
    context: typer.Context,
    experiment: Annotated[
        str,
        typer.Argument(
            metavar="EXPERIMENT|SWEEP.yaml",
            help="A name such as `table4/S2+N/simclr-cp`, an experiment's YAML file, or a whole sweep as YAML.",
        ),
    ],
    more: Annotated[list[str] | None, typer.Argument(metavar="[FIELD=VALUES…]", help="Further fields.")] = None,
    over: Annotated[
        list[str] | None,
        typer.Option(
            help="`combination=S2,N,S2+N`, `'temperature=loguniform(0.05,0.5)'`, `alpha=0,1`, any dotted field."
        ),
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Runs of each setting.")] = 1,
    search: Annotated[str, typer.Option(help="`grid`, `random` or `optuna`.")] = "grid",
    scheduler: Annotated[
        str, typer.Option(help="`none`, or `asha`, which stops trials with a low validation kNN mAP.")
    ] = "none",
    trials: Annotated[int | None, typer.Option(min=1, help="So many settings; needed by all but a grid.")] = None,
    hours: Annotated[float | None, typer.Option(help="Stop after this wall time; go on with `--resume`.")] = None,
    gpu_hours: Annotated[float | None, typer.Option(help="Stop after this many GPU-hours of all trials.")] = None,
    scale: Scale = "tiny",
    storage: Storage = Path("runs"),
    sweep_id: Id = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the newest sweep of these arguments.")] = False,
    change: Changes = None,
    address: Address = None,
    dashboard: Dashboard = False,
    verbose: Verbose = False,
    trust_code: TrustCode = False,
) -> None:
    """Run an experiment over combinations, temperatures, task weights or any fields, and rank the settings.

    All trials share the data, the separator's ladder and the SeparatedStore. A sweep that was stopped goes on with
    `--resume` or `--id`: what is finished is not repeated, what is not continues from its checkpoint.

    Examples:

    `sepscene sweep demo --over combination=S2,N,S2+N temperature=0.1,0.2 --seeds 3`

    `sepscene sweep demo --over 'temperature=loguniform(0.05,0.5)' --search random --trials 12 --scheduler asha
    --hours 4 --set training.validation_every_steps=60`

    `sepscene sweep mine.yaml --resume`
    """
    from sepscene.orchestration.api import run_sweep

    config = sweep_of(context.params)  # what to sweep and how, by name, as `submit` passes it
    folder, results = run_sweep(config, storage, sweep_id, resume, address, verbose, console, dashboard=dashboard)
    _report(folder, [trial.name for trial in results.trials if trial.status == "failed"])


def _from_file(
    path: Path, texts: list[str], change: list[str] | None, ways: dict[str, Any], budget: dict[str, Any]
) -> "SweepConfig":
    """The sweep of a file. Only what it may spend can be said anew on the command line."""
    from sepscene.models.config import SepsceneError
    from sepscene.orchestration.sweeps.config import load_sweep, make_sweep

    usual = {"scale": "tiny", "search": "grid", "scheduler": "none", "seeds": 1}
    said = [f"--{name}" for name, value in ways.items() if value != usual[name]]
    said += ["--over"] * bool(texts) + ["--set"] * bool(change)
    if said:
        raise SepsceneError(f"{path} is a whole sweep: put {', '.join(said)} into the file")
    config = load_sweep(path)
    spends = config.budget.model_dump() | {name: value for name, value in budget.items() if value is not None}
    return make_sweep(**{**config.model_dump(), "budget": spends})


def sweep_of(given: dict[str, Any]) -> "SweepConfig":
    """The sweep of parsed arguments, by their names."""
    from sepscene.models.config import SepsceneError
    from sepscene.orchestration.presets import parse_changes
    from sepscene.orchestration.sweeps.config import make_sweep
    from sepscene.orchestration.sweeps.search_space import split_fields

    experiment = given["experiment"]
    texts = [*(given["over"] or []), *(given["more"] or [])]
    budget = {name: given[name] for name in ("trials", "hours", "gpu_hours")}
    ways = {name: given[name] for name in ("scale", "search", "scheduler", "seeds")}
    if is_sweep(experiment):
        return _from_file(Path(experiment), texts, given["change"], ways, budget)
    if not texts:
        raise SepsceneError("nothing to sweep over: give e.g. --over temperature=0.1,0.2, or a sweep's YAML file")
    changes = parse_changes(given["change"])
    return make_sweep(experiment=experiment, changes=changes, over=split_fields(texts), budget=budget, **ways)


def is_sweep(name: str) -> bool:
    """Whether a YAML file holds a sweep, and not an experiment."""
    from sepscene.orchestration.yaml_files import read_yaml

    if not name.endswith((".yaml", ".yml")) or not Path(name).exists():
        return False
    tree = read_yaml(Path(name), "an experiment")
    return isinstance(tree, dict) and "over" in tree


def reproduce_command(
    tables: Annotated[
        list[str], typer.Argument(help="`table2`, `table4`, `table5`; `beyond` for rows that the paper does not have.")
    ],
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
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the newest one of these tables.")] = False,
    hours: Annotated[float | None, typer.Option(help="Scale mini: start no trial after so long.")] = None,
    change: Changes = None,
    address: Address = None,
    dashboard: Dashboard = False,
    verbose: Verbose = False,
    trust_code: TrustCode = False,
) -> None:
    """Run the rows of the paper's tables, put ours beside them, and decide the paper's six claims.

    Public data sets (esc50, audioset, fsd50k) come with their usual splits; `--set data.train=…` goes before.

    Examples: `sepscene reproduce table2 --scale tiny --seeds 3`; `sepscene reproduce table2 --data esc50:esc10`;
    `sepscene reproduce table2 table4 --scale mini --seeds 16 --id study`, which needs one core and no Ray. Given again
    it goes on where it was cut; given twice at the same time, two processes share the trials.
    """
    from sepscene.models.config import SepsceneError
    from sepscene.orchestration.dataset_presets import check_splits, data_changes
    from sepscene.orchestration.presets import parse_changes
    from sepscene.orchestration.records.run_folder import dated, folder_in
    from sepscene.orchestration.records.sweep_folder import SweepFolder
    from sepscene.orchestration.runtime.concurrency import most_demanding
    from sepscene.orchestration.sweeps.reproduction_plan import planned_rows, row_experiments

    changes = parse_changes(change)
    if data is not None:
        kind, colon, root = data.partition(":")
        if not colon:
            raise SepsceneError(f"--data {data!r} must look like FORMAT:ROOT, e.g. esc50:esc10")
        changes = data_changes(kind, root, changes)
    name = f"{'-'.join(tables)}-{scale}"
    newest = max((path.name for path in storage.glob(f"{name}-*")), default=None) if resume else None
    reproduction_id = reproduction_id or newest or dated(name)
    folder = folder_in(storage, reproduction_id, "the reproduction id")
    # Refuses bad rows, changes and data before anything starts.
    rows = row_experiments(planned_rows(tables, row), scale, changes)
    if scale == "mini":
        from sepscene.orchestration.mini.study import run_study

        run_study(rows, seeds, folder, console, hours)
        console.print(f"report        {SweepFolder(folder).report_html}", soft_wrap=True)
        return
    most = most_demanding(rows)
    check_splits(most.data)
    from sepscene.orchestration.pipeline.session import prepared_session
    from sepscene.orchestration.records.mlflow_address import default_tracking_uri
    from sepscene.orchestration.sweeps.reproduction import reproduce

    with prepared_session(most, address, verbose, dashboard, rows):
        uri = default_tracking_uri(storage)
        results = reproduce(rows, tables, scale, changes, seeds, folder, uri, console)  # type: ignore[arg-type]
    _report(folder, list(results.failed))


def _report(folder: Path, failed: list[str]) -> None:
    """Where the results are, and what to do next; ends the command with code 3 when trials have failed."""
    from sepscene.orchestration.records.sweep_folder import SweepFolder

    console.print(f"report        {SweepFolder(folder).report_html}", soft_wrap=True)
    console.print(f"each run      {SweepFolder(folder).trials}", soft_wrap=True)
    console.print(f"MLflow UI     sepscene ui {folder}", soft_wrap=True)
    if failed:
        text = f"failed        {len(failed)}, e.g. {failed[0]}; the report says why, the same --id tries again"
        console.print(text, soft_wrap=True, highlight=False)
        raise typer.Exit(3)
