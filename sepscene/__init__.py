"""Sepscene: self-supervised audio learning from automatically separated sound scenes, orchestrated on Ray.

The public names are those in `__all__`. They are documented, and CHANGELOG.md lists changes to them. Everything else
can change between versions. Each name is loaded when it is first used, because most processes of a run need neither
torch nor Ray.

Example:
    >>> import sepscene
    >>> run = sepscene.pretrain("demo")  # a few minutes on two CPU cores
    >>> encoder = sepscene.load_encoder(run / "encoder")
    >>> h_BD = encoder(wave_BT)  # (B, T) at 16 kHz to (B, D)
"""

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sepscene.models.config import SepsceneError
    from sepscene.models.encoders.encoder import load_encoder
    from sepscene.models.names import trust_code
    from sepscene.models.separators.folder import load_separator
    from sepscene.orchestration.api import embed, pretrain, sweep
    from sepscene.orchestration.config import Experiment
    from sepscene.orchestration.presets import named_experiment
    from sepscene.tasks.datasets.manifest import Clip
    from sepscene.tasks.datasets.python_clips import write_clips

__version__ = "0.2.0"

_PUBLIC = {
    "Clip": "tasks.datasets.manifest",
    "Experiment": "orchestration.config",
    "SepsceneError": "models.config",
    "embed": "orchestration.api",
    "load_encoder": "models.encoders.encoder",
    "load_separator": "models.separators.folder",
    "named_experiment": "orchestration.presets",
    "pretrain": "orchestration.api",
    "sweep": "orchestration.api",
    "trust_code": "models.names",
    "write_clips": "tasks.datasets.python_clips",
}
__all__ = [
    "Clip",
    "Experiment",
    "SepsceneError",
    "embed",
    "load_encoder",
    "load_separator",
    "named_experiment",
    "pretrain",
    "sweep",
    "trust_code",
    "write_clips",
]

_CHECKOUT = Path(__file__).resolve().parent.parent
if not (Path(__file__).parent / "models").is_dir() and (_CHECKOUT / "models").is_dir():
    # In a checkout or an uploaded working directory, the folders are next to this one instead of in it.
    __path__.append(str(_CHECKOUT))


def __getattr__(name: str) -> Any:
    """Load a public name when it is first used."""
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_PUBLIC[name]}"), name)


def __dir__() -> list[str]:
    """The public names, for tab completion."""
    return [*__all__, "__version__"]
