"""Runs `setup` and `run` of skypilot.yaml with SkyPilot's own log runner on two nodes.

Run as `unshare --pid --fork --mount-proc --net --mount --uts --kill-child python -m tests.clusters.skypilot FOLDER
SKY_PYTHON`, where SKY_PYTHON is a Python with SkyPilot. Each node is a network namespace with its own home. SkyPilot
parses the task and runs its commands as on a cloud's machine. They install packages from uv's cache, which `make setup`
fills; only the two lines of `setup` that install and mount NFS are left out. Writes FOLDER/outcome.json.
"""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import uv

from tests.faults.hosts import QUICK, plug_hosts, shell, small_experiment

ROOT = Path(__file__).resolve().parents[2]
ADDRESSES = {"n0": "10.79.0.1", "n1": "10.79.0.2"}
RUNNER = """
import sys
import sky
from sky.skylet import log_lib
file, stage, log = sys.argv[1:]
task = sky.Task.from_yaml(file)
here = [line for line in task.setup.splitlines() if "sudo " not in line]
assert len(task.setup.splitlines()) - len(here) == 2
lines = {
    "setup": "\\n".join(here),
    "run": task.run.replace("-lt 2", "-lt 1"),  # one of the two nodes trains
}
sys.exit(log_lib.run_bash_command_with_log(lines[stage], log))
"""


def copy_sources(target: Path) -> None:
    """Copy the files that SkyPilot would send: those in git."""
    names = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in names.split("\0")[:-1]:
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, target / name)


def make_home(name: str, folder: Path) -> None:
    """Create a node's home with the token, uv, and the sources as SkyPilot would send them."""
    home = folder / name
    (home / ".ray").mkdir(parents=True)
    (home / ".ray" / "auth_token").write_text("0123456789abcdef" * 4)
    (home / "bin").mkdir()
    (home / "bin" / "uv").symlink_to(uv.find_uv_bin())
    shutil.copytree(folder / "work", home / "sky_workdir")


def on_node(rank: int, stage: str, folder: Path, python: str) -> subprocess.Popen[bytes]:
    """Start SkyPilot's runner for `setup` or `run` on one node, with the environment variables that SkyPilot sets."""
    name = f"n{rank}"
    home = folder / name
    cache = subprocess.run([uv.find_uv_bin(), "cache", "dir"], capture_output=True, text=True, check=True).stdout
    ours = ("PYTHONPATH", "VIRTUAL_ENV", "PYTHONDONTWRITEBYTECODE")
    variables = {
        **{key: value for key, value in os.environ.items() if key not in ours},
        **QUICK,
        "HOME": str(home),
        "PATH": f"{home}/bin:{sys.base_prefix}/bin:{os.environ['PATH']}",
        "UV_CACHE_DIR": cache.strip(),
        "UV_OFFLINE": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
        "SKYPILOT_NODE_IPS": "\n".join(ADDRESSES.values()),
        "SKYPILOT_NODE_RANK": str(rank),
        "EXPERIMENT": "experiment.yaml",
        "RUN_ID": "mine",
    }
    own = f"hostname {name} && mount -t tmpfs tmpfs /dev/shm && mkdir -p /tmp/sepscene-ray && "
    own += "mount -t tmpfs tmpfs /tmp/sepscene-ray"
    runner = f"exec {python} {folder}/runner.py {folder}/work/task.yaml {stage} {folder}/{name}.{stage}.log"
    line = ["ip", "netns", "exec", name, "unshare", "--mount", "--uts", "bash", "-c", f"{own} && {runner}"]
    log = (folder / f"{name}.log").open("ab")
    return subprocess.Popen(line, env=variables, cwd=home / "sky_workdir", stdout=log, stderr=log)


def scenario(folder: Path, python: str) -> None:
    """Run the whole scenario; writes FOLDER/outcome.json."""
    plug_hosts(ADDRESSES)
    work = folder / "work"
    copy_sources(work)
    (folder / "runner.py").write_text(RUNNER)
    template = (ROOT / "clusters" / "skypilot.yaml").read_text()
    for given, sized in (("trainers=8", "trainers=1"), ("cpus=4", "cpus=0.2"), ("actors=8", "actors=1"), ("=32", "=1")):
        assert given in template
        template = template.replace(given, sized)
    template = template.replace("workdir: .", f"workdir: {work}").replace("--resume", "--resume --no-evaluate")
    (work / "task.yaml").write_text(template)
    (work / "clusters" / "skypilot.pools.yaml").write_text(
        "pools:\n  - {name: trainers, nodes: 1, cpus: 2, labels: {pool: trainers}}\n"
        "  - {name: separators, nodes: 1, cpus: 2, labels: {pool: separators}}\n"
    )
    (work / "clusters" / "skypilot.yaml").write_text(template)
    small_experiment(folder, pools=True).changed({"training.epochs": 8}).save(work / "experiment.yaml")
    (folder / "share").mkdir()
    shell("mkdir -p /mnt && mount -t tmpfs tmpfs /mnt && mkdir /mnt/sepscene")
    shell(f"mount --bind {folder}/share /mnt/sepscene")
    for name in ADDRESSES:
        make_home(name, folder)
    assert on_node(0, "setup", folder, python).wait(timeout=600) == 0, (folder / "n0.setup.log").read_text()[-3000:]
    (folder / "n1" / "sepscene-env").symlink_to(folder / "n0" / "sepscene-env")  # it takes 5.5 GB
    nodes = [on_node(rank, "run", folder, python) for rank in (0, 1)]
    head = nodes[0].wait(timeout=1500)
    ended = time.monotonic()
    worker = nodes[1].wait(timeout=180)
    outcome = {"head": head, "worker": worker, "seconds_after_head": time.monotonic() - ended}
    (folder / "outcome.json").write_text(json.dumps(outcome, indent=2))


if __name__ == "__main__":
    scenario(Path(sys.argv[1]).resolve(), sys.argv[2])
