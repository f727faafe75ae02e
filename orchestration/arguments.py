"""Arguments that several commands share, and what they mean."""

import re
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml

from models.config import SepsceneError
from orchestration.config import Experiment, load_experiment


def mounted(storage: Any) -> Any:
    """A folder in which runs can live, as it was given.

    Raises:
        SepsceneError: for the address of a bucket.
    """
    found = re.match(r"([a-z][a-z0-9+.-]+):/", str(storage))
    if found:
        raise SepsceneError(
            f"runs cannot live at {found[1]}://...: a run renames and appends, which buckets cannot. Give a folder "
            "that every node mounts at the same path (NFS, EFS, Filestore, Lustre; docs/clusters.md). Clips and the "
            "SeparatedStore may stay in the bucket: --set data.root=..., --set store.uri=..."
        )
    return storage


ExperimentName = Annotated[
    str,
    typer.Argument(
        metavar="EXPERIMENT",
        help="A name such as `table4/S2+N/simclr-cp` (see `sepscene show`), or a YAML file.",
    ),
]
RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a run, e.g. `runs/demo`.")]
Storage = Annotated[
    Path, typer.Option(help="Folder in which runs are kept; on a cluster a shared one.", callback=mounted)
]
RunId = Annotated[str | None, typer.Option(help="Name of the run's folder; chosen from the experiment when absent.")]
Resume = Annotated[bool, typer.Option("--resume", help="Continue the run of that id where it stopped.")]
Scale = Annotated[str, typer.Option(help="`tiny` (two CPU cores), `small` (one GPU) or `paper` (a cluster).")]
Changes = Annotated[
    list[str] | None,
    typer.Option("--set", help="Change a field: `--set objective.temperature=0.1`. Repeat as needed."),
]
Address = Annotated[str | None, typer.Option(help="Ray cluster; absent means RAY_ADDRESS, else this machine.")]
Verbose = Annotated[bool, typer.Option("-v", "--verbose", help="Show Ray's own messages.")]


def resolve(name: str, scale: str, changes: list[str] | None) -> Experiment:
    """The experiment of a name or a YAML file, with the changes of the command line.

    Raises:
        SepsceneError: for an unknown name, scale or field, or a refused value.
    """
    from orchestration.experiments import SCALES, named_experiment

    if name.endswith((".yaml", ".yml")):
        experiment = load_experiment(Path(name))
    elif scale not in SCALES:
        raise SepsceneError(f"--scale {scale!r} is unknown; choose one of {', '.join(SCALES)}")
    else:
        experiment = named_experiment(name, scale)  # type: ignore[arg-type]
    return experiment.changed(parse_changes(changes)) if changes else experiment


def parse_changes(changes: list[str] | None) -> dict[str, Any]:
    """["a.b=1"] to {"a.b": 1}; values are read as YAML.

    Raises:
        SepsceneError: for a piece without "=".
    """
    parsed: dict[str, Any] = {}
    for change in changes or []:
        field, equals, value = change.partition("=")
        if not equals:
            raise SepsceneError(f"--set {change!r} must look like field=value, e.g. --set objective.temperature=0.1")
        try:
            parsed[field] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise SepsceneError(f"--set {change!r}: the value is not YAML ({error})") from None
    return parsed
