"""Sending a run to a cluster as a Ray job, following it, stopping it, and again when the cluster failed.

Ray never submits a job again after its head has died, and its job table is no truth about a run: that lives
in the run's folder. So the launcher here sends the same command with the same run id again, and `--resume`
does the rest; it does so only where the cluster failed and not the run, and only a few times.

What is uploaded is made of nothing but this project's own source files and the resolved experiment: a folder
full of data, results or secrets around them cannot get in. Secrets reach the cluster by its own means
(docs/clusters.md): a job's environment, arguments and metadata are shown to all who may open the dashboard.
"""

import asyncio
import os
import re
import shlex
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from urllib.parse import urlsplit

import aiohttp
from ray.exceptions import AuthenticationError
from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient

from sepscene.models.config import SepsceneError
from sepscene.orchestration.records.environment import COMMIT_VARIABLE, commit
from sepscene.orchestration.records.files import write_whole
from sepscene.orchestration.source import copy_custom_code, copy_source

STOP_WAIT_SECONDS = 120
"""Between SIGTERM and SIGKILL when a job is stopped: time to close its books (Ray's default is 3)."""
RESUBMISSIONS = 3
"""How often a run is sent again after failures of the cluster."""
_CLUSTER_FAULTS = {
    "JOB_SUPERVISOR_ACTOR_START_TIMEOUT",
    "JOB_SUPERVISOR_ACTOR_START_FAILURE",
    "JOB_SUPERVISOR_ACTOR_UNKNOWN_FAILURE",
    "JOB_SUPERVISOR_ACTOR_DIED",
}
PATIENCE_SECONDS = 300
"""How long the job server may be away before the cluster counts as lost."""
_AGENT_PATIENCE_SECONDS = 120
_METADATA = "sepscene."


class Ending(Enum):
    """How a job ended."""

    SUCCEEDED = "succeeded"
    FAILED = "failed"
    STOPPED = "stopped"
    CLUSTER_FAILED = "lost with its cluster"


@dataclass(frozen=True)
class Submission:
    """A command of `sepscene` to be run on a cluster.

    Attributes:
        arguments: what follows `sepscene`, e.g. ("pretrain", "experiment.yaml", "--run-id", "a", "--resume").
        run_id: the same name continues the same run.
        metadata: shown in Ray's dashboard, e.g. {"digest": "..."}.
        files: texts put beside the source, by name.
        environment: variables of the job. Never secrets: the dashboard shows them.
        code: import paths of custom code that the command needs; what is not installed travels with the source.
    """

    arguments: tuple[str, ...]
    run_id: str
    metadata: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)
    code: tuple[str, ...] = ()


def connect(address: str) -> JobSubmissionClient:
    """A client of the cluster's job server, e.g. at the near end of an SSH tunnel, with this user's token.

    The token is taken from RAY_AUTH_TOKEN, the file RAY_AUTH_TOKEN_PATH, or ~/.ray/auth_token, in this order.

    Raises:
        SepsceneError: when nothing answers, the token is missing or refused, or would travel in clear text.
    """
    parts = urlsplit(address)
    if parts.scheme not in ("http", "https"):
        raise SepsceneError(f"--address {address!r} is not the job server's: give http://HOST:8265 (docs/clusters.md)")
    token = _token()
    if token and parts.scheme == "http" and parts.hostname not in ("127.0.0.1", "localhost", "::1"):
        raise SepsceneError(
            f"the token would travel to {parts.hostname} in clear text: open a tunnel (`ray dashboard FILE`, "
            "`kubectl port-forward`, `ssh -L 8265:127.0.0.1:8265 HEAD`) and give --address "
            "http://127.0.0.1:8265, or an https address"
        )
    try:
        client = JobSubmissionClient(address, headers={"Authorization": f"Bearer {token}"} if token else None)
        client.list_jobs()
    except AuthenticationError as error:
        if token:
            said = "refuses this token (403): it is another cluster's; take this one's (docs/clusters.md)"
        else:
            said = "asks for a token (401): set RAY_AUTH_TOKEN, or keep it in ~/.ray/auth_token"
        raise SepsceneError(f"{address} {said}") from error
    except OSError as error:  # of the socket, or of requests
        raise SepsceneError(
            f"no job server answers at {address}: is the tunnel open and the cluster up? (docs/clusters.md)"
        ) from error
    return client


def _token() -> str | None:
    if os.environ.get("RAY_AUTH_TOKEN"):
        return os.environ["RAY_AUTH_TOKEN"].strip()
    path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
    return path.read_text().strip() if path.is_file() else None


def submit(client: JobSubmissionClient, submission: Submission) -> str:
    """Upload the source and start the job; returns its submission id `<run id>-<attempt>`.

    Raises:
        SepsceneError: when the run is being worked on already, a secret would be shown, or the cluster refuses.
    """
    active = active_jobs(client, submission.run_id)
    if active:
        raise SepsceneError(
            f"run {submission.run_id} is being worked on by job {active[0]}: two would write one folder; "
            "follow or stop that one"
        )
    environment = _environment(submission)
    metadata = {"run_id": submission.run_id, **submission.metadata}
    with staged(submission) as folder:
        deadline = time.monotonic() + _AGENT_PATIENCE_SECONDS
        while True:
            try:
                return client.submit_job(
                    entrypoint=shlex.join(["python", "-m", "sepscene", *submission.arguments]),
                    submission_id=f"{submission.run_id}-{len(jobs_of_run(client, submission.run_id)) + 1}",
                    runtime_env={"working_dir": str(folder), "env_vars": environment},
                    metadata={_METADATA + key: value for key, value in metadata.items()},
                    entrypoint_num_cpus=0,  # the entry point only steers: it waits for no resource and holds none
                    entrypoint_num_gpus=0,
                )
            except RuntimeError as error:
                # The job server of a new head answers some seconds before it can start a job.
                if "try again later" not in str(error) or time.monotonic() > deadline:
                    raise SepsceneError(f"the cluster did not take the job: {error}") from error
                time.sleep(2)


