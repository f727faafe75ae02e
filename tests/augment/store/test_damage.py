"""For any damage of a shard, a crop is either exact or a miss: never wrong, never an exception."""

import resource
import struct
import zlib

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import fs

from sepscene.augment.store.separated_store import SeparatedStore, StoreKey, StoreSettings
from sepscene.augment.store.shards import ShardDamage, read_footer
from sepscene.augment.store.upkeep import verify_store

SETTINGS = StoreSettings(publish_seconds=1e6, publish_max_seconds=1e6, refresh_seconds=1e6, segment_samples=8)
KEYS = [StoreKey(f"clip-{n}", "F", "s") for n in range(3)]
CLIPS = [np.arange(40, dtype=np.int16).reshape(2, 20) * (n + 1) for n in range(3)]
LEVELS = np.array([-10.0, -20.0], np.float32)


def written(folder):
    """Write a store with one shard of three clips; return its path and bytes."""
    with SeparatedStore(str(folder), SETTINGS) as store:
        for key, clip in zip(KEYS, CLIPS, strict=True):
            store.put(key, clip, LEVELS)
    (shard,) = (folder / "shards").iterdir()
    return shard, shard.read_bytes()


def readable(folder) -> tuple[int, SeparatedStore]:
    """Read all channels and check that they are exact; return how many of the six were readable."""
    store = SeparatedStore(str(folder), SETTINGS)
    count = 0
    for key, clip in zip(KEYS, CLIPS, strict=True):
        for channel in (0, 1):
            crop = store.get_crop(key, channel, 0, 20)
            if crop is not None:
                np.testing.assert_array_equal(crop, clip[channel])
                count += 1
    return count, store


def test_a_flipped_byte_is_detected(tmp_path):
    shard, whole = written(tmp_path)
    for position in range(0, len(whole), 3):
        altered = bytearray(whole)
        altered[position] ^= 0x10
        shard.write_bytes(altered)
        count, store = readable(tmp_path)
        if position < 8:
            assert count == 6, "the first magic bytes are not checked"
        elif count == 0:  # the footer or the trailer
            assert store.counters.damaged == 1
            assert len(verify_store(store.folder).damaged_shards) == 1
        else:  # one entry; its other channel is not used either after the damage is found
            assert count in (4, 5)
            assert store.counters.damaged == 1
            assert store.counters.misses == 6 - count
            (found,) = verify_store(store.folder).damaged_entries
            assert found.content == f"clip-{(position - 8) // ((len(whole) - len(footer(whole)) - 8) // 3)}"


def footer(whole: bytes) -> bytes:
    length = int.from_bytes(whole[-20:-12], "little")
    return whole[-20 - length :]


def test_a_truncated_shard_is_detected(tmp_path):
    shard, whole = written(tmp_path)
    for length in range(0, len(whole), 2):
        shard.write_bytes(whole[:length])
        count, store = readable(tmp_path)
        assert count == 0
        assert store.counters.damaged == 1
        assert store.counters.misses == 6


@pytest.mark.parametrize("lost", [1, 1000, 70_000, 79_990])
def test_a_shard_shorter_than_listed_is_damaged(tmp_path, lost):
    """As with a cached listing that is older than the file."""
    (tmp_path / "x.shard").write_bytes(bytes(80_000 - lost))
    file = fs.LocalFileSystem().open_input_file(str(tmp_path / "x.shard"))
    with pytest.raises(ShardDamage, match=f"ends after {80_000 - lost} of 80000 bytes"):
        read_footer(file, 80_000)


def test_a_shard_that_lost_its_middle_is_detected(tmp_path):
    """The footer is intact, so the gap is found only when it is read, as after a lost write-back of a disk."""
    shard, whole = written(tmp_path)
    shard.write_bytes(whole[:8] + bytes(len(whole) - len(footer(whole)) - 8) + footer(whole))
    count, store = readable(tmp_path)
    assert count == 0
    assert store.counters.damaged == 3
    assert len(verify_store(store.folder).damaged_entries) == 3


def test_the_sound_of_another_clip_is_detected(tmp_path):
    """The checksum of a segment includes its key: if two entries of equal size are exchanged, both are refused."""
    shard, whole = written(tmp_path)
    size = (len(whole) - len(footer(whole)) - 8) // 3
    first = whole[8 : 8 + size]
    second = whole[8 + size : 8 + 2 * size]
    rest = whole[8 + 2 * size :]
    shard.write_bytes(whole[:8] + second + first + rest)
    count, store = readable(tmp_path)
    assert count == 2
    assert store.counters.damaged == 2


@pytest.mark.parametrize("content", [b"", b"x", b"SEPSHRD1", bytes(100_000), b"SEPSHRD1" * 20_000])
def test_an_unrelated_file_among_the_shards_is_skipped(tmp_path, content):
    written(tmp_path)
    (tmp_path / "shards" / "00000000000000000000-foreign.shard").write_bytes(content)
    (tmp_path / "shards" / "README").write_text("not a shard at all")
    count, store = readable(tmp_path)
    assert count == 6
    assert store.counters.damaged == 1
    store.refresh()
    assert store.counters.damaged == 1, "counted once, not at each refresh"


