"""TensorFlow's checkpoint bundles: values, checksums, and an error for each kind of damage."""

import contextlib
import json
import shutil
import struct
from pathlib import Path

import numpy as np
import pytest

from sepscene.models.config import CheckpointError
from sepscene.models.separators.tf_bundle import TFBundle, crc32c, mask
from tests.models.separators.tensorflow_files import write_bundle

NAME = "model.ckpt-1234"


@pytest.fixture
def bundle(shared_dir: Path, tmp_path: Path) -> Path:
    """A copy of a reference checkpoint that a test can damage."""
    for path in (shared_dir / "reference/tdcnpp_small_m2").glob(f"{NAME}.*"):
        shutil.copyfile(path, tmp_path / path.name)
    return tmp_path / NAME


def bitwise_crc32c(data: bytes) -> int:
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = (crc >> 1) ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


@pytest.mark.parametrize("size", [0, 1, 31, 511, 512, 1023, 1024, 5001])
def test_crc32c_against_the_bitwise_definition(size):
    data = np.random.default_rng(size).bytes(size)
    assert crc32c(data) == bitwise_crc32c(data)


def test_crc32c_of_published_values():
    """The standard check value, and RFC 3720, B.4."""
    assert crc32c(b"123456789") == 0xE3069283
    assert crc32c(bytes(32)) == 0x8A9136AA
    assert crc32c(b"\xff" * 32) == 0x62A8AB43
    assert crc32c(bytes(range(32))) == 0x46DD794E
    assert crc32c(bytes(range(31, -1, -1))) == 0x113FDB5C
    assert mask(0) == 0xA282EAD8


def test_every_variable_is_read_with_its_shape(bundle, shared_dir):
    described = json.loads((shared_dir / "reference/tdcnpp_small_m2/config.json").read_text())["variables"]
    opened = TFBundle(bundle)
    assert {name: list(entry.shape) for name, entry in opened.entries.items()} == {
        name.removesuffix(":0"): shape for name, shape in described.items()
    }
    for name in opened.entries:
        value = opened.read(name)
        assert value.dtype == np.float32 and np.isfinite(value).all()


@pytest.mark.parametrize("ending", ["", ".index", ".data-00000-of-00001", ".meta"])
def test_the_prefix_can_have_the_ending_of_any_of_its_files(bundle, ending):
    assert "dense/kernel" in TFBundle(f"{bundle}{ending}").entries


def test_a_flipped_byte_of_the_data_is_found(bundle):
    shard = Path(f"{bundle}.data-00000-of-00001")
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 0x10
    shard.write_bytes(content)
    opened = TFBundle(bundle)
    middle = len(content) // 2
    hit = [name for name, at in opened.entries.items() if at.offset <= middle < at.offset + at.size]
    with pytest.raises(CheckpointError, match=rf"data-00000-of-00001 is damaged: the checksum of variable {hit[0]}"):
        opened.read(hit[0])
    for name in opened.entries.keys() - set(hit):
        opened.read(name)


def test_every_flipped_byte_of_the_index_is_found_or_harmless(bundle):
    """Only the handle of the (empty, unread) metaindex and the padding of the footer can change undetected."""
    index = Path(f"{bundle}.index")
    content = index.read_bytes()
    good = TFBundle(bundle).entries
    for position in range(0, len(content), 29):
        index.write_bytes(content[:position] + bytes([content[position] ^ 0x41]) + content[position + 1 :])
        with contextlib.suppress(CheckpointError):
            assert TFBundle(bundle).entries == good


@pytest.mark.parametrize("kept", [0, 10, 47, 1000, 3400])
def test_a_truncated_index_is_found(bundle, kept):
    index = Path(f"{bundle}.index")
    index.write_bytes(index.read_bytes()[:kept])
    with pytest.raises(CheckpointError, match=r"1234\.index is damaged or not a checkpoint index"):
        TFBundle(bundle)


def test_truncated_data_is_found(bundle):
    shard = Path(f"{bundle}.data-00000-of-00001")
    shard.write_bytes(shard.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match="truncated"):
        TFBundle(bundle).read("mix_weights/dense/kernel")


def test_missing_files_and_variables_are_named(bundle):
    with pytest.raises(CheckpointError, match="no variable nothing/here"):
        TFBundle(bundle).read("nothing/here")
    Path(f"{bundle}.data-00000-of-00001").unlink()
    with pytest.raises(CheckpointError, match="data-00000-of-00001 is missing"):
        TFBundle(bundle).read("dense/kernel")
    Path(f"{bundle}.index").unlink()
    with pytest.raises(CheckpointError, match="index is missing"):
        TFBundle(bundle)


@pytest.mark.parametrize("header", [b"\x0a\x01x", b"\x08\x01\x12\x01x", b"\x08\x01\x10\x01"])
def test_a_header_of_other_types_or_of_a_big_endian_machine_is_rejected(header, tmp_path):
    write_bundle(tmp_path / "model.ckpt-1", {}, header)
    with pytest.raises(CheckpointError, match=r"field \d is not a number|big-endian"):
        TFBundle(tmp_path / "model.ckpt-1")


def test_a_number_of_too_many_bytes_is_rejected(bundle):
    Path(f"{bundle}.index").write_bytes(b"\xff" * 40 + struct.pack("<Q", 0xDB4775248B80FB57))
    with pytest.raises(CheckpointError, match="is too long"):
        TFBundle(bundle)
