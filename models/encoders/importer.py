"""Import and export of encoders as PANNs' checkpoints (`.pth` of audioset_tagging_cnn).

In PANNs, `fc1` with a ReLU computes the 2048-d `embedding`, and `fc_audioset` computes `clipwise_output` from it. Here
`fc1` is the bottleneck (`embedding`, with activation "relu") and `fc_audioset` the classifier (`tags`), so the h of an
imported file is PANNs' `embedding`.

Shapes: N frequencies, F mels.
"""

import hashlib
import io
import re
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sepscene.models.config import SepsceneError, validated
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
"""PANNs was trained on clips of 10 s; the shortest length is ours."""


def import_encoder(file: Path | str, front_end: str, out: Path | str) -> str:
    """Convert a PANNs CNN14 checkpoint to an encoder bundle and return the SHA-256 of its weights.

    Settings that the file does not contain are assumed; they are listed in the card,
    `models.card.read_card(out).metadata["assumed"]`.

    Args:
        file: `{"model": state_dict}` as published by PANNs, or a bare state dict; with or without the buffers of its
            front-end. It is read with `weights_only`, never unpickled.
        front_end: name of a preset in `FRONT_ENDS`. If the file contains the buffers of its front-end, they must match.
        out: folder of the bundle.

    Raises:
        SepsceneError: the file is missing, damaged, needs unpickling, is not a CNN14, contains NaN, or was trained with
            another front-end.
    """
    file = Path(file)
    if front_end not in FRONT_ENDS:
        raise SepsceneError(unknown(front_end, FRONT_ENDS, "front-end preset"))
    tensors, checkpoint = read_state_dict(file)
    tensors = without_wrapper(tensors, known="bn0.weight")
    buffers = {name: tensors.pop(name) for name in list(tensors) if name.startswith(FRONT_END_PREFIXES)}
    _check_front_end(buffers, front_end, file)
    encoder = Encoder(_config(checkpoint, tensors, FRONT_ENDS[front_end], file))
    load_weights(encoder.trunk, _renamed(tensors, OUR_NAMES), file)
    check_finite(encoder.trunk, file)
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    notes = f"Imported from `{file.name}` (SHA-256 {digest}) with the front-end preset `{front_end}`."
    assumed = []
    if "sepscene" not in checkpoint:
        assumed.append(f"patch_seconds {PATCH_SECONDS:g} (the length of PANNs' training clips)")
        assumed.append(f"shortest_seconds {SHORTEST_SECONDS:g} (shorter clips are padded to it)")
        if not buffers:
            assumed.insert(0, f"front_end {front_end} (the file has no buffers to check it against)")
    return save_encoder(encoder, out, {"title": "Imported CNN14", "notes": notes, "assumed": assumed})


def export_panns(encoder: Encoder, file: Path | str) -> None:
    """Write an encoder as a checkpoint with PANNs' parameter names, for PANNs' own classes and `import_encoder`.

    The file contains `{"model": state_dict, "sepscene": configuration}`. The state dict includes the buffers of the
    front-end if PANNs can build it, and `fc_audioset` if the encoder has a classifier.

    Raises:
        SepsceneError: the encoder is not a CNN14, or a weight is NaN or infinite.
    """
    if not isinstance(encoder.trunk, Cnn14):
        raise SepsceneError(
            f"PANNs has no network like {encoder.config.trunk.description}: only a CNN14 can be exported"
        )
    panns_names = {ours: theirs for theirs, ours in OUR_NAMES.items()}
    state = {name: tensor.detach().cpu() for name, tensor in encoder.trunk.state_dict().items()}
    check_finite(encoder.trunk, Path(file))
    model = front_end_buffers(encoder.config.front_end) | _renamed(state, panns_names)
    content = io.BytesIO()
    torch.save({"model": model, "sepscene": encoder.config.model_dump(mode="json")}, content)
    write_atomically(Path(file), content.getvalue())


@cache
def front_end_buffers(config: FrontEndConfig) -> dict[str, Tensor]:
    """The front-end's buffers in a PANNs file: the windowed DFT as convolutions, and the mel bands (N, F).

    Empty for a front-end that PANNs cannot build: PANNs needs centred framing, decibels, and a window of the FFT's
    length.
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
    """The configuration in a file exported by Sepscene, or one derived from the shapes in a PANNs file."""
    message = f"{file} does not define an encoder"
    if "sepscene" in checkpoint:
        config = validated(EncoderConfig, checkpoint["sepscene"], message)
        if config.front_end != front_end:
            raise SepsceneError(f"{file} was exported with another front-end: give the preset of its training")
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
            f"{file} is not a CNN14: {error.args[0]} is missing; other PANNs networks are not supported"
        ) from None
    except TypeError:
        raise SepsceneError(f"{file} is not a CNN14: a weight that gives its sizes has no axes") from None
    fields = {
        "front_end": front_end,
        "trunk": trunk,
        "patch_seconds": PATCH_SECONDS,
        "shortest_seconds": SHORTEST_SECONDS,
    }
    return validated(EncoderConfig, fields, message)


def _check_front_end(buffers: dict[str, Tensor], front_end: str, file: Path) -> None:
    """Raise an error if the front-end's buffers in a file, if there are any, differ from those of the preset."""
    if not buffers or _match(buffers, FRONT_ENDS[front_end]):
        return
    fitting = [name for name, config in FRONT_ENDS.items() if _match(buffers, config)]
    advice = f"it was trained with {fitting[0]}, use that" if fitting else "it matches none of the presets"
    rate = FRONT_ENDS[front_end].sample_rate
    raise SepsceneError(f"{file} was not trained with the front-end {front_end} ({rate} Hz): {advice}")


def _match(buffers: dict[str, Tensor], config: FrontEndConfig) -> bool:
    """Whether these are PANNs' buffers for the front-end, up to the rounding of different versions."""
    expected = front_end_buffers(config)
    return all(
        name in expected
        and expected[name].shape == tensor.shape
        and bool((expected[name] - tensor).abs().max() <= 1e-3 * expected[name].abs().max())
        for name, tensor in buffers.items()
    )


def _renamed(tensors: dict[str, Tensor], prefixes: dict[str, str]) -> dict[str, Tensor]:
    """The tensors with the prefixes of their names replaced."""
    for old, new in prefixes.items():
        tensors = {re.sub(f"^{re.escape(old)}", new, name): tensor for name, tensor in tensors.items()}
    return tensors
