"""Which encoder: one of those that come with the package, by its settings, or a user's own, by its import path.

Apart from the networks, as `models.settings`: a configuration is read without importing torch or anybody's code.
"""

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Discriminator, Field, Tag, field_validator

from sepscene.models.config import Config
from sepscene.models.names import ENCODERS, name_of
from sepscene.models.settings import Cnn14Config, PatchTransformerConfig

Reads = Literal["log-mel", "waveform"]
"""What an encoder takes: log-mel patches (B, L, F), or waveforms (B, T) of full scale 1."""


class OwnEncoder(Config):
    """An encoder that does not come with the package: its class by import path, beside it the fields of its `Config`.

    The fields are checked by that class when a run starts, not when the configuration is read.
    """

    model_config = ConfigDict(extra="allow")

    use: str = Field(
        description="package.module:Class, a `models.encoders.network.EncoderNetwork`; from Python the class itself"
    )

    @field_validator("use", mode="before")
    @classmethod
    def _named(cls, use: Any) -> str:
        return name_of(use, ENCODERS, "encoder")

    @property
    def options(self) -> dict[str, Any]:
        """The fields of the encoder's own `Config`."""
        return dict(self.model_extra or {})

    @property
    def described(self) -> str:
        """In words, for cards and reports."""
        options = ", ".join(f"{name} {value}" for name, value in self.options.items())
        return f"{self.use} ({options})" if options else self.use


def _tag(value: Any) -> str:
    use = value.get("use", "cnn14") if isinstance(value, dict) else getattr(value, "use", "cnn14")
    return f"<{use}>" if isinstance(use, str) and use in ENCODERS else "<own>"


EncoderChoice = Annotated[
    Annotated[Cnn14Config, Tag("<cnn14>")]
    | Annotated[PatchTransformerConfig, Tag("<patch-transformer>")]
    | Annotated[OwnEncoder, Tag("<own>")],
    Discriminator(_tag),
]
"""A field of a configuration: `{use: …, …}`; without `use` it is CNN14. Tags are left out of messages."""
