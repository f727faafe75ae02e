"""Writes small checkpoints in TensorFlow's format, and separates with them in float64, following the definition."""

import struct
from pathlib import Path

import numpy as np

from sepscene.models.separators.tf_bundle import crc32c, mask

Variables = dict[str, np.ndarray]


def draw_variables(window: int, coefficients: int, blocks: int, sources: int, seed: int = 0) -> Variables:
    """Float32 variables of a small TDCN++ with a learned basis, under the reference's names."""
    draws = np.random.default_rng(seed)
    width = 6
    hidden = 10

    def kernel(*shape: int) -> np.ndarray:
        return draws.normal(size=shape, scale=0.4)

    found = {
        "conv_encoder/dense/kernel": kernel(window, coefficients),
        "conv_decoder/dense_1/kernel": kernel(coefficients, window),
        "initial_dense/dense/kernel": kernel(coefficients, width),
        "initial_dense/dense/bias": kernel(width),
        "initial_dense/dense_scale/scale_layer": np.array(1.1),
        "dense/kernel": kernel(width, sources * coefficients),
        "mix_weights/dense/kernel": kernel(width, sources),
    }
    for index in range(blocks):
        block = f"improved_tdcn/conv_block_{index}/tdcn_block"
        found |= {
            f"{block}/dense1/dense/kernel": kernel(width, hidden),
            f"{block}/dense1/dense_scale/scale_layer": np.array(0.9),
            f"{block}/timeconv/separable_conv/depthwise_kernel": kernel(3, 1, hidden, 1),
            f"{block}/timeconv/separable_conv/bias": kernel(hidden),
            f"{block}/dense2/dense/kernel": kernel(hidden, width),
            f"{block}/dense2/dense_scale/scale_layer": np.array(0.8),
        }
        for norm in (1, 2):
            found[f"{block}/normact{norm}/prelu/prelu"] = np.array(0.1)
            found[f"{block}/normact{norm}/instance_norm/gamma"] = np.array([1.2])
            found[f"{block}/normact{norm}/instance_norm/beta"] = np.array([-0.1])
    return {name: value.astype(np.float32) for name, value in found.items()}


def separate(variables: Variables, wave_T: np.ndarray, hop: int, blocks_per_repeat: int) -> np.ndarray:
    """The definition of TDCN++ (docs/paper.md, "The reference TDCN++"), step by step: wave (T,) to (S, T), float64."""
    values = {name: value.astype(np.float64) for name, value in variables.items()}
    window = len(values["conv_encoder/dense/kernel"])
    frames = -(-(len(wave_T) - window) // hop) + 1
    padded_T = np.pad(wave_T.astype(np.float64), (0, (frames - 1) * hop + window - len(wave_T)))
    frame_LT = np.stack([padded_T[hop * frame : hop * frame + window] for frame in range(frames)])
    encoded_LC = np.maximum(frame_LT @ values["conv_encoder/dense/kernel"], 0)
    x_LW = encoded_LC @ values["initial_dense/dense/kernel"] + values["initial_dense/dense/bias"]
    x_LW = values["initial_dense/dense_scale/scale_layer"] * x_LW
    index = 0
    while (block := f"improved_tdcn/conv_block_{index}/tdcn_block") + "/dense1/dense/kernel" in values:
        x_LW = x_LW + _block(values, block, x_LW, 2 ** (index % blocks_per_repeat))
        index += 1
    sources = values["mix_weights/dense/kernel"].shape[1]
    mask_LSC = (1 / (1 + np.exp(-x_LW @ values["dense/kernel"]))).reshape(frames, sources, -1)
    out_LST = (mask_LSC * encoded_LC[:, None]) @ values["conv_decoder/dense_1/kernel"]
    separated_ST = np.zeros((sources, len(padded_T)))
    for frame in range(frames):
        separated_ST[:, hop * frame : hop * frame + window] += out_LST[frame]
    separated_ST = separated_ST[:, : len(wave_T)]
    share_S = np.exp(x_LW.mean(0) @ values["mix_weights/dense/kernel"])
    return separated_ST + (share_S / share_S.sum())[:, None] * (wave_T - separated_ST.sum(0))


def _block(values: Variables, block: str, x_LW: np.ndarray, dilation: int) -> np.ndarray:
    def norm(x_LH: np.ndarray, name: str) -> np.ndarray:
        x_LH = np.where(x_LH > 0, x_LH, values[f"{block}/{name}/prelu/prelu"] * x_LH)
        scaled_LH = (x_LH - x_LH.mean(0)) / np.sqrt(x_LH.var(0) + 1e-3)
        return values[f"{block}/{name}/instance_norm/gamma"] * scaled_LH + values[f"{block}/{name}/instance_norm/beta"]

    def dense(x: np.ndarray, name: str) -> np.ndarray:
        return values[f"{block}/{name}/dense_scale/scale_layer"] * (x @ values[f"{block}/{name}/dense/kernel"])

    taps_KH = values[f"{block}/timeconv/separable_conv/depthwise_kernel"][:, 0, :, 0]
    hidden_LH = np.pad(norm(dense(x_LW, "dense1"), "normact1"), ((dilation, dilation), (0, 0)))
    frames = len(x_LW)
    convolved_LH = sum(hidden_LH[tap * dilation : tap * dilation + frames] * taps_KH[tap] for tap in range(3))
    convolved_LH = convolved_LH + values[f"{block}/timeconv/separable_conv/bias"]
    return dense(norm(convolved_LH, "normact2"), "dense2")


def write_bundle(prefix: Path, variables: Variables, header: bytes = b"\x08\x01") -> None:
    """Write a checkpoint in the format of `tf.train.Saver`: one shard of tensors, and a LevelDB table as its index."""
    data = b""
    rows = {b"": header}
    for name, value in sorted(variables.items()):
        content = np.ascontiguousarray(value, "<f4").tobytes()
        shape = b"".join(_field(2, _message({1: size})) for size in value.shape)
        head = _message({1: 1}) + _field(2, shape) + _message({3: 0, 4: len(data), 5: len(content)})
        rows[name.encode()] = head + _tag(6, 5) + struct.pack("<I", mask(crc32c(content)))
        data += content
    table = _block_of_rows(rows)
    handles = {b"~": _varint(0) + _varint(len(table))}
    index_at = len(table) + 5
    index = _block_of_rows(handles)
    footer = _varint(0) + _varint(0) + _varint(index_at) + _varint(len(index))
    ends = [table + _trailer(table), index + _trailer(index), footer.ljust(40, b"\0")]
    Path(f"{prefix}.index").write_bytes(b"".join(ends) + struct.pack("<Q", 0xDB4775248B80FB57))
    Path(f"{prefix}.data-00000-of-00001").write_bytes(data)


def _block_of_rows(rows: dict[bytes, bytes]) -> bytes:
    lines = [_varint(0) + _varint(len(key)) + _varint(len(value)) + key + value for key, value in rows.items()]
    return b"".join(lines) + struct.pack("<II", 0, 1)


def _trailer(block: bytes) -> bytes:
    return b"\0" + struct.pack("<I", mask(crc32c(block + b"\0")))


def _message(numbers: dict[int, int]) -> bytes:
    return b"".join(_tag(key, 0) + _varint(value) for key, value in numbers.items())


def _field(key: int, content: bytes) -> bytes:
    return _tag(key, 2) + _varint(len(content)) + content


def _tag(key: int, kind: int) -> bytes:
    return _varint(key << 3 | kind)


def _varint(value: int) -> bytes:
    found = b""
    while value > 0x7F:
        found += bytes([value & 0x7F | 0x80])
        value >>= 7
    return found + bytes([value])
