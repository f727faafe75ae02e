"""Arguments that several commands share, and what they mean."""

import re
from pathlib import Path
from typing import Annotated, Any

import typer


def mounted(storage: Any) -> Any:
    """A folder in which runs can live, as it was given.

    Raises:
        SepsceneError: for the address of a bucket.
    """
    found = re.match(r"([a-z][a-z0-9+.-]+):/", str(storage))
    if found:
        from sepscene.models.config import SepsceneError

        raise SepsceneError(
            f"runs cannot live at {found[1]}://...: a run renames and appends, which buckets cannot. Give a folder "
            "that every node mounts at the same path (NFS, EFS, Filestore, Lustre; docs/clusters.md). Clips and the "
            "SeparatedStore may stay in the bucket: --set data.root=..., --set store.uri=..."
        )
    return storage


def check_runs(*runs: Path) -> None:
    """Folders of runs must be there; `models:/NAME` is looked for later.

    Raises:
        SepsceneError: for one that is not, with the nearest name beside it.
    """
    for run in runs:
        if ":" not in str(run) and not run.exists():
            from sepscene.models.config import SepsceneError
            from sepscene.models.spelling import nearest

            siblings = [each.name for each in run.parent.iterdir() if each.is_dir()] if run.parent.is_dir() else []
            near = nearest(run.name, siblings)
            raise SepsceneError(f"{run}: there is no such run{f' (did you mean {run.parent / near}?)' if near else ''}")


def trusted(asked: bool) -> bool:
    """Note `--trust-code` before anything is looked up."""
    if asked:
        from sepscene.models.names import accept_code

        accept_code()
    return asked


ExperimentName = Annotated[
    str,
    typer.Argument(
        metavar="EXPERIMENT",
        help="A name such as `table4/S2+N/simclr-cp` (see `sepscene show`), or a YAML file.",
    ),
]
RunArgument = Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a run, e.g. `runs/demo`.")]
Storage = Annotated[
    Path, typer.Option(help="Folder in which runs are kept; on a cluster a shared one.", callback=mounted)
]
RunId = Annotated[str | None, typer.Option(help="Name of the run's folder; chosen from the experiment when absent.")]
Resume = Annotated[bool, typer.Option("--resume", help="Continue the run of that id where it stopped.")]
Scale = Annotated[
    str,
    typer.Option(
        help="`mini` (one core; `reproduce`, demo), `tiny` (two CPU cores), `small` (one GPU) or `paper` (a cluster)."
    ),
]
Changes = Annotated[
    list[str] | None,
    typer.Option("--set", help="Change a field: `--set objective.temperature=0.1`. Repeat as needed."),
]
Address = Annotated[str | None, typer.Option(help="Ray cluster; absent means RAY_ADDRESS, else this machine.")]
Dashboard = Annotated[
    bool, typer.Option("--dashboard", help="Start Ray's dashboard with a Ray of this machine, and say where it is.")
]
TrustCode = Annotated[
    bool,
    typer.Option(
        "--trust-code",
        callback=trusted,
        is_eager=True,
        help="Import the encoders, losses, … of your own or of others that this command names, now and later.",
    ),
]
Verbose = Annotated[bool, typer.Option("-v", "--verbose", help="Show Ray's own messages.")]
