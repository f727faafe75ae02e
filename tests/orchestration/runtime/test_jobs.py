"""Jobs on real heads: tokens, secrets, stopping, resubmission; and a network failure on several hosts."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from sepscene.models.config import SepsceneError
from sepscene.orchestration.records.ledger import Ledger

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[3]
TOKEN = "0123456789abcdef" * 4
DECOY = "decoy-swordfish-7261"


def test_only_source_files_are_uploaded(tmp_path: Path) -> None:
    """A checkout that contains secrets and results, packed by `submit` and by Ray's own `--working-dir .`."""
    checkout = tmp_path / "checkout"
    for folder in ("sepscene", "models", "augment", "tasks", "orchestration", "clusters"):
        shutil.copytree(ROOT / folder, checkout / folder, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / ".rayignore", checkout)
    (checkout / "mine.yaml").write_text("name: mine")
    decoys = (
        ".env",
        "key.pem",
        "models/.env",
        "clusters/me.pem",
        ".git/config",
        "runs/a/x.json",
        "data/x.csv",
        ".aws/c",
    )
    for name in decoys:
        (checkout / name).parent.mkdir(parents=True, exist_ok=True)
        (checkout / name).write_text(DECOY)
    (checkout / "models" / "linked.py").symlink_to(checkout / ".env")
    program = """
import sys, zipfile, pathlib
from sepscene.orchestration.runtime import jobs
with jobs.staged(jobs.Submission(("show",), "r", files={"experiment.yaml": "name: x"})) as folder:
    files = [p for p in folder.rglob("*") if p.is_file()]
    print("\\n".join(str(p.relative_to(folder)) for p in files))
    print(sum(p.stat().st_size for p in files), any(sys.argv[1].encode() in p.read_bytes() for p in files))
from ray._private.runtime_env.packaging import create_package
target = pathlib.Path("../package.zip")
create_package(".", target, include_gitignore=True)
print("\\n".join("ray:" + n for n in zipfile.ZipFile(target).namelist()))
"""
    done = subprocess.run(
        [sys.executable, "-c", program, DECOY], cwd=checkout, capture_output=True, text=True, check=True, timeout=600
    )
    lines = done.stdout.splitlines()
    assert {
        "experiment.yaml",
        "sepscene/orchestration/cli/main.py",
        "sepscene/models/config.py",
        "sepscene/clusters/aws.yaml",
    } <= set(lines)
    assert {"ray:orchestration/cli/main.py", "ray:clusters/aws.yaml", "ray:mine.yaml"} <= set(lines)
    bytes_and_leak = next(line for line in lines if line.endswith(("True", "False"))).split()
    assert int(bytes_and_leak[0]) < 3_000_000
    assert bytes_and_leak[1] == "False"
    assert not [line for line in lines if line.removeprefix("ray:") in decoys]
    assert "sepscene/models/linked.py" not in lines  # Ray itself follows a link
    assert not [line for line in lines if line.startswith(("ray:.git/", "ray:runs", "ray:data", "ray:tests"))]


def test_a_jobs_variables_contain_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    from sepscene.orchestration.records.environment import commit
    from sepscene.orchestration.runtime import jobs

    with pytest.raises(SepsceneError, match="HF_TOKEN contains a secret"):
        jobs._environment(jobs.Submission((), "r", environment={"HF_TOKEN": "x"}))
    assert jobs._environment(jobs.Submission((), "r", environment={"PATTERN": "//[a"}))["PATTERN"] == "//[a"
    with pytest.raises(SepsceneError, match="SERVER contains a secret"):
        jobs._environment(jobs.Submission((), "r", environment={"SERVER": f"http://me:{DECOY}@[::1"}))
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", DECOY)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:5000")
    assert jobs._environment(jobs.Submission((), "r")) == {
        "OMP_NUM_THREADS": "1",
        "RAY_JOB_STOP_WAIT_TIME_S": "120",
        "SEPSCENE_COMMIT": commit(),
        "MLFLOW_TRACKING_URI": "http://127.0.0.1:5000",
    }
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://admin:{DECOY}@127.0.0.1:5000")
    with pytest.raises(SepsceneError, match="MLFLOW_TRACKING_URI contains a secret") as refusal:
        jobs._environment(jobs.Submission((), "r"))
    assert DECOY not in str(refusal.value)


