"""The stream compared with code that does not use it, as ratios measured in one run on this machine.

    python -m benchmarks.pipeline [--steps 40] [--repeats 3] [--rows 10000] [--only live,ray,own,memory] [--full]

live    rows/s of a pre-training with live separation, and with every clip in the SeparatedStore, compared with a plain
        PyTorch loop: two DDP processes, so that both cores separate, with DataLoader workers that decode, and the
        forward pass of the same separator in the training loop. Live separation uses two separation actors and one
        trainer; from the store there are two trainers. The live run and the plain loop share the machine in turns of
        ten seconds, during which all processes of the other one are stopped: the speed of shared machines varies over
        minutes by more than the measured difference.
own     the share of its time that a trainer waits, when separation has its own core and is not the bottleneck.
ray     seconds per row of the stream with one separation actor, compared with a loop over the same actor's code.
memory  10,000 rows from the store: RSS (without shared memory) by kind of process, and the object store, in the
        first and in the last quarter of the run.

With --full, the separators have the paper's size (the encoder stays narrow), and a batch has 16 pairs. A row then takes
one second of separation, as for users, and the cost of Ray per row is small in comparison.

Repeats are interleaved, and medians are printed. Rates exclude the first five steps (--full: two), which wait for all
processes to start. The rates of our runs also exclude the last five steps (--full: three), whose rows were separated
before.
"""

import argparse
import json
import os
import tempfile
import time
from collections import defaultdict
from contextlib import AbstractContextManager, suppress
from itertools import pairwise
from pathlib import Path
from statistics import mean, median

import numpy as np
import psutil
import torch
import torch.multiprocessing as mp
from ray.data import Dataset as RayDataset
from rich.console import Console
from rich.table import Table

from benchmarks.plain_loop import plain_worker
from benchmarks.turns import in_turns, seconds_in
from sepscene.augment.separation.blocks import ServiceSettings
from sepscene.augment.separation.reader import ClipReader
from sepscene.augment.separation.service import SeparationService
from sepscene.augment.store.separated_store import SeparatedStore
from sepscene.augment.synthetic.scenes import write_scenes
from sepscene.models.separators.folder import save_separator
from sepscene.models.separators.tdcnpp import TDCNpp
from sepscene.models.settings import Cnn14Config, TDCNppConfig
from sepscene.orchestration.config import Experiment
from sepscene.orchestration.presets import named_experiment
from sepscene.orchestration.records.ledger import Ledger
from sepscene.orchestration.records.results import read_metrics
from sepscene.orchestration.records.run_folder import pretraining_stage
from sepscene.orchestration.repeating import repeat_in_background
from sepscene.orchestration.runtime.ray_compat import configure_data
from sepscene.orchestration.training.pretraining import pretrain
from sepscene.orchestration.training.stream import prefill_stream, schedule_of, view_stream
from sepscene.tasks.datasets.readers import Manifest, read_manifest

CLIPS = 32
STAGE = pretraining_stage("mix-chan")
POLL_SECONDS = 0.5
CPU_SHARES = {"trainer_cpus": 0.2, "separation_cpus": 0.15, "reader_cpus": 0.1}

KINDS = ("ViewMaker", "ClipReader", "SeparationService", "RayTrainWorker", "SplitCoordinator", "raylet")
"""Kinds of Ray processes, as they occur in process titles."""


