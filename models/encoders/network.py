"""The seam for encoders: what a network must offer, and how it is built from a configuration.

Everything else in the package sees an encoder through this file: training, evaluation, bundles, MLflow and HEAR know
nothing of which one it is.

Shapes: B patches or clips, L frames, F mel bands, T samples, D embedding.
"""

from typing import Any, ClassVar, Protocol, runtime_checkable

import torch
from pydantic import BaseModel
from torch import Tensor, nn

from sepscene.models.config import SepsceneError
from sepscene.models.custom import CustomEncoder, EncoderChoice, settings_for, tried
from sepscene.models.names import ENCODERS, resolve
from sepscene.models.settings import FrontEndConfig, Reads


@runtime_checkable
class EncoderNetwork(Protocol):
    """A torch module that maps log-mels (B, L, F) or waveforms (B, T) to the representation h_BD.

    It is built as `Class(config)`. Except for batch norm in training, it must give a row the same h in any batch. It
    must draw no random numbers: a run is repeatable to the last bit, also when a worker is replaced in its middle.

    Attributes:
        Config: of the class, a pydantic model of its settings. It has `embedding_dim`, the size D of h, as a field or a
            property. Where it has `mel_bands`, the front-end must give as many; where it has `shortest_frames`, patches
            must not be shorter.
        reads: of the class, "log-mel" or "waveform".
    """

    Config: ClassVar[type[BaseModel]]
    reads: ClassVar[Reads]

    def __call__(self, sound: Tensor) -> Tensor:
        """Log-mels (B, L, F) or waveforms (B, T) to h_BD."""


def network_class(choice: EncoderChoice) -> Any:
    """The class of an encoder.

    Raises:
        SepsceneError: as `names.resolve`, or it lacks something that an encoder must have.
    """
    found = resolve(choice.use, ENCODERS, "encoder")
    reads = getattr(found, "reads", None)
    if not (isinstance(found, type) and issubclass(found, nn.Module)):
        raise SepsceneError(f"the encoder {choice.use} is not a class of torch modules (nn.Module)")
    if reads not in ("log-mel", "waveform"):
        raise SepsceneError(f'the encoder {choice.use} needs a class attribute reads, "log-mel" or "waveform"')
    return found


def settings_of(choice: EncoderChoice) -> Any:
    """The settings with which an encoder is built, with `embedding_dim`.

    Raises:
        SepsceneError: as `network_class`, or a custom one has no `Config`, or it refuses the fields that were given.
    """
    if not isinstance(choice, CustomEncoder):
        return choice
    settings = settings_for(network_class(choice), choice, f"encoder {choice.use}")
    if not isinstance(getattr(settings, "embedding_dim", None), int):
        raise SepsceneError(f"the Config of the encoder {choice.use} needs embedding_dim, the size of h, as an int")
    return settings


def build_network(choice: EncoderChoice) -> nn.Module:
    """The encoder's network with fresh weights, drawn from torch's global generator.

    Raises:
        SepsceneError: as `settings_of`.
    """
    network: nn.Module = network_class(choice)(settings_of(choice))
    return network


def with_defaults(choice: EncoderChoice) -> EncoderChoice:
    """The choice with all settings of its encoder, those that were left to their defaults included.

    Raises:
        SepsceneError: as `settings_of`.
    """
    if not isinstance(choice, CustomEncoder):
        return choice
    return CustomEncoder(use=choice.use, **settings_of(choice).model_dump(mode="json"))


def misfit(choice: EncoderChoice, front_end: FrontEndConfig, seconds: float) -> str:
    """Why an encoder cannot read patches of this many seconds from a front-end; empty when it can.

    Raises:
        SepsceneError: as `settings_of`.
    """
    settings = settings_of(choice)
    frames = front_end.frames(round(seconds * front_end.sample_rate))
    bands = getattr(settings, "mel_bands", front_end.mel_bands)
    if bands != front_end.mel_bands:
        ours = front_end.mel_bands
        return f"front_end.mel_bands {ours} and the encoder's mel_bands {bands} differ: set both to one number"
    shortest = getattr(settings, "shortest_frames", 1)
    if frames < shortest:
        return f"sound of {seconds:g} s has {frames} frames, the encoder needs {shortest}: lengthen it"
    return ""


def check_network(choice: EncoderChoice, front_end: FrontEndConfig, seconds: float) -> str:
    """Try a custom encoder on two patches of noise, before a run is built on it.

    Returns:
        A warning, or nothing.

    Raises:
        SepsceneError: it does not fit the front-end, fails, or gives something else than finite (B, D) floats.
    """
    if why := misfit(choice, front_end, seconds):
        raise SepsceneError(f"encoder: {why}")
    if not isinstance(choice, CustomEncoder):
        return ""
    samples = round(seconds * front_end.sample_rate)
    logmel = network_class(choice).reads == "log-mel"
    shape = (2, front_end.frames(samples), front_end.mel_bands) if logmel else (2, samples)
    said = f"the encoder {choice.use}"
    with tried(said, f"an input of {shape}"), torch.random.fork_rng(devices=[]), torch.no_grad():
        network = build_network(choice)
        sound = 0.1 * torch.randn(shape)
        h_BD = network(sound)
        again_BD = network(sound)
    wanted = (2, settings_of(choice).embedding_dim)
    if not isinstance(h_BD, Tensor) or tuple(h_BD.shape) != wanted or not h_BD.isfinite().all():
        what = f"a tensor of {tuple(h_BD.shape)}" if isinstance(h_BD, Tensor) else f"a {type(h_BD).__name__}"
        raise SepsceneError(f"{said} gives {what} for two patches, not finite numbers of {wanted}")
    if torch.equal(h_BD, again_BD):
        return ""
    return (
        f"{said} draws random numbers of its own (dropout?): results are not repeatable, and "
        "training.microbatch gives wrong gradients"
    )
