"""The Ray that a command starts for itself does without what nobody reads or needs there."""

import subprocess
import sys

import psutil
import pytest

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
    pass  # Ray takes it for dead
getattr(sys.modules[sys.argv[1]], sys.argv[2])()
print(pid)
"""


@pytest.mark.parametrize(
    ("end", "left"), [("sepscene.orchestration.runtime.session.disconnect", False), ("ray.shutdown", True)]
)
def test_a_worker_that_never_ends_goes_with_the_ray_of_its_command(end: str, left: bool) -> None:
    """One that waits in its exit handler, when Ray has seen it off already: Ray itself leaves it."""
    command = [sys.executable, "-c", HANGS, *end.rsplit(".", 1)]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    pid = int(ran.stdout.split()[-1])
    worker = [psutil.Process(pid)] if psutil.pid_exists(pid) else []
    _, alive = psutil.wait_procs(worker, timeout=2.0 if left else 30.0)  # one that was killed may take a moment
    for one in alive:
        one.kill()
    assert bool(alive) == left


@pytest.mark.usefixtures("ray_of_our_own")
def test_a_local_stage_has_no_process_that_tidies_up_after_it() -> None:
    import ray
    from ray.train.torch import TorchTrainer

    from sepscene.orchestration.runtime.placement import is_local
    from sepscene.orchestration.training.stage import LocalTrainer

    @ray.remote(num_cpus=0)
    def in_a_process_of_ray() -> bool:
        return is_local()

    assert is_local() and ray.get(in_a_process_of_ray.remote(), timeout=60)  # where trials of a sweep ask

    def callbacks(kind: type[TorchTrainer]) -> set[str]:
        return {type(each).__name__ for each in kind(lambda: None)._create_default_callbacks()}

    assert callbacks(TorchTrainer) - callbacks(LocalTrainer) == {"PlacementGroupCleanerCallback"}
