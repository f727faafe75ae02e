"""The complete encoder, from waveform to representation h, and the bundle in which it is stored.

An encoder bundle is a folder of weights (`models.weights`): `config.json` (sizes, front-end, SHA-256 of the weights,
facts of the model card), `model.safetensors` and `README.md`, the model card.

Shapes: B clips, T samples, P patches, L frames, F mels, D embedding.
"""

import logging
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import Field, SerializerFunctionWrapHandler, field_serializer, model_validator
from torch import Tensor, nn

from sepscene.models.card import CARD_FILE, WEIGHTS_FILE, WeightsCard, read_card
from sepscene.models.config import CheckpointError, Config, SepsceneError, validated
from sepscene.models.custom import CustomEncoder, EncoderChoice
from sepscene.models.encoders.frontend import LogMel
from sepscene.models.encoders.model_card import model_card
from sepscene.models.encoders.network import build_network, mismatch, network_class, settings_of, with_defaults
from sepscene.models.files import write_atomically
from sepscene.models.names import ENCODERS, package_of, resolve
from sepscene.models.settings import Cnn14Config, FrontEndConfig, Reads
from sepscene.models.sound import limited_sound
from sepscene.models.trust import CODE
from sepscene.models.weights import README, card_text, check_finite, read_network, serialised, write_folder

logger = logging.getLogger("sepscene")

MAX_BATCH_SECONDS = 60
"""Most seconds of sound in one forward pass of inference, but at least one clip."""
MLFLOW_SCHEMES = ("runs:/", "models:/", "mlflow-artifacts:/")


