"""Examples per second of our Ray Train loop, compared with a plain single-process PyTorch loop.

    python -m benchmarks.training [--repeats 3] [--steps 24] [--pairs 64]

Model and batch are the same. The views are in memory (for our loop in Ray's object store), so that only training is
measured: log-mel, SpecAugment, CNN14 at a quarter of its widths, NT-Xent and coincidence prediction over the global
batch, AdamW. Every process has one thread. Our loop includes its ledger, metrics and reports, and runs with one and
with two workers that share the global batch; the plain loop has none of these. `two plain` is the upper bound of the
machine: two independent plain loops at the same time. The loops are interleaved; medians are over steps, then over
repeats.
"""

import argparse
import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"
os.environ.setdefault("RAY_worker_niceness", "0")

import numpy as np
import ray
import torch
from torch import nn

from sepscene.augment.draws import SPECAUGMENT_UNIFORMS
from sepscene.augment.views import patch_samples
from sepscene.models.encoders.network import settings_of
from sepscene.models.settings import Cnn14Config
from sepscene.orchestration.config import Experiment, Resources, Training
from sepscene.orchestration.records.ledger import Ledger
from sepscene.orchestration.records.results import read_metrics
from sepscene.orchestration.records.run_folder import RunFolder
from sepscene.orchestration.runtime.ray_compat import configure_data
from sepscene.orchestration.runtime.session import connect, disconnect
from sepscene.orchestration.training.builders import build_objective
from sepscene.orchestration.training.flops import step_flops
from sepscene.orchestration.training.pretrainer import ViewInputs, pcm_pair
from sepscene.orchestration.training.pretraining import pretrain_worker
from sepscene.orchestration.training.stage import RayStage

WARM_UP = 8
"""First steps that are not counted, because Ray is still starting processes."""
Columns = dict[str, np.ndarray]


def _block(pairs: int) -> int:
    """Rows per block: the rows per step of each of two workers, as at scale tiny."""
    return pairs // 2


def experiment(pairs: int, workers: int) -> Experiment:
    """CNN14 at a quarter of its widths (4.8 M parameters), d = 128, both tasks."""
    return Experiment(
        name="training",
        scale="tiny",
        encoder=Cnn14Config(widths=(16, 32, 64, 128, 256, 512)),
        training=Training(epochs=1, global_batch=pairs, service_rows=_block(pairs), checkpoint_every_steps=10_000),
        resources=Resources(trainers=workers, trainer_cpus=0.5),
    )


STAGE_COLUMNS = (
    "reading_seconds", "separation_seconds", "queued_seconds", "read_bytes", "stored", "damaged", "dropped",
    "channel_1", "channel_2",
)  # fmt: skip
"""Columns with the metrics of earlier stages, which do not exist here."""


def random_views(columns: Columns, samples: int) -> Columns:
    """Rows as the trainers receive them from the separation actors, with noise as sound."""
    rows = columns["id"]
    noise = np.random.default_rng(int(rows[0]))
    return {
        "row": rows,
        "uri": np.array(["noise"] * len(rows), object),
        "fault": np.array([""] * len(rows), object),
        "view_1": noise.integers(-9000, 9000, (len(rows), samples), np.int16),
        "view_2": noise.integers(-9000, 9000, (len(rows), samples), np.int16),
        "specaugment_u": noise.random((len(rows), 2 * SPECAUGMENT_UNIFORMS), np.float32),
        "made_at": np.full(len(rows), time.time()),
        **{name: np.zeros(len(rows), bool) for name in STAGE_COLUMNS},
    }


