"""The commands about results: `evaluate`, `report`, `compare`, `ui`, `sync`, `replay`."""

import sys
from collections import Counter
from pathlib import Path
from typing import Annotated

import typer

from sepscene.orchestration.cli.arguments import Address, RunArgument, TrustCode, Verbose, check_runs
from sepscene.orchestration.terminal import Terminal

console = Terminal()


def evaluate(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run; with --task also an encoder bundle.")],
    task: Annotated[
        list[str] | None,
        typer.Option(help="FORMAT:FOLDER, e.g. `esc50:ESC-50-master` or `hear:FOLDER`. Repeat as needed."),
    ] = None,
    out: Annotated[Path, typer.Option(help="With --task: folder of results, one file each.")] = Path("task-results"),
    name: Annotated[str | None, typer.Option(help="With --task: the encoder's name in tables.")] = None,
    device: Annotated[str, typer.Option(help="With --task: `cpu` or `cuda`.")] = "cpu",
    address: Address = None,
    verbose: Verbose = False,
    trust_code: TrustCode = False,
) -> None:
    """Evaluate a run's encoder beside its baselines and write its report; with --task on tasks that people compare on.

    Examples:

    `sepscene evaluate runs/demo`

    `sepscene evaluate runs/demo/encoder --task esc50:ESC-50-master --task hear:tasks/dcase2016_task2-hear2021-full`
    """
    check_runs(run)
    if task:
        _evaluate_on_tasks(run, task, out, name, device)
        return
    from sepscene.orchestration.config import load_experiment
    from sepscene.orchestration.pipeline.evaluate_stage import evaluate_run, summarise
    from sepscene.orchestration.pipeline.run import Run
    from sepscene.orchestration.pipeline.session import prepared_session
    from sepscene.orchestration.records.mlflow_address import tracking_uri_of
    from sepscene.orchestration.records.run_folder import RunFolder

    experiment = load_experiment(RunFolder(run).experiment)
    with prepared_session(experiment, address, verbose):
        with Run.open(run.resolve(), experiment, tracking_uri_of(run), console, resume=True) as opened:
            train, test = opened.manifests
            evaluate_run(opened, train, test, opened.ladder(train))
        summarise(opened)


def _evaluate_on_tasks(run: Path, tasks: list[str], out: Path, name: str | None, device: str) -> None:
    """Evaluate one encoder on some tasks, keep each result as a file in `out`, and print the table of all of them.

    Ends the command with code 3 when sounds had to be left out.
    """
    from rich.progress import Progress

    from sepscene.models.config import SepsceneError
    from sepscene.models.encoders.encoder import load_encoder
    from sepscene.orchestration.evaluation.downstream import evaluate_task, read_results, result_path
    from sepscene.orchestration.evaluation.embed_files import usable_device
    from sepscene.orchestration.evaluation.file_encoder import encoder_digest
    from sepscene.orchestration.records.files import write_whole
    from sepscene.orchestration.records.run_folder import encoder_of
    from sepscene.orchestration.reports.task_table import terminal_table
    from sepscene.tasks.datasets.downstream import read_task

    encoder = load_encoder(encoder_of(run)).to(usable_device(device))
    digest = encoder_digest(encoder)
    read = [read_task(task) for task in tasks]  # a mistake in the last one is found before the first is embedded
    twice = [name for name, count in Counter(task.name for task in read).items() if count > 1]
    if twice:
        raise SepsceneError(f"two tasks are called {twice[0]}, after their folders: give them another --out each")
    out.mkdir(parents=True, exist_ok=True)
    left_out: dict[str, str] = {}
    with Progress(console=console, transient=True) as progress:
        bar = progress.add_task("")
        for task in read:
            progress.reset(bar, total=len(task.sounds), description=task.name)
            result = evaluate_task(
                encoder, name or run.name, digest, task, progress=lambda done: progress.update(bar, completed=done)
            )
            write_whole(result_path(out, result), result.model_dump_json(indent=2) + "\n")
            left_out |= result.left_out
    console.print(terminal_table(read_results(out)))
    for uri, cause in left_out.items():
        print(f"left out: {uri}: {cause}", file=sys.stderr)
    if left_out:
        raise typer.Exit(3)


def report(run: RunArgument) -> None:
    """Write the report of a run, a sweep or a reproduction again: report.html (one file, works offline) and report.md.

    Example: `sepscene report runs/demo`
    """
    from sepscene.orchestration.reports.run_report import report_on

    check_runs(run)
    html, markdown = report_on(run)
    console.print(f"{html}\n{markdown}", soft_wrap=True)


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
        _compare_on_tasks(tasks, csv, latex)
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


def _compare_on_tasks(folder: Path, csv_file: Path | None, latex_file: Path | None) -> None:
    """Print the table of all results in a folder, and write it as CSV and LaTeX where asked."""
    from sepscene.orchestration.evaluation.downstream import read_results
    from sepscene.orchestration.records.files import write_whole
    from sepscene.orchestration.reports.task_table import csv_table, latex_table, terminal_table

    results = read_results(folder)
    console.print(terminal_table(results))
    for file, text in ((csv_file, csv_table), (latex_file, latex_table)):
        if file is not None:
            write_whole(file, text(results))
            console.print(str(file), soft_wrap=True)


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
    found, loss = replay(run.resolve(), opened.manifests[0], row)
    for one in found:
        console.print(one, highlight=False)
    console.print(f"loss of these rows: {loss:.6f}")
