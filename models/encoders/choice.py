"""Which encoder: one of those that come with the package, by its settings, or a user's own, by its import path.

Apart from the networks, as `models.settings`: a configuration is read without importing torch or anybody's code.
"""

from typing import Annotated, Literal

from pydantic import Discriminator, Field, Tag

from sepscene.models.names import ENCODERS
from sepscene.models.own import OwnPart, tag_by_use
from sepscene.models.settings import Cnn14Config, PatchTransformerConfig

Reads = Literal["log-mel", "waveform"]
"""What an encoder takes: log-mel patches (B, L, F), or waveforms (B, T) of full scale 1."""


class OwnEncoder(OwnPart):
    """An encoder that does not come with the package: its class by import path, and the fields of its `Config`."""

    known = ENCODERS
    what = "encoder"

    use: str = Field(
        description="package.module:Class, a `models.encoders.network.EncoderNetwork`; from Python the class itself"
    )


EncoderChoice = Annotated[
    Annotated[Cnn14Config, Tag("<cnn14>")]
    | Annotated[PatchTransformerConfig, Tag("<patch-transformer>")]
    | Annotated[OwnEncoder, Tag("<own>")],
    Discriminator(tag_by_use(ENCODERS, "cnn14")),
]
"""A field of a configuration: `{use: …, …}`; without `use` it is CNN14. Tags are left out of messages."""
