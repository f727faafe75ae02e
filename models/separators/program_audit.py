"""Checks that an exported program (torch.export, `.pt2`) contains only tensors, and calls of the operators listed here.

torch's loader resolves any name, evaluates any symbolic size and unpickles. Therefore the archive is first read here,
and anything that is not on a list is rejected. The loader then gets an archive that is rewritten from the checked
content, so that it reads the same bytes.
"""

from __future__ import annotations

import ast
import io
import json
import math
import re
import zipfile
from pathlib import Path
from typing import Any

from sepscene.models.config import CheckpointError, first_line
from sepscene.models.files import BAD_ZIP
from sepscene.models.state_dicts import MAX_EXPANSION

MAX_GRAPH_BYTES = 64 << 20
"""Largest description of a graph; that of a TDCN++ has 2 MB."""

MAX_CONSTANT_SIZE = 1 << 28
"""Largest number of elements of a tensor of constant size that a program creates."""

MAX_EXPRESSION_NODES = 2_000
MAX_NUMBER = 1 << 63
MAX_EXPONENT = 8
"""Limits of a symbolic size; nested powers, for example, could take forever to evaluate."""

_LISTED = """
abs neg sign sqrt rsqrt exp exp2 expm1 log log2 log10 log1p sin cos tan asin acos atan atan2 sinh cosh tanh erf erfc
sigmoid log_sigmoid relu relu6 leaky_relu prelu elu selu celu gelu silu mish hardtanh hardsigmoid hardswish softplus
softshrink hardshrink threshold glu softmax _softmax log_softmax _log_softmax
add sub rsub mul div true_divide reciprocal pow square floor ceil round trunc frac clamp clamp_min clamp_max clip
maximum minimum fmod remainder floor_divide eq ne lt le gt ge logical_and logical_or logical_not logical_xor
bitwise_and bitwise_or bitwise_not bitwise_xor where masked_fill lerp addcmul addcdiv isnan isfinite isinf nan_to_num
complex view_as_complex view_as_real real imag conj _conj conj_physical resolve_conj resolve_neg angle polar
sum mean var std var_mean std_mean norm linalg_vector_norm max min amax amin aminmax argmax argmin prod any all
cumsum cumprod logsumexp topk sort argsort median
mm bmm matmul addmm baddbmm addbmm addmv linear einsum dot mv outer tensordot bilinear
convolution conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d _convolution
layer_norm native_layer_norm group_norm native_group_norm batch_norm native_batch_norm instance_norm rms_norm
_native_batch_norm_legit _native_batch_norm_legit_no_training _batch_norm_no_update
lstm gru rnn_tanh rnn_relu lstm_cell gru_cell embedding
scaled_dot_product_attention _scaled_dot_product_flash_attention_for_cpu
max_pool1d max_pool2d max_pool2d_with_indices avg_pool1d avg_pool2d adaptive_avg_pool1d adaptive_avg_pool2d
_adaptive_avg_pool2d adaptive_max_pool1d upsample_nearest1d upsample_nearest2d upsample_linear1d upsample_bilinear2d
pixel_shuffle pad constant_pad_nd reflection_pad1d reflection_pad2d replication_pad1d replication_pad2d
view reshape _unsafe_view view_copy expand expand_as broadcast_to permute transpose t numpy_T mT unsqueeze squeeze
flatten unflatten unfold select slice narrow split split_with_sizes chunk unbind cat concat stack flip roll
repeat repeat_interleave tile movedim moveaxis swapaxes contiguous clone alias detach view_as as_strided
lift_fresh_copy index index_select gather scatter scatter_add index_put index_add take_along_dim diagonal diag_embed
tril triu select_scatter slice_scatter im2col col2im copy fill zero
to _to_copy type_as float double zeros zeros_like ones ones_like full full_like new_zeros new_ones new_full
arange linspace scalar_tensor eye hann_window hamming_window
dropout native_dropout alpha_dropout feature_dropout
fft_fft fft_ifft fft_rfft fft_irfft fft_fft2 fft_ifft2 fft_rfft2 fft_irfft2 _fft_r2c _fft_c2r _fft_c2c stft istft
sym_size sym_numel sym_stride sym_storage_offset item _local_scalar_dense
_assert_async _assert_scalar _assert_tensor_metadata sym_constrain_range sym_constrain_range_for_size
"""
ATEN = frozenset(_LISTED.split())
"""Operators that compute with tensors and have no other effect; in-place variants and all overloads are allowed."""

