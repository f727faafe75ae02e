"""The card of a folder of weights: what it holds, read without a look at the weights and without loading torch.

Separators and encoders are kept alike: `config.json`, which is the card, one file of weights, and for encoders a
README. `models.weights` writes and reads the folders.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, Field, StringConstraints, ValidationError
from pydantic_core import from_json

from sepscene.models.config import CheckpointError, Config, SepsceneError

Model = TypeVar("Model", bound=BaseModel)

CARD_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
CARD_BYTES = 1 << 20
"""A larger card is refused unread: the folder may be a stranger's."""

OLD_ENCODER = "sepscene-encoder-1"

Architecture = Literal["cnn14", "patch-transformer", "own-encoder", "tdcnpp", "conv_tasnet", "program", "own-separator"]
"""Custom parts keep their first names here, `own-…`: digests of folders depend on them."""
ProcessorName = Annotated[str, StringConstraints(pattern=r"^\w[\w.-]{0,99}$")]
"""Of a separator's checkpoint. It becomes a part of paths, so nothing in it may lead elsewhere."""


class WeightsCard(Config):
    """What `config.json` of a folder of weights says."""

    format: Literal[1] = 1
    architecture: Architecture
    config: dict[str, Any] = Field(description="fields of the architecture's configuration class")
    metadata: dict[str, Any] = Field(default_factory=dict, description="where the weights come from; free form")
    weights: str = Field(pattern=r"^\w[\w.]{0,63}$", description="name of the file of weights in the folder")
    sha256: str = Field(pattern="^[0-9a-f]{64}$", description="of the file of weights")

    @property
    def digest(self) -> str:
        """Names the function that the weights compute: architecture, sizes and weights, not metadata."""
        content = {"architecture": self.architecture, "config": self.config, "sha256": self.sha256}
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def read_card(directory: str | Path) -> WeightsCard:
    """The card of a folder of weights. Encoder bundles of version 0.2 and older are understood, too.

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
            "`sepscene separator import` and `sepscene encoder import` make one, and each run has encoder/ and ladder/"
        ) from error
    if len(content) > CARD_BYTES:
        raise CheckpointError(f"{path} has more than {CARD_BYTES} bytes: it is not the card of a folder of weights")
    try:
        fields = from_json(content, allow_inf_nan=False)
    except ValueError as error:
        raise CheckpointError(f"{path} is damaged, it is not JSON (Invalid JSON: {error}): copy it again") from error
    said = f"{path} is not the description of a separator or an encoder"
    return validated(WeightsCard, _in_todays_form(fields), said, CheckpointError)


def dotted(location: tuple[int | str, ...]) -> str:
    """Where a fault is, as a dotted field; the tags with which pydantic marks the members of a union are left out."""
    return ".".join(str(part) for part in location if not str(part).startswith("<"))


def explain_validation(error: ValidationError) -> str:
    """One clause for each fault: the dotted field and what is wrong with it."""
    return "; ".join(
        f"{dotted(fault['loc']) or 'config'}: {fault['msg'].removeprefix('Value error, ')}" for fault in error.errors()
    )


def validated(model: type[Model], fields: Any, said: str, refusal: type[SepsceneError] = SepsceneError) -> Model:
    """The fields as the model.

    Raises:
        SepsceneError: the model refuses them; of the type `refusal`, with `said` in front.
    """
    try:
        return model.model_validate(fields)
    except ValidationError as error:
        raise refusal(f"{said}: {explain_validation(error)}") from None


def _in_todays_form(content: Any) -> Any:
    """The card of an old encoder bundle under today's names; anything else as it is."""
    if not isinstance(content, dict) or content.get("format") != OLD_ENCODER:
        return content
    return {
        "architecture": "cnn14",
        "config": content.get("config"),
        "metadata": content.get("card", {}),
        "weights": WEIGHTS_FILE,
        "sha256": content.get("sha256"),
    }
