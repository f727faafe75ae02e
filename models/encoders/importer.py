"""Encoders from and to PANNs' checkpoints (`.pth` of audioset_tagging_cnn), under PANNs' parameter names.

In PANNs, `fc1` with a ReLU makes the 2048-d `embedding`, and `fc_audioset` makes `clipwise_output` from it.
Here `fc1` is the bottleneck (`embedding`, with activation "relu") and `fc_audioset` the classifier
(`tags`), so the h of an imported file is its `embedding`.

Shapes: N frequencies, F mels.
"""

import hashlib
import io
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sepscene.models.card import validated
from sepscene.models.config import SepsceneError
from sepscene.models.encoders.cnn14 import Cnn14
from sepscene.models.encoders.encoder import Encoder, EncoderConfig, save_encoder
from sepscene.models.encoders.frontend import FRONT_ENDS, LogMel
from sepscene.models.files import write_atomically
from sepscene.models.settings import FrontEndConfig
from sepscene.models.spelling import unknown
from sepscene.models.state_dicts import read_state_dict, without_wrapper
from sepscene.models.weights import check_finite, load_weights

OUR_NAMES = {"fc1.": "embedding.", "fc_audioset.": "tags."}
FRONT_END_PREFIXES = ("spectrogram_extractor.", "logmel_extractor.")
PATCH_SECONDS = 10.0
SHORTEST_SECONDS = 0.96
"""PANNs was trained on clips of 10 s; the shortest is ours."""


def import_encoder(file: Path | str, front_end: str, out: Path | str) -> str:
    """Turn a PANNs CNN14 checkpoint into an encoder bundle; return the SHA-256 of its weights.

    Args:
        file: `{"model": state_dict}` as PANNs publishes it, or a bare state dict; with or without the buffers
            of its front-end. Read with `weights_only`, never unpickled.
        front_end: name of a preset in `FRONT_ENDS`; where the file holds its front-end's buffers they must
            agree.
        out: folder of the bundle.

    What the file doesn't tell is listed in the card, `models.card.read_card(out).metadata["assumed"]`.

    Raises:
        SepsceneError: when the file is missing, damaged, needs unpickling, is not a CNN14, holds NaN, or was
            trained with another front-end.
    """
    file = Path(file)
    if front_end not in FRONT_ENDS:
        raise SepsceneError(unknown(front_end, FRONT_ENDS, "front-end preset"))
    tensors, checkpoint = read_state_dict(file)
    tensors = without_wrapper(tensors, known="bn0.weight")
    buffers = {name: tensors.pop(name) for name in list(tensors) if name.startswith(FRONT_END_PREFIXES)}
    _refuse_other_front_end(buffers, front_end, file)
    encoder = Encoder(_config(checkpoint, tensors, FRONT_ENDS[front_end], file))
    load_weights(encoder.trunk, _renamed(tensors, OUR_NAMES), file)
    check_finite(encoder.trunk, file)
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    notes = f"Imported from `{file.name}` (SHA-256 {digest}) with the front-end preset `{front_end}`."
    assumed = [] if "sepscene" in checkpoint else _assumptions(front_end, bool(buffers))
    return save_encoder(encoder, out, {"title": "Imported CNN14", "notes": notes, "assumed": assumed})


def export_panns(encoder: Encoder, file: Path | str) -> None:
    """Write an encoder as a checkpoint under PANNs' names, for PANNs' custom classes and `import_encoder`.

    `{"model": state_dict, "sepscene": configuration}`; the front-end's buffers are part of it where PANNs
    can build that front-end. An encoder without a classifier has no `fc_audioset`.

    Raises:
        SepsceneError: when it is no CNN14, or a weight is NaN or infinite.
    """
    if not isinstance(encoder.trunk, Cnn14):
        raise SepsceneError(f"PANNs has no network like {encoder.config.trunk.described}: only a CNN14 can be exported")
    panns_names = {ours: theirs for theirs, ours in OUR_NAMES.items()}
    state = {name: tensor.detach().cpu() for name, tensor in encoder.trunk.state_dict().items()}
    check_finite(encoder.trunk, Path(file))
    model = front_end_buffers(encoder.config.front_end) | _renamed(state, panns_names)
    content = io.BytesIO()
    torch.save({"model": model, "sepscene": encoder.config.model_dump(mode="json")}, content)
    write_atomically(Path(file), content.getvalue())


