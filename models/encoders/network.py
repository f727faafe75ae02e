"""The interface of encoder networks, and how a network is built from a configuration.

The rest of the package uses encoders only through this interface: training, evaluation, bundles, MLflow and HEAR do not
depend on the kind of encoder.

Shapes: B patches or clips, L frames, F mel bands, T samples, D embedding.
"""

from typing import Any, ClassVar, Protocol, runtime_checkable

import torch
from pydantic import BaseModel
from torch import Tensor, nn

from sepscene.models.config import SepsceneError
from sepscene.models.custom import CustomEncoder, EncoderChoice, reporting_errors, settings_for
from sepscene.models.names import ENCODERS, resolve
from sepscene.models.settings import FrontEndConfig, Reads


@runtime_checkable
class EncoderNetwork(Protocol):
    """A torch module that maps log-mels (B, L, F) or waveforms (B, T) to the representation h_BD.

    It is built as `Class(config)`. Except for batch norm in training, the h of a row must not depend on the other rows
    of the batch. The network must not draw random numbers, so that a run is reproducible bit by bit, even if a worker
    is replaced during the run.

    Attributes:
        Config: class attribute, a pydantic model of the settings. It has `embedding_dim`, the size D of h, as a field
            or property. If it has `mel_bands`, the front-end must have the same number; if it has `shortest_frames`,
            patches must have at least this many frames.
        reads: class attribute, "log-mel" or "waveform".
    """

    Config: ClassVar[type[BaseModel]]
    reads: ClassVar[Reads]

    def __call__(self, sound: Tensor) -> Tensor:
        """Log-mels (B, L, F) or waveforms (B, T) to h_BD."""


def network_class(choice: EncoderChoice) -> Any:
    """Import the class of an encoder.

    Raises:
        SepsceneError: see `names.resolve`; or it is not a torch module with an attribute `reads`.
    """
    found = resolve(choice.use, ENCODERS, "encoder")
    reads = getattr(found, "reads", None)
    if not (isinstance(found, type) and issubclass(found, nn.Module)):
        raise SepsceneError(f"the encoder {choice.use} is not a subclass of torch.nn.Module")
    if reads not in ("log-mel", "waveform"):
        raise SepsceneError(f'the encoder {choice.use} needs a class attribute reads, "log-mel" or "waveform"')
    return found


def settings_of(choice: EncoderChoice) -> Any:
    """The settings with which an encoder is built; they have `embedding_dim`.

    Raises:
        SepsceneError: see `network_class`; or a custom encoder has no `Config`, or its fields are invalid.
    """
    if not isinstance(choice, CustomEncoder):
        return choice
    settings = settings_for(network_class(choice), choice, f"encoder {choice.use}")
    if not isinstance(getattr(settings, "embedding_dim", None), int):
        raise SepsceneError(f"the Config of the encoder {choice.use} needs an int embedding_dim, the size of h")
    return settings


def build_network(choice: EncoderChoice) -> nn.Module:
    """The encoder's network with random weights, drawn from torch's global generator.

    Raises:
        SepsceneError: see `settings_of`.
    """
    network: nn.Module = network_class(choice)(settings_of(choice))
    return network


def with_defaults(choice: EncoderChoice) -> EncoderChoice:
    """The choice with all settings of its encoder, including the defaults of a custom encoder.

    Raises:
        SepsceneError: see `settings_of`.
    """
    if not isinstance(choice, CustomEncoder):
        return choice
    return CustomEncoder(use=choice.use, **settings_of(choice).model_dump(mode="json", by_alias=True))


def mismatch(choice: EncoderChoice, front_end: FrontEndConfig, seconds: float) -> str:
    """The reason why an encoder cannot read patches of this length from a front-end; empty if it can.

    Raises:
        SepsceneError: see `settings_of`.
    """
    settings = settings_of(choice)
    frames = front_end.frames(round(seconds * front_end.sample_rate))
    bands = getattr(settings, "mel_bands", front_end.mel_bands)
    if bands != front_end.mel_bands:
        ours = front_end.mel_bands
        return f"front_end.mel_bands {ours} and the encoder's mel_bands {bands} differ: set both to the same number"
    shortest = getattr(settings, "shortest_frames", 1)
    if frames < shortest:
        return f"sound of {seconds:g} s has {frames} frames, the encoder needs {shortest}: lengthen it"
    return ""


def check_network(choice: EncoderChoice, front_end: FrontEndConfig, seconds: float) -> str:
    """Check that an encoder fits the front-end, and run a custom encoder on two patches of noise.

    Returns:
        A warning, or an empty text.

    Raises:
        SepsceneError: the encoder does not fit the front-end, fails, or returns anything but finite (B, D) floats.
    """
    if reason := mismatch(choice, front_end, seconds):
        raise SepsceneError(f"encoder: {reason}")
    if not isinstance(choice, CustomEncoder):
        return ""
    samples = round(seconds * front_end.sample_rate)
    logmel = network_class(choice).reads == "log-mel"
    shape = (2, front_end.frames(samples), front_end.mel_bands) if logmel else (2, samples)
    part = f"the encoder {choice.use}"
    with reporting_errors(part, f"an input of shape {shape}"), torch.random.fork_rng(devices=[]), torch.no_grad():
        network = build_network(choice)
        sound = 0.1 * torch.randn(shape)
        h_BD = network(sound)
        again_BD = network(sound)
    expected = (2, settings_of(choice).embedding_dim)
    if not isinstance(h_BD, Tensor) or tuple(h_BD.shape) != expected or not h_BD.isfinite().all():
        found = f"a tensor of shape {tuple(h_BD.shape)}" if isinstance(h_BD, Tensor) else f"a {type(h_BD).__name__}"
        raise SepsceneError(f"{part} returns {found} for two patches, not finite numbers of shape {expected}")
    if torch.equal(h_BD, again_BD):
        return ""
    return (
        f"{part} draws random numbers of its own (dropout?): results are not reproducible, and training.microbatch "
        "gives wrong gradients"
    )