class EncoderConfig(Config):
    """All settings of an `Encoder`: everything but its weights."""

    front_end: FrontEndConfig = FrontEndConfig()
    trunk: EncoderChoice = Cnn14Config()
    patch_seconds: float = Field(0.96, gt=0, le=3600, description="length of the patches of a clip [open]")
    shortest_seconds: float = Field(0.96, gt=0, le=3600, description="shorter clips are zero-padded [open]")

    @model_validator(mode="after")
    def _parts_fit(self) -> "EncoderConfig":
        if self.shortest_seconds > self.patch_seconds:
            raise ValueError("shortest_seconds is longer than patch_seconds: patches would be cut from padding")
        # A custom encoder is checked when it is built: reading a card imports no custom code.
        if not isinstance(self.trunk, CustomEncoder):
            reason = mismatch(self.trunk, self.front_end, self.shortest_seconds)
            if reason:
                raise ValueError(reason)
        return self

    @field_serializer("trunk", mode="wrap")
    def _without_default_use(self, trunk: Any, serialise: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out the `use` of a CNN14, as in versions without other encoders: digests of bundles do not change."""
        return {key: value for key, value in serialise(trunk).items() if (key, value) != ("use", "cnn14")}

    @property
    def embedding_dim(self) -> int:
        """Size D of the representation h."""
        return int(settings_of(self.trunk).embedding_dim)

    @property
    def reads(self) -> Reads:
        """Input of the network."""
        return network_class(self.trunk).reads


class Encoder(nn.Module):
    """Front-end and network: wave_BT at `sample_rate` to h_BD. Networks that read waveforms get the sound itself.

    The h of a clip is the mean over its patches [open]. Patches do not overlap, except that the last one ends
    at the end of the clip, so that all samples are used and no silence is added. A clip shorter than a patch is a
    single patch, zero-padded to `shortest_seconds` if it is shorter than that. The default length is the patch of
    pre-training, 0.96 s; imported PANNs files have patches of 10 s, the length of PANNs' training clips.
    """

    def __init__(self, config: EncoderConfig, trunk: nn.Module | None = None) -> None:
        """Use `trunk`, the network of `config.trunk`, or build that network with random weights."""
        super().__init__()
        self.config = config.changed({"trunk": with_defaults(config.trunk)})
        self.front_end = LogMel(config.front_end)
        self.trunk = build_network(config.trunk) if trunk is None else trunk
        self._reads = self.config.reads

    @property
    def sample_rate(self) -> int:
        """Sample rate in Hz of the input."""
        return self.config.front_end.sample_rate

    @property
    def embedding_dim(self) -> int:
        """Size D of the representation h."""
        return self.config.embedding_dim

    scene_embedding_size = embedding_dim
    timestamp_embedding_size = embedding_dim
    """The names of `embedding_dim` in the HEAR interface."""

    @property
    def patch_samples(self) -> int:
        """Samples per patch."""
        return round(self.config.patch_seconds * self.sample_rate)

    @property
    def shortest_samples(self) -> int:
        """Samples to which a shorter clip is padded."""
        return round(self.config.shortest_seconds * self.sample_rate)

    def forward(self, wave_BT: Tensor | np.ndarray) -> Tensor:
        """Clips to h_BD, the mean over the patches of each clip, on the encoder's device.

        Gradients are computed only in training mode, `encoder.train()`.

        Args:
            wave_BT: array or tensor of floats with full scale 1, or of integers with the full scale of their type.

        Raises:
            SepsceneError: anything else, see `models.sound.limited_sound`.
        """
        sound_BT = limited_sound(wave_BT, self.front_end.window.device)
        with torch.set_grad_enabled(self.training and torch.is_grad_enabled()):
            patches_BPT = self.patches(sound_BT)
            h_BPD = self.encode_patches(patches_BPT.flatten(0, 1)).unflatten(0, patches_BPT.shape[:2])
            return h_BPD.mean(dim=1)

    def encode_patches(self, wave_BT: Tensor) -> Tensor:
        """Patches (B, T), of any length from `shortest_samples`, to h_BD.

        In evaluation mode at most a minute of sound is processed at a time, so that memory does not grow with the
        clip. In training mode the batch is not split, because batch norm uses its statistics.
        """
        if self.training:
            return self.trunk(self._network_input(wave_BT))
        batch = max(1, MAX_BATCH_SECONDS * self.sample_rate // wave_BT.shape[1])
        return torch.cat([self.trunk(self._network_input(part_BT)) for part_BT in wave_BT.split(batch)])

    def _network_input(self, wave_BT: Tensor) -> Tensor:
        """Log-mels, or the sound itself."""
        return self.front_end(wave_BT) if self._reads == "log-mel" else wave_BT

    def patches(self, wave_BT: Tensor) -> Tensor:
        """wave_BT to patches (B, P, T), as described for the class."""
        samples = wave_BT.shape[1]
        if samples <= self.patch_samples:
            return nn.functional.pad(wave_BT, (0, max(0, self.shortest_samples - samples)))[:, None]
        starts = [*range(0, samples - self.patch_samples, self.patch_samples), samples - self.patch_samples]
        return torch.stack([wave_BT[:, start : start + self.patch_samples] for start in starts], dim=1)


def save_encoder(encoder: Encoder, directory: Path | str, card: dict[str, Any]) -> str:
    """Write an encoder bundle and return the SHA-256 of its weights.

    Args:
        encoder: the encoder to save.
        directory: created if it does not exist; a bundle in it is replaced.
        card: facts for the model card: any of title, data, separator, combination, losses, steps, metrics
            ({name: {"value", "low", "high"}}), versions, license, notes. They are stored in config.json as metadata.

    Raises:
        CheckpointError: a weight is NaN or infinite, or `directory` contains something else.
    """
    directory = Path(directory)
    check_finite(encoder.trunk, directory)
    trunk = encoder.config.trunk
    architecture = trunk.use
    if isinstance(trunk, CustomEncoder):
        architecture = "own-encoder"
        card = card | {"code": package_of(trunk.use)}
    content = {"architecture": architecture, "config": encoder.config.model_dump(mode="json"), "metadata": card}
    readme = model_card(encoder.config, card)
    return write_folder(directory, content, serialised(encoder.trunk), readme=readme).sha256


def update_card(directory: Path | str, facts: dict[str, Any]) -> None:
    """Add or replace facts in the card of a bundle, e.g. the metrics after evaluation.

    Args:
        directory: the bundle; its weights are not changed.
        facts: see `card` of `save_encoder`.

    Raises:
        CheckpointError: config.json is missing, damaged or of another format.
    """
    directory = Path(directory)
    card, config = _read(directory)
    card = card.changed({"metadata": card.metadata | facts})
    write_atomically(directory / README, model_card(config, card.metadata).encode())
    write_atomically(directory / CARD_FILE, card_text(card).encode())


def load_encoder(dir_or_uri: Path | str, trust_code: bool = False) -> Encoder:
    """Load and verify an encoder bundle. The encoder is on the CPU and in evaluation mode.

    Example:
        >>> encoder = sepscene.load_encoder("runs/demo/encoder")
        >>> h_BD = encoder(torch.zeros(1, encoder.sample_rate))  # one second of silence

    Args:
        dir_or_uri: a folder, or an MLflow URI (`runs:/...`, `models:/...`, `mlflow-artifacts:/...`), which is
            downloaded with MLflow's command line.
        trust_code: trust the class of the bundle's custom encoder, if it has one, so that it can be imported.

    Raises:
        SepsceneError: a file is missing, damaged or of another format, weights are NaN or do not fit the
            configuration, or a custom encoder is not trusted or cannot be imported. The message names the file.
    """
    text = str(dir_or_uri)
    if text.startswith(MLFLOW_SCHEMES):
        with tempfile.TemporaryDirectory() as folder:
            return load_encoder(_fetch_from_mlflow(text, Path(folder)), trust_code)
    directory = Path(text.removeprefix("file://")).expanduser()
    card, config = _read(directory)
    if isinstance(config.trunk, CustomEncoder):
        if trust_code:
            CODE.grant(config.trunk.use)
        _import_custom(config.trunk.use, card, directory)
    trunk = read_network(directory, card, lambda: build_network(config.trunk))
    return Encoder(config, trunk).eval()


def read_encoder_config(directory: Path) -> EncoderConfig:
    """The configuration of the encoder in a bundle, without its weights.

    Raises:
        CheckpointError: config.json is missing or damaged, or its values do not define an encoder.
    """
    return _read(directory)[1]


def _read(directory: Path) -> tuple[WeightsCard, EncoderConfig]:
    card = read_card(directory)
    if card.architecture not in (*ENCODERS, "own-encoder"):
        raise CheckpointError(f"{directory} contains a separator ({card.architecture}), not an encoder")
    message = f"{directory / CARD_FILE} does not define an encoder, copy the bundle again"
    return card, validated(EncoderConfig, card.config, message, CheckpointError)


def _import_custom(use: str, card: WeightsCard, directory: Path) -> None:
    """Import the custom encoder of a bundle, and warn if the installed version differs from the bundle's.

    Raises:
        SepsceneError: the code is not trusted, or cannot be imported.
    """
    resolve(use, ENCODERS, "encoder")
    installed = package_of(use)
    code = card.metadata.get("code")
    version = code.get("version", "unknown") if isinstance(code, dict) else "unknown"
    if installed["version"] != version:
        text = "%s was saved with version %s of %s, but version %s is installed"
        logger.warning(text, directory, version, installed["package"], installed["version"])


def _fetch_from_mlflow(uri: str, folder: Path) -> Path:
    """Download an MLflow artifact and find the bundle in it.

    This runs MLflow's command line, because only orchestration/ may import MLflow: loading a folder does not need it.
    """
    arguments = ["artifacts", "download", "--artifact-uri", uri, "--dst-path", str(folder)]
    command = [sys.executable, "-m", "mlflow", *arguments]
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    if finished.returncode:
        reason = (finished.stderr.strip().splitlines() or ["no message"])[-1]
        raise SepsceneError(f"{uri} cannot be downloaded ({reason}): check the URI and MLFLOW_TRACKING_URI")
    found = [path.parent for path in sorted(folder.rglob(CARD_FILE)) if (path.parent / WEIGHTS_FILE).exists()]
    if len(found) != 1:
        raise SepsceneError(f"{uri} contains {len(found)} encoder bundles: give the URI of one of them")
    return found[0]
