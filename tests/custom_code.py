"""A package of custom code, written to a folder from which it can be imported, for tests of custom parts."""

import sys
from pathlib import Path

import pytest

SOURCE = '''
from pathlib import Path

import numpy
import torch
from pydantic import BaseModel, Field
from torch import nn

from sepscene.augment.augmentations.augmentation import Augmentation
from sepscene.augment.augmentations.settings import Needs
from sepscene.tasks.losses.terms import Term

__version__ = "1.4"
Path(__file__).with_name("imported").touch()


class NetConfig(BaseModel):
    size: int = Field(4, ge=1)
    embedding_dim: int = 6


class MelNet(nn.Module):
    """Mean and deviation of each band, then two layers."""

    Config, reads = NetConfig, "log-mel"

    def __init__(self, config):
        super().__init__()
        self.config = config
        last = nn.Linear(config.size, config.embedding_dim)
        self.layers = nn.Sequential(nn.Linear(128, config.size), nn.ReLU(), last)

    def forward(self, logmel_BLF):
        return self.layers(torch.cat((logmel_BLF.mean(1), logmel_BLF.std(1)), 1))


class WaveNet(nn.Module):
    Config, reads = NetConfig, "waveform"

    def __init__(self, config):
        super().__init__()
        self.first = nn.Conv1d(1, config.size, 64, 32)
        self.last = nn.Linear(config.size, config.embedding_dim)

    def forward(self, wave_BT):
        return self.last(self.first(wave_BT[:, None]).relu().mean(2))


class Dropping(MelNet):
    def forward(self, logmel_BLF):
        return nn.functional.dropout(super().forward(logmel_BLF))


class Fixed(nn.Module):
    """Mean of the first bands, without weights."""

    Config, reads = NetConfig, "log-mel"

    def __init__(self, config):
        super().__init__()
        self.size = config.embedding_dim

    def forward(self, logmel_BLF):
        return logmel_BLF.mean(1)[:, : self.size]


class Tied(MelNet):
    """Two names for one weight, and a complex buffer, which torch.aminmax does not support."""

    def __init__(self, config):
        super().__init__(config)
        self.again = nn.Linear(128, config.size)
        self.again.weight = self.layers[0].weight
        self.register_buffer("phase", torch.ones(3, dtype=torch.complex64))

    def forward(self, logmel_BLF):
        return super().forward(logmel_BLF) * self.phase.abs().mean()


class AliasedConfig(BaseModel):
    size: int = Field(4, alias="units")
    embedding_dim: int = 6


class Aliased(MelNet):
    """The configuration has another name for a setting than the code."""

    Config = AliasedConfig


class Wrong(MelNet):
    def forward(self, logmel_BLF):
        return super().forward(logmel_BLF)[:, :3]


class PullConfig(BaseModel):
    power: int = Field(2, ge=1)


class Pull(Term):
    """Mean distance of the pairs, without negative pairs."""

    Config = PullConfig

    def __init__(self, config, sizes):
        super().__init__()
        self.config = config
        self.scale = nn.Parameter(torch.ones(sizes.embedding_dim))

    def share(self, h_1, h_2, local, gathered, start):
        return ((h_1 - h_2).abs() ** self.config.power * self.scale).sum() / max(1, len(gathered[0]))


class Endless(Pull):
    def share(self, *_):
        return torch.tensor(float("inf"))


class PullNoSettings(Term):
    pass


class FlipConfig(BaseModel):
    share: float = 0.5


class Flip(Augmentation):
    """Inverts the sign of some views."""

    Config, needs = FlipConfig, Needs("waveform", uniforms=1)

    def __call__(self, sound, uniforms, mixture):
        return torch.where(uniforms < self.config.share, -sound, sound)


class FlipNoSettings(Augmentation):
    needs = Needs("waveform", uniforms=1)


class NoSettings(nn.Module):
    reads = "log-mel"


class SplitConfig(BaseModel):
    sources: int = Field(2, ge=1)
    sample_rate: int = 16000


class Split(nn.Module):
    """Shares of the mixture."""

    Config = SplitConfig

    def __init__(self, config):
        super().__init__()
        self.sample_rate, self.sources = config.sample_rate, config.sources
        self.share = nn.Parameter(torch.rand(config.sources))

    def forward(self, wave_BT):
        return wave_BT[:, None] * self.share[:, None]


def halves(wave_BT, first=0.75):
    """A separator that uses numpy."""
    wave = wave_BT.cpu().numpy()
    return torch.from_numpy(numpy.stack([first * wave, (1 - first) * wave], 1))


halves.sample_rate, halves.sources = 16000, 2


class Chance(Split):
    def forward(self, wave_BT):
        return super().forward(wave_BT) * torch.rand(1)


class Neighbours(Split):
    def forward(self, wave_BT):
        return super().forward(wave_BT - wave_BT.mean(0))


class Flat(Split):
    def forward(self, wave_BT):
        return wave_BT


def quietest(mixture_T, separated_ST, sharpness=1.0):
    """A fixed score: quieter channels are more probable."""
    return -sharpness * separated_ST.square().sum(1).log()


def undefined(mixture_T, separated_ST):
    return separated_ST.sum(1) * float("nan")


def one(mixture_T, separated_ST):
    return 1.0


class Learned(nn.Module):
    """A score with trainable weights."""

    def __init__(self, size=8):
        super().__init__()
        self.first, self.last = nn.Conv1d(1, size, 64, 32), nn.Linear(size, 1)

    def forward(self, mixture_T, separated_ST):
        return self.last(self.first(separated_ST[:, None]).relu().mean(2))[:, 0]
'''


def write_package(folder: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Write a package `name`, not trusted, with the code above in `nets`; return the file that its import creates."""
    package = folder / name
    package.mkdir(parents=True)
    (package / "__init__.py").write_text('__version__ = "1.4"\n')
    (package / "nets.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(folder / "configuration"))
    monkeypatch.delenv("SEPSCENE_TRUSTED_CODE", raising=False)
    for module in [module for module in sys.modules if module.partition(".")[0] == name]:
        monkeypatch.delitem(sys.modules, module)
    return package / "imported"
