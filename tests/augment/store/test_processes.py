"""Many processes use one store at the same time; one of them is killed."""

import multiprocessing
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from sepscene.augment.store.separated_store import SeparatedStore, StoreKey, StoreSettings
from sepscene.augment.store.upkeep import verify_store

CLIPS = 60
SETTINGS = StoreSettings(
    shard_bytes=100_000, publish_seconds=0.05, publish_max_seconds=0.2, refresh_seconds=0, segment_samples=512
)


def clip(number: int) -> np.ndarray:
    return np.random.default_rng(number).integers(-32768, 32768, (2, 4000)).astype(np.int16)


def work(uri: str, seed: int, results) -> None:
    """Read each clip in a random order; put it if it is missing, and read it back immediately."""
    wrong = 0
    with SeparatedStore(uri, SETTINGS) as store:
        for number in np.random.default_rng(seed).permutation(CLIPS):
            key = StoreKey(f"clip-{number}", "S1", "s")
            if store.levels(key) is None:
                store.put(key, clip(number), np.array([-1.0, -2.0]))
            crop = store.get_crop(key, 1, 700, 1500)
            wrong += crop is None or not np.array_equal(crop, clip(number)[1, 700:2200])
    results.put((wrong, store.counters))


def put_until_killed(uri: str, published) -> None:
    store = SeparatedStore(uri, SETTINGS.changed({"publish_seconds": 1e6, "shard_bytes": 10**9}))
    for number in range(1000):
        store.put(StoreKey(f"clip-{number}", "S1", "s"), clip(number), np.array([-1.0, -2.0]))
        if number % 5 == 4:
            store.flush()
            published.value = number + 1


@pytest.mark.slow
def test_concurrent_readers_and_writers(tmp_path):
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    workers = [context.Process(target=work, args=(str(tmp_path), seed, results)) for seed in range(4)]
    for worker in workers:
        worker.start()
    found = [results.get(timeout=120) for _ in workers]
    for worker in workers:
        worker.join()
    assert [wrong for wrong, _ in found] == [0] * 4
    assert all(counters.hits == CLIPS and counters.damaged == 0 for _, counters in found)
    puts = sum(counters.misses for _, counters in found)
    store = SeparatedStore(str(tmp_path), SETTINGS)
    assert CLIPS <= puts == len(store) <= 4 * CLIPS, "clips that two processes miss at the same time are stored twice"
    assert verify_store(store.folder).whole
    for number in range(CLIPS):
        crop = store.get_crop(StoreKey(f"clip-{number}", "S1", "s"), 0, 0, 4000)
        np.testing.assert_array_equal(crop, clip(number)[0])


@pytest.mark.slow
def test_a_killed_writer_loses_only_what_it_had_not_published(tmp_path):
    context = multiprocessing.get_context("spawn")
    published = context.Value("i", 0)
    writer = context.Process(target=put_until_killed, args=(str(tmp_path), published))
    writer.start()
    while published.value < 30:
        time.sleep(0.005)
    writer.kill()
    writer.join()
    store = SeparatedStore(str(tmp_path), SETTINGS)
    assert store.counters.damaged == 0
    assert len(store) in (published.value, published.value + 5), (
        "the writer can be killed between publishing and reporting"
    )
    assert verify_store(store.folder).whole
    for number in range(published.value):
        crop = store.get_crop(StoreKey(f"clip-{number}", "S1", "s"), 0, 0, 4000)
        np.testing.assert_array_equal(crop, clip(number)[0])


@pytest.mark.slow
def test_a_process_that_exits_normally_loses_nothing(tmp_path):
    """The handle is not closed. During exit, Python cannot start threads, and pyarrow cannot import modules."""
    script = f"""
import numpy as np
from sepscene.augment.store.separated_store import SeparatedStore, StoreKey
store = SeparatedStore({str(tmp_path)!r})
store.put(StoreKey("a", "N", "s"), np.ones((2, 100), np.int16), np.zeros(2))
"""
    root = Path(__file__).resolve().parents[3]
    done = subprocess.run([sys.executable, "-c", script], cwd=root, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    store = SeparatedStore(str(tmp_path), SETTINGS)
    np.testing.assert_array_equal(store.get_crop(StoreKey("a", "N", "s"), 1, 0, 100), np.ones(100, np.int16))
