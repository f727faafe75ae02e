"""The card of a folder of weights: a description of its content that is read without loading the weights or torch.

Separators and encoders are stored in the same form: `config.json`, which is the card, one weights file, and for
encoders a README. `models.weights` writes and reads these folders.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, StringConstraints
from pydantic_core import from_json

from sepscene.models.config import CheckpointError, Config, validated

CARD_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
CARD_BYTES = 1 << 20
"""A larger card is rejected unread: the folder can come from an untrusted source."""

OLD_ENCODER = "sepscene-encoder-1"

Architecture = Literal["cnn14", "patch-transformer", "own-encoder", "tdcnpp", "conv_tasnet", "program", "own-separator"]
"""Custom parts keep their original names here, `own-…`, because digests of folders depend on them."""
ProcessorName = Annotated[str, StringConstraints(pattern=r"^\w[\w.-]{0,99}$")]
"""Name of a separator's checkpoint. It becomes part of paths, so it cannot contain a path separator or start with a
dot.
"""


class WeightsCard(Config):
    """Content of `config.json` in a folder of weights."""

    format: Literal[1] = 1
    architecture: Architecture
    config: dict[str, Any] = Field(description="fields of the architecture's configuration class")
    metadata: dict[str, Any] = Field(default_factory=dict, description="where the weights come from; free form")
    weights: str = Field(pattern=r"^\w[\w.]{0,63}$", description="name of the weights file in the folder")
    sha256: str = Field(pattern="^[0-9a-f]{64}$", description="of the weights file")

    @property
    def digest(self) -> str:
        """Identifies the function that the weights compute: architecture, sizes and weights, without metadata."""
        content = {"architecture": self.architecture, "config": self.config, "sha256": self.sha256}
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def read_card(directory: str | Path) -> WeightsCard:
    """Read the card of a folder of weights, also of encoder bundles of version 0.2 and older.

    Raises:
        CheckpointError: `config.json` is missing, too large, or not a card.
    """
    path = Path(directory) / CARD_FILE
    try:
        with path.open("rb") as file:
            content = file.read(CARD_BYTES + 1)
    except OSError as error:
        raise CheckpointError(
            f"{path} is missing or cannot be read ({error.strerror}): give the folder of a separator or an encoder; "
            "`sepscene separator import` and `sepscene encoder import` create one, each run has encoder/ and ladder/"
        ) from error
    if len(content) > CARD_BYTES:
        raise CheckpointError(f"{path} has more than {CARD_BYTES} bytes: it is not the card of a folder of weights")
    try:
        fields = from_json(content, allow_inf_nan=False)
    except ValueError as error:
        raise CheckpointError(f"{path} is damaged: it is not valid JSON ({error}); copy it again") from error
    message = f"{path} is not the description of a separator or an encoder"
    return validated(WeightsCard, _upgraded(fields), message, CheckpointError)


def _upgraded(content: Any) -> Any:
    """Convert the card of an old encoder bundle to the current form; return anything else unchanged."""
    if not isinstance(content, dict) or content.get("format") != OLD_ENCODER:
        return content
    return {
        "architecture": "cnn14",
        "config": content.get("config"),
        "metadata": content.get("card", {}),
        "weights": WEIGHTS_FILE,
        "sha256": content.get("sha256"),
    }
