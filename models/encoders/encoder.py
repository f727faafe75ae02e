"""The encoder as it leaves Sepscene: waveform in, representation h out, in a folder that describes itself.

An encoder bundle is a folder of weights (`models.weights`): `config.json` (sizes, front-end, SHA-256 of the weights,
the model card's facts), `model.safetensors` and `README.md`, the model card.

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

from sepscene.models.card import CARD_FILE, WEIGHTS_FILE, WeightsCard, read_card, validated
from sepscene.models.config import CheckpointError, Config, SepsceneError
from sepscene.models.custom import CustomEncoder, EncoderChoice
from sepscene.models.encoders.frontend import LogMel
from sepscene.models.encoders.model_card import model_card
from sepscene.models.encoders.network import build_network, misfit, network_class, settings_of, with_defaults
from sepscene.models.files import write_atomically
from sepscene.models.names import ENCODERS, is_custom, package_of, resolve
from sepscene.models.settings import Cnn14Config, FrontEndConfig, Reads
from sepscene.models.sound import limited_sound
from sepscene.models.trust import CODE
from sepscene.models.weights import README, card_text, check_finite, packed, read_network, write_folder

logger = logging.getLogger("sepscene")

SECONDS_AT_ONCE = 60
MLFLOW_SCHEMES = ("runs:/", "models:/", "mlflow-artifacts:/")


class EncoderConfig(Config):
    """All that is needed to build an `Encoder` around its weights."""

    front_end: FrontEndConfig = FrontEndConfig()
    trunk: EncoderChoice = Cnn14Config()
    patch_seconds: float = Field(0.96, gt=0, le=3600, description="a longer clip is cut into such patches [open; ours]")
    shortest_seconds: float = Field(0.96, gt=0, le=3600, description="shorter clips are padded to it [open; ours]")

    @model_validator(mode="after")
    def _parts_fit(self) -> "EncoderConfig":
        if self.shortest_seconds > self.patch_seconds:
            raise ValueError("shortest_seconds is longer than patch_seconds: a patch would be cut from padding")
        # A custom encoder is asked when it is built: a card is read without importing anybody's code.
        if not isinstance(self.trunk, CustomEncoder):
            why = misfit(self.trunk, self.front_end, self.shortest_seconds)
            if why:
                raise ValueError(why)
        return self

    @field_serializer("trunk", mode="wrap")
    def _as_ever(self, trunk: Any, serialise: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """A CNN14 is written as before there was another encoder: digests of bundles and of their outputs stay."""
        return {key: value for key, value in serialise(trunk).items() if (key, value) != ("use", "cnn14")}

    @property
    def embedding_dim(self) -> int:
        """Size D of the representation h."""
        return int(settings_of(self.trunk).embedding_dim)

    @property
    def reads(self) -> Reads:
        """What the network takes."""
        return network_class(self.trunk).reads


class Encoder(nn.Module):
    """Log-mel and network together: wave_BT at `sample_rate` to h_BD. A network that reads waveforms gets the sound.

    A clip is the mean over its patches [open; ours]: whole patches side by side from its start; the last
    one ends where the clip ends (and overlaps its neighbour), so that every sample counts and no silence is
    made up. A clip shorter than a patch is one patch by itself, zero-padded to `shortest_seconds`. The
    default is the patch of pre-training, 0.96 s; an imported PANNs file has patches of 10 s, its own
    training length.
    """

    def __init__(self, config: EncoderConfig, trunk: nn.Module | None = None) -> None:
        """Around `trunk`, the network of `config.trunk`; without it around one with fresh weights."""
        super().__init__()
        self.config = config.changed({"trunk": with_defaults(config.trunk)})
        self.front_end = LogMel(config.front_end)
        self.trunk = build_network(config.trunk) if trunk is None else trunk
        self._reads = self.config.reads

    @property
    def sample_rate(self) -> int:
        """Hz of the sound that this encoder reads."""
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
        """Samples of a patch."""
        return round(self.config.patch_seconds * self.sample_rate)

    @property
    def shortest_samples(self) -> int:
        """Samples to which a shorter clip is padded."""
        return round(self.config.shortest_seconds * self.sample_rate)

    def forward(self, wave_BT: Tensor | np.ndarray) -> Tensor:
        """Clips to h_BD, the mean over each clip's patches, on the encoder's device.

        Gradients are kept in training mode only: `encoder.train()`.

        Args:
            wave_BT: array or tensor of full scale 1, or of integers of their type's full scale.

        Raises:
            SepsceneError: for what is no such sound, see `models.sound.limited_sound`.
        """
        sound_BT = limited_sound(wave_BT, next(self.parameters()).device)
        with torch.set_grad_enabled(self.training and torch.is_grad_enabled()):
            patches_BPT = self.patches(sound_BT)
            h_BPD = self.encode_patches(patches_BPT.flatten(0, 1)).unflatten(0, patches_BPT.shape[:2])
            return h_BPD.mean(dim=1)

    def encode_patches(self, wave_BT: Tensor) -> Tensor:
        """Each row as one patch, of any length from `shortest_samples`, to h_BD.

        In evaluation mode at most a minute of sound is in the network at once, so that memory does not grow
        with the clip. Training needs the batch as a whole: batch norm looks across it.
        """
        if self.training:
            return self.trunk(self._heard(wave_BT))
        at_once = max(1, SECONDS_AT_ONCE * self.sample_rate // wave_BT.shape[1])
        return torch.cat([self.trunk(self._heard(part_BT)) for part_BT in wave_BT.split(at_once)])

    def _heard(self, wave_BT: Tensor) -> Tensor:
        """What the network takes: log-mels, or the sound itself."""
        return self.front_end(wave_BT) if self._reads == "log-mel" else wave_BT

    def patches(self, wave_BT: Tensor) -> Tensor:
        """wave_BT to patches (B, P, T) as the class describes them."""
        samples = wave_BT.shape[1]
        if samples <= self.patch_samples:
            return nn.functional.pad(wave_BT, (0, max(0, self.shortest_samples - samples)))[:, None]
        starts = [*range(0, samples - self.patch_samples, self.patch_samples), samples - self.patch_samples]
        return torch.stack([wave_BT[:, start : start + self.patch_samples] for start in starts], dim=1)


def save_encoder(encoder: Encoder, directory: Path | str, card: dict[str, Any]) -> str:
    """Write an encoder bundle; return the SHA-256 of its weights.

    Args:
        encoder: what to save; its weights must be finite.
        directory: made if need be; an older bundle in it is replaced.
        card: facts for the model card: any of title, data, separator, combination, losses, steps, metrics
            ({name: {"value", "low", "high"}}), versions, license, notes. Kept as they are in config.json, as metadata.

    Raises:
        CheckpointError: when a weight is NaN or infinite, or `directory` holds something else.
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
    return write_folder(directory, content, packed(encoder.trunk), readme=readme).sha256