def _environment(submission: Submission) -> dict[str, str]:
    """The job's variables; what looks like a secret is refused and not hidden."""
    variables = {
        "OMP_NUM_THREADS": "1",
        "RAY_JOB_STOP_WAIT_TIME_S": str(STOP_WAIT_SECONDS),
        COMMIT_VARIABLE: commit(),
        **submission.environment,
    }
    if os.environ.get("MLFLOW_TRACKING_URI"):
        variables.setdefault("MLFLOW_TRACKING_URI", os.environ["MLFLOW_TRACKING_URI"])
    for name, value in variables.items():
        if re.search("TOKEN|PASSWORD|SECRET|KEY", name) or urlsplit(value).password:
            raise SepsceneError(
                f"{name} holds a secret, and the dashboard shows a job's variables: give it to the cluster "
                "itself, e.g. in ~/.mlflow/credentials on its head (docs/clusters.md)"
            )
    return variables


@contextmanager
def staged(submission: Submission) -> Iterator[Path]:
    """A folder with what is uploaded: the project's source files and the submission's own."""
    with tempfile.TemporaryDirectory(prefix="sepscene-") as name:
        folder = Path(name)
        copy_source(folder)
        copy_custom_code(folder, submission.code)
        for file, text in submission.files.items():
            write_whole(folder / file, text)
        yield folder


def jobs_of_run(client: JobSubmissionClient, run_id: str) -> list[JobDetails]:
    """All jobs that were ever submitted for a run and that the cluster still knows, oldest first."""
    jobs = [job for job in client.list_jobs() if (job.metadata or {}).get(_METADATA + "run_id") == run_id]
    return sorted(jobs, key=lambda job: job.start_time or 0)


def active_jobs(client: JobSubmissionClient, run_id: str) -> list[str]:
    """Submission ids of a run's jobs that have not ended; more than one only by hand."""
    return [str(job.submission_id) for job in jobs_of_run(client, run_id) if not job.status.is_terminal()]


def follow(client: JobSubmissionClient, submission_id: str, write: Callable[[str], object]) -> Ending:
    """Write the job's log as it grows, until the job ends; a broken connection is taken up where it broke."""
    written = 0
    away_since = None
    while True:
        try:
            written += asyncio.run(_write_log(client, submission_id, write, written))
            job = client.get_job_info(submission_id)
            if job.status.is_terminal():
                return ending(job)
            away_since = None
        except (OSError, aiohttp.ClientError, RuntimeError) as error:
            if "does not exist" in str(error):  # a new head knows nothing of the jobs of the old one
                return Ending.CLUSTER_FAILED
            away_since = away_since or time.monotonic()
            if time.monotonic() - away_since > PATIENCE_SECONDS:
                return Ending.CLUSTER_FAILED
        time.sleep(1)


async def _write_log(client: JobSubmissionClient, submission_id: str, write: Callable[[str], object], skip: int) -> int:
    """Write what follows the first `skip` characters; returns how many were written at the end."""
    seen = 0
    async for piece in client.tail_job_logs(submission_id):
        fresh = piece[max(0, skip - seen) :]
        seen += len(piece)
        if fresh:
            write(fresh)
    return max(0, seen - skip)


def ending(job: JobDetails) -> Ending:
    """How a job in a terminal state ended.

    A run that refuses its configuration, or raises, has failed and would fail again. A run whose supervisor
    died, or whose process was killed from outside (by the kernel for memory, with its node), was lost.
    """
    if job.status != JobStatus.FAILED:
        return Ending[job.status.name]
    code = job.driver_exit_code
    killed = code is not None and (code < 0 or code > 128)
    return Ending.CLUSTER_FAILED if killed or job.error_type in _CLUSTER_FAULTS else Ending.FAILED


def stop(client: JobSubmissionClient, submission_id: str) -> Ending:
    """Ask the job to stop, and wait until it has; submitted again it goes on from its last checkpoint."""
    client.stop_job(submission_id)
    deadline = time.monotonic() + STOP_WAIT_SECONDS + 60
    while not (job := client.get_job_info(submission_id)).status.is_terminal():
        if time.monotonic() > deadline:
            raise SepsceneError(
                f"job {submission_id} has not stopped for {STOP_WAIT_SECONDS + 60} s: see the dashboard"
            )
        time.sleep(0.5)
    return ending(job)


def run_to_end(address: str, submission: Submission, write: Callable[[str], object]) -> Ending:
    """Submit, follow, and submit again where the cluster failed and not the run.

    Raises:
        SepsceneError: as `connect` and `submit` do.
    """
    for attempt in range(RESUBMISSIONS + 1):
        client = _connect_patiently(address, PATIENCE_SECONDS if attempt else 0)
        submission_id = submit(client, submission)
        write(f"job {submission_id} on {address}\n")
        end = follow(client, submission_id, write)
        if end is not Ending.CLUSTER_FAILED:
            return end
        write(f"job {submission_id} was lost with its cluster; {RESUBMISSIONS - attempt} more attempts\n")
    return Ending.CLUSTER_FAILED


def _connect_patiently(address: str, patience_seconds: float) -> JobSubmissionClient:
    deadline = time.monotonic() + patience_seconds
    while True:
        try:
            return connect(address)
        except SepsceneError as error:
            if not isinstance(error.__cause__, OSError) or time.monotonic() > deadline:
                raise
            time.sleep(5)
