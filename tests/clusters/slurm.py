"""Runs the template's script under real Slurm with two simulated nodes: submit, stop, submit again.

Run as `unshare --pid --fork --mount-proc --net --mount --uts --kill-child python -m tests.clusters.slurm FOLDER`. Needs
munged, slurmctld, slurmd and Slurm's commands. Each node is a network namespace with its own hostname. Writes
FOLDER/outcome.json.
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

from sepscene.clusters.templates import Sizes, write_template
from sepscene.orchestration.config import Experiment
from sepscene.orchestration.records.checkpoints import newest_intact, read_ledger
from tests.faults.hosts import QUICK, consumed, plug_hosts, shell, small_experiment

ROOT = Path(__file__).resolve().parents[2]
ADDRESSES = {"n1": "10.78.0.1", "n2": "10.78.0.2"}
SLURM_CONF = """
ClusterName=test
SlurmctldHost=n1
AuthType=auth/munge
SlurmUser=root
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
MpiDefault=none
ReturnToService=2
SlurmdParameters=config_overrides
StateSaveLocation={folder}/state
SlurmctldPidFile={folder}/slurmctld.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdSpoolDir=/tmp/slurm-node/slurmd
SlurmdPidFile=/tmp/slurm-node/slurmd.pid
SlurmdLogFile={folder}/slurmd.%h.log
{nodes}
PartitionName=h100 Nodes=n1 Default=YES MaxTime=INFINITE State=UP
PartitionName=l4 Nodes=n2 MaxTime=INFINITE State=UP
"""


def variables(folder: Path) -> dict[str, str]:
    """The user's environment on every node."""
    return {
        **os.environ,
        **QUICK,
        "HOME": str(folder),
        "SLURM_CONF": str(folder / "slurm.conf"),
        "RAY_TMPDIR": "/tmp/slurm-node",
        "PYTHONPATH": str(ROOT),
        "RAY_USAGE_STATS_ENABLED": "0",
        "SEPSCENE_STORAGE": str(folder / "runs"),
    }


def on_node(name: str, command: str, folder: Path) -> subprocess.Popen[str]:
    """Start a shell command on a node, which has its own folders for Ray and Slurm."""
    own = f"hostname {name} && mkdir -p /tmp/slurm-node && mount -t tmpfs tmpfs /tmp/slurm-node"
    own += " && mount -t tmpfs tmpfs /dev/shm && mkdir /tmp/slurm-node/slurmd"
    line = ["ip", "netns", "exec", name, "unshare", "--mount", "--uts", "bash", "-c", f"{own} && {command}"]
    log = (folder / f"{name}.log").open("a")
    return subprocess.Popen(line, env=variables(folder), cwd=folder / "work", stdout=log, stderr=log, text=True)


def output_of(command: str, folder: Path) -> str:
    """The output of a command on the first node."""
    line = ["ip", "netns", "exec", "n1", "unshare", "--uts", "bash", "-c", f"hostname n1 && {command}"]
    done = subprocess.run(line, env=variables(folder), cwd=folder / "work", capture_output=True, text=True, timeout=60)
    return done.stdout + done.stderr


def start_slurm(folder: Path) -> None:
    """Start munge, the controller, and a daemon on each node."""
    plug_hosts(ADDRESSES)
    (folder / "hosts").write_text(
        "127.0.0.1 localhost\n" + "".join(f"{address} {name}\n" for name, address in ADDRESSES.items())
    )
    shell(f"mount --bind {folder}/hosts /etc/hosts")
    shell("mkdir -p /run/munge && mount -t tmpfs -o mode=755 tmpfs /run/munge")
    key = folder / "munge.key"
    key.write_bytes(os.urandom(1024))
    key.chmod(0o400)
    shell(f"mkdir -p {folder}/state && chmod 755 {folder} && chown root:root {folder}")
    own = "--log-file=/run/munge/log --pid-file=/run/munge/pid --seed-file=/run/munge/seed"
    shell(f"munged --force --key-file={key} {own}")
    lines = [f"NodeName={name} NodeAddr={ip} CPUs=2 CoresPerSocket=2" for name, ip in ADDRESSES.items()]
    (folder / "slurm.conf").write_text(SLURM_CONF.format(folder=folder, nodes="\n".join(lines)))
    (folder / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\n")
    on_node("n1", "exec slurmctld -D -i", folder)
    for name in ADDRESSES:
        on_node(name, "exec slurmd -D", folder)


def prepare(folder: Path) -> None:
    """Create the user's folder: the environment, the script with this cluster's sizes, an experiment and a token."""
    work = folder / "work"
    (work / "runs").mkdir(parents=True)
    (work / ".venv").symlink_to(Path(sys.executable).parent.parent)
    (folder / ".ray").mkdir()
    (folder / ".ray" / "auth_token").write_text("0123456789abcdef" * 4)
    (folder / ".ray" / "auth_token").chmod(0o600)
    write_template("slurm", work / "slurm.sh", {name: Sizes(1, 2, 0) for name in ("trainers", "separators")}, {})
    experiment_of(folder).save(work / "experiment.yaml")


def experiment_of(folder: Path) -> Experiment:
    """Sixteen steps of 32 rows with a checkpoint in the middle, one trainer and one separation actor."""
    changes = {"training.epochs": 16, "resources.trainers": 1, "resources.separation_actors": 1}
    return small_experiment(folder, pools=True).changed(changes)


def submit(folder: Path) -> str:
    """Submit the run; returns the job's number once Slurm accepts it."""
    deadline = time.monotonic() + 120
    while True:
        output = output_of("sbatch --parsable slurm.sh experiment.yaml mine --no-evaluate", folder)
        if output.strip().isdigit():
            return output.strip()
        assert time.monotonic() < deadline, output
        time.sleep(2)


def wait_until(job: str, folder: Path, rows: int, seconds: float) -> None:
    """Wait until the run has trained on `rows` rows or its job is over."""
    deadline = time.monotonic() + seconds
    while consumed(folder / "runs" / "mine") < rows and is_queued(job, folder):
        assert time.monotonic() < deadline, f"no end after {seconds} s\n" + output_of("squeue; sinfo", folder)
        time.sleep(2)


def is_queued(job: str, folder: Path) -> bool:
    return job in output_of("squeue --noheader --format=%i", folder)


def scenario(folder: Path) -> None:
    """Run the whole scenario; writes FOLDER/outcome.json."""
    prepare(folder)
    start_slurm(folder)
    run = folder / "runs" / "mine"
    rows = experiment_of(folder).training.epochs * 32
    first = submit(folder)
    wait_until(first, folder, rows // 8, 900)
    output_of(f"scancel --batch --signal=TERM {first}", folder)
    began = time.monotonic()
    wait_until(first, folder, 10 * rows, 300)
    stopped = time.monotonic() - began
    saved = newest_intact(run / "checkpoints" / "pretrain-mix-chan")
    assert saved is not None
    before = rows - sum(end - start for start, end in read_ledger(saved).remaining())
    second = submit(folder)
    wait_until(second, folder, 10 * rows, 1200)
    state = output_of(f"scontrol show job {second} | grep -o 'JobState=[A-Z]*\\|ExitCode=[0-9:]*'", folder)
    outcome = {
        "rows": rows,
        "rows_at_stop": before,
        "seconds_to_stop": stopped,
        "jobs": [first, second],
        "state": state.split(),
    }
    (folder / "outcome.json").write_text(json.dumps(outcome, indent=2))


if __name__ == "__main__":
    scenario(Path(sys.argv[1]).resolve())
