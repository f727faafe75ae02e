"""Imports separators of other projects as separator folders: `sepscene separator import`.

Supported are TensorFlow checkpoints of the reference TDCN++ (the published MixIT separators), state dicts of
`torchaudio.models.ConvTasNet`, and TorchScript or torch.export programs that map (B, T) to (B, S, T). Nothing is
unpickled.

Shapes: B clips, S sources, T samples.
"""

from __future__ import annotations

import hashlib
import zipfile
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from sepscene.models.config import CheckpointError, first_line, validated
from sepscene.models.files import BAD_ZIP
from sepscene.models.separators.folder import save_separator
from sepscene.models.separators.foreign import ConvTasNetConfig, ConvTasNetSeparator
from sepscene.models.separators.import_tdcnpp import Facts, ImportHints, read_tdcnpp
from sepscene.models.separators.programs import ProgramConfig, ProgramSeparator, read_program
from sepscene.models.state_dicts import read_state_dict, without_wrapper
from sepscene.models.trust import PROGRAMS
from sepscene.models.weights import load_weights

Kind = Literal["tensorflow", "conv_tasnet", "torchscript", "exported"]
HINTS: dict[Kind, set[str]] = {
    "tensorflow": {"blocks", "window_samples", "hop_samples", "consistency"},
    "conv_tasnet": {"blocks", "mask_activation"},
    "torchscript": set(),
    "exported": set(),
}
"""The hints that are used for each kind."""
MAX_SAMPLE_RATE = 1_000_000
"""Hz, as in the configurations of separators."""


def import_separator(
    source: str | Path, sample_rate: int, out: str | Path, hints: ImportHints | None = None, trust_code: bool = False
) -> str:
    """Import the separator of `source` as the separator folder `out` and return its digest.

    Args:
        source: prefix of a TensorFlow checkpoint (`…/model.ckpt-1234`), or a file: a Conv-TasNet's state dict
            (`.pt`, `.safetensors`), a TorchScript program (`.pt`) or an exported one (`.pt2`).
        sample_rate: hertz of the separator's input; no format contains it.
        out: folder to write; a separator in it is replaced.
        hints: settings that the weights don't determine. Settings that were assumed are listed in the folder's card,
            `models.card.read_card(out).metadata["assumed"]`.
        trust_code: trust the author of `source`, a TorchScript program, which can read and write files with the user's
            permissions. The program is added to the user's list of trusted programs (`models.trust`).

    Raises:
        CheckpointError: the file is damaged or of an unknown kind, a variable is unknown or missing (the message names
            it), a program isn't trusted or doesn't map (B, T) to (B, S, T), a hint is needed or has no effect, or the
            sample rate is not possible.
    """
    if not 0 < sample_rate <= MAX_SAMPLE_RATE:
        raise CheckpointError(f"the sample rate {sample_rate} must be between 1 and {MAX_SAMPLE_RATE} Hz")
    source = Path(source)
    hints = hints or ImportHints()
    kind = detect_kind(source)
    unused = hints.model_dump(exclude_none=True).keys() - HINTS[kind]
    if unused:
        raise CheckpointError(
            f"{source} is of kind {kind}, for which {', '.join(sorted(unused))} has no effect: omit it"
        )
    separator: nn.Module
    assumed: list[str] = []
    if kind == "tensorflow":
        separator, assumed = read_tdcnpp(source, sample_rate, hints)
    elif kind == "conv_tasnet":
        separator, assumed = _read_conv_tasnet(source, sample_rate, hints)
    else:
        separator = _read_program(source, sample_rate, kind, trust_code)
    return save_separator(separator, out, {"imported_from": source.name, "kind": kind, "assumed": assumed})


def detect_kind(source: Path) -> Kind:
    """The kind of separator in a file or under a prefix, by its contents.

    Raises:
        CheckpointError: there is no such file or prefix, or the file is damaged.
    """
    if source.suffix == ".index" or Path(f"{source}.index").is_file():
        return "tensorflow"
    if not source.is_file():
        raise CheckpointError(
            f"{source} is not a file, and {source}.index is missing: give a .pt, .pt2 or .safetensors file, or "
            "the prefix of a TensorFlow checkpoint (model.ckpt-1234)"
        )
    if not zipfile.is_zipfile(source):
        return "conv_tasnet"
    try:
        with zipfile.ZipFile(source) as archive:
            inner = [name.partition("/")[2] for name in archive.namelist()]
    except BAD_ZIP as error:
        raise CheckpointError(f"{source} is damaged ({error}): copy it again") from error
    if any(name.startswith("models/") for name in inner):
        return "exported"
    return "torchscript" if "constants.pkl" in inner else "conv_tasnet"


