"""The index finds exactly the same as a dictionary of lists, for any order of additions."""

import hashlib

import numpy as np

from sepscene.augment.store.index import StoreIndex
from sepscene.augment.store.shards import StoreKey, encode_entry, shard_pieces


def footer(numbers, channels=2):
    wave_ST = np.zeros((channels, 10), np.int16)
    entries = [encode_entry(StoreKey(str(n), "N", ""), wave_ST, np.full(channels, -n), 4) for n in numbers]
    return shard_pieces(entries, 4)[1]


def digest(number):
    return StoreKey(str(number), "N", "").digest()


def test_equal_to_a_dictionary():
    rng = np.random.default_rng(0)
    index = StoreIndex()
    expected: dict[int, list[tuple[str, int]]] = {}
    for shard in range(60):
        name = f"{rng.integers(1000):04d}-{shard}"
        numbers = [int(n) for n in rng.integers(0, 400, rng.integers(1, 30))]
        index.add({name: footer(numbers, channels=int(rng.integers(1, 4)))})
        for row, number in enumerate(numbers):
            expected.setdefault(number, []).append((name, row))
        if shard % 7 == 6:
            gone = sorted(index.shards)[int(rng.integers(len(index.shards)))]
            index.remove(gone)
            expected = {n: [c for c in copies if c[0] != gone] for n, copies in expected.items()}
    for number in range(420):
        found = index.find(digest(number))
        shards = [copy.shard for copy in found]
        assert shards == sorted(shards)
        assert sorted(shards) == sorted(name for name, _ in expected.get(number, []))
        for copy in found:
            np.testing.assert_array_equal(copy.levels, np.full(copy.location.channels, -number, np.float32))


def test_keys_with_equal_first_halves_are_distinguished(monkeypatch):
    class Half:
        def __init__(self, text, digest_size):
            self.tail = hashlib.sha256(text).digest()[: digest_size - 8]

        def digest(self):
            return bytes(8) + self.tail

    monkeypatch.setattr("sepscene.augment.store.shards.hashlib.blake2b", Half)
    index = StoreIndex()
    index.add({"a": footer(range(50))})
    for number in range(50):
        (found,) = index.find(digest(number))
        assert found.levels[0] == -number
    assert index.find(digest(51)) == []


def test_few_blocks_and_few_bytes():
    index = StoreIndex()
    for shard in range(200):
        index.add({f"{shard:04d}": footer([10 * shard + n for n in range(10)])})
    assert len(index) == 2000
    assert len(index._blocks) <= 8
    assert index.nbytes == 41 * 2000


def test_a_shard_is_added_once():
    index = StoreIndex()
    index.add({"a": footer([1])})
    index.add({"a": footer([1])})
    assert len(index.find(digest(1))) == 1


def test_many_at_once_equal_one_by_one():
    shards = {f"{s:02d}": footer([7 * s + n for n in range(12)], channels=1 + s % 3) for s in range(20)}
    at_once = StoreIndex()
    one_by_one = StoreIndex()
    at_once.add(shards)
    for name, table in shards.items():
        one_by_one.add({name: table})
    assert at_once.shards == one_by_one.shards and len(at_once) == len(one_by_one) == 240
    for number in range(160):
        ours = at_once.find(digest(number))
        theirs = one_by_one.find(digest(number))
        assert [(f.shard, f.location) for f in ours] == [(f.shard, f.location) for f in theirs]
        for a, b in zip(ours, theirs, strict=True):
            np.testing.assert_array_equal(a.levels, b.levels)
