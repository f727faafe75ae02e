"""The SeparatedStore from the caller's view: entries are read back exactly, in any process."""

import pickle
import threading
import uuid
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from sepscene.augment.store.folder import StoreError, without_secrets
from sepscene.augment.store.separated_store import SeparatedStore, StoreKey, StoreSettings
from sepscene.augment.store.upkeep import collect_store, list_store, verify_store

MANUAL = StoreSettings(publish_seconds=1e6, publish_max_seconds=1e6, refresh_seconds=1e6, segment_samples=64)
"""Nothing is published or refreshed unless the test requests it."""
EAGER = MANUAL.changed({"refresh_seconds": 0.0})


def key(number: int, processor: str = "S2") -> StoreKey:
    return StoreKey(f"clip-{number}", processor, "16000 Hz, 10 s")


def clip(number: int, channels: int = 2, samples: int = 1000) -> np.ndarray:
    wave_ST = np.random.default_rng(number).integers(-32768, 32768, (channels, samples)).astype(np.int16)
    wave_ST[0, :2] = (-32768, 32767)[:samples]
    return wave_ST


LEVELS = np.array([-12.5, -70.25], np.float32)


@pytest.fixture
def store(tmp_path):
    with SeparatedStore(str(tmp_path), MANUAL) as store:
        yield store


@pytest.mark.parametrize("samples", [1, 63, 64, 65, 128, 1000])
@pytest.mark.parametrize("published", [False, True])
def test_every_crop_is_bit_exact(store, samples, published):
    wave_ST = clip(0, samples=samples)
    store.put(key(0), wave_ST, LEVELS)
    if published:
        store.flush()
    for start in range(0, samples, 7):
        for length in {1, 2, 63, 64, 65, samples - start} & set(range(1, samples - start + 1)):
            for channel in (0, 1):
                crop = store.get_crop(key(0), channel, start, length)
                assert crop.dtype == np.int16
                np.testing.assert_array_equal(crop, wave_ST[channel, start : start + length])
    assert store.counters.misses == store.counters.damaged == 0


def test_levels_come_back(store):
    store.put(key(0), clip(0), LEVELS)
    np.testing.assert_array_equal(store.levels(key(0)), LEVELS)
    store.flush()
    np.testing.assert_array_equal(store.levels(key(0)), LEVELS)
    assert store.levels(key(0)).dtype == np.float32


def test_keys_differ_in_each_part(store):
    store.put(StoreKey("a", "b", "c"), clip(0), LEVELS)
    for other in (
        StoreKey("x", "b", "c"),
        StoreKey("a", "x", "c"),
        StoreKey("a", "b", "x"),
        StoreKey("ab", "", "c"),
    ):
        assert other not in store
        assert store.levels(other) is None
        assert store.get_crop(other, 0, 0, 1) is None
    assert store.counters.misses == 8


def test_entries_of_different_shapes_share_a_store(store):
    shapes = [(1, 500), (4, 1000), (2, 64), (8, 65), (1, 1)]
    for number, (channels, samples) in enumerate(shapes):
        store.put(key(number), clip(number, channels, samples), np.arange(channels) - 60.5)
        store.flush()  # one shard each: their index blocks are merged
    for number, (channels, samples) in enumerate(shapes):
        np.testing.assert_array_equal(store.levels(key(number)), np.arange(channels) - 60.5)
        for channel in range(channels):
            crop = store.get_crop(key(number), channel, 0, samples)
            np.testing.assert_array_equal(crop, clip(number, channels, samples)[channel])


def test_an_entry_is_visible_to_other_handles_after_flush_and_refresh(tmp_path):
    writer = SeparatedStore(str(tmp_path), MANUAL)
    reader = SeparatedStore(str(tmp_path), MANUAL)
    writer.put(key(0), clip(0), LEVELS)
    reader.refresh()
    assert key(0) not in reader
    writer.flush()
    assert key(0) not in reader
    reader.refresh()
    np.testing.assert_array_equal(reader.get_crop(key(0), 1, 10, 300), clip(0)[1, 10:310])


def test_a_miss_searches_for_new_shards(tmp_path):
    writer = SeparatedStore(str(tmp_path), MANUAL)
    reader = SeparatedStore(str(tmp_path), EAGER)
    reader._next_refresh = 0.0
    writer.put(key(0), clip(0), LEVELS)
    writer.flush()
    assert key(0) in reader


def test_a_reader_with_other_settings_reads_the_same(tmp_path):
    with SeparatedStore(str(tmp_path), MANUAL) as writer:
        writer.put(key(0), clip(0), LEVELS)
    reader = SeparatedStore(str(tmp_path), MANUAL.changed({"segment_samples": 4096}))
    np.testing.assert_array_equal(reader.get_crop(key(0), 0, 100, 500), clip(0)[0, 100:600])


def test_a_crop_costs_only_its_segments(store):
    store.put(key(0), clip(0, samples=64_000), LEVELS)
    store.flush()
    store.get_crop(key(0), 1, 640, 64)
    assert store.counters.bytes_read == 4 + 2 * 64
    store.get_crop(key(0), 1, 639, 66)
    assert store.counters.bytes_read == (4 + 2 * 64) + 3 * (4 + 2 * 64)


