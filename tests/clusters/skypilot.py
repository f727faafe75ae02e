"""The `run` lines of skypilot.yaml under SkyPilot's own log runner, on two nodes.

Run as `unshare --pid --fork --mount-proc --net --mount --uts --kill-child python -m tests.clusters.skypilot FOLDER
SKY_PYTHON`, where SKY_PYTHON has SkyPilot. Each node is a network namespace with a home of its own; SkyPilot parses the
task and starts its lines as it does on a cloud's machine. Writes FOLDER/outcome.json.
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

from tests.faults.hosts import QUICK, plug_hosts, shell, small_experiment

ROOT = Path(__file__).resolve().parents[2]
ADDRESSES = {"n0": "10.79.0.1", "n1": "10.79.0.2"}
RUNNER = """
import sys
import sky
from sky.skylet import log_lib
task = sky.Task.from_yaml(sys.argv[1])
lines = task.run.replace("-lt 2", "-lt 1")  # of two nodes one trains
code = log_lib.run_bash_command_with_log(lines, sys.argv[2])
sys.exit(code)
"""


def on_node(rank: int, folder: Path, python: str) -> subprocess.Popen[bytes]:
    """SkyPilot's runner for one node, with what SkyPilot tells the node in its environment."""
    name = f"n{rank}"
    home = folder / name
    (home / ".ray").mkdir(parents=True)
    (home / ".ray" / "auth_token").write_text("0123456789abcdef" * 4)
    (home / "sepscene-env").symlink_to(Path(sys.executable).parent.parent)
    (home / "sky_workdir").symlink_to(folder / "work")
    variables = {
        **os.environ,
        **QUICK,
        "HOME": str(home),
        "PYTHONPATH": str(ROOT),
        "RAY_USAGE_STATS_ENABLED": "0",
        "SKYPILOT_NODE_IPS": "\n".join(ADDRESSES.values()),
        "SKYPILOT_NODE_RANK": str(rank),
        "EXPERIMENT": "experiment.yaml",
        "RUN_ID": "mine",
    }
    own = f"hostname {name} && mount -t tmpfs tmpfs /dev/shm && mkdir -p /tmp/sepscene-ray && "
    own += "mount -t tmpfs tmpfs /tmp/sepscene-ray"
    runner = f"exec {python} {folder}/runner.py {folder}/work/task.yaml {folder}/{name}.run.log"
    line = ["ip", "netns", "exec", name, "unshare", "--mount", "--uts", "bash", "-c", f"{own} && {runner}"]
    log = (folder / f"{name}.log").open("ab")
    return subprocess.Popen(line, env=variables, cwd=folder / "work", stdout=log, stderr=log)


def scenario(folder: Path, python: str) -> None:
    """Everything, in order."""
    plug_hosts(ADDRESSES)
    work = folder / "work"
    (work / "clusters").mkdir(parents=True)
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
    nodes = [on_node(rank, folder, python) for rank in (0, 1)]
    head = nodes[0].wait(timeout=900)
    ended = time.monotonic()
    worker = nodes[1].wait(timeout=180)
    outcome = {"head": head, "worker": worker, "seconds_after_head": time.monotonic() - ended}
    (folder / "outcome.json").write_text(json.dumps(outcome, indent=2))


if __name__ == "__main__":
    scenario(Path(sys.argv[1]).resolve(), sys.argv[2])
