"""Parts of the GPU check that start whole runs, and the tests that need a GPU."""

import json
import subprocess
import sys
from pathlib import Path
from statistics import median
from typing import Any

from sepscene.orchestration.config import Experiment
from sepscene.orchestration.planning.calibration import calibrate
from sepscene.orchestration.planning.plan import plan as make_plan
from sepscene.orchestration.presets import named_experiment
from sepscene.orchestration.records.results import read_metrics

SKIPPED_STEPS = 2
"""The first steps of a run warm up."""


def tests(device: str, small: bool, out: Path) -> dict[str, Any]:
    """The tests that need a GPU; on a machine without one they are skipped, and counted as such."""
    files = ["tests/augment/test_specaugment.py", "tests/augment/separation/test_service.py"]
    command = [sys.executable, "-m", "pytest", "-q", "-k", "cuda or gpu or device", *files]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    last = (done.stdout.strip().splitlines() or ["no output"])[-1]
    if done.returncode:
        raise RuntimeError(f"{last}\n{done.stdout[-1500:]}")
    return {"said": last}


def live(device: str, small: bool, out: Path) -> dict[str, Any]:
    """A pre-training that separates live; trainer and separators share one GPU."""
    return _run(device, small, out, "live", {"store.mode": "off"})


def stored(device: str, small: bool, out: Path) -> dict[str, Any]:
    """A pre-training from a filled store."""
    return _run(device, small, out, "stored", {"store.mode": "prefill"})


def plan(device: str, small: bool, out: Path) -> dict[str, Any]:
    """What calibration and plan expect of the live run, beside what it then measured."""
    settings = experiment(device, small, {"store.mode": "off"})
    expected = make_plan(settings, calibrate(settings, 2.0 if small else 10.0))
    way = next(way for way in expected.ways if way.name == "live")
    rows_per_second = expected.rows / way.seconds
    found: dict[str, Any] = {"expected rows/s": rows_per_second, "expected bottleneck": way.bottleneck}
    measured = out / "live.json"
    if measured.exists() and "rows/s" in (result := json.loads(measured.read_text())):
        found |= {"measured rows/s": result["rows/s"], "expected / measured": rows_per_second / result["rows/s"]}
    return found


def experiment(device: str, small: bool, changes: dict[str, Any]) -> Experiment:
    """A short pre-training on made-up scenes with an untrained separator; on a GPU half of it for either side."""
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
    config = out / f"{name}.yaml"
    settings.save(config)
    command = [sys.executable, "-m", "sepscene", "pretrain", str(config), "--storage", str(out / "runs")]
    done = subprocess.run([*command, "--run-id", name, "--resume"], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stdout[-1000:]}\n{done.stderr[-1000:]}")
    records = [record for record in read_metrics(out / "runs" / name) if "examples_per_second" in record]
    steady = records[SKIPPED_STEPS:] or records
    kept = [key for key in ("examples_per_second", "waiting_share", "mfu") if key in steady[0]]
    metrics: dict[str, Any] = {key: median(float(record[key]) for record in steady) for key in kept}
    return {"steps": len(records), "rows/s": metrics.pop("examples_per_second"), **metrics}