def test_put_keeps_what_is_there(store):
    store.put(key(0), clip(0), LEVELS)
    store.put(key(0), clip(1), LEVELS)
    store.flush()
    store.put(key(0), clip(2), LEVELS)
    store.flush()
    np.testing.assert_array_equal(store.get_crop(key(0), 0, 0, 1000), clip(0)[0])
    assert len(store) == 1


def test_every_reader_uses_the_first_published_duplicate(tmp_path):
    writers = [SeparatedStore(str(tmp_path), MANUAL) for _ in range(3)]
    for number, writer in enumerate(writers):
        writer.put(key(0), clip(number), LEVELS)
    for writer in writers:
        writer.flush()
    for reader in [*writers, SeparatedStore(str(tmp_path), MANUAL)]:
        reader.refresh()
        np.testing.assert_array_equal(reader.get_crop(key(0), 0, 0, 1000), clip(0)[0])


def test_new_entries_do_not_change_existing_shards(tmp_path, store):
    for number in range(8):
        store.put(key(number), clip(number), LEVELS)
        store.flush()
    before = {p.name: (p.stat().st_mtime_ns, p.read_bytes()) for p in (tmp_path / "shards").iterdir()}
    for number in range(8, 24):
        store.put(key(number), clip(number), LEVELS)
        store.flush()
    after = {p.name: (p.stat().st_mtime_ns, p.read_bytes()) for p in (tmp_path / "shards").iterdir()}
    assert len(before) == 8 and len(after) == 24
    assert before.items() <= after.items()


def test_a_shard_is_published_when_it_is_large_enough(tmp_path):
    one = 2 * (2 * 1000 + 4 * 16)  # two channels of sixteen segments
    store = SeparatedStore(str(tmp_path), MANUAL.changed({"shard_bytes": 3 * one}))
    for number in range(7):
        store.put(key(number), clip(number), LEVELS)
    store._writer.wait()
    assert len(list((tmp_path / "shards").iterdir())) == 2
    store.close()
    assert len(list((tmp_path / "shards").iterdir())) == 3
    assert list((tmp_path / "incoming").iterdir()) == []


def test_threads_share_a_handle(tmp_path):
    """Eight threads put, flush and read concurrently; a flush publishes all entries of its thread."""
    store = SeparatedStore(str(tmp_path), MANUAL.changed({"shard_bytes": 20_000}))

    def work(first: int) -> int:
        wrong = 0
        for number in range(first, first + 12):
            store.put(key(number), clip(number), LEVELS)
            crop = store.get_crop(key(number), 1, 0, 1000)
            wrong += crop is None or not np.array_equal(crop, clip(number)[1])
        store.flush()
        fresh = SeparatedStore(str(tmp_path), MANUAL)
        return wrong + sum(key(number) not in fresh for number in range(first, first + 12))

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(work, range(0, 96, 12))) == [0] * 8
    assert len(store) == 96 and store.counters.hits == 96


def test_the_publishing_interval_doubles_up_to_its_limit(tmp_path):
    settings = StoreSettings(publish_seconds=1e-9, publish_max_seconds=3e-9)
    store = SeparatedStore(str(tmp_path), settings)
    for number in range(3):
        store.put(key(number), clip(number), LEVELS)
        store.levels(key(99))
    assert store._writer._publish_seconds == 3e-9
    store.flush()
    assert len(SeparatedStore(str(tmp_path))) == 3


def test_a_full_store_drops_entries(tmp_path):
    one = 2 * (2 * 1000 + 4 * 16)
    with SeparatedStore(str(tmp_path), MANUAL.changed({"max_bytes": 2 * one})) as store:
        for number in range(5):
            store.put(key(number), clip(number), LEVELS)
        assert store.counters.dropped == 3
        assert [key(n) in store for n in range(5)] == [True, True, False, False, False]


def test_many_writers_respect_one_limit(tmp_path):
    """A writer does not see pending entries of other writers, so it checks the size before it publishes its own."""
    one = 2 * (2 * 1000 + 4 * 16)
    stores = [SeparatedStore(str(tmp_path), MANUAL.changed({"max_bytes": 10 * one})) for _ in range(8)]
    for number in range(40):
        stores[number % 8].put(key(number), clip(number), LEVELS)
    for store in stores:
        store.close()
    kept = len(SeparatedStore(str(tmp_path)))
    assert 8 <= kept <= 10
    assert sum(store.counters.dropped for store in stores) == 40 - kept


def test_a_shard_being_uploaded_counts_towards_the_limit(tmp_path, monkeypatch):
    one = 2 * (2 * 1000 + 4 * 16)
    store = SeparatedStore(str(tmp_path), MANUAL.changed({"max_bytes": 2 * one}))
    go = threading.Event()
    publish = store.folder.publish
    monkeypatch.setattr(store.folder, "publish", lambda pieces: go.wait(10) and publish(pieces))
    for number in range(2):
        store.put(key(number), clip(number), LEVELS)
    store._writer.start()
    store.put(key(2), clip(2), LEVELS)
    assert store.counters.dropped == 1
    go.set()
    store.close()
    assert len(SeparatedStore(str(tmp_path))) == 2


