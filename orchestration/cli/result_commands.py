"""The commands for results: `evaluate`, `report`, `compare`, `ui`, `sync`, `replay`."""

import sys
from collections import Counter
from pathlib import Path
from typing import Annotated

import typer

from sepscene.orchestration.cli.arguments import (
    Address,
    RunArgument,
    TrustCode,
    Verbose,
    check_runs,
    check_without_effect,
)
from sepscene.orchestration.terminal import Terminal

console = Terminal()


def evaluate(
    context: typer.Context,
    run: Annotated[
        Path, typer.Argument(metavar="RUN", help="The folder of a run; with --task, also of an encoder bundle.")
    ],
    task: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FORMAT:FOLDER", help="A benchmark, e.g. `esc50:ESC-50-master` or `hear:FOLDER`. Can be repeated."
        ),
    ] = None,
    out: Annotated[Path, typer.Option(help="With --task: folder for the results, one file per task.")] = Path(
        "task-results"
    ),
    name: Annotated[str | None, typer.Option(help="With --task: name of the encoder in tables.")] = None,
    device: Annotated[str, typer.Option(help="With --task: `cpu` or `cuda`.")] = "cpu",
    address: Address = None,
    verbose: Verbose = False,
    trust_code: TrustCode = False,
) -> None:
    """Evaluate the encoder of a run.

    Compares the encoder with the run's baselines and writes the run's report. A baseline that the run does not have
    yet is trained first, e.g. after `pretrain --no-evaluate`. With --task, evaluates the encoder on public benchmarks
    instead; `sepscene compare --tasks` shows their table.

    Examples:

    `sepscene evaluate runs/demo`

    `sepscene evaluate runs/demo/encoder --task esc50:ESC-50-master --task hear:tasks/dcase2016_task2-hear2021-full`
    """
    check_runs(run)
    if task:
        check_without_effect(context, "only without --task, which does not use Ray", "address")
        _evaluate_on_tasks(run, task, out, name, device)
        return
    check_without_effect(context, "only with --task FORMAT:FOLDER", "out", "name", "device")
    from sepscene.orchestration.config import load_experiment
    from sepscene.orchestration.pipeline.encoders import encoders_of
    from sepscene.orchestration.pipeline.evaluate_stage import evaluate_run, print_summary
    from sepscene.orchestration.pipeline.run import Run
    from sepscene.orchestration.pipeline.session import prepared_session
    from sepscene.orchestration.records.mlflow_address import tracking_uri_of
    from sepscene.orchestration.records.run_folder import RunFolder

    experiment = load_experiment(RunFolder(run).experiment)
    with prepared_session(experiment, address, verbose):
        with Run.open(run.resolve(), experiment, tracking_uri_of(run), console, resume=True) as opened:
            ladder = opened.ladder()
            evaluate_run(opened, encoders_of(opened), ladder)
        print_summary(opened)


def _evaluate_on_tasks(run: Path, tasks: list[str], out: Path, name: str | None, device: str) -> None:
    """Evaluate an encoder on tasks, save one result file per task in `out`, and print the table of all files there.

    Raises:
        typer.Exit: code 3, when sounds could not be used.
    """
    from rich.progress import Progress

    from sepscene.models.config import SepsceneError
    from sepscene.models.encoders.encoder import load_encoder
    from sepscene.orchestration.evaluation.downstream import evaluate_task, read_results, result_path
    from sepscene.orchestration.evaluation.embed_files import usable_device
    from sepscene.orchestration.evaluation.file_encoder import encoder_digest
    from sepscene.orchestration.records.files import write_text_atomically
    from sepscene.orchestration.records.run_folder import encoder_of
    from sepscene.orchestration.reports.task_table import terminal_table
    from sepscene.tasks.datasets.downstream import read_task

    encoder = load_encoder(encoder_of(run)).to(usable_device(device))
    digest = encoder_digest(encoder)
    read = [read_task(task) for task in tasks]  # finds a mistake in the last one before the first is embedded
    twice = [name for name, count in Counter(task.name for task in read).items() if count > 1]
    if twice:
        raise SepsceneError(
            f"two tasks are called {twice[0]}, because their folders have the same name: evaluate them separately, "
            "each with its own --out"
        )
    name = name or run.name
    paths = [result_path(out, task.name, name, digest) for task in read]
    out.mkdir(parents=True, exist_ok=True)
    left_out: dict[str, str] = {}
    with Progress(console=console, transient=True) as progress:
        bar = progress.add_task("")
        for task, path in zip(read, paths, strict=True):
            progress.reset(bar, total=len(task.sounds), description=task.name)
            result = evaluate_task(encoder, name, digest, task, lambda done: progress.update(bar, completed=done))
            write_text_atomically(path, result.model_dump_json(indent=2) + "\n")
            left_out |= result.left_out
    console.print(terminal_table(read_results(out)))
    for uri, cause in left_out.items():
        print(f"skipped: {uri}: {cause}", file=sys.stderr)
    if left_out:
        raise typer.Exit(3)


def report(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a run, sweep or reproduction.")],
) -> None:
    """Write the report of a run, sweep or reproduction again.

    Writes report.html, a single file that works offline, and report.md.

    Example: `sepscene report runs/demo`
    """
    from sepscene.orchestration.reports.run_report import report_on

    check_runs(run)
    html, markdown = report_on(run)
    console.print(f"{html}\n{markdown}", soft_wrap=True)