def update_card(directory: Path | str, facts: dict[str, Any]) -> None:
    """Add facts to the card of a bundle, or replace them, e.g. the metrics once they are measured.

    Args:
        directory: the bundle; its weights stay as they are.
        facts: as the card of `save_encoder`.

    Raises:
        CheckpointError: when config.json is missing, damaged or of another format.
    """
    directory = Path(directory)
    card = _encoder_card(directory)
    card = card.changed({"metadata": card.metadata | facts})
    write_atomically(directory / README, model_card(read_encoder_config(directory), card.metadata).encode())
    write_atomically(directory / CARD_FILE, card_text(card).encode())


def load_encoder(dir_or_uri: Path | str, trust_code: bool = False) -> Encoder:
    """Load an encoder bundle, verified, on CPU and in evaluation mode.

    Example:
        >>> encoder = sepscene.load_encoder("runs/demo/encoder")
        >>> h_BD = encoder(torch.zeros(1, encoder.sample_rate))  # one second of silence

    Args:
        dir_or_uri: a folder, or an MLflow URI (`runs:/...`, `models:/...`, `mlflow-artifacts:/...`), which is
            fetched with MLflow's command line.
        trust_code: the user trusts the class of a custom encoder that the bundle names, which is then imported.

    Raises:
        SepsceneError: names the file and what is wrong: missing, damaged, another format, NaN weights, weights that do
            not fit the configuration, or a custom encoder whose code is not trusted or cannot be imported.
    """
    text = str(dir_or_uri)
    if text.startswith(MLFLOW_SCHEMES):
        with tempfile.TemporaryDirectory() as folder:
            return load_encoder(_fetch_from_mlflow(text, Path(folder)), trust_code)
    directory = Path(text.removeprefix("file://")).expanduser()
    config = read_encoder_config(directory)
    if trust_code and isinstance(config.trunk, CustomEncoder):
        CODE.grant(config.trunk.use)
    _import_custom(config.trunk.use, directory)
    trunk = read_network(directory, _encoder_card(directory), lambda: build_network(config.trunk))
    return Encoder(config, trunk).eval()


def read_encoder_config(directory: Path) -> EncoderConfig:
    """The configuration of the encoder in a bundle, without its weights.

    Raises:
        CheckpointError: when config.json is missing, damaged, or holds values that make no encoder.
    """
    said = f"{directory / CARD_FILE} makes no encoder, copy the bundle again"
    return validated(EncoderConfig, _encoder_card(directory).config, said, CheckpointError)


def _import_custom(use: str, directory: Path) -> None:
    """Import the custom encoder of a bundle, where it has one; warn when it is of another version than made the bundle.

    Raises:
        SepsceneError: the code is not trusted, or cannot be imported.
    """
    if not is_custom(use):
        return
    resolve(use, ENCODERS, "encoder")
    here = package_of(use)
    made_by = _encoder_card(directory).metadata.get("code", {}).get("version", "unknown")
    if here["version"] != made_by:
        text = "%s was made with version %s of %s; version %s is installed here"
        logger.warning(text, directory, made_by, here["package"], here["version"])


def _encoder_card(directory: Path) -> WeightsCard:
    card = read_card(directory)
    if card.architecture not in (*ENCODERS, "own-encoder"):
        raise CheckpointError(f"{directory} holds a separator ({card.architecture}), not an encoder")
    return card


def _fetch_from_mlflow(uri: str, folder: Path) -> Path:
    """Download an MLflow artifact and find the bundle in it.

    It runs MLflow's command line, because only orchestration/ may import MLflow, and a notebook that loads a
    folder should not need it.
    """
    arguments = ["artifacts", "download", "--artifact-uri", uri, "--dst-path", str(folder)]
    command = [sys.executable, "-m", "mlflow", *arguments]
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    if finished.returncode:
        reason = (finished.stderr.strip().splitlines() or ["no message"])[-1]
        raise SepsceneError(f"{uri} cannot be fetched ({reason}): check the URI and MLFLOW_TRACKING_URI")
    found = [path.parent for path in sorted(folder.rglob(CARD_FILE)) if (path.parent / WEIGHTS_FILE).exists()]
    if len(found) != 1:
        raise SepsceneError(f"{uri} holds {len(found)} encoder bundles: give the URI of one")
    return found[0]