@pytest.mark.parametrize("max_bytes", [None, 10**9])
def test_a_filesystem_error_drops_entries_without_raising(tmp_path, max_bytes):
    store = SeparatedStore(str(tmp_path), MANUAL.changed({"max_bytes": max_bytes}))
    store.put(key(0), clip(0), LEVELS)
    for folder in ("shards", "incoming"):
        (tmp_path / folder).rmdir()
        (tmp_path / folder).write_text("a file where a folder should be")
    store.flush()
    assert store.counters.dropped == 1
    assert key(0) not in store


def test_a_folder_that_cannot_be_listed_is_a_miss(tmp_path):
    store = SeparatedStore(str(tmp_path), EAGER)
    (tmp_path / "shards").rmdir()
    (tmp_path / "shards").write_text("a file where a folder should be")
    with pytest.raises(StoreError, match=r"cannot list the store .*check the address and access"):
        store.refresh()
    store._next_refresh = 0.0
    assert store.levels(key(0)) is None
    assert store.counters.misses == 1


def test_bytes_written_are_the_bytes_on_disk(tmp_path, store):
    for number in range(3):
        store.put(key(number), clip(number), LEVELS)
    store.flush()
    assert store.counters.bytes_written == sum(p.stat().st_size for p in (tmp_path / "shards").iterdir())


def test_a_pickled_handle_opens_the_same_store(store):
    store.put(key(0), clip(0), LEVELS)
    store.flush()
    copy = pickle.loads(pickle.dumps(store))
    assert (copy.uri, copy.settings) == (store.uri, store.settings)
    np.testing.assert_array_equal(copy.get_crop(key(0), 0, 0, 1000), clip(0)[0])


@pytest.mark.parametrize("scheme", ["fsspec+memory://", "mock:///"])
def test_other_filesystems(scheme):
    """An object store through fsspec, written in place, and Arrow's mock filesystem, with renames like a local disk."""
    store = SeparatedStore(f"{scheme}{uuid.uuid4().hex}/deeper", MANUAL)
    for number in range(4):
        store.put(key(number), clip(number), LEVELS)
        store.flush()
    store.refresh()
    for number in range(4):
        np.testing.assert_array_equal(store.get_crop(key(number), 1, 100, 500), clip(number)[1, 100:600])
    assert list_store(store.folder).entries == 4
    assert verify_store(store.folder).whole
    assert collect_store(store.folder, max_bytes=0).old_shards == 4
    store.refresh()
    assert store.get_crop(key(0), 0, 0, 1) is None


@pytest.mark.parametrize("uri", ["nonsense://bucket", "fsspec+nonsense://bucket"])
def test_an_unknown_filesystem_is_named(uri):
    with pytest.raises(StoreError, match=r"cannot open the store 'f?.*nonsense.*give a path or a URI"):
        SeparatedStore(uri)


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("s3://key:secret@bucket/a", "s3://bucket/a"),
        ("s3://key:sec/ret@bucket/a", "s3://bucket/a"),
        ("s3://bucket/a@home", "s3://bucket/a@home"),
        ("s3://bucket/a?region=x&secret_key=abc&scheme=http", "s3://bucket/a?region=x&secret_key=...&scheme=http"),
        ("/a/folder@home", "/a/folder@home"),
    ],
)
def test_secrets_are_not_shown(uri, shown):
    assert without_secrets(uri) == shown


@pytest.mark.parametrize("uri", ["nonsense://key:hidden@bucket/a", "s3://key:hid den@bucket/a", "s3://key:hid/den@b"])
def test_errors_show_no_secrets(uri):
    with pytest.raises(StoreError, match="cannot open the store") as caught:
        SeparatedStore(uri)
    assert "hid" not in str(caught.value)


def test_a_folder_that_cannot_be_created_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match=r"cannot write to the store .*choose another store.uri"):
        SeparatedStore(str(tmp_path / "file"))


@pytest.mark.parametrize(
    ("wave_ST", "levels"),
    [
        (np.zeros((2, 10), np.float32), [0, 0]),
        (np.zeros(10, np.int16), [0]),
        (np.zeros((2, 10), np.int16), [0]),
        (np.zeros((0, 10), np.int16), []),
        (np.zeros((2, 0), np.int16), [0, 0]),
    ],
)
def test_put_refuses_invalid_entries(store, wave_ST, levels):
    with pytest.raises(ValueError, match=r"give one per channel|int16"):
        store.put(key(0), wave_ST, np.array(levels))


@pytest.mark.parametrize(("channel", "start", "samples"), [(2, 0, 1), (-1, 0, 1), (0, -1, 2), (0, 0, 1001), (0, 0, 0)])
@pytest.mark.parametrize("published", [False, True])
def test_a_crop_outside_of_an_entry_raises(store, channel, start, samples, published):
    store.put(key(0), clip(0), LEVELS)
    if published:
        store.flush()
    with pytest.raises(ValueError, match="outside of an entry with 2 channels of 1000 samples"):
        store.get_crop(key(0), channel, start, samples)
