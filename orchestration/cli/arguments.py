"""Arguments and options that several commands share."""

import re
from pathlib import Path
from typing import Annotated, Any

import typer


def check_storage(storage: Any) -> Any:
    """The storage folder, unchanged.

    Raises:
        SepsceneError: for the address of a bucket.
    """
    found = re.match(r"([a-z][a-z0-9+.-]+):/", str(storage))
    if found:
        from sepscene.models.config import SepsceneError

        raise SepsceneError(
            f"runs cannot be stored at {found[1]}://...: a run renames files and appends to them, which buckets do not "
            "support. Give a folder that every node mounts at the same path (NFS, EFS, Filestore, Lustre; "
            "docs/clusters.md). Clips and the SeparatedStore may stay in the bucket: --set data.root=..., "
            "--set store.uri=..."
        )
    return storage


def check_runs(*runs: Path) -> None:
    """Check that the folders of runs exist; addresses such as `models:/NAME` are checked later.

    Raises:
        SepsceneError: for a folder that does not exist; it suggests the most similar name next to it.
    """
    for run in runs:
        if ":" not in str(run) and not run.exists():
            from sepscene.models.config import SepsceneError
            from sepscene.models.spelling import nearest

            siblings = [each.name for each in run.parent.iterdir() if each.is_dir()] if run.parent.is_dir() else []
            near = nearest(run.name, siblings)
            raise SepsceneError(f"{run}: there is no such run{f' (did you mean {run.parent / near}?)' if near else ''}")


def check_without_effect(context: typer.Context, reason: str, *names: str) -> None:
    """Check that none of these parameters, which have no effect in this call, was given.

    Args:
        context: of the command.
        reason: when they have an effect, as the end of the message.
        names: names of the command's parameters.

    Raises:
        SepsceneError: for parameters that were given.
    """
    sources = {name: context.get_parameter_source(name) for name in names}
    given = [name for name, source in sources.items() if source is not None and source.name == "COMMANDLINE"]
    if given:
        from sepscene.models.config import SepsceneError

        parameters = [each for each in context.command.params if each.name in given]
        shown = [each.metavar if each.param_type_name == "argument" else each.opts[0] for each in parameters]
        raise SepsceneError(f"{', '.join(map(str, shown))}: {reason}")


def accept_trust(enabled: bool) -> bool:
    """Apply `--trust-code` before any custom code is imported."""
    if enabled:
        from sepscene.models.names import trust_all_code

        trust_all_code()
    return enabled


ExperimentName = Annotated[
    str,
    typer.Argument(
        metavar="EXPERIMENT",
        help="A name such as `table4/S2+N/simclr-cp` (`sepscene show` lists them), or a YAML file.",
    ),
]
RunArgument = Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a run, e.g. `runs/demo`.")]
Storage = Annotated[
    Path, typer.Option(help="Folder for runs; on a cluster, a folder that all nodes share.", callback=check_storage)
]
RunId = Annotated[str | None, typer.Option(help="Name of the run's folder; by default derived from the experiment.")]
Resume = Annotated[
    bool,
    typer.Option(
        "--resume", help="Continue the run with this id, or the newest one of this experiment, from where it stopped."
    ),
]
SCALES_HELP = (
    "`mini` (one CPU core; for `demo` and `reproduce`), `tiny` (two CPU cores), `small` (one GPU) or `paper` "
    "(a cluster)"
)
Scale = Annotated[
    str | None,
    typer.Option(
        help=f"Scale of a named experiment: {SCALES_HELP}. Default: `tiny`. A YAML file has a scale of its own."
    ),
]
Changes = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="FIELD=VALUE",
        help="Change a field, e.g. `--set objective.temperature=0.1`. Can be repeated.",
    ),
]
Address = Annotated[
    str | None, typer.Option(help="Address of a Ray cluster. Default: RAY_ADDRESS if set, otherwise this machine.")
]
Dashboard = Annotated[bool, typer.Option("--dashboard", help="Start the dashboard of a local Ray and print its URL.")]
TrustCode = Annotated[
    bool,
    typer.Option(
        "--trust-code",
        callback=accept_trust,
        is_eager=True,
        help="Trust the custom code (encoders, losses, …) that this command names, now and in later commands.",
    ),
]
Verbose = Annotated[bool, typer.Option("-v", "--verbose", help="Show Ray's own messages.")]
