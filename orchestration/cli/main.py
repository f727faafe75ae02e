"""The command `sepscene`: its subcommands, and errors as one message. Longer commands are in the other modules."""

import io
import json
import logging
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from sepscene import __version__
from sepscene.orchestration.cli.arguments import (
    Address,
    Changes,
    Dashboard,
    ExperimentName,
    Resume,
    RunId,
    Scale,
    Storage,
    TrustCode,
    Verbose,
)
from sepscene.orchestration.cli.cluster_commands import cluster_app, stop, submit
from sepscene.orchestration.cli.data_commands import data_app, plan, prefill, store_app
from sepscene.orchestration.cli.doctor import doctor
from sepscene.orchestration.cli.errors import user_message
from sepscene.orchestration.cli.model_commands import embed_command, encoder_app, import_separator_command
from sepscene.orchestration.cli.result_commands import compare, evaluate, replay_command, report, sync, ui
from sepscene.orchestration.cli.sweep_commands import reproduce_command, sweep_command
from sepscene.orchestration.terminal import PlainFormatter, Terminal

HELP = """Learn sound representations from automatically separated sound scenes, on a laptop or a Ray cluster.

First steps:

\b
  sepscene doctor                         check whether this machine is ready
  sepscene demo                           run everything in a few minutes on two CPU cores
  sepscene data audit FOLDER --format …   check a data set before using it
  sepscene show                           list the named experiments
  sepscene plan NAME --scale paper        estimate what an experiment costs
  sepscene pretrain NAME                  run an experiment; --resume continues it
  sepscene embed runs/demo FILES --out embeddings.parquet

`sepscene COMMAND --help` explains a command and shows an example.
"""

console = Terminal()
app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,  # plain text: does not import rich, and looks the same on every terminal
    pretty_exceptions_enable=False,
    help=HELP,
)
separator_app = typer.Typer(
    no_args_is_help=True, rich_markup_mode=None, help="Train or import separators, and fill the store."
)


def _print_version(enabled: bool) -> None:
    if enabled:
        print(f"sepscene {__version__}")
        raise typer.Exit


