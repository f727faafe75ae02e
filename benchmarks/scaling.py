"""Simulated scaling: 1 to 256 separation GPUs, 1 to 64 trainers, live and with the SeparatedStore.

    python -m benchmarks.scaling [--plot docs/scaling.svg] [--separation-ms 20] [--train-ms 0.116] ...

The stage times are options: use the values that `sepscene plan` measured on your hardware. docs/scaling.md explains
the defaults and the figure.
"""

import argparse
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from rich.console import Console
from rich.table import Table

from benchmarks.simulation import Machine, Shape, Throughput, balanced_gpus, limits, simulate

GPUS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
TRAINERS = (1, 2, 4, 8, 16, 32, 64)
DRAWN_TRAINERS = (1, 4, 16, 64)
BLOCKS = (16, 64, 256, 1024)
READERS_PER_TRAINER = 32
GLOBAL_BATCH = 4096
# Three processors with the OR rule, and 100 epochs: of the hundred rows of each clip, three separate it.
STORED_SHARE = 0.97


def shape(gpus: int, trainers: int, stored: float, block_rows: int) -> Shape:
    """A cluster of this size with the paper's global batch; the number of readers grows with the trainers."""
    return Shape(
        readers=READERS_PER_TRAINER * trainers,
        separation_gpus=gpus,
        trainers=trainers,
        block_rows=block_rows,
        global_batch=GLOBAL_BATCH,
        stored_share=stored,
    )


def grid(machine: Machine, stored: float, block_rows: int) -> dict[tuple[int, int], Throughput]:
    """The throughput for every (separation GPUs, trainers)."""
    return {
        (gpus, trainers): simulate(machine, shape(gpus, trainers, stored, block_rows))
        for gpus in GPUS
        for trainers in TRAINERS
    }


def throughput_table(title: str, results: dict[tuple[int, int], Throughput]) -> Table:
    """Rows per second, the busy share of the trainers, and the first letters of the bottleneck."""
    table = Table("GPUs", *(f"{n} trainers" for n in TRAINERS), title=f"{title}: rows/s, trainers busy, bottleneck")
    for gpus in GPUS:
        cells = []
        for trainers in TRAINERS:
            result = results[gpus, trainers]
            cells.append(f"{result.rows_per_second:,.0f} {result.trainer_busy:.0%} {result.bottleneck[:5]}")
        table.add_row(str(gpus), *cells)
    return table


def balance_table(machine: Machine, block_rows: int) -> Table:
    """The separation GPUs that keep the trainers busy, and the bandwidths and coordinator load at full speed."""
    table = Table(
        "trainers", "full speed", "GPUs live", "GPUs stored", "SeparatedStore", "object store live", "coordinator"
    )
    for trainers in TRAINERS:
        live, stored = (shape(1, trainers, share, block_rows) for share in (0.0, STORED_SHARE))
        full = limits(machine, live)["trainers"]
        table.add_row(
            str(trainers),
            f"{full:,.0f} rows/s",
            f"{balanced_gpus(machine, live) * trainers:,.0f}",
            f"{balanced_gpus(machine, stored) * trainers:,.1f}",
            f"{full * STORED_SHARE * stored.read_bytes / 1e9:.2f} GB/s",
            f"{full * live.live_row_bytes / 1e9:.1f} GB/s",
            f"{full / limits(machine, live)['coordinator']:.2f} of its limit",
        )
    return table


def finish(axes: Axes, title: str, label: str, ticks: tuple[int, ...]) -> None:
    """Set logarithmic axes with integer tick labels."""
    axes.set(xscale="log", yscale="log", title=title, xlabel=label, ylabel="rows / s", ylim=(30, 1e6))
    axes.set_xticks(ticks, [str(n) for n in ticks])
    axes.minorticks_off()
    axes.grid(alpha=0.3)


def draw_throughput(
    axes: Axes, title: str, machine: Machine, results: dict[tuple[int, int], Throughput], stored: float
) -> None:
    """Draw one line per number of trainers, and a dashed line at the full speed of these trainers."""
    for number, trainers in enumerate(DRAWN_TRAINERS):
        rates = [results[gpus, trainers].rows_per_second for gpus in GPUS]
        axes.plot(GPUS, rates, "-", color=f"C{number}", label=f"{trainers} trainers", linewidth=5 - number)
        full = limits(machine, shape(1, trainers, stored, 256))["trainers"]
        axes.axhline(full, color=f"C{number}", linestyle="--", linewidth=0.7)
    finish(axes, title, "separation GPUs", GPUS)


def draw_blocks(axes: Axes, machine: Machine) -> None:
    """Draw the effect of the block size, with the store and enough GPUs."""
    for number, trainers in enumerate(DRAWN_TRAINERS):
        rates = [simulate(machine, shape(256, trainers, STORED_SHARE, rows)).rows_per_second for rows in BLOCKS]
        axes.plot(BLOCKS, rates, "-", color=f"C{number}", label=f"{trainers} trainers", linewidth=5 - number)
    title = "with the store, 256 GPUs"
    finish(axes, title, "rows of a block", BLOCKS)
    axes.legend(fontsize=8)


def plot(machine: Machine, live: dict, stored: dict, path: Path) -> None:
    """Draw all three panels; the same numbers give an identical file."""
    plt.rcParams.update({"svg.hashsalt": "sepscene", "font.size": 9})
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(12, 3.8), layout="constrained")
    draw_throughput(left, "live", machine, live, 0.0)
    draw_throughput(middle, "with the store (97 % of the rows stored)", machine, stored, STORED_SHARE)
    draw_blocks(right, machine)
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)
    plt.close(figure)


def main() -> None:
    """Print the tables, and draw the figure with --plot."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--plot", type=Path, help="file of the figure")
    parser.add_argument("--decode-ms", type=float, default=1.8)
    parser.add_argument("--stored-ms", type=float, default=0.4)
    parser.add_argument("--separation-ms", type=float, default=20.0)
    parser.add_argument("--train-ms", type=float, default=0.116)
    parser.add_argument("--block-ms", type=float, default=13.0)
    parser.add_argument("--link-gb", type=float, default=10.0, help="GB/s of one trainer's network")
    parser.add_argument("--store-gb", type=float, default=10.0, help="GB/s of the store's filesystem")
    parser.add_argument("--block-rows", type=int, default=256, help="training.service_rows")
    given = parser.parse_args()
    machine = Machine(
        decode_seconds=given.decode_ms / 1e3,
        stored_seconds=given.stored_ms / 1e3,
        separation_seconds=given.separation_ms / 1e3,
        train_seconds=given.train_ms / 1e3,
        block_seconds=given.block_ms / 1e3,
        gradient_bytes=4 * 75_739_712,
        link_bytes_per_second=given.link_gb * 1e9,
        store_bytes_per_second=given.store_gb * 1e9,
    )
    console = Console(width=180)
    live, stored = (grid(machine, share, given.block_rows) for share in (0.0, STORED_SHARE))
    console.print(throughput_table("live", live), throughput_table("with the store", stored))
    console.print(balance_table(machine, given.block_rows))
    if given.plot:
        plot(machine, live, stored, given.plot)


if __name__ == "__main__":
    main()
