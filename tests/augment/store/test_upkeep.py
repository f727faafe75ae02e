"""ls, verify and gc: their counts are those of the files on disk."""

import itertools
import os
import time

import numpy as np
import pytest

from sepscene.augment.store import upkeep as module
from sepscene.augment.store.folder import StoreError, StoreFolder
from sepscene.augment.store.separated_store import SeparatedStore, StoreKey, StoreSettings
from sepscene.augment.store.upkeep import StoreGroup, collect_store, list_store, verify_store

SETTINGS = StoreSettings(publish_seconds=1e6, publish_max_seconds=1e6, refresh_seconds=1e6, segment_samples=16)
LEVELS = np.array([-10.0, -20.0], np.float32)


@pytest.fixture
def uri(tmp_path):
    """Four shards of two clips each, from two processors."""
    with SeparatedStore(str(tmp_path / "store"), SETTINGS) as store:
        for shard in range(4):
            for n in range(2):
                clip = np.full((2, 100), 10 * shard + n, np.int16)
                store.put(StoreKey(f"clip-{shard}-{n}", "NF"[shard % 2], "16 kHz"), clip, LEVELS)
            store.flush()
    return str(tmp_path / "store")


def shards(uri):
    return sorted(os.path.join(uri, "shards", name) for name in os.listdir(os.path.join(uri, "shards")))


def test_ls_sums_are_right(uri):
    listing = list_store(uri)
    assert (listing.shards, listing.entries, listing.damaged_shards) == (4, 8, ())
    assert listing.bytes == sum(os.path.getsize(path) for path in shards(uri))
    assert listing.groups == (StoreGroup("F", "16 kHz", 4, 8, 800), StoreGroup("N", "16 kHz", 4, 8, 800))


def test_verify_names_what_is_damaged(uri):
    assert verify_store(uri).whole
    first, second, *_ = shards(uri)
    with open(first, "r+b") as file:
        file.seek(8 + (4 * 7 + 200) + 10)  # the second channel of the first clip
        file.write(b"\xff")
    os.truncate(second, 100)
    found = verify_store(uri)
    assert not found.whole
    assert found.entries == 6
    assert [name for name, _ in found.damaged_shards] == [os.path.basename(second)]
    (entry,) = found.damaged_entries
    assert (entry.content, entry.processor, entry.settings, entry.channel) == ("clip-0-0", "N", "16 kHz", 1)
    assert list_store(uri).damaged_shards == (os.path.basename(second),)


def test_gc_removes_the_oldest_beyond_the_limit(uri):
    sizes = [os.path.getsize(path) for path in shards(uri)]
    kept = shards(uri)[2:]
    removed = collect_store(uri, max_bytes=sum(sizes[2:]) + sizes[1] - 1)
    assert shards(uri) == kept
    assert (removed.old_shards, removed.damaged_shards, removed.leftovers) == (2, 0, 0)
    assert (removed.bytes_freed, removed.bytes_left) == (sum(sizes[:2]), sum(sizes[2:]))


def test_gc_without_a_limit_removes_only_unusable_files(uri):
    damaged, *kept = shards(uri)
    os.truncate(damaged, 50)
    for name, age in (("old", 7200), ("new", 60)):
        path = os.path.join(uri, "incoming", f"{name}.shard")
        with open(path, "wb") as file:
            file.write(bytes(1000))
        os.utime(path, (time.time() - age, time.time() - age))
    removed = collect_store(uri)
    assert shards(uri) == kept
    assert os.listdir(os.path.join(uri, "incoming")) == ["new.shard"], "its writer may still be active"
    assert (removed.old_shards, removed.damaged_shards, removed.leftovers) == (0, 1, 1)
    assert removed.bytes_freed == 1050


def test_gc_through_a_handle_is_visible_to_it(uri):
    store = SeparatedStore(uri, SETTINGS)
    assert collect_store(store.folder, max_bytes=0).bytes_left == 0
    store.refresh()
    assert store.levels(StoreKey("clip-0-0", "N", "16 kHz")) is None
    assert list_store(store.folder).entries == 0


def test_a_prefill_is_complete_until_a_shard_is_removed(uri):
    with SeparatedStore(uri, SETTINGS) as store:
        assert not store.folder.is_filled("scenes")
        store.folder.mark_filled("scenes")
        collect_store(store.folder)
        assert store.folder.is_filled("scenes")
    collect_store(uri, max_bytes=sum(os.path.getsize(path) for path in shards(uri)[2:]))
    assert not SeparatedStore(uri, SETTINGS).folder.is_filled("scenes")
    assert list_store(uri).entries == 4


@pytest.mark.parametrize("moment", ["before its footer", "before its sound"])
def test_a_shard_removed_by_another_gc_is_ignored(uri, moment, monkeypatch):
    gone = shards(uri)[1]
    folder = StoreFolder(uri)
    listed = folder.shards()
    footer = module.read_footer
    calls = itertools.count()
    monkeypatch.setattr(folder, "shards", lambda: listed)

    def read_then_remove(file, size):
        if next(calls) == 1:
            os.remove(gone)
        return footer(file, size)

    if moment == "before its footer":
        os.remove(gone)
    else:
        monkeypatch.setattr(module, "read_footer", read_then_remove)
    found = verify_store(folder)
    assert found.whole and (found.shards, found.entries) == (3, 6)
    assert list_store(folder).entries == 6
    assert collect_store(folder).damaged_shards == 0
    assert collect_store(folder, 0).bytes_left == 0 and not shards(uri)


def test_upkeep_of_a_missing_store_creates_nothing(tmp_path):
    missing = str(tmp_path / "missing")
    with pytest.raises(StoreError, match=r"no store at .*missing.*check the address"):
        list_store(missing)
    assert not os.path.exists(missing)


@pytest.mark.parametrize("work", [list_store, verify_store, collect_store])
def test_a_failing_filesystem_is_named(uri, work, monkeypatch):
    """Errors of remote filesystems have no number, so that the command line does not recognise them."""

    def fail(file, size):
        raise OSError("AWS Error NETWORK_CONNECTION")

    monkeypatch.setattr(module, "read_footer", fail)
    with pytest.raises(StoreError, match=r"the store '.*': AWS Error NETWORK_CONNECTION; check the address and access"):
        work(uri)
