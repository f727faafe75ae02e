"""Where Sepscene's own source files are, in a checkout and in an installed package alike."""

import shutil
from importlib.util import find_spec
from pathlib import Path

FOLDERS = ("models", "augment", "tasks", "orchestration", "clusters")

_COPIED = (".py", ".typed", ".yaml", ".sh", ".html", ".j2", ".css", ".js", ".json", ".svg")
"""Only these travel to a cluster or into a model: neither runs nor secrets can."""


def source_folder(name: str = "") -> Path:
    """The folder of `sepscene` itself, or of one of its parts.

    Args:
        name: one of FOLDERS; none for the package.
    """
    spec = find_spec(f"sepscene.{name}" if name else "sepscene")
    assert spec is not None and spec.origin is not None
    return Path(spec.origin).parent


def copy_source(folder: Path, parts: tuple[str, ...] = FOLDERS) -> Path:
    """Copy the package with some of its parts to `folder`/sepscene, in the layout of an installed package."""
    target = folder / "sepscene"
    _copy(source_folder(), target, only_files=True)
    for part in parts:
        _copy(source_folder(part), target / part)
    return target


def _copy(source: Path, target: Path, only_files: bool = False) -> None:
    for path in sorted(source.iterdir() if only_files else source.rglob("*")):
        if path.suffix in _COPIED and path.is_file() and not path.is_symlink():
            place = target / path.relative_to(source)
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, place)
