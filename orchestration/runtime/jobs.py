"""Submitting a run to a cluster as a Ray job, following and stopping it, and resubmitting it if the cluster failed.

Ray does not resubmit a job after its head node was lost, and the state of a run is in its folder, not in Ray's job
table. So `run_to_end` submits the same command with the same run id again, and `--resume` continues the run. It does so
only if the cluster failed, not if the run failed, and only a few times.

Only this project's source files and the resolved experiment are uploaded, so data, results or secrets in the same
folder cannot be included. Secrets must be stored on the cluster itself (docs/clusters.md), because a job's environment,
arguments and metadata are visible to everyone with access to the dashboard.
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
from sepscene.orchestration.records.files import write_text_atomically
from sepscene.orchestration.source import copy_custom_code, copy_source

STOP_WAIT_SECONDS = 120
"""Time between SIGTERM and SIGKILL when a job is stopped, to save a checkpoint (Ray's default is 3 s)."""
RESUBMISSIONS = 3
"""How often a run is resubmitted after failures of the cluster."""
CLUSTER_ERRORS = {
    "JOB_SUPERVISOR_ACTOR_START_TIMEOUT",
    "JOB_SUPERVISOR_ACTOR_START_FAILURE",
    "JOB_SUPERVISOR_ACTOR_UNKNOWN_FAILURE",
    "JOB_SUPERVISOR_ACTOR_DIED",
}
"""Values of Ray's `JobErrorType` that mean a failure of the cluster (see `ray_compat`)."""
RECONNECT_SECONDS = 300
"""How long the job server may be unavailable before the cluster counts as lost."""
_HEAD_START_SECONDS = 120
"""How long a new head may need until it accepts a job."""
_METADATA = "sepscene."


class Ending(Enum):
    """How a job ended."""

    SUCCEEDED = "succeeded"
    FAILED = "failed"
    STOPPED = "stopped"
    CLUSTER_FAILED = "lost with its cluster"


@dataclass(frozen=True)
class Submission:
    """A `sepscene` command to be run on a cluster.

    Attributes:
        arguments: the arguments of `sepscene`, e.g. ("pretrain", "experiment.yaml", "--run-id", "a", "--resume").
        run_id: the same id continues the same run.
        metadata: shown in Ray's dashboard, e.g. {"digest": "..."}.
        files: name -> content of text files that are uploaded with the source.
        environment: variables of the job. No secrets: the dashboard shows them.
        code: import paths of custom code that the command needs; code that is not installed is uploaded as well.
    """

    arguments: tuple[str, ...]
    run_id: str
    metadata: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)
    code: tuple[str, ...] = ()


