"""Six trials that share a SeparatedStore, compared with one separation pass and six trainings, and with live trials.

    python -m benchmarks.sweep [--epochs 40] [--only commands,scripts,sweep,live]

sweep     `sepscene sweep table4/S2/simclr --over temperature=0.1,0.2,0.5 alpha=0,1`, the whole command: one separation
          pass, six trials, as many in parallel as fit, evaluation, reports, MLflow, and the start of all processes.
commands  the same by hand: `sepscene separator prefill`, then `sepscene pretrain` with the filled store, six times in
          sequence, each with the whole machine (one is measured and multiplied by six).
scripts   the same without Ray: one separation pass over all clips, then six trainings with evaluation, in as many
          processes as there are cores, each with one thread, without any overhead.
live      the sweep with store.mode=off: every trial separates every row.

Clips are synthetic scenes, and the separator is untrained (its speed does not depend on its weights). The metrics of
the trials are printed next to those of the scripts: with one trainer per trial, both do the same computations.
"""

import argparse
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from itertools import product
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch

from benchmarks.study import one_run
from sepscene.augment.separation.blocks import ServiceSettings
from sepscene.augment.separation.reader import ViewMaker
from sepscene.augment.store.separated_store import SeparatedStore
from sepscene.augment.synthetic.scenes import write_scenes
from sepscene.models.separators.tdcnpp import TDCNpp
from sepscene.orchestration.config import Experiment
from sepscene.orchestration.presets import named_experiment
from sepscene.orchestration.records.ledger import Ledger
from sepscene.orchestration.records.results import SweepResults
from sepscene.orchestration.training.row_draws import PrefillRows
from sepscene.orchestration.training.separator_training import add_to_ladder, read_ladder
from sepscene.orchestration.training.stream import schedule_of
from sepscene.tasks.datasets.readers import read_manifest

NAME = "table4/S2/simclr"
TEMPERATURES = (0.1, 0.2, 0.5)
ALPHAS = (0.0, 1.0)
BLOCK = 32


def prepare(folder: Path) -> None:
    """Create scenes and a ladder of one separator."""
    base = named_experiment(NAME, "tiny")
    for split, count in (("train", base.data.scenes_train), ("test", base.data.scenes_test)):
        write_scenes(folder / "scenes", count, 0, split)
    torch.manual_seed(0)
    add_to_ladder(folder, "S2", 0, TDCNpp(base.separator.network), {})


def separate(folder: Path, experiment: Experiment, part: int, parts: int) -> None:
    """Separate every `parts`-th block of clips into the store."""
    torch.set_num_threads(1)
    clips = read_manifest("scenes", str(folder / "scenes")).select("train").clips
    schedule = schedule_of(experiment, len(clips))
    settings = ServiceSettings(views=experiment.views, audio=experiment.audio, checkpoints=read_ladder(folder))
    store = SeparatedStore(str(folder / "store"))
    make = ViewMaker(settings, store)
    rows = PrefillRows(clips, schedule, Ledger(schedule.rows), experiment.views)
    for start in range(part * BLOCK, len(clips), parts * BLOCK):
        make(rows({"id": np.arange(start, min(start + BLOCK, len(clips)))}))
    store.close()


def train(folder: Path, experiment: Experiment) -> float:
    """Train and evaluate once; returns the shallow mAP."""
    torch.set_num_threads(1)
    return one_run(folder, experiment)["shallow_map"]


def scripts(folder: Path, epochs: int) -> tuple[float, float, list[float]]:
    """Run the scripts; returns (seconds of the separation pass, of the six trainings, their metrics)."""
    base = named_experiment(NAME, "tiny").changed({"training.epochs": epochs})
    settings = [
        {"objective.temperature": temperature, "objective.alpha": alpha}
        for temperature, alpha in product(TEMPERATURES, ALPHAS)
    ]
    cores = os.cpu_count() or 1
    with multiprocessing.get_context("spawn").Pool(cores, maxtasksperchild=1) as pool:
        begin = time.perf_counter()
        pool.starmap(separate, [(folder, base, part, cores) for part in range(cores)], chunksize=1)
        separated = time.perf_counter()
        metrics = pool.starmap(train, [(folder, base.changed(setting)) for setting in settings], chunksize=1)
    return separated - begin, time.perf_counter() - separated, metrics


def sepscene(folder: Path, epochs: int, mode: str, *arguments: str) -> float:
    """Seconds of a whole command with the folder's clips and ladder."""
    command = [sys.executable, "-m", "sepscene", *arguments, "--storage", str(folder / mode)]
    for field, value in {
        "training.epochs": epochs,
        "evaluation.baselines": "false",
        "data.root": folder / "scenes",
        "separator.checkpoints": json.dumps(read_ladder(folder)),
        "store.mode": mode,
    }.items():
        command += ["--set", f"{field}={value}"]
    begin = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=os.environ | {"RAY_worker_niceness": "0"})
    return time.perf_counter() - begin


def commands(folder: Path, epochs: int) -> tuple[float, float]:
    """Run the commands; returns (seconds of the separation pass, of one training)."""
    separation = sepscene(folder, epochs, "prefill", "separator", "prefill", NAME)
    return separation, sepscene(folder, epochs, "prefill", "pretrain", NAME, "--run-id", "one")


def sweep(folder: Path, epochs: int, mode: str) -> tuple[float, SweepResults]:
    """Run the sweep; returns (seconds of the whole command, results)."""
    over = [f"temperature={','.join(map(str, TEMPERATURES))}", f"alpha={','.join(map(str, ALPHAS))}"]
    seconds = sepscene(folder, epochs, mode, "sweep", NAME, *over[1:], "--over", over[0], "--id", "sweep")
    return seconds, SweepResults.load(folder / mode / "sweep")


def main() -> None:
    """Measure the parts and print their times and ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=named_experiment(NAME, "tiny").training.epochs)
    parser.add_argument("--only", default="commands,scripts,sweep")
    given = parser.parse_args()
    only = given.only.split(",")
    runs = len(TEMPERATURES) * len(ALPHAS)
    baselines: dict[str, float] = {}
    metrics = [float("nan")] * runs
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare(folder)
        if "commands" in only:
            separation, training = commands(folder, given.epochs)
            baselines["commands"] = separation + runs * training
            print(f"commands: {separation:.0f} s one separation pass + {runs} x {training:.0f} s", flush=True)
        if "scripts" in only:
            separation, training, metrics = scripts(folder, given.epochs)
            baselines["scripts"] = separation + training
            print(f"scripts: {separation:.0f} s one separation pass + {training:.0f} s six trainings", flush=True)
        for part, mode in {"sweep": "read-through", "live": "off"}.items():
            if part not in only:
                continue
            seconds, results = sweep(folder, given.epochs, mode)
            ratios = ", ".join(f"{seconds / theirs:.2f} x {what}" for what, theirs in baselines.items())
            print(f"{part}, store.mode={mode}: {seconds:.0f} s, {ratios}", flush=True)
            for trial, theirs in zip(results.trials, metrics, strict=True):
                ours = trial.metrics["shallow_map"].value if trial.status == "finished" else float("nan")
                print(f"  {trial.name}: {trial.status}, {trial.seconds:.0f} s, mAP {ours:.3f} (script {theirs:.3f})")


if __name__ == "__main__":
    main()