class Bench:
    """Synthetic clips, two untrained separators, and experiments with them, in one folder."""

    def __init__(self, folder: Path, full: bool) -> None:
        self.folder = folder
        self.warm_up, self.tail = (2, 3) if full else (5, 5)
        self.fixed: dict[str, object] = {"training.checkpoint_every_steps": 10**6, "store.mode": "off"}
        self.fixed |= {f"resources.{name}": share for name, share in CPU_SHARES.items()}
        if full:
            self.fixed |= {"training.global_batch": 16, "training.service_rows": 4}
        write_scenes(folder / "scenes", CLIPS, 0, "train")
        self.clips: Manifest = read_manifest("scenes", str(folder / "scenes")).select("train")
        base = named_experiment("demo", "tiny")
        self.ladder = {}
        for seed, name in enumerate(base.views.combination):
            torch.manual_seed(seed)
            network = TDCNppConfig() if full else base.separator.network
            save_separator(TDCNpp(network), folder / name, {"step": seed})
            self.ladder[name] = str(folder / name)
        self.runs = 0

    def experiment(self, steps: int, **changes: object) -> Experiment:
        """The demo with this many steps, without intermediate checkpoints."""
        base = named_experiment("demo", "tiny").changed(self.fixed)
        epochs = -(-steps * base.training.global_batch // CLIPS)
        return base.changed({"training.epochs": epochs, **changes})

    def store(self, name: str = "store") -> SeparatedStore:
        """Open a SeparatedStore in the folder."""
        return SeparatedStore(str(self.folder / name))

    def run(self, experiment: Experiment, store: SeparatedStore | None = None) -> list[dict[str, float]]:
        """Run a pre-training; returns its metrics."""
        self.runs += 1
        run_dir = self.folder / f"run-{self.runs}"
        run_dir.mkdir()
        pretrain(experiment, self.clips, self.ladder, run_dir, STAGE, store)
        return [record for record in read_metrics(run_dir) if "pairs" in record]  # type: ignore[misc]


# ---- live and from the store ----


def live_beside_plain(bench: Bench, experiment: Experiment) -> tuple[float, float, float]:
    """Rows per second of live and plain, and the share of its time that plain spends in separation."""
    batch = experiment.training.global_batch
    one_trainer = experiment.changed({"resources.trainers": 1})
    with tempfile.TemporaryDirectory() as folder:
        out = f"{folder}/times"
        arguments = experiment, bench.clips, bench.ladder, out
        loop = mp.spawn(plain_worker, arguments, nprocs=experiment.resources.trainers, join=False)
        with in_turns(loop.pids()) as (of_live, of_plain):
            times = ends_of(bench.run(one_trainer))
        while not loop.join():
            pass
        steps_of_all = json.loads(Path(out).read_text())
    begin = times[bench.warm_up]
    end = times[-1 - bench.tail]
    live = (len(times) - 1 - bench.tail - bench.warm_up) * batch / seconds_in(of_live, begin, end)
    steps = [step for step in steps_of_all if step[-1] < of_plain[-1][1]][bench.warm_up :]
    seconds = seconds_in(of_plain, steps[0][0], steps[-1][-1])
    separating = sum(seconds_in(of_plain, begin, separated) for begin, separated, _ in steps)
    return live, len(steps) * batch / seconds, separating / seconds


def ends_of(records: list[dict[str, float]]) -> list[float]:
    """When each step of a run ended. Steps are reported in groups, each group at the end of its last step."""
    ends = [records[-1]["seconds"]]
    for this, after in reversed(list(pairwise(records))):
        took = after["pairs"] / after["examples_per_second"]
        ends.append(ends[-1] - took if after["seconds"] == this["seconds"] else this["seconds"])
    return ends[::-1]


def rate(bench: Bench, records: list[dict[str, float]]) -> float:
    """Rows per second, without the first steps, and without the last ones, whose rows were separated before."""
    middle = records[bench.warm_up : -bench.tail]
    return sum(record["pairs"] for record in middle) / sum(
        record["pairs"] / record["examples_per_second"] for record in middle
    )


def live_and_store(bench: Bench, steps: int, repeats: int, console: Console) -> None:
    """Part `live`: live and the plain loop in turns, then the runs from the store."""
    live = bench.experiment(steps)
    read_through = bench.experiment(steps, **{"store.mode": "read-through"})
    prefilled = bench.experiment(steps, **{"store.mode": "prefill"})
    begin = time.perf_counter()
    in_small_blocks = read_through.changed({"training.service_rows": 4})
    clips_per_second = prefill_rate(prefill_stream(in_small_blocks, bench.clips, bench.ladder, bench.store()))
    total = time.perf_counter() - begin
    console.print(f"prefill: {clips_per_second:.1f} clips/s after the start ({total:.0f} s including the start)")
    rates = defaultdict(list)
    shares = []
    for _ in range(repeats):
        of_live, of_plain, share = live_beside_plain(bench, live)
        rates["plain PyTorch, separation in the loop"].append(of_plain)
        rates["live"].append(of_live)
        shares.append(share)
        rates["store, read-through"].append(rate(bench, bench.run(read_through, bench.store())))
        rates["store, prefill"].append(rate(bench, bench.run(prefilled, bench.store())))
        console.print({name: [float(f"{value:.3g}") for value in values] for name, values in rates.items()})
    middle = {name: median(values) for name, values in rates.items()}
    table = Table("rows per second, in the middle of a run", "median", "of plain", "of live")
    for name, value in middle.items():
        plain_rate = middle["plain PyTorch, separation in the loop"]
        live_rate = middle["live"]
        table.add_row(name, f"{value:.3g}", f"{value / plain_rate:.2f}", f"{value / live_rate:.2f}")
    console.print(table, f"separation takes {median(shares):.0%} of the time of the plain loop")


def prefill_rate(stream: RayDataset) -> float:
    """Clips per second of a prefill, from its second block to its last."""
    arrived = []
    for batch in stream.iter_batches(batch_size=None, batch_format="numpy"):
        arrived.append((time.perf_counter(), len(batch["row"])))
    later = [rows for _, rows in arrived[1:]]
    return sum(later) / (arrived[-1][0] - arrived[0][0])


# ---- separation on its own core ----


def own_core(bench: Bench, steps: int, repeats: int, console: Console) -> None:
    """Part `own`: one separation actor on one core, one trainer with a wider encoder on the other."""
    wider = Cnn14Config(widths=(32, 64, 128, 192, 256, 512)).model_dump()
    one_each = {"resources.trainers": 1, "resources.separation_actors": 1, "encoder": wider}
    for _ in range(repeats):
        with pinned({"RayTrainWorker": 0, "SeparationService": 1, "ClipReader": 1, "SplitCoordinator": 1}):
            records = bench.run(bench.experiment(steps, **one_each))[bench.warm_up :]
        waiting = mean(record["waiting_share"] for record in records)
        busy = [record["separation/busy"] for record in records if "separation/busy" in record]
        console.print(f"separation on its own core, busy {median(busy):.0%}: the trainer waits {waiting:.1%}")


def pinned(core_of: dict[str, int]) -> AbstractContextManager[None]:
    """While the block runs, pin Ray processes with these words in their titles to these cores."""

    def pin() -> None:
        for process in psutil.Process().children(recursive=True):
            with suppress(psutil.Error):
                title = " ".join(process.cmdline())
                for kind, core in core_of.items():
                    if kind in title and process.cpu_affinity() != [core]:
                        process.cpu_affinity([core])

    return repeat_in_background(pin, POLL_SECONDS, "pin")


# ---- overhead of Ray Data ----


def ray_overhead(bench: Bench, rows: int, repeats: int, console: Console) -> None:
    """Part `ray`: one separation actor in the stream compared with the same callable in a loop."""
    for block_rows in (8, 32):
        _ray_overhead(bench, rows, block_rows, repeats, console)


def _ray_overhead(bench: Bench, rows: int, block_rows: int, repeats: int, console: Console) -> None:
    changes = {"resources.separation_actors": 1, "resources.trainers": 1, "training.service_rows": block_rows}
    one = bench.experiment(-(-rows // 64), **changes)
    settings = ServiceSettings(views=one.views, audio=one.audio, checkpoints=bench.ladder)
    draws = one.views.draw(schedule_of(one, CLIPS), np.arange(rows))
    uris = np.array(bench.clips.clips["uri"].to_pylist(), object)
    columns = {**draws, "uri": uris[draws["clip"]], "offset_seconds": np.zeros(rows)}
    reader = ClipReader(settings)
    service = SeparationService(settings)
    starts = range(0, rows, block_rows)
    bare = []
    streamed = []
    for _ in range(repeats):
        blocks = [reader({name: c[start : start + block_rows] for name, c in columns.items()}) for start in starts]
        begin = time.perf_counter()
        for block in blocks:
            service(block)
        bare.append((time.perf_counter() - begin) / rows)
        made = []
        stream = view_stream(one, bench.clips, bench.ladder, Ledger(schedule_of(one, CLIPS).rows))
        for batch in stream.iter_batches(batch_size=None, batch_format="numpy"):
            made.append((batch["made_at"][-1], len(batch["row"])))
        streamed.append((made[-1][0] - made[0][0]) / sum(count for _, count in made[1:]))
    console.print(
        f"one separation actor: {1e3 * median(bare):.2f} ms per row in a plain loop, "
        f"{1e3 * median(streamed):.2f} ms in the stream: {median(streamed) / median(bare) - 1:+.1%} "
        f"(blocks of {block_rows} rows)"
    )


# ---- memory ----


def sampling(samples: list[dict[str, float]]) -> AbstractContextManager[None]:
    """While the block runs, append the memory of Ray's processes by kind, and of the object store, to `samples`."""
    import ray

    def sample() -> None:
        found: dict[str, float] = defaultdict(float)
        for process in psutil.Process().children(recursive=True):
            try:
                title = " ".join(process.cmdline())
                memory = process.memory_info()
            except psutil.Error:
                continue
            for kind in KINDS:
                if kind in title:
                    found[kind] = max(found[kind], memory.rss - memory.shared)
        own = psutil.Process().memory_info()
        found["driver"] = own.rss - own.shared
        whole = ray.cluster_resources()
        left = ray.available_resources()
        found["object store"] = whole["object_store_memory"] - left.get("object_store_memory", 0.0)
        samples.append(dict(found))

    return repeat_in_background(sample, POLL_SECONDS, "sample")


def memory(bench: Bench, rows: int, console: Console) -> None:
    """Part `memory`: a run over stored clips with a very small encoder, so that rows are processed fast."""
    small = Cnn14Config(widths=(8, 8, 8, 8, 8, 8), embedding_dim=16).model_dump()
    for mode in ("read-through", "prefill"):
        experiment = bench.experiment(-(-rows // 64), **{"store.mode": mode, "encoder": small})
        samples: list[dict[str, float]] = []
        begin = time.perf_counter()
        with sampling(samples):
            bench.run(experiment, bench.store())
        took = time.perf_counter() - begin
        busy = [
            sample for sample in samples if "RayTrainWorker" in sample and ({"ClipReader", "ViewMaker"} & set(sample))
        ]
        settled = busy[len(busy) // 10 :]
        quarter = max(1, len(settled) // 4)
        table = Table("MiB", "first quarter", "last quarter", "peak", title=f"{mode}: {rows:,} rows in {took:.0f} s")
        for kind in sorted({kind for sample in settled for kind in sample}):
            values = [sample.get(kind, 0.0) / 2**20 for sample in settled]
            quarters = median(values[:quarter]), median(values[-quarter:])
            table.add_row(kind, *(f"{value:.1f}" for value in (*quarters, max(values))))
        console.print(table)


def main() -> None:
    """Run the parts in one Ray session."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--only", default="live,ray,own,memory")
    parser.add_argument("--full", action="store_true")
    given = parser.parse_args()
    torch.set_num_threads(1)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("RAY_worker_niceness", "0")  # 15 by default; the processes of the plain loop have 0
    from sepscene.orchestration.runtime.session import connect, disconnect

    connect(None)
    configure_data(ordered=True)
    console = Console(width=130)
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder), given.full)
        parts = given.only.split(",")
        if "ray" in parts:
            ray_overhead(bench, 256, given.repeats, console)
        if "live" in parts:
            live_and_store(bench, given.steps, given.repeats, console)
        if "own" in parts:
            own_core(bench, given.steps, given.repeats, console)
        if "memory" in parts:
            for batch in prefill_stream(
                bench.experiment(1, **{"store.mode": "prefill"}), bench.clips, bench.ladder, bench.store()
            ).iter_batches(batch_size=None):
                del batch
            memory(bench, given.rows, console)
    disconnect()


if __name__ == "__main__":
    main()
