"""Cost of a data set of AudioSet's size for the driver, and how it grows with the number of clips.

    python -m benchmarks.audioset_size [--clips 10000 100000 1000000 10000000] [--parts list …] [--folder FOLDER]

Manifests and stores are synthetic and contain no sound. Each part runs in a separate process; the table shows its
seconds and the peak memory of the process, including its imports and its inputs, such as the driver's manifest.

list      `read_manifest` of a Parquet table with one row per clip
select    the splits, the training clips, and the digest of the manifest
audit     `sepscene data audit` without decoding: from the findings of each recording to the report
plan      the computations of `sepscene plan` for this many clips
draws     a worker's first block of 512 rows (with the epoch's permutation of all clips) and 100 further blocks
stream    Ray Data from the driver's manifest to the first block of rows with their draws and clips
resume    a ledger with a row missing every 1,000 rows: read, complement, first block of the remaining rows
ledger    1,000 steps of 4,096 rows, consumed in blocks that are out of order
index     a store with one entry per clip, 100 per shard: opened, as by every worker; 1,000 lookups
store_ls  `sepscene store ls` of the same store
"""

import argparse
import gc
import json
import multiprocessing
import os
import shutil
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

EPOCHS = 100
BLOCK = 512
ENTRIES_PER_SHARD = 100


def reset_peak() -> None:
    """Reset the peak resident memory of this process to its current value (Linux)."""
    Path("/proc/self/clear_refs").write_text("5")


def peak_mib() -> float:
    """The peak resident memory of this process since the reset, in MiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) / 1024


def in_a_process(function: Callable[..., Any], *arguments: object) -> Any:
    """Call the function in a fresh process; returns its result."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def clips_table(clips: int) -> pa.Table:
    """Rows like AudioSet's: names, two labels of 527, and a split."""
    numbers = pa.array(np.arange(clips))
    names = pc.binary_join_element_wise("clip", pc.utf8_lpad(numbers.cast(pa.string()), 9, "0"), "_")
    classes = np.array([f"class {n}" for n in range(527)])
    labels = [f"{a};{b}" for a, b in zip(classes, np.roll(classes, 7), strict=True)]
    label = pa.array(labels).take(pa.array(np.arange(clips) % 527))
    split = pa.array(["train", "test"]).take(pa.array((np.arange(clips) % 100 == 0).astype(np.int64)))
    uri = pc.binary_join_element_wise("audio/", names, ".flac", "")
    return pa.table({"uri": uri, "labels": label, "split": split})


def manifest(clips: int) -> Any:
    """The manifest that `read_manifest` would return for this table."""
    from sepscene.tasks.datasets.manifest import CLIP_COLUMNS, Manifest

    table = clips_table(clips)
    classes = tuple(f"class {n}" for n in range(527))
    labels = pc.split_pattern(table["labels"].combine_chunks(), ";")
    name = table["uri"].combine_chunks()
    uri = pc.binary_join_element_wise("/data/audioset/", name, "")
    offsets = pa.array(np.zeros(clips))
    columns = {"clip_id": name, "uri": uri, "labels": labels, "split": table["split"], "offset_seconds": offsets}
    return Manifest(pa.table([columns[field.name] for field in CLIP_COLUMNS], schema=CLIP_COLUMNS), classes)


def part_list(clips: int, folder: Path) -> Callable[[], object]:
    from sepscene.tasks.datasets.readers import read_manifest

    return lambda: read_manifest("table", str(table_of(clips, folder)))


def table_of(clips: int, folder: Path) -> Path:
    """The folder of the data set with this many clips."""
    return folder / f"table-{clips}"


def write_table(clips: int, folder: Path) -> None:
    """Write a Parquet manifest of this many clips."""
    table_of(clips, folder).mkdir(parents=True, exist_ok=True)
    pq.write_table(clips_table(clips), table_of(clips, folder) / "manifest.parquet")


