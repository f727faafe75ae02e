"""Sepscene's own source files and custom code, as they are copied to clusters and into models.

Works in a checkout and in an installed package.
"""

import shutil
import sysconfig
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path

FOLDERS = ("models", "augment", "tasks", "orchestration", "clusters")

_COPIED = (".py", ".typed", ".yaml", ".sh", ".html", ".j2", ".css", ".js", ".json", ".svg")
"""Only files with these suffixes are copied, which excludes runs and secrets."""


def source_folder(name: str = "") -> Path:
    """The folder of `sepscene` itself, or of one of its parts (a name in FOLDERS)."""
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


def code_to_send(names: Iterable[str]) -> list[Path]:
    """The custom code that must be sent to other machines: top-level packages (folders) and modules (files).

    Installed packages are left out, because they are assumed to be installed there as well.

    Args:
        names: import paths, `package.module:Name`. Those that this machine cannot find are left out.
    """
    installed = {Path(sysconfig.get_path(name)).resolve() for name in ("purelib", "platlib", "stdlib")}
    found = set()
    for top in {name.partition(":")[0].partition(".")[0] for name in names}:
        spec = find_spec(top)
        if spec is not None and spec.origin is not None and Path(spec.origin).suffix == ".py" and top != "sepscene":
            file = Path(spec.origin).resolve()
            found.add(file.parent if file.name == "__init__.py" else file)
    return sorted(path for path in found if not installed & set(path.parents))


def copy_custom_code(folder: Path, names: Iterable[str]) -> list[Path]:
    """Copy what `code_to_send` returns into `folder`; returns the copies."""
    copies = []
    for path in code_to_send(names):
        target = folder / path.name
        if path.is_dir():
            _copy(path, target)
        else:
            shutil.copyfile(path, target)
        copies.append(target)
    return copies


def _copy(source: Path, target: Path, only_files: bool = False) -> None:
    for path in sorted(source.iterdir() if only_files else source.rglob("*")):
        if path.suffix in _COPIED and path.is_file() and not path.is_symlink():
            place = target / path.relative_to(source)
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, place)
