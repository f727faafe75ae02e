"""Steps of scale mini against a plain loop on the same data, in CPU time of one thread, start-up included.

    python -m benchmarks.mini STORAGE table4/N/simclr-cp --steps 1000 --set data.scenes_train=64 …

Both train the same objective with the same optimiser. The plain loop has its patches in memory and makes no draws, no
masks and no ledger: it is the floor. CPU time, because a shared machine's clock says nothing.
"""

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from rich.console import Console

from sepscene.orchestration.mini.data import prepare_stores
from sepscene.orchestration.mini.training import MiniTrainer, ViewCrops
from sepscene.orchestration.presets import resolve


def main() -> None:
    """Print CPU seconds a step of both loops, and their ratio at the number of steps."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("storage", type=Path)
    parser.add_argument("row")
    parser.add_argument("--steps", type=int, default=1000, help="for which the ratio is stated")
    parser.add_argument("--measured", type=int, default=20, help="steps of each loop that are run")
    parser.add_argument("--set", action="append", default=[], dest="changes")
    given = parser.parse_args()
    torch.set_num_threads(1)
    experiment = resolve(given.row, "mini", given.changes)
    train, _, processors = prepare_stores([experiment], given.storage, Console())
    trainer = MiniTrainer(experiment, ViewCrops(experiment, train, processors, len(train.manifest)))
    started = time.process_time()  # all that a trial needs before its first step
    patches = trainer.logmels({"row": np.arange(experiment.training.global_batch)})
    costs: dict[str, list[float]] = {"engine": [], "plain": []}
    for _ in range(min(given.measured, trainer.steps)):
        begin = time.process_time()
        trainer.advance()
        middle = time.process_time()
        trainer.optimizer.zero_grad(set_to_none=True)
        trainer.objective(*patches, weights=experiment.objective.weights_at(0)).loss.backward()
        trainer.optimizer.step()
        costs["plain"].append(time.process_time() - middle)
        costs["engine"].append(middle - begin)
    engine, plain = (float(np.median(costs[name])) for name in ("engine", "plain"))
    ratio = given.steps * plain / (started + given.steps * engine)
    print(f"start {started:.1f} s, engine {engine:.3f} s, plain {plain:.3f} s a step (CPU)")
    print(f"at {given.steps} steps, start-up included: {ratio:.2f} of the plain loop's steps per second")


if __name__ == "__main__":
    main()
