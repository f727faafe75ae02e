"""The start, the checks and the end of the Ray that a command starts for itself."""

import os
import subprocess
import sys

import psutil
import pytest

from sepscene.models.config import SepsceneError
from sepscene.models.names import trust_code
from sepscene.orchestration.config import Experiment
from sepscene.orchestration.pipeline.session import prepared_session
from sepscene.orchestration.runtime.run_processes import service_processes

pytestmark = pytest.mark.slow

HANGS = """
import ctypes, os, sys
import ray
from sepscene.orchestration.runtime import session

@ray.remote(num_cpus=0)
class Worker:
    def pid(self):
        ctypes.CDLL(None).on_exit(ctypes.CDLL(None).pause, None)
        return os.getpid()

session.connect(None, cpus=1)
session.EXIT_SECONDS = 2.0
worker = Worker.remote()
pid = ray.get(worker.pid.remote())
worker.__ray_terminate__.remote()
try:
    ray.get(worker.pid.remote(), timeout=60)
except ray.exceptions.RayActorError:
    pass  # Ray considers it dead
getattr(sys.modules[sys.argv[1]], sys.argv[2])()
print(pid)
"""


@pytest.mark.parametrize(
    ("end", "left"),
    [
        ("sepscene.orchestration.runtime.session.disconnect", False),
        pytest.param("ray.shutdown", True, marks=pytest.mark.faults_long),  # shows that the workaround is needed
    ],
)
def test_a_worker_that_hangs_at_its_exit_is_killed_with_the_ray_of_its_command(end: str, left: bool) -> None:
    """The worker hangs in its exit handler after Ray has marked it as dead; Ray itself does not kill it."""
    command = [sys.executable, "-c", HANGS, *end.rsplit(".", 1)]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    pid = int(ran.stdout.split()[-1])
    worker = [psutil.Process(pid)] if psutil.pid_exists(pid) else []
    _, alive = psutil.wait_procs(worker, timeout=2.0 if left else 30.0)  # a killed process may need a moment to end
    for one in alive:
        one.kill()
    assert bool(alive) == left


@pytest.mark.usefixtures("local_ray")
def test_processes_of_a_local_ray_can_detect_that_it_is_local() -> None:
    import ray

    from sepscene.orchestration.runtime.placement import is_local

    @ray.remote(num_cpus=0)
    def in_a_process_of_ray() -> bool:
        return is_local()

    assert is_local() and ray.get(in_a_process_of_ray.remote(), timeout=60)  # trials of a sweep call it in a worker


@pytest.mark.usefixtures("local_ray")
def test_a_signal_to_the_group_of_a_command_does_not_reach_its_ray() -> None:
    """A terminal that is closed sends SIGHUP to the whole group; see tests/faults/test_faults_driver.py."""
    groups = {os.getpgid(process.pid) for process in service_processes()}
    assert len(groups) > 1 and os.getpgid(0) not in groups


@pytest.mark.usefixtures("local_ray")
def test_custom_code_of_every_trial_is_imported_before_a_sweep_starts(nano: Experiment) -> None:
    """If no node can import a trial's encoder, the sweep fails at its start, also if another trial is the largest."""
    trust_code("no_such_lab.nets:Net")
    other = nano.changed({"encoder": {"use": "no_such_lab.nets:Net"}})
    with (
        pytest.raises(SepsceneError, match=r"no_such_lab\.nets:Net .*Code that is not installed is sent along"),
        prepared_session(nano, further_experiments=[nano, other]),
    ):
        pass


QUIET = """
import ray
from sepscene.orchestration.runtime.session import connect, disconnect

@ray.remote(num_cpus=0)
class Waits:
    def started(self):
        return True

connect(None, cpus=1)
actors = [Waits.remote() for _ in range(8)]
ray.get([actor.started.remote() for actor in actors], timeout=100)
disconnect()
"""


def test_an_impossible_scene_length_is_refused_at_the_start(nano: Experiment) -> None:
    with (
        pytest.raises(SepsceneError, match=r"generated scenes last 0\.5 to 60 s"),
        prepared_session(
            nano.changed({"audio.clip_seconds": 90.0}), address="127.0.0.1:1"
        ),  # checked before connecting
    ):
        pass


def test_a_trial_whose_background_would_be_ignored_is_refused_at_the_start(nano: Experiment) -> None:
    exchanged = nano.changed({"views.background": "exchanged"})
    with (
        pytest.raises(SepsceneError, match="exchanged works with `reproduce --scale mini` only"),
        prepared_session(nano, address="127.0.0.1:1", further_experiments=[nano, exchanged]),
    ):
        pass


def test_more_processes_than_cores_cause_no_warning() -> None:
    """Ray would warn at four times the number of its CPUs; most of our processes only wait."""
    ran = subprocess.run([sys.executable, "-c", QUIET], capture_output=True, text=True, timeout=150, check=True)
    assert "worker processes have been started" not in ran.stdout + ran.stderr
