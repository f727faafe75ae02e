"""Parts of the GPU check that start complete runs, and the tests that need a GPU."""

import json
import os
import subprocess
import sys
from pathlib import Path
from statistics import median
from typing import Any

import ray

from sepscene.orchestration.api import pretrain
from sepscene.orchestration.config import Experiment
from sepscene.orchestration.planning.calibration import calibrate
from sepscene.orchestration.planning.plan import plan as make_plan
from sepscene.orchestration.presets import named_experiment
from sepscene.orchestration.records.results import read_metrics
from sepscene.orchestration.runtime.session import connect

TESTS = Path("tests")
"""Relative path: the check is started in the root of a checkout."""
STEADY_FROM = 2
"""First step that is measured; the steps before it are a warm-up."""
LONGEST_SECONDS = 230
"""Time limit of the tests, shorter than that of a part, so that the reason of a failure is saved."""


def tests(device: str, small: bool, out: Path) -> dict[str, Any]:
    """The tests that are marked for GPUs; on a machine without a GPU they are counted as skipped."""
    files = [str(file) for file in sorted(TESTS.rglob("test_*.py")) if "mark.gpu" in file.read_text()]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "gpu", *files]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=LONGEST_SECONDS)
    last = (done.stdout.strip().splitlines() or ["no output"])[-1]
    if done.returncode:
        raise RuntimeError(f"{last}\n{done.stdout[-1500:]}")
    return {"files": len(files), "result": last}


def live(device: str, small: bool, out: Path) -> dict[str, Any]:
    """A pre-training with live separation; trainer and separators share one GPU."""
    return _run(device, small, out, "live", {"store.mode": "off"})


def stored(device: str, small: bool, out: Path) -> dict[str, Any]:
    """A pre-training from a filled store."""
    return _run(device, small, out, "stored", {"store.mode": "prefill"})


def plan(device: str, small: bool, out: Path) -> dict[str, Any]:
    """The speed of the live run that calibration and plan expect, compared with the measured speed."""
    settings = experiment(device, small, {"store.mode": "off"})
    expected = make_plan(settings, calibrate(settings, 2.0 if small else 10.0))
    live = next(mode for mode in expected.modes if mode.name == "live")
    rows_per_second = expected.rows / live.seconds
    found: dict[str, Any] = {"expected rows/s": rows_per_second, "expected bottleneck": live.bottleneck}
    measured = out / "live.json"
    if measured.exists() and "rows/s" in (result := json.loads(measured.read_text())):
        found |= {"measured rows/s": result["rows/s"], "expected / measured": rows_per_second / result["rows/s"]}
    return found


def experiment(device: str, small: bool, changes: dict[str, Any]) -> Experiment:
    """A short pre-training on synthetic scenes with an untrained separator; on a GPU, either side uses half of it."""
    share = 0.5 if device != "cpu" else 0.0
    sizes = {
        "data.scenes_train": 16 if small else 1024,
        "data.scenes_test": 8,
        "separator.ladder.steps": {"N": 0},
        "views.combination": ["N"],
        "training.epochs": 1 if small else 2,
        "training.global_batch": 4 if small else 256,
        "training.service_rows": 4 if small else 32,
        "training.precision": "float32" if small else "auto",
        "resources.separation_precision": "float32" if small else "auto",
        "resources.trainers": 1,
        "resources.trainer_gpus": share,
        "resources.separation_actors": 1,
        "resources.separation_gpus": share,
        "resources.separation_batch": 1 if small else 8,
        "resources.readers": 1 if small else 8,
        "evaluation.baselines": False,
    }
    return named_experiment("demo", "tiny" if small else "small").changed(sizes | changes)


def _run(device: str, small: bool, out: Path, name: str, changes: dict[str, Any]) -> dict[str, Any]:
    settings = experiment(device, small, changes)
    if not ray.is_initialized():
        connect(None, cpus=os.cpu_count())  # one Ray session for both runs; it ends with this process
    run = pretrain(settings, storage=out / "runs", run_id=name, resume=True, evaluate=False, quiet=True)
    records = [record for record in read_metrics(run) if "examples_per_second" in record]
    steady = records[STEADY_FROM:] or records
    kept = [key for key in ("examples_per_second", "waiting_share", "mfu") if key in steady[0]]
    metrics: dict[str, Any] = {key: median(float(record[key]) for record in steady) for key in kept}
    return {"steps": len(records), "rows/s": metrics.pop("examples_per_second"), **metrics}
