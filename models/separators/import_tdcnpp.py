"""Reads TensorFlow checkpoints of the reference TDCN++ (google-research/sound-separation) into a TDCNpp.

Sizes, number of sources and basis follow from the variables. Other settings (dilated blocks per repeat, framing of an
STFT, consistency without weights) come from hints, from the training configuration next to the checkpoint, or from the
published defaults. Assumed settings are returned, so that they can be stored with the network.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field

from sepscene.models.config import CheckpointError, Config, validated
from sepscene.models.files import parse_json
from sepscene.models.separators.tdcnpp import TDCNpp
from sepscene.models.separators.tf_bundle import TFBundle
from sepscene.models.settings import TDCNppConfig, stft_bins, whole_samples
from sepscene.models.weights import load_weights

_ENCODER = "conv_encoder/dense/kernel"
_MIX_WEIGHTS = "mix_weights/dense/kernel"
LEARNED_WINDOW_SECONDS = 0.0025
LEARNED_HOP_SECONDS = 0.00125
STFT_WINDOW_SECONDS = 0.032
STFT_HOP_SECONDS = 0.008
"""The framing of the published networks [code]."""
_SKIPPED = re.compile(  # optimiser slots, counters and moving averages
    r"(.*/)?(global_step|Adam(_\d+)?|beta[12]_power(_\d+)?|Momentum|RMSProp(_\d+)?|Adagrad|Ftrl(_\d+)?"
    r"|ExponentialMovingAverage|save_counter|learning_rate)|_CHECKPOINTABLE_OBJECT_GRAPH"
)
_NAMES = {
    "basis.analysis": _ENCODER,
    "basis.synthesis": "conv_decoder/dense_1/kernel",
    "basis.gamma": "layer_norm_on_mag/gamma",
    "basis.beta": "layer_norm_on_mag/beta",
    "mask": "dense/kernel",
    "mix_weights": _MIX_WEIGHTS,
}
_LEAVES = {
    "weight": "dense/kernel",
    "bias": "dense/bias",
    "scale": "dense_scale/scale_layer",
    "slope": "prelu/prelu",
    "gamma": "instance_norm/gamma",
    "beta": "instance_norm/beta",
    "depthwise.weight": "timeconv/separable_conv/depthwise_kernel",
    "depthwise.bias": "timeconv/separable_conv/bias",
}


class ImportHints(Config):
    """Settings that the weights don't determine. None: the default is used."""

    blocks: int | None = Field(default=None, ge=1, description="dilated blocks per repeat; published networks: 8")
    window_samples: int | None = Field(
        default=None, ge=2, description="STFT window; default round(0.032 * rate). Not needed for a learned window"
    )
    hop_samples: int | None = Field(
        default=None,
        ge=1,
        description="default round(0.00125 * rate) with a learned window of 2.5 ms, round(0.008 * rate) with an STFT",
    )
    consistency: Literal["magsq", "uniform"] | None = Field(
        default=None, description="of a TDCN++ without mix_weights; default magsq"
    )
    mask_activation: Literal["sigmoid", "relu"] | None = Field(
        default=None, description="of a Conv-TasNet; default sigmoid as in its class (conv_tasnet_base has relu)"
    )


@dataclass
class Facts:
    """Settings of one checkpoint: `known` from hints or the configuration next to it, or else `assumed`."""

    origin: Path
    known: dict[str, Any]
    assumed: list[str] = field(default_factory=list)

    def get(self, name: str, default: Any, reason: str = "") -> Any:
        """The known value of a setting, or else `default`, which is recorded in `assumed` with the reason."""
        if name in self.known:
            return self.known[name]
        self.assumed.append(f"{name} {default}" + (f" ({reason})" if reason else ""))
        return default

    def blocks(self, total: int) -> int:
        """Dilated blocks per repeat; the variables determine only their `total`.

        Raises:
            CheckpointError: the number is not known and 8 does not divide the total, or the known number does not.
        """
        if total % 8 and "blocks" not in self.known:
            raise CheckpointError(
                f"{self.origin} has {total} dilated blocks, but the number of blocks per repeat is not known (8 in "
                "the published networks): give it"
            )
        blocks = self.get("blocks", 8)
        if total % blocks:
            raise CheckpointError(f"{self.origin} has {total} dilated blocks, not a multiple of blocks {blocks}")
        return blocks