def part_select(clips: int, folder: Path) -> Callable[[], object]:
    whole = manifest(clips)

    def run() -> None:
        train = whole.select("train")
        train.digest()

    return run


def part_audit(clips: int, folder: Path) -> Callable[[], object]:
    from sepscene.augment.audio import Recording
    from sepscene.tasks.datasets.audit import FINDING, record, recordings_of, summary

    whole = manifest(clips)
    recording = Recording(sample_rate=16_000, channels=1, frames=160_000, peak=0.5, level_db=-20, quietest_db=-20)

    def run() -> None:
        uris, recording_N = recordings_of(whole)
        found_R = np.zeros(len(uris), FINDING)
        for n in range(len(uris)):
            found_R["content"][n, :8] = np.frombuffer((n + 1).to_bytes(8), np.uint8)
            record(found_R, n, recording)
        assert summary(whole, found_R, {}, recording_N).readable == clips

    return run


def part_plan(clips: int, folder: Path) -> Callable[[], object]:
    from sepscene.orchestration.planning.plan import Calibration, plan
    from sepscene.orchestration.presets import named_experiment

    experiment = named_experiment("table4/S2+N/simclr-cp", "paper")
    calibration = Calibration(
        decode_seconds=0.003,
        stored_seconds=0.0005,
        separation_seconds=dict.fromkeys(experiment.views.combination, 0.05),
        put_seconds=0.0001,
        train_seconds=0.0005,
        separation_rows=32,
        train_rows=512,
        cores=2,
        separation_device="L4",
        train_device="H100",
    )
    return lambda: plan(experiment, calibration, clips=clips)


def draw_rows(clips: int, ledger_rows: list[tuple[int, int]] | None = None) -> Any:
    """The object that Ray's tasks receive."""
    from sepscene.augment.draws import Schedule
    from sepscene.orchestration.presets import named_experiment
    from sepscene.orchestration.records.ledger import Ledger
    from sepscene.orchestration.training.row_draws import DrawRows

    schedule = Schedule(seed=0, clips=clips, epochs=EPOCHS)
    views = named_experiment("table4/S2+N/simclr-cp", "paper").views
    return DrawRows(manifest(clips).clips, schedule, Ledger(schedule.rows, ledger_rows or []), views)


def part_draws(clips: int, folder: Path) -> Callable[[], object]:
    draws = draw_rows(clips)

    def run() -> None:
        for block in range(101):
            draws({"id": np.arange(block * BLOCK, (block + 1) * BLOCK)})

    return run


