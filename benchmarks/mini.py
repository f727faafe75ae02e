"""Steps of scale mini compared with a plain loop on the same data, in CPU time of one thread, including start-up.

    python -m benchmarks.mini STORAGE table4/N/simclr-cp --steps 1000 --set data.scenes_train=64 …

Both train the same objective with the same optimiser. The plain loop has its patches in memory, without draws, masks
and ledger: it is a lower bound. CPU time is used because wall time is not meaningful on a shared machine.
"""

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from rich.console import Console

from sepscene.orchestration.mini.data import prepare_stores
from sepscene.orchestration.mini.training import MiniTrainer
from sepscene.orchestration.presets import resolve


def main() -> None:
    """Print the CPU seconds per step of both loops, and their ratio at the number of steps."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("storage", type=Path)
    parser.add_argument("row")
    parser.add_argument("--steps", type=int, default=1000, help="number of steps for which the ratio is computed")
    parser.add_argument("--measured", type=int, default=20, help="number of steps of each loop that are run")
    parser.add_argument("--set", action="append", default=[], dest="changes")
    given = parser.parse_args()
    torch.set_num_threads(1)
    experiment = resolve(given.row, "mini", given.changes)
    train, _ = prepare_stores([experiment], given.storage, Console())
    trainer = MiniTrainer(experiment, train)
    startup = time.process_time()  # of everything that a trial needs before its first step
    patches = trainer.inputs({"row": np.arange(experiment.training.global_batch)})
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
    ratio = given.steps * plain / (startup + given.steps * engine)
    print(f"start-up {startup:.1f} s, engine {engine:.3f} s, plain {plain:.3f} s per step (CPU)")
    print(f"at {given.steps} steps, including start-up: {ratio:.2f} of the plain loop's steps per second")


if __name__ == "__main__":
    main()