@cache
def front_end_buffers(config: FrontEndConfig) -> dict[str, Tensor]:
    """The buffers that PANNs keeps of its front-end: windowed DFT as convolutions, and mel bands (N, F).

    Empty for a front-end that PANNs has no modules for (one that is not centred, in decibels, of one length).
    """
    if config.framing != "centred" or config.compression != "decibel" or config.fft_samples != config.window_samples:
        return {}
    sample = torch.arange(config.fft_samples, dtype=torch.float64)
    frequency = torch.arange(config.fft_samples // 2 + 1, dtype=torch.float64)
    angle = 2 * torch.pi / config.fft_samples * torch.outer(frequency, sample)
    window = torch.hann_window(config.window_samples, dtype=torch.float64)
    return {
        "spectrogram_extractor.stft.conv_real.weight": (angle.cos() * window)[:, None].float(),
        "spectrogram_extractor.stft.conv_imag.weight": (-angle.sin() * window)[:, None].float(),
        "logmel_extractor.melW": LogMel(config).bands_NF,
    }


def _config(
    checkpoint: dict[str, Any], tensors: dict[str, Tensor], front_end: FrontEndConfig, file: Path
) -> EncoderConfig:
    """The configuration that a file of ours carries, or the one that the shapes of a PANNs file tell."""
    said = f"{file} makes no encoder"
    if "sepscene" in checkpoint:
        config = validated(EncoderConfig, checkpoint["sepscene"], said)
        if config.front_end != front_end:
            raise SepsceneError(f"{file} was exported with another front-end: name the preset it was trained with")
        return config
    try:
        trunk = {
            "mel_bands": len(tensors["bn0.weight"]),
            "widths": tuple(len(tensors[f"conv_block{number}.conv1.weight"]) for number in range(1, 7)),
            "embedding_dim": len(tensors["fc1.weight"]),
            "activation": "relu",
            "classes": len(tensors["fc_audioset.weight"]) if "fc_audioset.weight" in tensors else None,
        }
    except KeyError as error:
        raise SepsceneError(
            f"{file} is not a CNN14: {error.args[0]} is missing; other PANNs networks won't do"
        ) from None
    fields = {"front_end": front_end, "trunk": trunk, "patch_seconds": PATCH_SECONDS}
    return validated(EncoderConfig, {**fields, "shortest_seconds": SHORTEST_SECONDS}, said)


def _assumptions(front_end: str, buffers: bool) -> list[str]:
    """What a PANNs file doesn't tell, one clause each."""
    assumed = [f"patch_seconds {PATCH_SECONDS:g} (the length of PANNs' training clips)"]
    assumed.append(f"shortest_seconds {SHORTEST_SECONDS:g} (shorter clips are padded to it)")
    return assumed if buffers else [f"front_end {front_end} (the file holds no buffers to check it against)", *assumed]


def _refuse_other_front_end(buffers: dict[str, Tensor], front_end: str, file: Path) -> None:
    """Compare the front-end's buffers in a file with those of the preset."""
    if not buffers or _agree(buffers, FRONT_ENDS[front_end]):
        return
    fitting = [name for name, config in FRONT_ENDS.items() if _agree(buffers, config)]
    advice = f"it was trained with {fitting[0]}, use that" if fitting else "none of the presets fits it"
    rate = FRONT_ENDS[front_end].sample_rate
    raise SepsceneError(f"{file} was not trained with the front-end {front_end} ({rate} Hz): {advice}")


def _agree(buffers: dict[str, Tensor], config: FrontEndConfig) -> bool:
    """Are these the buffers that PANNs would build for the front-end, up to other versions' rounding?"""
    expected = front_end_buffers(config)
    return all(
        name in expected
        and expected[name].shape == tensor.shape
        and bool((expected[name] - tensor).abs().max() <= 1e-3 * expected[name].abs().max())
        for name, tensor in buffers.items()
    )


def _renamed(tensors: dict[str, Tensor], prefixes: dict[str, str]) -> dict[str, Tensor]:
    """The tensors with the prefixes of their names exchanged."""
    renamed = {}
    for name, tensor in tensors.items():
        prefix = next((prefix for prefix in prefixes if name.startswith(prefix)), "")
        renamed[prefixes.get(prefix, "") + name.removeprefix(prefix)] = tensor
    return renamed