def connect(address: str) -> JobSubmissionClient:
    """A client of the cluster's job server, e.g. at the local end of an SSH tunnel, with this user's token.

    The token is read from RAY_AUTH_TOKEN, the file RAY_AUTH_TOKEN_PATH, or ~/.ray/auth_token, in this order.

    Raises:
        SepsceneError: if the address is invalid, no server responds, or the token is missing, is refused or would be
            sent unencrypted.
    """
    try:
        parts = urlsplit(address)
    except ValueError as error:  # e.g. an IPv6 address without its closing bracket
        raise SepsceneError(f"--address {address!r} is not valid ({error}): give http://HOST:8265") from None
    if parts.scheme not in ("http", "https"):
        raise SepsceneError(
            f"--address {address!r} is not the address of a job server: give http://HOST:8265 (docs/clusters.md)"
        )
    token = _token()
    if token and parts.scheme == "http" and parts.hostname not in ("127.0.0.1", "localhost", "::1"):
        raise SepsceneError(
            f"the token would be sent to {parts.hostname} unencrypted: open a tunnel (`ray dashboard FILE`, "
            "`kubectl port-forward`, `ssh -L 8265:127.0.0.1:8265 HEAD`) and give --address "
            "http://127.0.0.1:8265, or an https address"
        )
    try:
        client = JobSubmissionClient(address, headers={"Authorization": f"Bearer {token}"} if token else None)
        client.list_jobs()
    except AuthenticationError as error:
        if token:
            reason = "refuses this token (403): it belongs to another cluster; use this cluster's (docs/clusters.md)"
        else:
            reason = "requires a token (401): set RAY_AUTH_TOKEN, or store it in ~/.ray/auth_token"
        raise SepsceneError(f"{address} {reason}") from error
    except OSError as error:  # from the socket or from `requests`
        raise SepsceneError(
            f"no job server responds at {address}: check that the tunnel is open and the cluster is running "
            "(docs/clusters.md)"
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
        SepsceneError: if the run has an active job, a secret would be visible, or the cluster refuses the job.
    """
    active = active_jobs(client, submission.run_id)
    if active:
        raise SepsceneError(
            f"run {submission.run_id} is already in use by job {active[0]}, and two jobs must not write to the same "
            "folder: follow or stop that job"
        )
    environment = _environment(submission)
    metadata = {"run_id": submission.run_id, **submission.metadata}
    with staged(submission) as folder:
        deadline = time.monotonic() + _HEAD_START_SECONDS
        while True:
            try:
                return client.submit_job(
                    entrypoint=shlex.join(["python", "-m", "sepscene", *submission.arguments]),
                    submission_id=f"{submission.run_id}-{len(jobs_of_run(client, submission.run_id)) + 1}",
                    runtime_env={"working_dir": str(folder), "env_vars": environment},
                    metadata={_METADATA + key: value for key, value in metadata.items()},
                    entrypoint_num_cpus=0,  # the entry point only coordinates: it must not wait for resources
                    entrypoint_num_gpus=0,
                )
            except RuntimeError as error:
                # The job server of a new head responds some seconds before it can start a job.
                if "try again later" not in str(error) or time.monotonic() > deadline:
                    raise SepsceneError(f"the cluster did not accept the job: {error}") from error
                time.sleep(2)


def _environment(submission: Submission) -> dict[str, str]:
    """The environment variables of the job.

    Raises:
        SepsceneError: if one of them looks like a secret.
    """
    variables = {
        "OMP_NUM_THREADS": "1",
        "RAY_JOB_STOP_WAIT_TIME_S": str(STOP_WAIT_SECONDS),
        COMMIT_VARIABLE: commit(),
        **submission.environment,
    }
    if os.environ.get("MLFLOW_TRACKING_URI"):
        variables.setdefault("MLFLOW_TRACKING_URI", os.environ["MLFLOW_TRACKING_URI"])
    for name, value in variables.items():
        if re.search("TOKEN|PASSWORD|SECRET|KEY", name) or _has_password(value):
            raise SepsceneError(
                f"{name} contains a secret, and the dashboard shows a job's variables: store it on the cluster "
                "itself, e.g. in ~/.mlflow/credentials on its head (docs/clusters.md)"
            )
    return variables


def _has_password(value: str) -> bool:
    """Whether a value is a URL with a password; also True for an invalid URL that may contain one."""
    try:
        return bool(urlsplit(value).password)
    except ValueError:
        return "@" in value


@contextmanager
def staged(submission: Submission) -> Iterator[Path]:
    """A temporary folder with the files to upload: the project's source files and those of the submission."""
    with tempfile.TemporaryDirectory(prefix="sepscene-") as name:
        folder = Path(name)
        copy_source(folder)
        copy_custom_code(folder, submission.code)
        for file, text in submission.files.items():
            write_text_atomically(folder / file, text)
        yield folder


def jobs_of_run(client: JobSubmissionClient, run_id: str) -> list[JobDetails]:
    """All jobs of a run in the cluster's job table, oldest first."""
    jobs = [job for job in client.list_jobs() if (job.metadata or {}).get(_METADATA + "run_id") == run_id]
    return sorted(jobs, key=lambda job: job.start_time or 0)


def active_jobs(client: JobSubmissionClient, run_id: str) -> list[str]:
    """Submission ids of a run's jobs that have not ended; several only if they were submitted manually."""
    return [str(job.submission_id) for job in jobs_of_run(client, run_id) if not job.status.is_terminal()]


def follow(client: JobSubmissionClient, submission_id: str, write: Callable[[str], object]) -> Ending:
    """Write the job's log as it grows, until the job ends; after a lost connection it continues where it stopped."""
    written = 0
    lost_since = None
    while True:
        try:
            written += asyncio.run(_write_log(client, submission_id, write, written))
            job = client.get_job_info(submission_id)
            if job.status.is_terminal():
                return ending(job)
            lost_since = None
        except (OSError, aiohttp.ClientError, RuntimeError) as error:
            if "does not exist" in str(error):  # a new head has no record of the old head's jobs
                return Ending.CLUSTER_FAILED
            lost_since = lost_since or time.monotonic()
            if time.monotonic() - lost_since > RECONNECT_SECONDS:
                return Ending.CLUSTER_FAILED
        time.sleep(1)


async def _write_log(client: JobSubmissionClient, submission_id: str, write: Callable[[str], object], skip: int) -> int:
    """Write the log after its first `skip` characters; returns the number of characters written."""
    seen = 0
    async for piece in client.tail_job_logs(submission_id):
        new = piece[max(0, skip - seen) :]
        seen += len(piece)
        if new:
            write(new)
    return max(0, seen - skip)


def ending(job: JobDetails) -> Ending:
    """How a job in a terminal state ended.

    A run that rejects its configuration or raises an exception has failed and would fail again. A run was lost with its
    cluster if its supervisor ended, or if its process was killed (by the kernel when out of memory, or with its node).
    """
    if job.status != JobStatus.FAILED:
        return Ending[job.status.name]
    code = job.driver_exit_code
    killed = code is not None and (code < 0 or code > 128)
    return Ending.CLUSTER_FAILED if killed or job.error_type in CLUSTER_ERRORS else Ending.FAILED


def stop(client: JobSubmissionClient, submission_id: str) -> Ending:
    """Stop the job and wait until it has ended; if submitted again, it continues from its last checkpoint.

    Raises:
        SepsceneError: if it does not end in time.
    """
    client.stop_job(submission_id)
    deadline = time.monotonic() + STOP_WAIT_SECONDS + 60
    while not (job := client.get_job_info(submission_id)).status.is_terminal():
        if time.monotonic() > deadline:
            raise SepsceneError(
                f"job {submission_id} has not stopped within {STOP_WAIT_SECONDS + 60} s: see its log in the "
                "dashboard, or end its processes on the cluster"
            )
        time.sleep(0.5)
    return ending(job)


def run_to_end(address: str, submission: Submission, write: Callable[[str], object]) -> Ending:
    """Submit and follow a job, and submit it again if the cluster failed.

    Raises:
        SepsceneError: as `connect` and `submit`.
    """
    for attempt in range(RESUBMISSIONS + 1):
        client = _connect_with_retries(address, RECONNECT_SECONDS if attempt else 0)
        submission_id = submit(client, submission)
        write(f"job {submission_id} on {address}\n")
        end = follow(client, submission_id, write)
        if end is not Ending.CLUSTER_FAILED:
            return end
        write(f"job {submission_id} was lost with its cluster; attempts left: {RESUBMISSIONS - attempt}\n")
    return Ending.CLUSTER_FAILED


def _connect_with_retries(address: str, timeout_seconds: float) -> JobSubmissionClient:
    """`connect`, repeated while no server responds."""
    deadline = time.monotonic() + timeout_seconds
    while True:
        try:
            return connect(address)
        except SepsceneError as error:
            if not isinstance(error.__cause__, OSError) or time.monotonic() > deadline:
                raise
            time.sleep(5)