def test_many_damaged_shards_are_reported_in_one_line(tmp_path, caplog):
    written(tmp_path)
    for n in range(50):
        (tmp_path / "shards" / f"{n:020d}-foreign.shard").write_bytes(b"x")
    count, store = readable(tmp_path)
    assert (count, store.counters.damaged) == (6, 50)
    (line,) = caplog.messages
    assert line.count("foreign.shard") == 3
    assert "and 47 more" in line


def _with_footer(whole: bytes, table: pa.Table) -> bytes:
    """A shard with another footer whose checksum is valid, as a faulty program could write it."""
    _, _, magic = struct.unpack("<QI8s", whole[-20:])
    length = struct.unpack("<Q", whole[-20:-12])[0]
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    footer = sink.getvalue().to_pybytes()
    return whole[: -20 - length] + footer + struct.pack("<QI8s", len(footer), zlib.crc32(footer), magic)


@pytest.mark.parametrize(
    "fault", ["offset", "samples", "channels", "levels", "null", "segment", "no segment", "no Arrow"]
)
def test_a_malformed_footer_with_a_valid_checksum_damages_only_its_shard(tmp_path, fault):
    shard, whole = written(tmp_path)
    with fs.LocalFileSystem().open_input_file(str(shard)) as file:
        table = read_footer(file, len(whole))
    names = table.column_names
    values = {
        "offset": pa.array([2**64 - 1] * 3, pa.uint64()),
        "samples": pa.array([2**32 - 1] * 3, pa.uint32()),
        "channels": pa.array([9] * 3, pa.uint16()),
        "levels": pa.array([[0.0]] * 3, pa.list_(pa.float32())),
        "null": pa.array([None] * 3, pa.uint64()),
    }
    if fault in values:
        column = "offset" if fault == "null" else fault
        table = table.set_column(names.index(column), table.schema.field(column), values[fault])
    if fault in ("segment", "no segment"):
        table = table.replace_schema_metadata({"segment_samples": "0"} if fault == "segment" else {})
    bad = _with_footer(whole, table)
    if fault == "no Arrow":
        length = struct.unpack("<Q", whole[-20:-12])[0]
        junk = b"\x07" * length
        bad = whole[: -20 - length] + junk + struct.pack("<QI8s", length, zlib.crc32(junk), whole[-8:])
    (shard.parent / f"{shard.stem}-bad.shard").write_bytes(bad)
    count, store = readable(tmp_path)
    assert count == 6 and store.counters.damaged == 1


def test_a_damaged_entry_is_fixed_by_separating_the_clip_again(tmp_path):
    shard, whole = written(tmp_path)
    altered = bytearray(whole)
    altered[30] ^= 1
    shard.write_bytes(altered)
    with SeparatedStore(str(tmp_path), SETTINGS) as store:
        assert store.get_crop(KEYS[0], 0, 0, 20) is None
        assert store.levels(KEYS[0]) is None
        store.put(KEYS[0], CLIPS[0], LEVELS)
        np.testing.assert_array_equal(store.get_crop(KEYS[0], 0, 0, 20), CLIPS[0][0])
    count, fresh = readable(tmp_path)
    assert count == 6, "a later reader finds the damage and uses the second copy"
    assert fresh.counters.damaged == 1
    assert fresh.counters.hits == 6 and fresh.counters.misses == 0


def test_a_shard_removed_under_a_reader_is_a_miss(tmp_path):
    shard, _ = written(tmp_path)
    store = SeparatedStore(str(tmp_path), SETTINGS)
    shard.unlink()
    assert store.get_crop(KEYS[0], 0, 0, 20) is None
    assert store.levels(KEYS[1]) is None, "the whole shard is removed from the index"
    assert store.counters.damaged == 0
    assert store.counters.misses == 2


def test_large_footers_are_read(tmp_path):
    """Beyond 64 KiB the footer needs a second read; long random names make it incompressible."""
    with SeparatedStore(str(tmp_path), SETTINGS) as store:
        names = np.random.default_rng(0).bytes(2000 * 32)
        for n in range(2000):
            store.put(StoreKey(names[32 * n : 32 * n + 32].hex(), "F", "s"), CLIPS[0], LEVELS)
    (shard,) = (tmp_path / "shards").iterdir()
    assert len(footer(shard.read_bytes())) > 100_000
    store = SeparatedStore(str(tmp_path), SETTINGS)
    assert len(store) == 2000
    crop = store.get_crop(StoreKey(names[-32:].hex(), "F", "s"), 1, 0, 20)
    np.testing.assert_array_equal(crop, CLIPS[0][1])


def test_a_full_disk_keeps_no_partial_shard(tmp_path):
    """Files are limited to 4 KiB: the partial shard is removed and counted, and later shards are stored."""
    clip = np.random.default_rng(0).integers(-9, 9, (2, 20_000)).astype(np.int16)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    with SeparatedStore(str(tmp_path), SETTINGS) as store:
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
        try:
            for key in KEYS:
                store.put(key, clip, LEVELS)
            store.flush()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
        assert store.counters.dropped == 3 and all(key not in store for key in KEYS)
        store.put(KEYS[0], clip, LEVELS)
        store.flush()
        np.testing.assert_array_equal(store.get_crop(KEYS[0], 1, 0, 20_000), clip[1])
