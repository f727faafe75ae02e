"""A package of somebody's own, written to a folder from which it can be imported: what the seams are tested with."""

import sys
from pathlib import Path

import pytest

SOURCE = '''
from pathlib import Path

import torch
from pydantic import BaseModel, Field
from torch import nn

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
        self.config = config
        self.first = nn.Conv1d(1, config.size, 64, 32)
        self.last = nn.Linear(config.size, config.embedding_dim)

    def forward(self, wave_BT):
        return self.last(self.first(wave_BT[:, None]).relu().mean(2))


class Dropping(MelNet):
    def forward(self, logmel_BLF):
        return nn.functional.dropout(super().forward(logmel_BLF))


class Wrong(MelNet):
    def forward(self, logmel_BLF):
        return super().forward(logmel_BLF)[:, :3]


class PullConfig(BaseModel):
    power: int = Field(2, ge=1)


class Pull(Term):
    """Mean distance of the pairs: nobody needs the others."""

    Config = PullConfig

    def __init__(self, config, sizes):
        super().__init__()
        self.config = config
        self.scale = nn.Parameter(torch.ones(sizes.embedding_dim))

    def share(self, h_1, h_2, local, everyone, start):
        return ((h_1 - h_2).abs() ** self.config.power * self.scale).sum() / max(1, len(everyone[0]))


class Endless(Pull):
    def share(self, *_):
        return torch.tensor(float("inf"))


class NoSettings(nn.Module):
    reads = "log-mel"
'''


def write_package(folder: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package `name` with the modules above in `nets`; trusted by nobody. Returns the mark of its import."""
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