_ATEN_CALL = re.compile(r"torch\.ops\.aten\.(\w+?)_?\.\w+")
_OTHER_CALLS = re.compile(
    r"torch\.ops\.prims\.(convert_element_type|view_of)\.\w+"
    r"|_operator\.(add|sub|mul|truediv|floordiv|mod|neg|pow|getitem|eq|ne|lt|le|gt|ge|and_|or_)"
    r"|torch\.(sym_(int|float|max|min|not|ite)|_sym_sqrt)|math\.(ceil|floor|trunc)"
)
_EXPRESSION_NAMES = re.compile(
    r"[su]\d+|Symbol|Integer|Rational|Float|Add|Mul|Pow|Mod|PythonMod|FloorDiv|CleanDiv|CeilDiv|CeilToInt|FloorToInt"
    r"|TruncToInt|ToFloat|IntTrueDiv|FloatTrueDiv|Max|Min|Abs|Where|Identity|Eq|Ne|Lt|Le|Gt|Ge|And|Or|Not"
    r"|Equality|Unequality|StrictLessThan|LessThan|StrictGreaterThan|GreaterThan"
)
_ASSUMPTIONS = {"positive", "nonnegative", "integer", "precision"}
_EXPRESSION_NODES = (
    ast.Expression, ast.Call, ast.Name, ast.Load, ast.Constant, ast.keyword, ast.UnaryOp, ast.USub, ast.UAdd,
    ast.Invert, ast.BinOp, ast.Add, ast.Sub, ast.Mult, ast.Div, ast.FloorDiv, ast.Mod, ast.BitAnd, ast.BitOr,
    ast.Compare, ast.Eq, ast.NotEq, ast.Lt, ast.LtE, ast.Gt, ast.GtE,
)  # fmt: skip
_NAMES = re.compile(r"[\w.]*")
_NAME_KEYS = {"name", "fqn", "forward_arg_names", "arg_name", "parameter_name", "buffer_name", "tensor_name"}
_IGNORED_KEYS = {"metadata", "guards_code"}
"""Comments, and code that is never executed here."""


def audited_archive(content: bytes, origin: Path) -> bytes:
    """Check the archive of an exported program, and return an archive rewritten from the checked content.

    Raises:
        CheckpointError: it is not such an archive, or contains anything but tensors and calls of the listed operators.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            files = _unpacked(archive, len(content), origin)
        graphs = [json.loads(files[name]) for name in files if re.search(r"/models/[^/]*\.json$", name)]
        for graph in graphs:
            _audit(graph, origin)
    except BAD_ZIP as error:
        raise CheckpointError(f"{origin} is not a torch.export program: {first_line(error)}") from error
    if not graphs:
        raise CheckpointError(f"{origin} contains no program in the format of torch.export.save: save it again")
    rewritten = io.BytesIO()
    with zipfile.ZipFile(rewritten, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return rewritten.getvalue()


def _unpacked(archive: zipfile.ZipFile, packed_bytes: int, origin: Path) -> dict[str, bytes]:
    """The archive's files; their sizes are checked before they are unpacked."""
    entries = archive.infolist()
    for entry in entries:
        if "/aotinductor/" in entry.filename or "custom_obj" in entry.filename:
            raise CheckpointError(
                f"{origin} contains compiled code or custom objects ({entry.filename}): export it without them"
            )
        if entry.filename.endswith(".json") and entry.file_size > MAX_GRAPH_BYTES:
            raise CheckpointError(f"{origin} is rejected: {entry.filename} has more than {MAX_GRAPH_BYTES} bytes")
    total = sum(entry.file_size for entry in entries)
    if total > MAX_EXPANSION * packed_bytes + MAX_GRAPH_BYTES:
        raise CheckpointError(f"{origin} is rejected: its {packed_bytes} bytes unpack to {total}")
    return {entry.filename: archive.read(entry) for entry in entries}