def read_tdcnpp(prefix: str | Path, sample_rate: int, hints: ImportHints) -> tuple[TDCNpp, list[str]]:
    """Return the network of a checkpoint, given by the prefix of its files, and the settings that were assumed.

    Raises:
        CheckpointError: a file is missing or damaged, a variable is missing or unknown (the message names it), or a
            hint is needed.
    """
    bundle = TFBundle(prefix)
    shapes = {name: entry.shape for name, entry in bundle.entries.items() if not _SKIPPED.fullmatch(name)}
    training = _training_configuration(bundle, sample_rate)
    facts = Facts(bundle.index, training | hints.model_dump(exclude_none=True))
    config = _sizes(shapes, sample_rate, facts)
    with torch.device("meta"):
        names = {tensorflow_name(ours): ours for ours in TDCNpp(config).state_dict()}
    unknown = sorted(shapes.keys() - names.keys())
    if unknown:
        listed = ", ".join(unknown[:8]) + (f" and {len(unknown) - 8} more" if len(unknown) > 8 else "")
        raise CheckpointError(f"{facts.origin} has the unknown variables {listed}: it isn't a TDCN++ as published")
    weights = {ours: _value(ours, bundle.read(name)) for name, ours in names.items()}
    network = TDCNpp(config)
    load_weights(network, weights, facts.origin)
    return network, facts.assumed


def tensorflow_name(ours: str) -> str:
    """The reference's name of a parameter of TDCNpp."""
    if ours in _NAMES:
        return _NAMES[ours]
    part, *inner, leaf = ours.split(".")
    if part == "initial":
        return f"initial_dense/{_LEAVES[leaf]}"
    if part == "skips":
        return f"improved_tdcn/res_dense_{inner[0]}/{_LEAVES[leaf]}"
    index, layer = inner
    block = f"improved_tdcn/conv_block_{index}/tdcn_block"
    if layer == "depthwise":
        return f"{block}/{_LEAVES[f'depthwise.{leaf}']}"
    return f"{block}/{layer.replace('norm', 'normact')}/{_LEAVES[leaf]}"


def _value(ours: str, value: np.ndarray) -> torch.Tensor:
    """Convert from Keras: kernels (inputs, outputs), depthwise kernels (taps, 1, channels, 1), scalars of any shape."""
    if value.ndim == 4 and value.size:
        value = value[:, 0, :, 0]
    if value.size == 1:
        value = value.reshape((1,) if ours.startswith("blocks.") and "norm" in ours else ())
    elif value.ndim == 2 and ours != "basis.synthesis":
        value = value.T
    return torch.from_numpy(value.astype(np.float32))


def _sizes(shapes: dict[str, tuple[int, ...]], sample_rate: int, facts: Facts) -> TDCNppConfig:
    def shape(name: str, rank: int) -> tuple[int, ...]:
        if name not in shapes:
            raise CheckpointError(f"{facts.origin} has no variable {name}: is it a TDCN++?")
        if len(shapes[name]) != rank or 0 in shapes[name]:
            raise CheckpointError(f"{facts.origin}: variable {name} has shape {shapes[name]}, not {rank} axes")
        return shapes[name]

    coefficients, bottleneck = shape("initial_dense/dense/kernel", 2)
    kernel, _, hidden, _ = shape(tensorflow_name("blocks.0.depthwise.weight"), 4)
    outputs = shape("dense/kernel", 2)[1]
    if outputs % coefficients:
        raise CheckpointError(
            f"{facts.origin}: the mask (dense/kernel) has {outputs} outputs, not a multiple of "
            f"{coefficients} coefficients; only separators of one microphone are supported"
        )
    indices = {int(found[1]) for name in shapes if (found := re.match(r"improved_tdcn/conv_block_(\d{1,9})/", name))}
    skips = [int(found[1]) for name in shapes if (found := re.match(r".*/res_dense_\d+_to_([1-9]\d{0,8})/", name))]
    blocks = min(skips) if skips else facts.blocks(max(indices) + 1)
    learned = _ENCODER in shapes
    if learned:
        window = shape(_ENCODER, 2)[0]
        hop = _learned_hop(window, sample_rate, facts)
    else:
        window, hop = _stft_framing(coefficients, sample_rate, facts)
    sizes = {
        "sample_rate": sample_rate,
        "sources": outputs // coefficients,
        "basis": "learned" if learned else "stft",
        "window_samples": window,
        "hop_samples": hop,
        "coefficients": coefficients,
        "bottleneck": bottleneck,
        "hidden": hidden,
        "repeats": (max(indices) + 1) // blocks,
        "blocks": blocks,
        "kernel": kernel,
        "skip_residual": bool(skips),
        "consistency": "pred_source" if _MIX_WEIGHTS in shapes else facts.get("consistency", "magsq"),
    }
    return validated(TDCNppConfig, sizes, f"{facts.origin} does not define a separator", CheckpointError)


