"""`sepscene evaluate ENCODER --task …` and `sepscene compare --tasks FOLDER`: arguments in, tables out."""

import sys
from collections import Counter
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

from sepscene.orchestration.terminal import Terminal

console = Terminal()


def evaluate_on_tasks(encoder: str, tasks: list[str], out: Path, name: str | None, device: str) -> int:
    """Evaluate one encoder on some tasks, keep each result as a file in `out`, and print the table of all of them.

    Returns:
        The exit code: 3 when sounds had to be left out, else 0.

    Raises:
        SepsceneError: for a task or an encoder that cannot be used; results made before stay.
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

    loaded = load_encoder(encoder_of(Path(encoder))).to(usable_device(device))
    digest = encoder_digest(loaded)
    read = [read_task(task) for task in tasks]  # a mistake in the last one is found before the first is embedded
    twice = [name for name, count in Counter(task.name for task in read).items() if count > 1]
    if twice:
        raise SepsceneError(f"two tasks are called {twice[0]}, after their folders: give them another --out each")
    out.mkdir(parents=True, exist_ok=True)
    left_out: dict[str, str] = {}
    for task in read:
        with Progress(console=console, transient=True) as progress:
            bar = progress.add_task(task.name, total=len(task.sounds))
            show = partial(_show, progress, bar)
            result = evaluate_task(loaded, name or Path(encoder).name, digest, task, show)
        write_whole(result_path(out, result), result.model_dump_json(indent=2) + "\n")
        left_out |= result.left_out
    console.print(terminal_table(read_results(out)))
    for uri, cause in left_out.items():
        print(f"left out: {uri}: {cause}", file=sys.stderr)
    return 3 if left_out else 0


def compare_on_tasks(folder: Path, csv_file: Path | None, latex_file: Path | None) -> None:
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


def _show(progress: "Progress", bar: "TaskID", done: int) -> None:
    progress.update(bar, completed=done)