def _audit(node: Any, origin: Path, key: str = "") -> None:
    """Check all strings and all constant sizes of a graph, recursively; `key` is the key of the node in its parent."""
    if isinstance(node, dict):
        for name, value in node.items():
            if name not in _IGNORED_KEYS:
                _audit(value, origin, name)
    elif isinstance(node, list):
        sizes = [value for value in node if isinstance(value, int)]
        if key == "as_ints" and math.prod(max(1, abs(size)) for size in sizes) > MAX_CONSTANT_SIZE:
            raise CheckpointError(f"{origin} is rejected: it creates a tensor of the constant size {sizes}")
        for value in node:
            _audit(value, origin, key)
    elif isinstance(node, str) and not _allowed(key, node):
        raise CheckpointError(f"{origin} is rejected: its {key} {node[:120]!r} is not plain tensor computation")


def _allowed(key: str, text: str) -> bool:
    if key == "target":
        aten = _ATEN_CALL.fullmatch(text)
        return aten[1] in ATEN if aten else _OTHER_CALLS.fullmatch(text) is not None
    if key == "expr_str":
        return _harmless_size(text)
    if key in _NAME_KEYS:
        return _NAMES.fullmatch(text) is not None
    return "\n" not in text


def _harmless_size(text: str) -> bool:
    """Whether a symbolic size is a formula of known functions that is cheap to evaluate."""
    if len(text) >= 20 * MAX_EXPRESSION_NODES:
        return False
    try:
        nodes = list(ast.walk(ast.parse(text.strip(), mode="eval")))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    if len(nodes) > MAX_EXPRESSION_NODES:
        return False
    return all(isinstance(node, _EXPRESSION_NODES) and _harmless_part(node) for node in nodes)


def _harmless_part(node: ast.AST) -> bool:
    if isinstance(node, ast.Name):
        return _EXPRESSION_NAMES.fullmatch(node.id) is not None or node.id in ("true", "false")
    if isinstance(node, ast.keyword):
        return node.arg in _ASSUMPTIONS
    if isinstance(node, ast.Constant):
        if isinstance(node.value, str):
            return re.fullmatch(r"[su]\d{1,9}|-?\d{1,19}(\.\d{1,40})?", node.value) is not None
        return isinstance(node.value, bool | float) or (isinstance(node.value, int) and node.value <= MAX_NUMBER)
    if isinstance(node, ast.BinOp | ast.UnaryOp | ast.Compare):  # of numbers only: '9' * 10**9 would fill the memory
        parts = [part.value for part in ast.iter_child_nodes(node) if isinstance(part, ast.Constant)]
        return not any(isinstance(value, str) for value in parts)
    if isinstance(node, ast.Call):
        return isinstance(node.func, ast.Name) and (node.func.id != "Pow" or _small_power(node))
    return True


def _small_power(call: ast.Call) -> bool:
    """Whether a power has a small constant exponent and a base without another power."""
    if len(call.args) != 2 or call.keywords:
        return False
    base, exponent = call.args
    nested = any(isinstance(node, ast.Name) and node.id == "Pow" for node in ast.walk(base))
    functions = {node.id for node in ast.walk(exponent) if isinstance(node, ast.Name)}
    numbers = [node.value for node in ast.walk(exponent) if isinstance(node, ast.Constant)]
    small = all(isinstance(number, int) and number <= MAX_EXPONENT for number in numbers)
    return not nested and functions <= {"Integer", "Rational"} and small and len(numbers) <= 2
