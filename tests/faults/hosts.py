"""Several hosts on one machine: network namespaces with separate addresses, hostnames, /dev/shm and session folders.

Run as `unshare --pid --fork --mount-proc --net --mount --uts --kill-child python -m tests.faults.hosts FOLDER`. All
processes end with it and are invisible from outside. The scenario starts a head, a node with the label pool=separators
and one with pool=trainers, submits a real run through the Jobs API on the head's loopback, disconnects the separators'
node during the run, reconnects it, and writes FOLDER/outcome.json.
"""

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import requests

from sepscene.models.separators.folder import save_separator
from sepscene.models.separators.tdcnpp import TDCNpp
from sepscene.orchestration.config import Experiment
from sepscene.orchestration.presets import named_experiment

ADDRESSES = {"head": "10.77.0.1", "separators": "10.77.0.2", "trainers": "10.77.0.3"}
TOKEN = "scenario-" + "0123456789abcdef" * 3
JOB_SERVER = "http://127.0.0.1:8265"
QUICK = {
    "RAY_worker_niceness": "0",  # with the default, 15, workers get no CPU time on a busy machine
    # A lost host is detected after 6 s instead of 65 s.
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "1000",
    "RAY_health_check_failure_threshold": "3",
}


def free_port() -> int:
    """A TCP port on loopback that is currently free."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def short_folder() -> Iterator[Path]:
    """A session folder with a short path for Ray, whose sockets' paths are limited to 107 characters."""
    with tempfile.TemporaryDirectory(prefix="ss", dir="/tmp", ignore_cleanup_errors=True) as name:
        yield Path(name)


def shell(command: str) -> None:
    """Run a shell command as root of the namespaces."""
    subprocess.run(command, shell=True, check=True)


def plug_hosts(addresses: Mapping[str, str] = ADDRESSES) -> None:
    """Create a bridge, and for each host a namespace that is connected to it."""
    shell("mount --make-rprivate / && mkdir -p /run/netns && mount -t tmpfs tmpfs /run/netns && ip link set lo up")
    shell("ip link add bridge type bridge && ip link set bridge up")
    for name, address in addresses.items():
        shell(f"ip netns add {name} && ip link add c-{name} type veth peer name eth0 netns {name}")
        shell(f"ip link set c-{name} master bridge up && ip -n {name} link set lo up")
        shell(f"ip -n {name} address add {address}/24 dev eth0 && ip -n {name} link set eth0 up")
        shell(f"ip -n {name} route add 8.8.8.8 dev eth0")  # Ray uses this route to find its own address


def cut(name: str) -> None:
    """Disconnect a host."""
    shell(f"ip link set c-{name} down")


def plug_in(name: str) -> None:
    """Reconnect a host."""
    shell(f"ip link set c-{name} up")


def on_host(name: str, command: str, folder: Path, **variables: str) -> subprocess.Popen[bytes]:
    """Start a shell command on a host; its output is written to FOLDER/<host>.log."""
    environment = {
        **os.environ,
        **QUICK,
        "HOME": str(folder),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "RAY_AUTH_MODE": "token",
        "RAY_USAGE_STATS_ENABLED": "0",
        "OMP_NUM_THREADS": "1",
        **variables,
    }
    set_up = f"hostname {name} && mount -t tmpfs tmpfs /dev/shm && mkdir -p /tmp/hosts"
    set_up += " && mount -t tmpfs tmpfs /tmp/hosts"
    return subprocess.Popen(
        ["ip", "netns", "exec", name, "unshare", "--mount", "--uts", "bash", "-c", f"{set_up} && {command}"],
        env=environment,
        stdout=(folder / f"{name}.log").open("ab"),
        stderr=subprocess.STDOUT,
    )


def start_ray(folder: Path) -> None:
    """Start the head and two workers. A worker joins again if its Ray ends, as with a service manager.

    The start of the head is retried too, because Ray's limit of 30 seconds can be too short on a busy machine.
    """
    common = "--temp-dir=/tmp/hosts --object-store-memory=200000000 --disable-usage-stats --block"
    head = f"ray start --head --port=6379 --node-ip-address={ADDRESSES['head']} --dashboard-host=127.0.0.1"
    on_host("head", f"until {head} --num-cpus=1 {common}; do sleep 2; done", folder, RAY_AUTH_TOKEN=TOKEN)
    for name in ("separators", "trainers"):
        join = f"ray start --address={ADDRESSES['head']}:6379 --node-ip-address={ADDRESSES[name]} --num-cpus=1"
        options = common.removeprefix("--temp-dir=/tmp/hosts ")
        loop = f"while true; do {join} --labels=pool={name} {options}; sleep 2; done"
        on_host(name, loop, folder, RAY_AUTH_TOKEN=TOKEN)