@pytest.mark.parametrize(
    ("status", "error", "code", "expected"),
    [
        ("SUCCEEDED", None, 0, "SUCCEEDED"),
        ("STOPPED", None, None, "STOPPED"),
        ("STOPPED", None, -15, "STOPPED"),
        ("FAILED", "JOB_ENTRYPOINT_COMMAND_ERROR", 1, "FAILED"),
        ("FAILED", "JOB_ENTRYPOINT_COMMAND_ERROR", 2, "FAILED"),
        ("FAILED", "RUNTIME_ENV_SETUP_FAILURE", None, "FAILED"),
        ("FAILED", "JOB_ENTRYPOINT_COMMAND_ERROR", -9, "CLUSTER_FAILED"),
        ("FAILED", "JOB_ENTRYPOINT_COMMAND_ERROR", 137, "CLUSTER_FAILED"),
        ("FAILED", "JOB_SUPERVISOR_ACTOR_DIED", None, "CLUSTER_FAILED"),
        ("FAILED", "JOB_SUPERVISOR_ACTOR_START_TIMEOUT", None, "CLUSTER_FAILED"),
    ],
)
def test_only_failures_of_the_cluster_lead_to_a_resubmission(
    status: str, error: str | None, code: int | None, expected: str
) -> None:
    from ray.job_submission import JobDetails, JobStatus, JobType

    from sepscene.orchestration.runtime.jobs import ending

    job = JobDetails(
        type=JobType.SUBMISSION, status=JobStatus(status), entrypoint="x", error_type=error, driver_exit_code=code
    )
    assert ending(job).name == expected


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("ray://127.0.0.1:10001", "is not the address of a job server"),
        ("127.0.0.1:8265", "is not the address of a job server"),
        ("http://[::1", "is not valid (Invalid IPv6 URL)"),
        ("http://10.1.2.3:8265", "would be sent to 10.1.2.3 unencrypted"),
        ("http://127.0.0.1:9", "no job server responds at http://127.0.0.1:9"),
    ],
)
def test_an_unusable_address_is_refused(address: str, reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from sepscene.orchestration.runtime import jobs

    monkeypatch.setenv("RAY_AUTH_TOKEN", TOKEN)
    with pytest.raises(SepsceneError) as refusal:
        jobs.connect(address)
    assert reason in str(refusal.value)
    assert TOKEN not in str(refusal.value)


@pytest.mark.parametrize("pools", [False, True])
def test_the_experiment_of_the_tests_with_hosts_is_valid(pools: bool, tmp_path: Path) -> None:
    """Those tests run only on request: a change of the configuration must not break them unnoticed."""
    from tests.faults.hosts import small_experiment

    experiment = small_experiment(tmp_path, pools)
    assert experiment.training.global_batch == experiment.data.scenes_train == 32


@pytest.mark.hosts
@pytest.mark.timeout(1800)
def test_a_run_on_several_hosts_survives_a_network_failure(tmp_path: Path) -> None:
    """Head, separators and trainers are hosts with separate addresses; see tests/faults/hosts.py."""
    as_root = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
    namespaces = ["unshare", *as_root, "--pid", "--fork", "--mount-proc", "--net", "--mount", "--uts", "--kill-child"]
    with (tmp_path / "scenario.log").open("wb") as log:
        process = subprocess.Popen(
            [*namespaces, sys.executable, "-m", "tests.faults.hosts", str(tmp_path)],
            cwd=ROOT,
            env={**os.environ, "RAY_AUTH_MODE": "token"},
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        try:
            assert process.wait(1700) == 0, (tmp_path / "scenario.log").read_text()[-3000:]
        finally:
            process.kill()
    outcome = json.loads((tmp_path / "outcome.json").read_text())
    assert outcome["end"] == "succeeded", (tmp_path / "job.log").read_text()[-3000:]
    assert [text.split("(")[1][:3] for text in outcome["refusals"]] == ["401", "403"]
    assert outcome["where"] == {"head": [], "separators": ["SeparationService"], "trainers": ["TrainWorker"]}
    assert outcome["rows"] // 4 < outcome["rows_before_cut"] < outcome["rows"]
    assert_ledger_exact(tmp_path / "runs" / "cut", outcome["rows"])


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A real head that requires a token, with three CPUs and no GPU; returns its job server's address."""
    from tests.faults.hosts import free_port, short_folder

    with short_folder() as session:
        port = free_port()
        start = (
            f"ray start --head --block --disable-usage-stats --num-cpus=3 --port={free_port()} --temp-dir={session} "
            f"--dashboard-port={port} --dashboard-host=127.0.0.1 --dashboard-agent-listen-port={free_port()} "
            "--node-ip-address=127.0.0.1 --object-store-memory=200000000"
        )
        process = subprocess.Popen(
            [
                "bash",
                "-c",
                f"until {start}; do sleep 2; done",
            ],  # on a busy machine, Ray's limit of 30 s can be too short
            env={
                **os.environ,
                "HOME": str(tmp_path_factory.mktemp("home")),
                "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
                "RAY_AUTH_MODE": "token",
                "RAY_AUTH_TOKEN": TOKEN,
                "OMP_NUM_THREADS": "1",
                "RAY_worker_niceness": "0",  # with the default, 15, workers get no CPU time on a busy machine
            },
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            yield f"http://127.0.0.1:{port}"
        finally:
            os.killpg(process.pid, signal.SIGTERM)
            process.wait(60)


@pytest.fixture
def client(head: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A client with the token, once the head responds."""
    from sepscene.orchestration.runtime import jobs

    monkeypatch.setenv("RAY_AUTH_TOKEN", TOKEN)
    return jobs._connect_with_retries(head, 400)


def wait_for(condition: Callable[[], Any], seconds: float = 600) -> Any:
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, f"the condition was not met within {seconds} s"
        time.sleep(0.5)
    return value


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_submission_without_the_token_is_refused(head: str, client: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from sepscene.orchestration.runtime import jobs

    monkeypatch.setenv("RAY_AUTH_TOKEN", "")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", "/nonexistent")
    with pytest.raises(SepsceneError, match=r"requires a token \(401\)"):
        jobs.run_to_end(head, jobs.Submission(("show",), "no-token"), print)
    monkeypatch.setenv("RAY_AUTH_TOKEN", "f" * 64)
    with pytest.raises(SepsceneError, match=r"refuses this token \(403\)"):
        jobs.run_to_end(head, jobs.Submission(("show",), "wrong-token"), print)
    assert jobs.jobs_of_run(client, "no-token") == jobs.jobs_of_run(client, "wrong-token") == []


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_run_that_fails_is_not_resubmitted_and_shows_no_secret(
    head: str, client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sepscene.orchestration.runtime import jobs

    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", DECOY)
    log: list[str] = []
    end = jobs.run_to_end(head, jobs.Submission(("show", "table9", "--scale", "tiny"), "typo"), log.append)
    assert end is jobs.Ending.FAILED
    (job,) = jobs.jobs_of_run(client, "typo")
    assert job.submission_id == "typo-1"
    assert job.driver_exit_code == 2
    assert "table9" in "".join(log)
    everything = "".join(log) + str(job)
    assert DECOY not in everything and TOKEN not in everything


@pytest.mark.hosts
@pytest.mark.timeout(1800)
def test_a_run_whose_process_is_killed_is_resubmitted_and_finishes_with_an_exact_ledger(
    head: str, client: Any, tmp_path: Path
) -> None:
    """The driver is killed during the run, as when out of memory."""
    from sepscene.orchestration.runtime import jobs
    from tests.faults.hosts import consumed, small_experiment, small_run

    experiment = small_experiment(tmp_path, pools=False)
    rows = experiment.training.epochs * 32
    log: list[str] = []
    ends: list[Any] = []
    submission = small_run(experiment, tmp_path, "killed")
    thread = threading.Thread(target=lambda: ends.append(jobs.run_to_end(head, submission, log.append)), daemon=True)
    thread.start()
    wait_for(lambda: consumed(tmp_path / "runs" / "killed") > rows // 4 or not thread.is_alive(), 900)
    assert jobs.active_jobs(client, "killed") == ["killed-1"], "".join(log)
    with pytest.raises(SepsceneError, match="is already in use by job killed-1"):
        jobs.submit(client, submission)
    before = consumed(tmp_path / "runs" / "killed")
    os.kill(driver_of(tmp_path), signal.SIGKILL)
    killed_at = time.time() + 5  # its workers may finish a step
    thread.join(900)
    assert ends == [jobs.Ending.SUCCEEDED], "".join(log)
    first, second = jobs.jobs_of_run(client, "killed")
    assert (first.submission_id, second.submission_id) == ("killed-1", "killed-2")
    assert before < rows
    assert_ledger_exact(tmp_path / "runs" / "killed", rows)
    later = [record["step"] for record in records(tmp_path / "runs" / "killed") if record["seconds"] > killed_at]
    assert min(later) > 8, "the second job did not continue from a checkpoint"  # there is one every 8 steps


def driver_of(folder: Path) -> int:
    """Process id of the job's entry point that writes to `folder`."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                words = (entry / "cmdline").read_bytes().decode().split("\0")
            except OSError:
                continue
            if words[1:3] == ["-m", "sepscene"] and str(folder / "runs") in words:
                return int(entry.name)
    raise AssertionError("the job's process was not found")


def records(run: Path) -> list[dict[str, Any]]:
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [record for line in lines if "step" in (record := json.loads(line)) and "rows" in record]


def assert_ledger_exact(run: Path, rows: int) -> None:
    """Every row of the schedule was consumed once: there is one interval, and the number of steps matches the rows."""
    ledger = Ledger.load(run / "ledger.json")
    assert ledger.rows == rows
    assert ledger.intervals == [(0, rows)]
    assert not ledger.quarantined
    assert max(record["step"] for record in records(run)) == rows // 32


@pytest.mark.hosts
@pytest.mark.timeout(900)
def test_a_stopped_run_ends_as_stopped(head: str, client: Any, tmp_path: Path) -> None:
    from sepscene.orchestration.runtime import jobs
    from tests.faults.hosts import small_experiment, small_run

    job = jobs.submit(client, small_run(small_experiment(tmp_path, pools=False), tmp_path, "stopped"))
    wait_for(lambda: (tmp_path / "runs" / "stopped" / "started").exists())
    assert jobs.stop(client, job) is jobs.Ending.STOPPED
    assert jobs.active_jobs(client, "stopped") == []
