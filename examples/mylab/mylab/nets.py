"""An encoder: a recurrent network over the frames of the log-mel."""

from pydantic import BaseModel, Field
from torch import Tensor, nn


class MelGruConfig(BaseModel):
    """Sizes of the network."""

    mel_bands: int = 64
    width: int = Field(128, ge=1, description="features per frame and direction")
    embedding_dim: int = Field(128, ge=1, description="size of h")


class MelGru(nn.Module):
    """A bidirectional GRU; h is a linear map of the mean over the frames."""

    Config = MelGruConfig
    reads = "log-mel"

    def __init__(self, config: MelGruConfig) -> None:
        super().__init__()
        self.config = config
        self.frames = nn.GRU(config.mel_bands, config.width, batch_first=True, bidirectional=True)
        self.last = nn.Linear(2 * config.width, config.embedding_dim)

    def forward(self, logmel_BLF: Tensor) -> Tensor:
        """(B, L, F) to h (B, D)."""
        return self.last(self.frames(logmel_BLF)[0].mean(dim=1))
