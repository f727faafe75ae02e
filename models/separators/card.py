"""What a separator folder says of itself: its card, read without a look at the weights, and without loading torch."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError

from sepscene.models.config import CheckpointError, Config

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"

Architecture = Literal["tdcnpp", "conv_tasnet", "program"]


class SeparatorCard(Config):
    """What `config.json` of a separator folder says."""

    format: Literal[1] = 1
    architecture: Architecture
    config: dict[str, Any] = Field(description="fields of the architecture's configuration class")
    metadata: dict[str, Any] = Field(default_factory=dict, description="where the weights come from; free form")
    weights: str = Field(pattern=r"^\w[\w.]*$", description="name of the file of weights in the folder")
    sha256: str = Field(pattern="^[0-9a-f]{64}$", description="of the file of weights")

    @property
    def digest(self) -> str:
        """Names the function that the checkpoint computes: architecture, sizes and weights, not metadata."""
        content = {"architecture": self.architecture, "config": self.config, "sha256": self.sha256}
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def separator_digest(directory: str | Path) -> str:
    """The digest that names what the separator in `directory` computes; reads `config.json` only.

    Raises:
        CheckpointError: `config.json` is missing or can't be understood.
    """
    return read_card(directory).digest


def read_card(directory: str | Path) -> SeparatorCard:
    """The contents of `config.json`, without a look at the weights.

    Raises:
        CheckpointError: the file is missing or can't be understood.
    """
    path = Path(directory) / CONFIG_FILE
    try:
        return SeparatorCard.model_validate_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(
            f"{path} is missing: {Path(directory)} is not a separator folder; make one with "
            "`sepscene separator import`, or take it from a run's ladder/"
        ) from error
    except (ValidationError, UnicodeDecodeError, NotADirectoryError) as error:
        raise CheckpointError(f"{path} is not the description of a separator: {error}") from error
