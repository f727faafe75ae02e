"""The commands `sepscene cluster check`, `submit` and `stop`: arguments in, one clear message out."""

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from sepscene.orchestration.cli.arguments import Changes, Scale
from sepscene.orchestration.terminal import Terminal

console = Terminal()
cluster_app = typer.Typer(
    no_args_is_help=True, rich_markup_mode=None, help="Clusters: what fits, before it costs anything."
)

JobServer = Annotated[
    str,
    typer.Option(
        help="Ray's job server: `http://127.0.0.1:8265`, the near end of a tunnel.",
        envvar="RAY_API_SERVER_ADDRESS",
    ),
]


@cluster_app.command("check")
def check(
    file: Annotated[Path, typer.Argument(help="E.g. `clusters/aws.yaml`, `clusters/rayjob.yaml`, `mine.pools.yaml`.")],
    experiment: Annotated[str, typer.Option(help="A name (see `sepscene show`) or a YAML file.")],
    scale: Scale = "paper",
    change: Changes = None,
) -> None:
    """Say whether an experiment fits a cluster's description, what would wait, and how many trials it takes.

    Example: `sepscene cluster check clusters/aws.yaml --experiment table4/S2+N/simclr-cp`
    """
    from sepscene.orchestration.presets import resolve
    from sepscene.orchestration.runtime.cluster_check import check_cluster

    resolved = resolve(experiment, scale, change)
    console.print(Text("fits", "green"), f"{resolved.name} ({resolved.scale}) on {file}", highlight=False)
    for line in check_cluster(file, resolved).lines():
        console.print(f"  {line}", highlight=False)


@cluster_app.command("template")
def template(
    name: Annotated[str, typer.Argument(help="`aws`, `gcp`, `onprem`, `raycluster`, `rayjob`, `skypilot` or `slurm`.")],
    out: Annotated[Path, typer.Option(help="File to write; a list of pools may be written beside it.")],
    trainers: Annotated[int | None, typer.Option(min=1, help="Nodes that train, at most.")] = None,
    separators: Annotated[int | None, typer.Option(min=1, help="Nodes that separate, at most.")] = None,
    trainer_cpus: Annotated[int | None, typer.Option(min=1, help="CPUs of a trainer's node (Slurm).")] = None,
    trainer_gpus: Annotated[int | None, typer.Option(min=0, help="GPUs of a trainer's node (Slurm).")] = None,
    separator_cpus: Annotated[int | None, typer.Option(min=1, help="CPUs of a separator's node (Slurm).")] = None,
    separator_gpus: Annotated[int | None, typer.Option(min=0, help="GPUs of a separator's node (Slurm).")] = None,
    fill: Annotated[
        list[str] | None, typer.Option(help="`YOUR-BUCKET=clips`: replace what is in CAPITALS. Repeat as needed.")
    ] = None,
) -> None:
    """Write a template for a cluster with your sizes and names filled in.

    Example: `sepscene cluster template slurm --out mine.sh --trainers 1 --separators 4 --trainer-gpus 4`
    """
    from sepscene.clusters.templates import Sizes, write_template

    sizes = {
        "trainers": Sizes(trainers, trainer_cpus, trainer_gpus),
        "separators": Sizes(separators, separator_cpus, separator_gpus),
    }
    values = dict(text.partition("=")[::2] for text in fill or [])
    for path in write_template(name, out, sizes, values):
        console.print(str(path), soft_wrap=True)


def submit(
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="COMMAND [ARGUMENT…]",
            help="`pretrain`, `sweep`, `reproduce`, `separator train` or `embed` with its arguments.",
        ),
    ],
    address: JobServer = "http://127.0.0.1:8265",
    cluster: Annotated[
        Path | None, typer.Option(help="Description of an autoscaling cluster, e.g. `clusters/aws.yaml`.")
    ] = None,
    follow: Annotated[bool, typer.Option(help="Show the log, and send the run again when the cluster fails.")] = True,
) -> None:
    """Run a command on a Ray cluster as a job; submitted again with the same run id it continues.

    The scale is `paper` and the storage /mnt/sepscene/runs unless the command says otherwise. YAML files that it names
    travel with it. The cluster's token is taken from RAY_AUTH_TOKEN or ~/.ray/auth_token.

    Examples:

    `sepscene submit pretrain table4/S2+N/simclr-cp --run-id first --storage /mnt/sepscene/runs`

    `sepscene submit sweep mine.yaml --id tau --cluster clusters/aws.yaml`
    """
    from sepscene.orchestration.cli.submission import submission_of
    from sepscene.orchestration.runtime import jobs

    submission = submission_of(words, cluster)
    if not follow:
        console.print(jobs.submit(jobs.connect(address), submission))
        return
    try:
        end = jobs.run_to_end(address, submission, sys.stdout.write)
    except KeyboardInterrupt:
        stop_it = f"sepscene stop {submission.run_id} --address {address}"
        console.print(f"\nthe run goes on; end it with: {stop_it}")
        raise typer.Exit(130) from None
    console.print(f"run {submission.run_id} {end.value}")
    raise typer.Exit(0 if end is jobs.Ending.SUCCEEDED else 1)


def stop(
    run_id: Annotated[str, typer.Argument(metavar="RUN_ID", help="Name of the run, as given to `submit`.")],
    address: JobServer = "http://127.0.0.1:8265",
) -> None:
    """Stop a run's job; `submit` with the same run id continues it from its last checkpoint.

    Example: `sepscene stop first`
    """
    from sepscene.orchestration.runtime import jobs

    client = jobs.connect(address)
    for job in jobs.active_jobs(client, run_id):
        console.print(f"{job} {jobs.stop(client, job).value}")
