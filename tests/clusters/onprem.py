"""`ray up` with the template onprem.yaml on three machines of one computer: submit, stop, submit again, over real sshd.

Run as `unshare --pid --fork --mount-proc --net --mount --uts --kill-child python -m tests.clusters.onprem FOLDER`.
Needs sshd, ssh and rsync. Each machine has an address, a hostname, processes and a home of its own. Writes
FOLDER/outcome.json.
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import yaml

from sepscene.orchestration.config import Experiment
from tests.faults.hosts import QUICK, consumed, plug_hosts, shell, small_experiment

ROOT = Path(__file__).resolve().parents[2]
ADDRESSES = {"head": "192.168.10.10", "m20": "192.168.10.20", "m30": "192.168.10.30"}
"""As the template has them: 20 is a trainer by its address, 30 a separator."""
SSHD = """
HostKey {folder}/host_key
AuthorizedKeysFile {folder}/key.pub
PidFile none
StrictModes no
UsePAM no
PermitRootLogin yes
PermitUserEnvironment yes
"""


def start_machine(name: str, folder: Path) -> subprocess.Popen[bytes]:
    """A machine with a home of its own at /root, the user's environment in it, and sshd."""
    home = folder / name
    (home / ".ssh").mkdir(parents=True)
    (home / "sepscene-env").symlink_to(Path(sys.executable).parent.parent)
    variables = {**QUICK, "RAY_USAGE_STATS_ENABLED": "0", "PYTHONDONTWRITEBYTECODE": "1"}
    (home / ".ssh" / "environment").write_text("".join(f"{key}={value}\n" for key, value in variables.items()))
    mounts: list[str] = []
    python = Path(sys.base_prefix)
    if python.is_relative_to("/root"):  # a Python of the user's own stays where it is
        own = home / python.relative_to("/root")
        own.mkdir(parents=True)
        mounts.append(f"mount --bind {python} {own}")
    mounts += [f"mount --rbind {home} /root", "mount -t tmpfs tmpfs /dev/shm", "mkdir -p /tmp/ray /run/sshd"]
    mounts += ["mount -t tmpfs tmpfs /tmp/ray", f"hostname {name}"]
    line = " && ".join([*mounts, f"exec /usr/sbin/sshd -D -e -f {folder}/sshd_config"])
    spaces = ["unshare", "--mount", "--uts", "--pid", "--fork", "--mount-proc", "--kill-child"]
    log = (folder / f"{name}.log").open("ab")
    return subprocess.Popen(["ip", "netns", "exec", name, *spaces, "bash", "-c", line], stdout=log, stderr=log)


def write_description(folder: Path) -> Path:
    """The template with this cluster's machines, key and folder; what it would install is there already."""
    text = (ROOT / "clusters" / "onprem.yaml").read_text()
    cluster = yaml.safe_load(text)
    cluster["provider"]["worker_ips"] = [ADDRESSES["m20"], ADDRESSES["m30"]]
    cluster["auth"] = {"ssh_user": "root", "ssh_private_key": str(folder / "key")}
    cluster |= {"min_workers": 2, "max_workers": 2}
    install = [line for line in cluster["setup_commands"] if "pip install" in line]
    cluster["setup_commands"] = [line for line in cluster["setup_commands"] if line not in install]
    assert len(install) == 1
    (folder / "onprem.pools.yaml").write_text(
        "pools:\n  - {name: head, nodes: 1, cpus: 4, labels: {pool: head}}\n"
        "  - {name: trainers, nodes: 1, cpus: 2, labels: {pool: trainers}}\n"
        "  - {name: separators, nodes: 1, cpus: 2, labels: {pool: separators}}\n"
    )
    path = folder / "onprem.yaml"
    path.write_text(yaml.safe_dump(cluster))
    return path


def experiment_of(folder: Path) -> Experiment:
    """Sixteen steps of 32 rows with a trainer and a separation actor, each in its pool."""
    changes = {"training.epochs": 16, "resources.trainers": 1, "resources.separation_actors": 1}
    return small_experiment(folder, pools=True).changed(changes)


def on_head(words: list[str], folder: Path, seconds: float = 900) -> int:
    """A command of the user, who sits at the head; returns its exit code."""
    line = ["ip", "netns", "exec", "head", *words]
    own = {"HOME": str(folder / "user"), "RAY_AUTH_MODE": "token", "PYTHONPATH": str(ROOT)}
    with (folder / "user.log").open("ab") as log:
        return subprocess.run(
            line, env={**os.environ, **own}, cwd=ROOT, stdout=log, stderr=log, timeout=seconds
        ).returncode


def scenario(folder: Path) -> None:
    """Everything, in order."""
    plug_hosts(ADDRESSES)
    for key in ("key", "host_key"):
        shell(f"ssh-keygen -q -t ed25519 -N '' -f {folder}/{key}")
    (folder / "sshd_config").write_text(SSHD.format(folder=folder))
    (folder / "user" / ".ray").mkdir(parents=True)
    token = folder / "user" / ".ray" / "auth_token"
    token.write_text("0123456789abcdef" * 4)
    token.chmod(0o600)
    for name in ADDRESSES:
        start_machine(name, folder)
    time.sleep(2)
    bin_folder, description = Path(sys.executable).parent, write_description(folder)
    outcome: dict[str, object] = {
        "up": on_head([f"{bin_folder}/ray", "up", "-y", "--no-config-cache", str(description)], folder)
    }
    assert outcome["up"] == 0, (folder / "user.log").read_text()[-3000:]
    experiment_of(folder).save(folder / "mine.yaml")
    run, rows = folder / "runs" / "mine", experiment_of(folder).training.epochs * 32
    sepscene = [sys.executable, "-m", "sepscene"]
    submit = [*sepscene, "submit", "pretrain", str(folder / "mine.yaml"), "--storage", str(folder / "runs")]
    # `ray up` returns before the workers have joined; the run waits for those that the description promises.
    submit += ["--cluster", str(description), "--run-id", "mine", "--no-evaluate"]
    log = (folder / "user.log").open("ab")
    own = {**os.environ, "HOME": str(folder / "user"), "RAY_AUTH_MODE": "token", "PYTHONPATH": str(ROOT)}
    first = subprocess.Popen(["ip", "netns", "exec", "head", *submit], env=own, cwd=ROOT, stdout=log, stderr=log)
    deadline = time.monotonic() + 900
    while consumed(run) < rows // 4:
        assert first.poll() is None and time.monotonic() < deadline, (folder / "user.log").read_text()[-3000:]
        time.sleep(1)
    outcome["stop"] = on_head([*sepscene, "stop", "mine"], folder)
    outcome["stopped"] = first.wait(timeout=200)
    outcome["rows_at_stop"] = consumed(run)
    outcome["again"] = on_head(submit, folder)
    outcome["rows"] = rows
    outcome["down"] = on_head([f"{bin_folder}/ray", "down", "-y", str(description)], folder)
    (folder / "outcome.json").write_text(json.dumps(outcome, indent=2))


if __name__ == "__main__":
    scenario(Path(sys.argv[1]).resolve())
