"""The commands `sepscene cluster check`, `submit` and `stop`: arguments in, one clear message out."""

import sys
import time
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from sepscene.orchestration.cli.arguments import Changes, ExperimentName, Scale, mounted
from sepscene.orchestration.presets import resolve

console = Console()
cluster_app = typer.Typer(no_args_is_help=True, help="Clusters: what fits, before it costs anything.")

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
    from sepscene.orchestration.runtime.cluster_check import check_cluster

    resolved = resolve(experiment, scale, change)
    console.print(f"[green]fits[/green]  {resolved.name} ({resolved.scale}) on {file}", highlight=False)
    for line in check_cluster(file, resolved).lines():
        console.print(f"  {line}", highlight=False)


def submit(
    experiment: ExperimentName,
    address: JobServer = "http://127.0.0.1:8265",
    scale: Scale = "paper",
    storage: Annotated[
        str, typer.Option(help="Folder of the runs as the cluster's nodes see it.", callback=mounted)
    ] = "/mnt/sepscene/runs",
    run_id: Annotated[str | None, typer.Option(help="Name of the run; the same name continues it.")] = None,
    change: Changes = None,
    cluster: Annotated[
        Path | None, typer.Option(help="Description of an autoscaling cluster, e.g. `clusters/aws.yaml`.")
    ] = None,
    follow: Annotated[bool, typer.Option(help="Show the log, and send the run again when the cluster fails.")] = True,
) -> None:
    """Run an experiment on a Ray cluster as a job; sent again with the same run id it continues.

    The cluster's token is taken from RAY_AUTH_TOKEN or ~/.ray/auth_token.

    Example: `sepscene submit table4/S2+N/simclr-cp --run-id first --storage /mnt/sepscene/runs`
    """
    from sepscene.orchestration.runtime import jobs
    from sepscene.orchestration.runtime.cluster_check import check_cluster

    resolved = resolve(experiment, scale, change)
    if cluster:
        check_cluster(cluster, resolved)
    run_id = run_id or f"{resolved.name.replace('/', '-')}-{resolved.digest()}-{time.strftime('%Y%m%d-%H%M%S')}"
    submission = jobs.pretraining(resolved, storage, run_id, cluster)
    if not follow:
        console.print(jobs.submit(jobs.connect(address), submission))
        return
    try:
        end = jobs.run_to_end(address, submission, sys.stdout.write)
    except KeyboardInterrupt:
        console.print(f"\nthe run goes on; end it with [bold]sepscene stop {run_id} --address {address}[/bold]")
        raise typer.Exit(130) from None
    console.print(f"run {run_id} {end.value}")
    raise typer.Exit(0 if end is jobs.Ending.SUCCEEDED else 1)


def stop(
    run_id: Annotated[str, typer.Argument(metavar="RUN_ID", help="Name of the run, as given to `submit`.")],
    address: JobServer = "http://127.0.0.1:8265",
) -> None:
    """Stop a run's job; `submit` with the same run id continues it from its last checkpoint."""
    from sepscene.orchestration.runtime import jobs

    client = jobs.connect(address)
    for job in jobs.active_jobs(client, run_id):
        console.print(f"{job} {jobs.stop(client, job).value}")
