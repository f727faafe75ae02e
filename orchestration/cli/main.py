"""The command `sepscene`: arguments in, one clear message out. What the commands do lives in the other modules."""

import io
import json
import logging
import os
import shlex
import sys
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
from sepscene.orchestration.cli.errors import in_words
from sepscene.orchestration.cli.model_commands import embed_command, encoder_app, import_separator_command
from sepscene.orchestration.cli.result_commands import compare, evaluate, replay_command, report, sync, ui
from sepscene.orchestration.cli.sweep_commands import reproduce_command, sweep_command
from sepscene.orchestration.terminal import PlainFormatter, Terminal

HELP = """Learn sound representations from automatically separated sound scenes, on one laptop or a Ray cluster.

First steps:

\b
  sepscene doctor                         is this machine ready?
  sepscene demo                           the whole job in a few minutes on two CPU cores
  sepscene data audit FOLDER --format …   what a data set holds, before it is used
  sepscene show                           the named experiments
  sepscene plan NAME --scale paper        what an experiment costs
  sepscene pretrain NAME                  run it; --resume continues it
  sepscene embed runs/demo FILES --out embeddings.parquet

Every command has an example: `sepscene COMMAND --help`.
"""

console = Terminal()
app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,  # plain text: as quick as Python starts, and the same on any terminal
    pretty_exceptions_enable=False,
    help=HELP,
)
separator_app = typer.Typer(
    no_args_is_help=True, rich_markup_mode=None, help="Train a separator's ladder, or bring one you have."
)


def _print_version(asked: bool) -> None:
    if asked:
        print(f"sepscene {__version__}")
        raise typer.Exit


@app.callback()
def _every_command(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


@app.command()
def demo(
    storage: Storage = Path("runs"),
    run_id: RunId = "demo",
    resume: Resume = False,
    change: Changes = None,
    dashboard: Dashboard = False,
    verbose: Verbose = False,
) -> None:
    """Run the whole job in a few minutes on two CPU cores: scenes, separation, pre-training, evaluation, report.

    The separators come with the package; `sepscene pretrain demo` trains its own.

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


@app.command("pretrain")
def pretrain_command(
    experiment: ExperimentName,
    scale: Scale = "tiny",
    storage: Storage = Path("runs"),
    run_id: RunId = None,
    resume: Resume = False,
    change: Changes = None,
    address: Address = None,
    dashboard: Dashboard = False,
    verbose: Verbose = False,
    evaluate: Annotated[bool, typer.Option(help="Evaluate the encoder and write the report at the end.")] = True,
    trust_code: TrustCode = False,
) -> None:
    """Pre-train an encoder on separated views; trains the separator first unless checkpoints are given.

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
    scale: Scale = "tiny",
    storage: Storage = Path("runs"),
    run_id: RunId = None,
    resume: Resume = False,
    change: Changes = None,
    address: Address = None,
    verbose: Verbose = False,
) -> None:
    """Train a TDCN++ by MixIT on unlabelled clips and keep its ladder of checkpoints.

    Example: `sepscene separator train demo --set 'separator.ladder.steps={N: 0, S: 200}'`
    """
    from sepscene.orchestration.api import train_separator
    from sepscene.orchestration.presets import resolve

    ladder = train_separator(resolve(experiment, scale, change), storage, run_id, resume, address, verbose)
    for name, path in ladder.items():
        console.print(Text(name, "bold"), f" {path}", highlight=False, soft_wrap=True)
    chosen = "separator.checkpoints=" + json.dumps(ladder)
    words = shlex.join(["sepscene", "pretrain", experiment, "--scale", scale, "--set", chosen])
    console.print(f"use it        {words}", highlight=False, soft_wrap=True)


app.command()(evaluate)
app.command()(report)


@app.command()
def show(
    experiment: Annotated[str | None, typer.Argument(help="A name or a YAML file; none lists all.")] = None,
    scale: Scale = "tiny",
    change: Changes = None,
) -> None:
    """List the named experiments, or print one's whole configuration as YAML.

    Example: `sepscene show table4/S2+N/simclr-cp --scale paper > mine.yaml`
    """
    from sepscene.orchestration.presets import EXPERIMENTS, resolve
    from sepscene.orchestration.yaml_files import as_yaml

    if experiment is None:
        for name in EXPERIMENTS:
            print(name)
        return
    print(as_yaml(resolve(experiment, scale, change)), end="")


@app.command()
def scenes(
    directory: Annotated[Path, typer.Argument(help="Where to write.")],
    count: Annotated[int, typer.Option(min=1, help="Scenes to write.")] = 100,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    split: Annotated[str, typer.Option(help="Name of the split.")] = "train",
) -> None:
    """Generate labelled synthetic sound scenes: 10 s, 16 kHz WAV, and a manifest.

    Example: `sepscene scenes data/scenes --count 200 --split test --seed 1`
    """
    from rich.progress import Progress

    from sepscene.augment.synthetic.scenes import write_scenes

    with Progress(console=console) as progress:
        task = progress.add_task("scenes", total=count)
        manifest = write_scenes(directory, count, seed, split, progress=lambda n: progress.update(task, completed=n))
    console.print(str(manifest))


separator_app.command("import")(import_separator_command)
separator_app.command("prefill")(prefill)
app.command()(doctor)
app.add_typer(separator_app, name="separator")
app.add_typer(encoder_app, name="encoder")
app.add_typer(data_app, name="data")
app.add_typer(store_app, name="store")
app.add_typer(cluster_app, name="cluster")
app.command("replay")(replay_command)
app.command("sweep")(sweep_command)
app.command("reproduce")(reproduce_command)
app.command("embed")(embed_command)
app.command("submit", context_settings={"ignore_unknown_options": True})(submit)
app.command()(plan)
app.command()(stop)
app.command()(compare)
app.command()(ui)
app.command()(sync)


def _take_names_as_utf8() -> None:
    """Start again in Python's UTF-8 mode where the locale has another encoding: names of files are UTF-8."""
    if sys.getfilesystemencoding().lower() != "utf-8":
        os.environ["PYTHONUTF8"] = "1"
        os.execv(sys.executable, sys.orig_argv)


def main() -> None:
    """Run the command line. An error that the user can fix is one message and exit code 2."""
    _take_names_as_utf8()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    for stream in (sys.stdout, sys.stderr):  # a name that the terminal's encoding lacks must not end a command
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    logging.basicConfig(level=logging.WARNING)
    for handler in logging.getLogger().handlers:
        handler.setFormatter(PlainFormatter("%(message)s"))
    try:
        app()
    except Exception as error:
        said = in_words(error)
        if said is None:
            raise
        Terminal(stderr=True).print(Text("error:", "bold red"), said, highlight=False, soft_wrap=True)
        sys.exit(2)