def our_loop(pairs: int, steps: int, workers: int) -> float:
    """Seconds per step of the loop of orchestration/training/pretraining.py in Ray Train."""
    settings = experiment(pairs, workers)
    rows = pairs * steps
    samples = patch_samples(settings.views, settings.audio.sample_rate)

    def stream(_: Ledger) -> ray.data.Dataset:
        return (
            ray.data.range(rows, override_num_blocks=rows // _block(pairs))
            .map_batches(partial(random_views, samples=samples), batch_size=None)
            .materialize()
        )

    with tempfile.TemporaryDirectory() as folder:
        stage = RunFolder(Path(folder)).stage("pretrain")
        RayStage(stage, rows, settings, partial(pretrain_worker, settings, rows, stage), stream).run()
        rates = [float(r["examples_per_second"]) for r in read_metrics(Path(folder)) if "examples_per_second" in r]
    assert len(rates) == steps
    return pairs / median(rates[WARM_UP:])


def plain_loop(pairs: int, steps: int) -> float:
    """Seconds per step of a plain PyTorch loop."""
    torch.set_num_threads(1)
    settings = experiment(pairs, 1)
    samples = patch_samples(settings.views, settings.audio.sample_rate)
    views = ViewInputs(settings)
    objective = build_objective(settings).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = torch.optim.AdamW(objective.parameters(), lr=1e-3, weight_decay=1e-4)
    batch = random_views({"id": np.arange(pairs)}, samples)
    view_B2P = pcm_pair(batch, "view", torch.device("cpu"))
    seconds = []
    for _ in range(steps):
        begin = time.perf_counter()
        result = objective(*views(view_B2P, batch))
        optimizer.zero_grad(set_to_none=True)
        result.loss.backward()
        nn.utils.clip_grad_norm_(objective.parameters(), 1.0)
        optimizer.step()
        seconds.append(time.perf_counter() - begin)
    return median(seconds[WARM_UP:])


def in_processes(loop: Callable[..., float], count: int, *arguments: Any) -> float:
    """Run the same loop in several fresh processes at the same time; returns the mean of their seconds per step."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(count) as pool:
        return float(np.mean(pool.starmap(loop, [arguments] * count, chunksize=1)))


def facts(pairs: int) -> None:
    """Print the known numbers: operations, and bytes that two workers exchange per step."""
    settings = experiment(pairs, 2)
    objective = build_objective(settings)
    flops = step_flops(settings)
    parameters = sum(parameter.numel() for parameter in objective.parameters())
    channels = sum(module.num_features for module in objective.modules() if isinstance(module, nn.BatchNorm2d))
    gathered = pairs * (2 * settings.objective.projection_dim + settings_of(settings.encoder).embedding_dim)
    print(f"torch {torch.__version__}, Ray {ray.__version__}, {os.cpu_count()} cores, {pairs} pairs per step")
    print(f"per step: {flops / 1e9:.1f} GFLOP; {parameters / 1e6:.2f} M parameters")
    print(
        f"bytes that each of two workers sends per step: gradients {4 * parameters / 1e6:.1f} MB, views' z and h "
        f"{4 * gathered / 1e3:.0f} kB, BatchNorm {4 * 4 * channels / 1e3:.0f} kB"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--pairs", type=int, default=64)
    given = parser.parse_args()
    facts(given.pairs)
    connect(None)
    configure_data(ordered=True)
    each = (given.pairs, given.steps)
    loops: dict[str, Callable[[], float]] = {
        "plain": lambda: in_processes(plain_loop, 1, *each),
        "ours, 1 worker": lambda: our_loop(*each, workers=1),
        "ours, 2 workers": lambda: our_loop(*each, workers=2),
        "two plain": lambda: in_processes(plain_loop, 2, *each) / 2,
    }
    seconds: dict[str, list[float]] = {name: [] for name in loops}
    for _ in range(given.repeats):
        for name, loop in loops.items():
            seconds[name].append(loop())
    plain = seconds["plain"]
    for name, taken in seconds.items():
        ratio = median(p / t for p, t in zip(plain, taken, strict=True))
        spread = " ".join(f"{second:.3f}" for second in taken)
        rate = given.pairs / median(taken)
        print(f"{name:16} {rate:7.1f} examples/s   {ratio:.2f} x plain   (seconds per step: {spread})", flush=True)
    disconnect()


if __name__ == "__main__":
    main()
