"""The commands about results: `compare`, `ui`, `sync`."""

from pathlib import Path
from typing import Annotated

import typer

from sepscene.orchestration.cli.arguments import RunArgument, check_runs
from sepscene.orchestration.terminal import Terminal

console = Terminal()


def compare(
    a: Annotated[
        list[Path] | None, typer.Argument(metavar="A B", help="Two runs; or with --seeds two groups of equal size.")
    ] = None,
    encoder_a: Annotated[
        str | None, typer.Option(help="Which encoder of A, e.g. `mix-mix`; its own when absent.")
    ] = None,
    encoder_b: Annotated[str | None, typer.Option(help="Which encoder of B.")] = None,
    seeds: Annotated[
        bool, typer.Option("--seeds", help="The first half of the runs against the second, paired by seed.")
    ] = False,
    tasks: Annotated[
        Path | None, typer.Option(help="Instead of runs: the folder of results of `sepscene evaluate --task`.")
    ] = None,
    csv: Annotated[Path | None, typer.Option(help="With --tasks: write the table as CSV, too.")] = None,
    latex: Annotated[Path | None, typer.Option(help="With --tasks: write the table as LaTeX, too.")] = None,
) -> None:
    """Test whether run B differs from run A on the clips on which both were evaluated.

    Examples: `sepscene compare runs/one runs/two`; a run with its baseline:
    `sepscene compare runs/demo runs/demo --encoder-a mix-mix`; encoders over tasks:
    `sepscene compare --tasks task-results --latex table.tex`
    """
    if tasks is not None:
        from sepscene.orchestration.cli.task_commands import compare_on_tasks

        compare_on_tasks(tasks, csv, latex)
        return
    a = a or []
    check_runs(*a)
    from sepscene.models.config import SepsceneError
    from sepscene.orchestration.evaluation.compare import compare_runs, compare_seeds, render

    if seeds and len(a) >= 4 and len(a) % 2 == 0:
        comparison = compare_seeds(a[: len(a) // 2], a[len(a) // 2 :])
    elif not seeds and len(a) == 2:
        comparison = compare_runs(a[0], a[1], encoder_a, encoder_b)
    else:
        raise SepsceneError("compare takes two runs; with --seeds the runs of A, then as many of B, two or more each")
    print(render(comparison))


def ui(
    folder: Annotated[Path, typer.Argument(metavar="RUN", help="A run, or the folder that holds runs.")] = Path("runs"),
    port: Annotated[int, typer.Option(min=1024, max=65535)] = 5000,
) -> None:
    """Open the MLflow UI on the store of a run or a folder of runs, on this machine only, at our training runs.

    Example: `sepscene ui runs/demo`
    """
    from sepscene.orchestration.records.mlflow_ui import serve

    check_runs(folder)
    serve(folder, port, console)


def sync(run: RunArgument) -> None:
    """Send to MLflow what it misses of a run or a sweep: all of it, when MLflow has lost the run.

    It goes to MLFLOW_TRACKING_URI, or to the mlflow.db beside the run; never to an address that the folder names.

    Example: `sepscene sync runs/demo`
    """
    from sepscene.orchestration.records.mlflow_address import tracking_uri_of
    from sepscene.orchestration.records.mlflow_mirror import sync as send

    check_runs(run)
    uri = tracking_uri_of(run)
    send(run, uri)
    console.print(f"MLflow at {uri} has everything", soft_wrap=True)


def replay_command(
    run: RunArgument,
    row: Annotated[
        list[int] | None,
        typer.Option(min=0, help="A row; repeat it. Absent: those of the last skipped step."),
    ] = None,
) -> None:
    """Compute the views and the loss of some rows again, in one process, with the newest weights.

    A run that stopped for too many steps with a NaN or infinite loss has kept their rows: they are the default.

    Example: `sepscene replay runs/demo --row 17 --row 42`
    """
    from sepscene.models.config import SepsceneError
    from sepscene.orchestration.config import load_experiment
    from sepscene.orchestration.pipeline.run import Run
    from sepscene.orchestration.records.mlflow_address import tracking_uri_of
    from sepscene.orchestration.records.mlflow_mirror import Tracker
    from sepscene.orchestration.records.run_folder import RunFolder
    from sepscene.orchestration.training.replay import last_bad_rows, replay

    check_runs(run)
    row = row or last_bad_rows(run.resolve())
    if len(row) < 2:
        raise SepsceneError("a contrastive loss needs at least two rows: give --row twice")
    opened = Run(
        run.resolve(), load_experiment(RunFolder(run).experiment), Tracker(tracking_uri_of(run), "", run), console
    )
    found, loss = replay(run.resolve(), opened.manifests()[0], row)
    for one in found:
        console.print(one, highlight=False)
    console.print(f"loss of these rows: {loss:.6f}")
