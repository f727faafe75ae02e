"""The commands `cluster check`, `cluster template`, `submit` and `stop`."""

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from sepscene.orchestration.cli.arguments import Changes, Scale
from sepscene.orchestration.terminal import Terminal

console = Terminal()
cluster_app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Check and write descriptions of clusters.")

JobServer = Annotated[
    str,
    typer.Option(
        help="Address of Ray's job server, usually the local end of a tunnel.",
        envvar="RAY_API_SERVER_ADDRESS",
    ),
]


@cluster_app.command("check")
def check(
    file: Annotated[
        Path,
        typer.Argument(help="The description, e.g. `clusters/aws.yaml`, `clusters/rayjob.yaml` or `mine.pools.yaml`."),
    ],
    experiment: Annotated[str, typer.Option(help="A name (`sepscene show` lists them) or a YAML file.")],
    scale: Scale = None,
    change: Changes = None,
) -> None:
    """Check whether an experiment fits a cluster.

    Reads the cluster's description and starts nothing. Shows what would wait for resources, and how many trials fit.

    Example: `sepscene cluster check clusters/aws.yaml --experiment table4/S2+N/simclr-cp`
    """
    from sepscene.orchestration.presets import resolve
    from sepscene.orchestration.runtime.cluster_check import check_cluster

    resolved = resolve(experiment, scale, change, "paper")
    found = check_cluster(file, resolved)
    console.print(Text("fits", "green"), f"{resolved.name} ({resolved.scale}) on {file}", highlight=False)
    for line in found.lines():
        console.print(f"  {line}", highlight=False)


@cluster_app.command("template")
def template(
    name: Annotated[str, typer.Argument(help="`aws`, `gcp`, `onprem`, `raycluster`, `rayjob`, `skypilot` or `slurm`.")],
    out: Annotated[Path, typer.Option(help="File to write. Some templates also write a list of pools next to it.")],
    trainers: Annotated[int | None, typer.Option(min=1, help="Maximum number of training nodes.")] = None,
    separators: Annotated[int | None, typer.Option(min=1, help="Maximum number of separation nodes.")] = None,
    trainer_cpus: Annotated[int | None, typer.Option(min=1, help="CPUs per training node (Slurm only).")] = None,
    trainer_gpus: Annotated[int | None, typer.Option(min=0, help="GPUs per training node (Slurm only).")] = None,
    separator_cpus: Annotated[int | None, typer.Option(min=1, help="CPUs per separation node (Slurm only).")] = None,
    separator_gpus: Annotated[int | None, typer.Option(min=0, help="GPUs per separation node (Slurm only).")] = None,
    fill: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PLACEHOLDER=VALUE",
            help="Replace a placeholder in CAPITALS, e.g. `YOUR-BUCKET=clips`. Can be repeated.",
        ),
    ] = None,
) -> None:
    """Write a cluster template with your sizes and names.

    Example: `sepscene cluster template slurm --out mine.sh --trainers 1 --separators 4 --trainer-gpus 4`
    """
    from sepscene.clusters.templates import Sizes, write_template
    from sepscene.models.config import SepsceneError

    sizes = {
        "trainers": Sizes(trainers, trainer_cpus, trainer_gpus),
        "separators": Sizes(separators, separator_cpus, separator_gpus),
    }
    values: dict[str, str] = {}
    for text in fill or []:
        placeholder, equals, value = text.partition("=")
        if not equals:
            raise SepsceneError(f"--fill {text!r} must look like PLACEHOLDER=VALUE, e.g. --fill YOUR-BUCKET=clips")
        values[placeholder] = value
    for path in write_template(name, out, sizes, values):
        console.print(str(path), soft_wrap=True)


def submit(
    context: typer.Context,
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="COMMAND [ARGUMENT…]",
            help="`pretrain`, `sweep`, `reproduce`, `separator train` or `embed`, with its arguments.",
        ),
    ],
    address: JobServer = "http://127.0.0.1:8265",
    cluster: Annotated[
        Path | None, typer.Option(help="Description of an autoscaling cluster, e.g. `clusters/aws.yaml`.")
    ] = None,
    follow: Annotated[bool, typer.Option(help="Show the log, and resubmit the job when the cluster fails.")] = True,
) -> None:
    """Run a command as a job on a Ray cluster.

    Submitted again with the same run id, the run continues. The default scale is `paper`, the default storage
    /mnt/sepscene/runs. YAML files in the command are sent to the cluster. The cluster's token is read from
    RAY_AUTH_TOKEN or ~/.ray/auth_token.

    Examples:

    `sepscene submit pretrain table4/S2+N/simclr-cp --run-id first --storage /mnt/sepscene/runs`

    `sepscene submit sweep mine.yaml --id tau --cluster clusters/aws.yaml`
    """
    from sepscene.orchestration.cli.submission import submission_of
    from sepscene.orchestration.runtime import jobs

    submission = submission_of(context.find_root().command, words, cluster)
    if not follow:
        console.print(jobs.submit(jobs.connect(address), submission))
        return
    try:
        end = jobs.run_to_end(address, submission, sys.stdout.write)
    except KeyboardInterrupt:
        stop_command = f"sepscene stop {submission.run_id} --address {address}"
        console.print(f"\nthe run continues on the cluster; stop it with: {stop_command}")
        raise typer.Exit(130) from None
    console.print(f"run {submission.run_id} {end.value}")
    raise typer.Exit(0 if end is jobs.Ending.SUCCEEDED else 1)


def stop(
    run_id: Annotated[str, typer.Argument(metavar="RUN_ID", help="The run's id, as given to `submit`.")],
    address: JobServer = "http://127.0.0.1:8265",
) -> None:
    """Stop the job of a run.

    `sepscene submit` with the same run id continues the run from its last checkpoint.

    Example: `sepscene stop first`
    """
    from sepscene.orchestration.runtime import jobs

    client = jobs.connect(address)
    active = jobs.active_jobs(client, run_id)
    if not active:
        console.print(f"no active job of run {run_id} at {address}", highlight=False)
    for job in active:
        console.print(f"{job} {jobs.stop(client, job).value}")