def compare(
    context: typer.Context,
    a: Annotated[
        list[Path] | None, typer.Argument(metavar="A B", help="Two runs; with --seeds, two groups of equal size.")
    ] = None,
    encoder_a: Annotated[
        str | None, typer.Option(help="Encoder of run A, e.g. `mix-mix`. Default: the encoder that the run trained.")
    ] = None,
    encoder_b: Annotated[str | None, typer.Option(help="Encoder of run B.")] = None,
    seeds: Annotated[
        bool, typer.Option("--seeds", help="Compare the first half of the runs with the second, paired by seed.")
    ] = False,
    tasks: Annotated[
        Path | None, typer.Option(help="Instead of runs: the folder of results from `sepscene evaluate --task`.")
    ] = None,
    csv: Annotated[Path | None, typer.Option(help="With --tasks: also write the table to this CSV file.")] = None,
    latex: Annotated[Path | None, typer.Option(help="With --tasks: also write the table to this LaTeX file.")] = None,
) -> None:
    """Test whether two runs differ.

    Uses the clips on which both runs were evaluated. With --tasks, prints the table of benchmark results instead.

    Examples:

    `sepscene compare runs/one runs/two` compares two runs.

    `sepscene compare runs/demo runs/demo --encoder-a mix-mix` compares a run with its baseline.

    `sepscene compare --tasks task-results --latex table.tex` compares encoders on benchmarks.
    """
    if tasks is not None:
        check_without_effect(context, "only for runs, without --tasks", "a", "encoder_a", "encoder_b", "seeds")
        _compare_on_tasks(tasks, csv, latex)
        return
    check_without_effect(context, "only with --tasks; the comparison of runs is printed", "csv", "latex")
    from sepscene.models.config import SepsceneError

    if seeds and (encoder_a or encoder_b):
        raise SepsceneError("--seeds compares the encoders that the runs trained: omit --encoder-a and --encoder-b")
    a = a or []
    check_runs(*a)
    from sepscene.orchestration.evaluation.compare import compare_runs, compare_seeds, render

    if seeds and len(a) >= 4 and len(a) % 2 == 0:
        comparison = compare_seeds(a[: len(a) // 2], a[len(a) // 2 :])
    elif not seeds and len(a) == 2:
        comparison = compare_runs(a[0], a[1], encoder_a, encoder_b)
    else:
        raise SepsceneError(
            "compare takes two runs; with --seeds, two or more runs of A followed by the same number of runs of B"
        )
    print(render(comparison))


def _compare_on_tasks(folder: Path, csv_file: Path | None, latex_file: Path | None) -> None:
    """Print the table of all results in a folder, and write it as CSV and LaTeX if requested."""
    from sepscene.orchestration.evaluation.downstream import read_results
    from sepscene.orchestration.records.files import write_text_atomically
    from sepscene.orchestration.reports.task_table import csv_table, latex_table, terminal_table

    results = read_results(folder)
    console.print(terminal_table(results))
    for file, text in ((csv_file, csv_table), (latex_file, latex_table)):
        if file is not None:
            write_text_atomically(file, text(results))
            console.print(str(file), soft_wrap=True)


def ui(
    folder: Annotated[Path, typer.Argument(metavar="RUN", help="A run, or a folder of runs.")] = Path("runs"),
    port: Annotated[int, typer.Option(min=1024, max=65535, help="Port of the UI on this machine.")] = 5000,
) -> None:
    """Open the MLflow UI for a run or a folder of runs.

    The UI is reachable from this machine only, and opens on the training runs.

    Example: `sepscene ui runs/demo`
    """
    from sepscene.orchestration.records.mlflow_ui import serve

    check_runs(folder)
    serve(folder, port, console)


def sync(run: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a run or sweep.")]) -> None:
    """Upload the missing data of a run or sweep to MLflow.

    The target is MLFLOW_TRACKING_URI or, if unset, the mlflow.db next to the run. Addresses in the run's folder are
    never used.

    Example: `sepscene sync runs/demo`
    """
    from sepscene.orchestration.records.mlflow_address import tracking_uri_of
    from sepscene.orchestration.records.mlflow_mirror import sync as send

    check_runs(run)
    uri = tracking_uri_of(run)
    send(run, uri)
    console.print(f"MLflow at {uri} is up to date", soft_wrap=True)


def replay_command(
    run: RunArgument,
    row: Annotated[
        list[int] | None,
        typer.Option(min=0, help="A row; must be repeated. Default: the rows of the last skipped step."),
    ] = None,
) -> None:
    """Recompute the views and the loss of some rows.

    Runs in one process, with the newest weights. A run that stopped because of too many NaN or infinite losses has
    saved the rows of those steps; by default, the rows of the last one are used.

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
        raise SepsceneError("a contrastive loss needs at least two rows: give --row at least twice")
    opened = Run(
        run.resolve(), load_experiment(RunFolder(run).experiment), Tracker(tracking_uri_of(run), "", run), console
    )
    found, loss = replay(run.resolve(), opened.manifests[0], row)
    for replayed in found:
        console.print(replayed, highlight=False)
    console.print(f"loss of these rows: {loss:.6f}")
