"""The commands that start many runs: `sweep` and `reproduce`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sepscene.orchestration.cli.arguments import (
    SCALES_HELP,
    Address,
    Changes,
    Dashboard,
    Scale,
    Storage,
    TrustCode,
    Verbose,
    check_without_effect,
)
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
            help="A name such as `table4/S2+N/simclr-cp`, the YAML file of an experiment, or the YAML file of a sweep.",
        ),
    ],
    more: Annotated[
        list[str] | None, typer.Argument(metavar="FIELD=VALUES", help="Further fields with values, as for --over.")
    ] = None,
    over: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FIELD=VALUES",
            help="A field with its values: `combination=S2,N,S2+N`, `'temperature=loguniform(0.05,0.5)'`, `alpha=0,1`, "
            "or any dotted field.",
        ),
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Number of runs per setting.")] = 1,
    search: Annotated[str, typer.Option(help="`grid`, `random` or `optuna`.")] = "grid",
    scheduler: Annotated[
        str, typer.Option(help="`none`, or `asha`, which stops trials with a low validation kNN mAP.")
    ] = "none",
    trials: Annotated[
        int | None, typer.Option(min=1, help="Number of settings; required unless the search is a grid.")
    ] = None,
    hours: Annotated[
        float | None, typer.Option(help="Stop after this wall-clock time; `--resume` continues the sweep.")
    ] = None,
    gpu_hours: Annotated[
        float | None, typer.Option(help="Stop when all trials together have used this many GPU-hours.")
    ] = None,
    scale: Scale = None,
    storage: Storage = Path("runs"),
    sweep_id: Id = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue the newest sweep that had the same arguments.")
    ] = False,
    change: Changes = None,
    address: Address = None,
    dashboard: Dashboard = False,
    verbose: Verbose = False,
    trust_code: TrustCode = False,
) -> None:
    """Run an experiment with many settings and rank them.

    Varies combinations, temperatures, task weights or any other field. All trials share the data, the separators and
    the SeparatedStore. A stopped sweep continues with `--resume` or `--id`: finished trials are not repeated, the
    others continue from their checkpoints.

    Examples:

    `sepscene sweep demo --over combination=S2,N,S2+N temperature=0.1,0.2 --seeds 3`

    `sepscene sweep demo --over 'temperature=loguniform(0.05,0.5)' --search random --trials 12 --scheduler asha
    --hours 4 --set training.validation_every_steps=60`

    `sepscene sweep mine.yaml --resume`
    """
    from sepscene.orchestration.api import run_sweep

    config = sweep_of(context.params)  # takes all arguments by name, because `submit` passes them so
    folder, results = run_sweep(config, storage, sweep_id, resume, address, verbose, console, dashboard=dashboard)
    _report(folder, [trial.name for trial in results.trials if trial.status == "failed"])


def _from_file(
    path: Path, texts: list[str], change: list[str] | None, options: dict[str, Any], budget: dict[str, Any]
) -> "SweepConfig":
    """The sweep of a file. Only its budget can be changed on the command line."""
    from sepscene.models.config import SepsceneError
    from sepscene.orchestration.sweeps.config import load_sweep

    defaults = {"scale": None, "search": "grid", "scheduler": "none", "seeds": 1}
    given = [f"--{name}" for name, value in options.items() if value != defaults[name]]
    if texts:
        given.append("--over")
    if change:
        given.append("--set")
    if given:
        raise SepsceneError(f"{path} describes a whole sweep: put {', '.join(given)} into the file")
    config = load_sweep(path)
    return config.changed({f"budget.{name}": value for name, value in budget.items() if value is not None})


def sweep_of(given: dict[str, Any]) -> "SweepConfig":
    """The sweep that parsed arguments (name -> value) describe."""
    from sepscene.models.config import SepsceneError
    from sepscene.orchestration.presets import parse_changes
    from sepscene.orchestration.sweeps.config import make_sweep
    from sepscene.orchestration.sweeps.search_space import split_fields

    experiment = given["experiment"]
    texts = [*(given["over"] or []), *(given["more"] or [])]
    budget = {name: given[name] for name in ("trials", "hours", "gpu_hours")}
    options = {name: given[name] for name in ("scale", "search", "scheduler", "seeds")}
    if is_sweep(experiment):
        return _from_file(Path(experiment), texts, given["change"], options, budget)
    if not texts:
        raise SepsceneError(
            "there is nothing to sweep over: give e.g. --over temperature=0.1,0.2, or the YAML file of a sweep"
        )
    changes = parse_changes(given["change"])
    return make_sweep(experiment=experiment, changes=changes, over=split_fields(texts), budget=budget, **options)


def is_sweep(name: str) -> bool:
    """Whether `name` is a YAML file that contains a sweep instead of an experiment.

    Raises:
        SepsceneError: when the file is missing or cannot be read.
    """
    from sepscene.orchestration.yaml_files import is_yaml, read_yaml

    if not is_yaml(name):
        return False
    tree = read_yaml(Path(name), "an experiment or a sweep")
    return isinstance(tree, dict) and "over" in tree


def reproduce_command(
    context: typer.Context,
    tables: Annotated[
        list[str], typer.Argument(help="`table2`, `table4`, `table5`, or `beyond` for rows that are not in the paper.")
    ],
    row: Annotated[
        list[str] | None,
        typer.Option(metavar="ROW", help="Run only this row, e.g. `table4/S2+N/simclr`. Can be repeated."),
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Number of runs per row.")] = 3,
    data: Annotated[
        str | None,
        typer.Option(metavar="FORMAT:FOLDER", help="A data set, e.g. `esc50:esc10`. Default: synthetic scenes."),
    ] = None,
    scale: Annotated[str, typer.Option(help=f"Scale of the experiments: {SCALES_HELP}.")] = "tiny",
    storage: Storage = Path("runs"),
    reproduction_id: Id = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue the newest reproduction of the same tables.")
    ] = False,
    hours: Annotated[
        float | None, typer.Option(help="With --scale mini: start no further trials after this many hours.")
    ] = None,
    change: Changes = None,
    address: Address = None,
    dashboard: Dashboard = False,
    verbose: Verbose = False,
    trust_code: TrustCode = False,
) -> None:
    """Reproduce rows of the paper's tables.

    Runs the rows, shows our results next to the paper's, and tests the paper's six claims. For public data sets
    (esc50, audioset, fsd50k) the usual splits are used, unless `--set data.train=…` gives others.

    Scale mini needs one core and no Ray. An interrupted command continues when it is run again with the same --id;
    two processes with the same --id share the trials.

    Examples:

    `sepscene reproduce table2 --scale tiny --seeds 3`

    `sepscene reproduce table2 --data esc50:esc10`

    `sepscene reproduce table2 table4 --scale mini --seeds 16 --id study`
    """
    from sepscene.models.config import SepsceneError
    from sepscene.orchestration.dataset_presets import check_splits, data_changes
    from sepscene.orchestration.presets import parse_changes
    from sepscene.orchestration.records.run_folder import dated, folder_in, newest_dated
    from sepscene.orchestration.records.sweep_folder import SweepFolder
    from sepscene.orchestration.runtime.concurrency import most_demanding
    from sepscene.orchestration.sweeps.reproduction_plan import planned_rows, row_experiments

    if scale == "mini":
        check_without_effect(context, "not at scale mini, which does not use Ray", "address", "dashboard")
    else:
        advice = "at other scales, stop the command and continue it with --id"
        check_without_effect(context, f"only with --scale mini; {advice}", "hours")
    changes = parse_changes(change)
    if data is not None:
        kind, colon, root = data.partition(":")
        if not colon:
            raise SepsceneError(f"--data {data!r} must look like FORMAT:FOLDER, e.g. esc50:esc10")
        changes = data_changes(kind, root, changes)
    name = f"{'-'.join(tables)}-{scale}"
    if reproduction_id is None:
        reproduction_id = newest_dated(storage, name, "--id") if resume else dated(name)
    folder = folder_in(storage, reproduction_id, "the reproduction id")
    # Raises an error for bad rows, changes or data before anything starts.
    rows = row_experiments(planned_rows(tables, row), scale, changes)
    if scale == "mini":
        from sepscene.orchestration.mini.study import run_study

        failed = run_study(rows, seeds, folder, console, hours)
        console.print(f"report        {SweepFolder(folder).report_html}", soft_wrap=True)
        _report_failed(list(failed))
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
    """Print where the results are and what to do next.

    Raises:
        typer.Exit: as `_report_failed`.
    """
    from sepscene.orchestration.records.sweep_folder import SweepFolder

    console.print(f"report        {SweepFolder(folder).report_html}", soft_wrap=True)
    console.print(f"each run      {SweepFolder(folder).trials}", soft_wrap=True)
    console.print(f"MLflow UI     sepscene ui {folder}", soft_wrap=True)
    _report_failed(failed)


def _report_failed(failed: list[str]) -> None:
    """Print how many trials have failed.

    Raises:
        typer.Exit: code 3, when trials have failed.
    """
    if failed:
        text = (
            f"failed        {len(failed)}, e.g. {failed[0]}; the report gives the reasons, the same --id retries them"
        )
        console.print(text, soft_wrap=True, highlight=False)
        raise typer.Exit(3)