def small_experiment(folder: Path, pools: bool) -> Experiment:
    """Live separation by existing separators, with 32 rows per epoch and per step.

    Args:
        pools: place trainers and separators on their own nodes by labels.
    """
    base = named_experiment("demo", "tiny")
    checkpoints = {}
    for name in ("N", "S2"):
        save_separator(TDCNpp(base.separator.network), folder / "ladder" / name, {"step": 0})
        checkpoints[name] = str(folder / "ladder" / name)
    return base.changed(
        {
            "separator.checkpoints": checkpoints,
            "data.scenes_train": 32,
            "data.scenes_test": 4,
            "audio.clip_seconds": 4.0,
            "views.tp_delta_seconds": 4.0,
            "training.epochs": 60,
            "training.global_batch": 32,
            "training.service_rows": 8,
            "training.checkpoint_every_steps": 8,
            "store.mode": "off",
            "resources.trainer_labels": {"pool": "trainers"} if pools else {},
            "resources.separation_labels": {"pool": "separators"} if pools else {},
        }
    )


def small_run(experiment: Experiment, folder: Path, run_id: str) -> Any:
    """The job that pre-trains `experiment` in FOLDER/runs, as created by `sepscene submit`."""
    import typer

    from sepscene.orchestration.cli.main import app
    from sepscene.orchestration.cli.submission import submission_of

    experiment.save(folder / "mine.yaml")
    command = ["pretrain", str(folder / "mine.yaml"), "--storage", str(folder / "runs"), "--run-id", run_id]
    return submission_of(typer.main.get_command(app), [*command, "--no-evaluate"])


def client(folder: Path) -> None:
    """On the head: try without a token and with a wrong one; then submit the run and follow it to the end."""
    from sepscene.models.config import SepsceneError
    from sepscene.orchestration.runtime import jobs

    refusals: list[str] = []
    for token in ("", "wrong" * 10):
        os.environ["RAY_AUTH_TOKEN"] = token
        refusals.append(_wait(lambda: _refusal(jobs, SepsceneError), 400))
    os.environ["RAY_AUTH_TOKEN"] = TOKEN
    _wait(lambda: _joined() >= ADDRESSES.keys() - {"head"}, 600)
    submission = small_run(small_experiment(folder, pools=True), folder, "cut")
    with (folder / "job.log").open("w", buffering=1) as log:
        end = jobs.run_to_end(JOB_SERVER, submission, log.write)
    (folder / "client.json").write_text(json.dumps({"refusals": refusals, "end": end.value}))


def _refusal(jobs: Any, refused: type[Exception]) -> str:
    """The job server's error for the current token; empty while it does not respond."""
    try:
        jobs.connect(JOB_SERVER)
    except refused as error:
        return "" if "no job server responds" in str(error) else str(error)
    return "accepted"


def _joined() -> set[str]:
    """The pools whose node is alive, according to the dashboard's state API."""
    headers = {"Authorization": f"Bearer {TOKEN}"}
    try:
        nodes = requests.get(f"{JOB_SERVER}/api/v0/nodes?detail=true", headers=headers, timeout=60).json()
    except OSError:  # the dashboard is still starting
        return set()
    return {node["labels"].get("pool", "") for node in nodes["data"]["result"]["result"] if node["state"] == "ALIVE"}


def _wait(condition: Callable[[], Any], seconds: float) -> Any:
    """The first true value of `condition`."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"the condition was not met within {seconds} s")
        time.sleep(0.5)
    return value


def processes() -> dict[str, set[str]]:
    """Host -> kinds of Ray workers there, read from the process titles."""
    found: dict[str, set[str]] = {name: set() for name in ADDRESSES}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            title = (entry / "cmdline").read_bytes().split(b"\0")[0].decode()
        except OSError:
            continue
        if title.startswith("ray::"):
            where = subprocess.run(
                ["ip", "netns", "identify", entry.name], capture_output=True, text=True
            ).stdout.strip()
            for name in ("SeparationService", "TrainWorker"):
                if name in title and where:
                    found[where].add(name)
    return found


def consumed(run: Path) -> int:
    """Number of rows that a run has trained on, according to its metrics."""
    path = run / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    records = [json.loads(line) for line in lines if line.endswith("}")]
    return max((int(record.get("rows", 0)) for record in records), default=0)


def scenario(folder: Path) -> None:
    """Run the scenario and write FOLDER/outcome.json."""
    plug_hosts()
    start_ray(folder)
    submitter = on_host("head", f"exec python -m tests.faults.hosts {folder} client", folder)
    run = folder / "runs" / "cut"
    rows = small_experiment(folder, pools=True).training.epochs * 32
    _wait(lambda: consumed(run) > rows // 4 or submitter.poll() is not None, 900)
    before = consumed(run)
    where = processes()
    cut("separators")
    time.sleep(15)
    plug_in("separators")
    submitter.wait(timeout=900)
    outcome = {
        **json.loads((folder / "client.json").read_text()),
        "rows": rows,
        "rows_before_cut": before,
        "where": {name: sorted(kinds) for name, kinds in where.items()},
    }
    (folder / "outcome.json").write_text(json.dumps(outcome, indent=2))


if __name__ == "__main__":
    root = Path(sys.argv[1])
    client(root) if sys.argv[2:] == ["client"] else scenario(root)