@app.callback()
def _every_command(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


def demo(
    storage: Storage = Path("runs"),
    run_id: Annotated[str, typer.Option(help="Name of the run's folder.")] = "demo",
    resume: Resume = False,
    change: Changes = None,
    dashboard: Dashboard = False,
    verbose: Verbose = False,
) -> None:
    """Run the demo in a few minutes on two CPU cores.

    Generates synthetic scenes, separates them, pre-trains an encoder, evaluates it and writes a report. The separators
    come with the package; `sepscene pretrain demo` trains its own.

    Example: `sepscene demo --storage runs`
    """
    from sepscene.orchestration.api import pretrain
    from sepscene.orchestration.presets import resolve

    pretrain(
        resolve("demo", "mini", change),
        storage=storage,
        run_id=run_id,
        resume=resume,
        dashboard=dashboard,
        verbose=verbose,
    )


def pretrain_command(
    experiment: ExperimentName,
    scale: Scale = None,
    storage: Storage = Path("runs"),
    run_id: RunId = None,
    resume: Resume = False,
    change: Changes = None,
    address: Address = None,
    dashboard: Dashboard = False,
    verbose: Verbose = False,
    evaluate: Annotated[bool, typer.Option(help="Evaluate the encoder and write a report at the end.")] = True,
    trust_code: TrustCode = False,
) -> None:
    """Pre-train an encoder on separated views.

    Trains the separator first, unless `separator.checkpoints` names trained ones.

    Examples:

    `sepscene pretrain table4/S2+N/simclr-cp`

    `sepscene pretrain demo --set data.format=esc50 --set data.root=esc10 --set 'data.train=["1","2","3"]'
    --set 'data.test=["4"]'`
    """
    from sepscene.orchestration.api import pretrain
    from sepscene.orchestration.presets import resolve

    pretrain(
        resolve(experiment, scale, change),
        storage=storage,
        run_id=run_id,
        resume=resume,
        evaluate=evaluate,
        address=address,
        dashboard=dashboard,
        verbose=verbose,
    )


@separator_app.command("train")
def separator_train(
    experiment: ExperimentName,
    scale: Scale = None,
    storage: Storage = Path("runs"),
    run_id: RunId = None,
    resume: Resume = False,
    change: Changes = None,
    address: Address = None,
    verbose: Verbose = False,
) -> None:
    """Train a TDCN++ separator with MixIT on unlabelled clips.

    Saves the checkpoints of the ladder, and prints the command that uses them.

    Example: `sepscene separator train demo --set 'separator.ladder.steps={N: 0, S: 200}'`
    """
    from sepscene.orchestration.api import train_separator
    from sepscene.orchestration.presets import resolve

    ladder = train_separator(resolve(experiment, scale, change), storage, run_id, resume, address, verbose)
    for name, path in ladder.items():
        console.print(Text(name, "bold"), f" {path}", highlight=False, soft_wrap=True)
    command = pretrain_with(ladder, experiment, scale, storage, change or [])
    console.print(f"use it        {command}", highlight=False, soft_wrap=True)


def pretrain_with(
    ladder: Mapping[str, str], experiment: str, scale: str | None, storage: Path, changes: Sequence[str]
) -> str:
    """The command that pre-trains with a ladder, on the data and with the changes with which the ladder was trained.

    Changes of `separator.` are left out: they state how the ladder was trained.
    """
    kept = [change for change in changes if not change.startswith("separator.")]
    options = [word for change in (*kept, f"separator.checkpoints={json.dumps(ladder)}") for word in ("--set", change)]
    scales = ["--scale", scale] if scale else []
    return shlex.join(["sepscene", "pretrain", experiment, *scales, "--storage", str(storage), *options])


def show(
    experiment: Annotated[
        str | None, typer.Argument(help="A name or a YAML file; without it, all names are listed.")
    ] = None,
    scale: Scale = None,
    change: Changes = None,
) -> None:
    """List the named experiments, or print one of them as YAML.

    Example: `sepscene show table4/S2+N/simclr-cp --scale paper > mine.yaml`
    """
    from sepscene.orchestration.presets import EXPERIMENTS, resolve
    from sepscene.orchestration.yaml_files import as_yaml

    if experiment is None:
        for name in EXPERIMENTS:
            print(name)
        return
    print(as_yaml(resolve(experiment, scale, change)), end="")


def scenes(
    directory: Annotated[Path, typer.Argument(help="Folder to write to.")],
    count: Annotated[int, typer.Option(min=1, help="Number of scenes.")] = 100,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the random generator.")] = 0,
    split: Annotated[str, typer.Option(help="Name of the split.")] = "train",
) -> None:
    """Generate labelled synthetic sound scenes.

    Writes WAV files of 10 s at 16 kHz, and a manifest.

    Example: `sepscene scenes data/scenes --count 200 --split test --seed 1`
    """
    from rich.progress import Progress

    from sepscene.augment.synthetic.scenes import write_scenes

    with Progress(console=console) as progress:
        task = progress.add_task("scenes", total=count)
        manifest = write_scenes(directory, count, seed, split, progress=lambda n: progress.update(task, completed=n))
    console.print(str(manifest))


# `sepscene --help` lists the commands in this order.
app.command()(doctor)
app.command()(demo)
app.command()(show)
app.command()(plan)
app.command("pretrain")(pretrain_command)
app.command()(evaluate)
app.command()(report)
app.command()(compare)
app.command("embed")(embed_command)
app.command("sweep")(sweep_command)
app.command("reproduce")(reproduce_command)
app.command()(ui)
app.command()(sync)
app.command("replay")(replay_command)
app.command("submit", context_settings={"ignore_unknown_options": True})(submit)
app.command()(stop)
app.command()(scenes)
separator_app.command("import")(import_separator_command)
separator_app.command("prefill")(prefill)
app.add_typer(data_app, name="data")
app.add_typer(separator_app, name="separator")
app.add_typer(encoder_app, name="encoder")
app.add_typer(store_app, name="store")
app.add_typer(cluster_app, name="cluster")


def _restart_in_utf8_mode() -> None:
    """Restart in Python's UTF-8 mode if the locale has another encoding, because file names are UTF-8."""
    if sys.getfilesystemencoding().lower() != "utf-8":
        os.environ["PYTHONUTF8"] = "1"
        os.execv(sys.executable, sys.orig_argv)


def main() -> None:
    """Run the command line. An error that the user can fix is printed as one message; the exit code is then 2."""
    _restart_in_utf8_mode()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    for stream in (sys.stdout, sys.stderr):  # characters missing in the terminal's encoding must not raise an error
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    logging.basicConfig(level=logging.WARNING)
    for handler in logging.getLogger().handlers:
        handler.setFormatter(PlainFormatter("%(message)s"))
    try:
        app()
    except Exception as error:
        message = user_message(error)
        if message is None:
            raise
        Terminal(stderr=True).print(Text("error:", "bold red"), message, highlight=False, soft_wrap=True)
        sys.exit(2)
