"""`ray up` with the template onprem.yaml on three simulated machines with real sshd: submit, stop, submit again.

The run trains the encoder and the loss term of examples/mylab, which only the user's machine has. It is submitted by
`sepscene submit` and continued by `ray job submit`, as described in docs/clusters.md, from a folder with the user's
YAML file and package.

Run as `unshare --pid --fork --mount-proc --net --mount --uts --kill-child python -m tests.clusters.onprem FOLDER`.
Needs sshd, ssh and rsync. Each machine has its own address, hostname, processes and home. Writes FOLDER/outcome.json.
"""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import yaml

import sepscene
from sepscene.orchestration.config import Experiment
from tests.faults.hosts import QUICK, consumed, plug_hosts, shell, small_experiment

ROOT = Path(__file__).resolve().parents[2]
ADDRESSES = {"head": "192.168.10.10", "m20": "192.168.10.20", "m30": "192.168.10.30"}
"""As in the template, where addresses determine the pools: m20 is a trainer, m30 a separator."""
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
    """Start a machine with its own home at /root, which has the user's environment, and with sshd."""
    home = folder / name
    (home / ".ssh").mkdir(parents=True)
    (home / "sepscene-env").symlink_to(Path(sys.executable).parent.parent)
    variables = {**QUICK, "RAY_USAGE_STATS_ENABLED": "0", "PYTHONDONTWRITEBYTECODE": "1"}
    (home / ".ssh" / "environment").write_text("".join(f"{key}={value}\n" for key, value in variables.items()))
    mounts: list[str] = []
    python = Path(sys.base_prefix)
    if python.is_relative_to("/root"):  # a Python in the user's home must keep its path
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
    """The template with this cluster's machines, key and folder, without the installation of packages."""
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
    """Sixteen steps of 32 rows with a trainer and a separation actor, each in its pool, and custom parts."""
    changes = {
        "training.epochs": 16,
        "resources.trainers": 1,
        "resources.separation_actors": 1,
        "encoder": {"use": "mylab.nets:MelGru", "width": 16},
        "objective.terms.spread": {"use": "mylab.losses:Spread", "weight": 0.1},
    }
    return small_experiment(folder, pools=True).changed(changes)


def prepare_lab(folder: Path) -> None:
    """Create the user's folder: an experiment and the package with its custom code."""
    lab = folder / "lab"
    shutil.copytree(ROOT / "examples" / "mylab" / "mylab", lab / "mylab")
    sys.path.insert(0, str(lab))
    for name in ("mylab.nets:MelGru", "mylab.losses:Spread"):
        sepscene.trust_code(name)
    experiment_of(folder).save(lab / "mine.yaml")


def start_on_head(words: list[str], folder: Path) -> subprocess.Popen[bytes]:
    """Start a command of the user on the head, in the folder with the custom code."""
    own = {"HOME": str(folder / "user"), "RAY_AUTH_MODE": "token"}
    with (folder / "user.log").open("ab") as log:
        line = ["ip", "netns", "exec", "head", *words]
        return subprocess.Popen(line, env={**os.environ, **own}, cwd=folder / "lab", stdout=log, stderr=log)


def on_head(words: list[str], folder: Path, seconds: float = 900) -> int:
    """Run a command of the user; returns its exit code."""
    return start_on_head(words, folder).wait(timeout=seconds)


def scenario(folder: Path) -> None:
    """Run the whole scenario; writes FOLDER/outcome.json."""
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
    bin_folder = Path(sys.executable).parent
    description = write_description(folder)
    prepare_lab(folder)
    outcome: dict[str, object] = {
        "up": on_head([f"{bin_folder}/ray", "up", "-y", "--no-config-cache", str(description)], folder)
    }
    assert outcome["up"] == 0, (folder / "user.log").read_text()[-3000:]
    run = folder / "runs" / "mine"
    rows = experiment_of(folder).training.epochs * 32
    command = [sys.executable, "-m", "sepscene"]
    # `ray up` returns before the workers have joined; the run waits for the workers in the description.
    words = f"pretrain mine.yaml --storage {folder}/runs --run-id mine --no-evaluate --trust-code".split()
    submit = [*command, "submit", *words, "--cluster", str(description)]
    first = start_on_head(submit, folder)
    deadline = time.monotonic() + 900
    while consumed(run) < rows // 4:
        assert first.poll() is None and time.monotonic() < deadline, (folder / "user.log").read_text()[-3000:]
        time.sleep(1)
    outcome["stop"] = on_head([*command, "stop", "mine"], folder)
    outcome["stopped"] = first.wait(timeout=200)
    outcome["rows_at_stop"] = consumed(run)
    by_ray = [f"{bin_folder}/ray", "job", "submit", "--address", "http://127.0.0.1:8265", "--working-dir", "."]
    outcome["again"] = on_head([*by_ray, "--", "python", "-m", "sepscene", *words, "--resume"], folder)
    outcome["rows"] = rows
    outcome["down"] = on_head([f"{bin_folder}/ray", "down", "-y", str(description)], folder)
    (folder / "outcome.json").write_text(json.dumps(outcome, indent=2))


if __name__ == "__main__":
    scenario(Path(sys.argv[1]).resolve())