def part_stream(clips: int, folder: Path) -> Callable[[], object]:
    import ray.data

    from sepscene.orchestration.runtime.ray_compat import configure_data
    from sepscene.orchestration.runtime.session import connect

    connect(None, cpus=2)
    configure_data(ordered=True)
    ray.data.range(8).materialize()  # warm-up of Ray
    draws = draw_rows(clips)

    def run() -> object:
        rows = ray.data.range(clips, override_num_blocks=max(1, clips // BLOCK)).map_batches(draws, batch_size=None)
        return next(iter(rows.iter_batches(batch_size=BLOCK)))

    return run


def part_resume(clips: int, folder: Path) -> Callable[[], object]:
    from sepscene.orchestration.records.ledger import Ledger

    rows = clips * EPOCHS
    starts = range(0, min(rows // 2, 4_096_000), 1000)  # at most a few thousand blocks are in flight at a kill
    path = folder / "ledger.json"
    path.write_text(Ledger(rows, [(start, start + 999) for start in starts]).to_json())
    draws = draw_rows(clips)

    def run() -> None:
        draws.remaining = Ledger.load(path).remaining()
        draws({"id": np.arange(BLOCK)})

    return run


def part_ledger(clips: int, folder: Path) -> Callable[[], object]:
    from sepscene.orchestration.records.ledger import Ledger

    ledger = Ledger(clips * EPOCHS)
    batch = 4096
    order = np.random.default_rng(0)
    steps = min(1000, clips * EPOCHS // batch)
    blocks = np.arange(steps * batch).reshape(-1, 32)
    near = np.argsort(np.arange(len(blocks)) + order.uniform(0, 256, len(blocks)))  # at most 256 blocks early or late
    rows = blocks[near].reshape(steps, batch)

    def run() -> None:
        for step in range(steps):
            ledger.consume(rows[step])

    return run


def make_store(clips: int, folder: Path) -> str:
    """A store with one entry per clip, of four channels with 16 samples, and 100 entries per shard."""
    from sepscene.augment.store.shards import StoreKey, encode_entry, shard_pieces

    store = folder / f"store-{clips}"
    if (store / "complete").exists():
        return str(store)
    shutil.rmtree(store, ignore_errors=True)
    (store / "shards").mkdir(parents=True)
    wave = np.zeros((4, 16), np.int16)
    levels = np.full(4, -20, np.float32)
    for start in range(0, clips, ENTRIES_PER_SHARD):
        keys = [StoreKey(f"{n:064x}", "a" * 64, "16000 Hz, 10 s") for n in range(start, start + ENTRIES_PER_SHARD)]
        pieces, _ = shard_pieces([encode_entry(key, wave, levels, 4096) for key in keys], 4096)
        (store / "shards" / f"{start:012d}-synthetic.shard").write_bytes(b"".join(pieces))
    (store / "complete").touch()
    return str(store)


def part_index(clips: int, folder: Path) -> Callable[[], object]:
    from sepscene.augment.store.separated_store import SeparatedStore
    from sepscene.augment.store.shards import StoreKey

    store = make_store(clips, folder)

    def run() -> None:
        with SeparatedStore(store) as opened:
            assert len(opened) == clips, f"{len(opened)} entries"
            for n in range(0, clips, max(1, clips // 1000)):
                assert StoreKey(f"{n:064x}", "a" * 64, "16000 Hz, 10 s") in opened

    return run


def part_store_ls(clips: int, folder: Path) -> Callable[[], object]:
    from sepscene.augment.store.upkeep import list_store

    store = make_store(clips, folder)

    def run() -> None:
        listing = list_store(store)
        assert listing.entries == clips and listing.groups[0].channels == 4 * clips

    return run


PARTS = {name.removeprefix("part_"): value for name, value in list(globals().items()) if name.startswith("part_")}


def measure(part: str, clips: int, folder: Path) -> tuple[float, float]:
    """Seconds and peak MiB of one part; to be called in a fresh process."""
    run = PARTS[part](clips, folder)
    gc.collect()
    pa.default_memory_pool().release_unused()  # memory that was used to create the inputs
    reset_peak()
    began = time.perf_counter()
    run()
    return time.perf_counter() - began, peak_mib()


def main() -> None:
    """Print the table, one line per part, and write it as JSON to the folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, nargs="+", default=[10_000, 100_000, 1_000_000, 10_000_000])
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--folder", type=Path, default=Path("/tmp/audioset_size"))
    given = parser.parse_args()
    print("| part | " + " | ".join(f"{clips:.0e} clips" for clips in given.clips) + " | growth per decade |")
    print("|---" * (len(given.clips) + 2) + "|")
    found: dict[str, dict[int, tuple[float, float]]] = {}
    for part in given.parts:
        found[part] = {}
        for clips in given.clips:
            if part == "list":
                in_a_process(write_table, clips, given.folder)
            found[part][clips] = in_a_process(measure, part, clips, given.folder)
        last = [found[part][clips][0] for clips in given.clips[-2:]]
        growth = f"{last[-1] / max(last[0], 1e-9):.1f} x" if len(last) == 2 else ""
        cells = [f"{seconds:.3g} s, {mib:,.0f} MiB" for seconds, mib in found[part].values()]
        print(f"| {part} | " + " | ".join(cells) + f" | {growth} |", flush=True)
    given.folder.mkdir(parents=True, exist_ok=True)
    (given.folder / "audioset_size.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main()