def _read_conv_tasnet(source: Path, sample_rate: int, hints: ImportHints) -> tuple[ConvTasNetSeparator, list[str]]:
    """The shapes of a state dict determine all sizes except the blocks per repeat and the mask's activation."""
    weights = without_wrapper(read_state_dict(source)[0], known="mask_generator.output_conv.weight")
    facts = Facts(source, hints.model_dump(exclude_none=True))

    def shape(name: str) -> tuple[int, int, int]:
        if name not in weights or weights[name].ndim != 3:
            raise CheckpointError(f"{source} has no weight {name} with three axes: is it a torchaudio ConvTasNet?")
        return tuple(weights[name].shape)  # type: ignore[return-value]

    coefficients, _, window = shape("encoder.weight")
    hidden, bottleneck, _ = shape("mask_generator.conv_layers.0.conv_layers.0.weight")
    _, _, kernel = shape("mask_generator.conv_layers.0.conv_layers.3.weight")
    outputs, _, _ = shape("mask_generator.output_conv.weight")
    total = sum(name.endswith(".skip_out.weight") for name in weights)
    if not total or not outputs >= coefficients > 0:
        raise CheckpointError(f"{source} has no complete mask_generator: is it a torchaudio ConvTasNet?")
    blocks = facts.blocks(total)
    sizes = {
        "sample_rate": sample_rate,
        "sources": outputs // coefficients,
        "window_samples": window,
        "coefficients": coefficients,
        "bottleneck": bottleneck,
        "hidden": hidden,
        "kernel": kernel,
        "blocks": blocks,
        "repeats": total // blocks,
        "mask_activation": facts.get("mask_activation", "sigmoid"),
    }
    config = validated(ConvTasNetConfig, sizes, f"{source} does not define a separator", CheckpointError)
    separator = ConvTasNetSeparator(config)
    load_weights(separator.network, weights, source)
    return separator, facts.assumed


def _read_program(
    source: Path, sample_rate: int, kind: Literal["torchscript", "exported"], trust_code: bool
) -> ProgramSeparator:
    """Load a program, and run it on clips of two lengths to find its number of sources."""
    content = source.read_bytes()
    if trust_code and kind == "torchscript":
        PROGRAMS.remember(hashlib.sha256(content).hexdigest())
    program = read_program(content, kind, source)
    sources = {_probe(program, source, clips, sample_rate + clips - 1) for clips in (1, 2)}
    if len(sources) != 1:
        raise CheckpointError(f"{source} gives {sorted(sources)} sources for clips of different lengths")
    fields = {"sample_rate": sample_rate, "sources": sources.pop(), "kind": kind}
    config = validated(ProgramConfig, fields, f"{source} does not define a separator", CheckpointError)
    return ProgramSeparator(config, content, program)


@torch.inference_mode()
def _probe(program: nn.Module, source: Path, clips: int, samples: int) -> int:
    """Run a program on noise, check its output, and return its number of sources."""
    wave_BT = torch.rand(clips, samples, generator=torch.Generator().manual_seed(0)) - 0.5
    try:
        separated_BST = program(wave_BT)
    except Exception as error:  # external code can raise any exception
        raise CheckpointError(
            f"{source} fails on clips of shape {tuple(wave_BT.shape)} ({first_line(error)}): a separator must accept "
            "any (B, T); export it with both sizes dynamic"
        ) from error
    if not isinstance(separated_BST, Tensor) or separated_BST.ndim != 3:
        raise CheckpointError(f"{source} doesn't return a tensor (B, S, T): wrap it so that it does")
    if (separated_BST.shape[0], separated_BST.shape[2]) != tuple(wave_BT.shape):
        raise CheckpointError(
            f"{source} maps {tuple(wave_BT.shape)} to {tuple(separated_BST.shape)}, not to (B, S, T): wrap it"
        )
    if not separated_BST.isfinite().all():
        raise CheckpointError(f"{source} returns NaN or infinite samples for noise of moderate level")
    return separated_BST.shape[1]