def _learned_hop(window: int, sample_rate: int, facts: Facts) -> int:
    """Hop in samples of a learned basis whose window has this many samples.

    The reference converts window and hop from seconds and rounds them separately: at 22,050 Hz its 2.5 ms and 1.25 ms
    are 55 and 28 samples. A window of 2.5 ms is the published one, whose hop is known; for any other the hop is
    assumed.

    Raises:
        CheckpointError: a hint or the configuration next to the checkpoint contradicts the window.
    """
    stated = facts.known.get("window_samples", window)
    if stated != window:
        raise CheckpointError(
            f"{facts.origin} has a learned window of {window} samples, not window_samples {stated}: leave "
            "window_samples out, and check the sample rate"
        )
    if window == whole_samples(LEARNED_WINDOW_SECONDS, sample_rate):
        return facts.known.get("hop_samples", whole_samples(LEARNED_HOP_SECONDS, sample_rate))
    half_milliseconds = round(2000 * window / sample_rate)
    seconds = half_milliseconds / 2000
    if whole_samples(seconds, sample_rate) != window:
        seconds = window / sample_rate
    reason = f"half of the window's {1000 * seconds:.4g} ms, at {sample_rate} Hz"
    return facts.get("hop_samples", max(1, whole_samples(seconds / 2, sample_rate)), reason)


def _stft_framing(coefficients: int, sample_rate: int, facts: Facts) -> tuple[int, int]:
    """Window and hop of an STFT in samples, each rounded from seconds."""
    window = facts.get("window_samples", whole_samples(STFT_WINDOW_SECONDS, sample_rate), "32 ms")
    if stft_bins(window) != coefficients:
        raise CheckpointError(
            f"{facts.origin} was trained on {coefficients} STFT bins, but a window of {window} samples gives "
            f"{stft_bins(window)}: give the sample rate of its training, or window_samples"
        )
    return window, facts.get("hop_samples", whole_samples(STFT_HOP_SECONDS, sample_rate), "8 ms")


def _training_configuration(bundle: TFBundle, sample_rate: int) -> dict[str, Any]:
    """Settings from the training's config.json, if there is one next to the bundle."""
    path = bundle.prefix.with_name("config.json")
    if not path.is_file():
        return {}
    try:
        content = parse_json(path.read_bytes())
        hparams = content.get("hparams", {})
        rate = float(content.get("sample_rate", sample_rate))
        sizes = ImportHints(
            blocks=content.get("tdcn", {}).get("num_dilations"),
            window_samples=whole_samples(hparams["ws"], rate) if "ws" in hparams else None,
            hop_samples=whole_samples(hparams["hs"], rate) if "hs" in hparams else None,
        )
        consistency = hparams.get("mix_weights_type")
    except (ValueError, TypeError, AttributeError, OverflowError) as error:
        raise CheckpointError(f"{path}, next to the checkpoint, is not its configuration: {error}") from error
    if rate != sample_rate:
        raise CheckpointError(f"{path} has the sample rate {rate:g} Hz, not {sample_rate} Hz: give {rate:g}")
    return sizes.model_dump(exclude_none=True) | ({"consistency": consistency} if consistency else {})
