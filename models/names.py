"""Resolves the names of classes and functions in configurations and bundles. No other module does this.

Exchangeable parts (encoders, loss terms, augmentations) have a short name if they are built in, and an import path
`package.module:Name` if they are custom. `name_of` checks the spelling when a configuration is read and imports
nothing. `resolve` imports them when a run starts, and custom code only if the user trusts it (`models.trust`).
"""

import platform
import re
from collections.abc import Collection, Mapping
from contextlib import suppress
from functools import cache
from importlib import import_module
from importlib.metadata import PackageNotFoundError, packages_distributions, version
from typing import Any

from sepscene.models.config import SepsceneError
from sepscene.models.spelling import unknown
from sepscene.models.trust import CODE

ENCODERS = {
    "cnn14": "sepscene.models.encoders.cnn14:Cnn14",
    "patch-transformer": "sepscene.models.encoders.patch_transformer:PatchTransformer",
}

TERMS = {
    "nt-xent": "sepscene.tasks.losses.terms:NtXent",
    "triplet": "sepscene.tasks.losses.terms:Triplet",
    "vicreg": "sepscene.tasks.losses.terms:Vicreg",
    "coincidence": "sepscene.tasks.losses.terms:Coincidence",
}

AUGMENTATIONS = {
    "specaugment": "sepscene.augment.augmentations.built_in:SpecAugmentation",
    "gain": "sepscene.augment.augmentations.built_in:Gain",
    "mix-back": "sepscene.augment.augmentations.built_in:MixBack",
    "crop-resize": "sepscene.augment.augmentations.built_in:CropResize",
}

_trust_all = False
"""Whether the command was given --trust-code."""


def is_custom(name: str) -> bool:
    """Whether a name is an import path of custom code."""
    return re.fullmatch(CODE.pattern, name) is not None


def name_of(value: Any, known: Collection[str], what: str) -> str:
    """The name that a configuration stores for a value of a field `use`.

    Args:
        value: a short name, an import path, or in Python the class or function itself. The latter is trusted in this
            process and those that it starts: its code has been imported already.
        known: the short names.
        what: kind of part, e.g. "encoder".

    Raises:
        ValueError: the value is none of these, or workers could not import it.
    """
    if callable(value):
        path = f"{value.__module__}:{getattr(value, '__qualname__', repr(value))}"
        if value.__module__ == "__main__" or not is_custom(path):
            raise ValueError(f"{path} cannot be imported by other processes: put it in a module, outside of functions")
        CODE.grant(path)
        return path
    if not isinstance(value, str) or not (value in known or is_custom(value)):
        if not known:
            raise ValueError(f"{value!r} is not an import path: write package.module:Name")
        raise ValueError(f"{unknown(str(value), known, what)}, or an import path package.module:Name")
    return value


def resolve(name: str, known: Mapping[str, str], what: str) -> Any:
    """Import the class or function of an import path, or of a short name whose import path is in `known`.

    Raises:
        SepsceneError: the name is unknown, the user does not trust its code, or it cannot be imported on this machine.
    """
    if name not in known:
        if not is_custom(name):
            raise SepsceneError(unknown(name, known, what))
        require_trust(name, what)
    module, _, attributes = known.get(name, name).partition(":")
    try:
        found: Any = import_module(module)
        for attribute in attributes.split("."):
            found = getattr(found, attribute)
    except Exception as error:  # custom code can raise any exception while it is imported
        raise SepsceneError(
            f"the {what} {name} cannot be imported on {platform.node()} ({type(error).__name__}: {error}): install its "
            "package there, and check the spelling"
        ) from error
    return found


def trust_all_code() -> None:
    """Trust, permanently, all custom code that this process imports from now on (`--trust-code`)."""
    global _trust_all
    _trust_all = True


def require_trust(name: str, what: str) -> None:
    """Check that the user trusts custom code.

    Raises:
        SepsceneError: the user does not; the message explains what trust means and how to give it.
    """
    if _trust_all and name not in CODE.entries():
        CODE.remember(name)
    if name not in CODE.entries():
        raise SepsceneError(
            f"the {what} {name} is code that does not come with Sepscene: importing it runs it with your permissions. "
            f"If you trust its author, add --trust-code to the command once (it is stored in {CODE.file}); in Python, "
            f"pass the class itself or call sepscene.trust_code({name!r}); on another machine, set {CODE.variable}"
        )


def trust_code(name: str) -> None:
    """Trust custom code, given by its import path, in this process and in the processes that it starts.

    Example:
        >>> sepscene.trust_code("mylab.nets:MyViT")
        >>> encoder = sepscene.load_encoder("encoders/of-a-colleague")

    Raises:
        SepsceneError: the name is not an import path.
    """
    if not is_custom(name):
        raise SepsceneError(f"{name!r} is not an import path: write package.module:Name")
    CODE.grant(name)


_distributions = cache(packages_distributions)


def package_of(name: str) -> dict[str, str]:
    """The origin of custom code: its import path, its distribution and the installed version.

    The version of a package that is not installed is its `__version__`, or "unknown".
    """
    top = name.partition(":")[0].partition(".")[0]
    with suppress(PackageNotFoundError):
        return {"use": name, "package": top, "version": version(top)}
    distributions = _distributions().get(top)  # slow: it reads all installed packages
    if distributions:
        return {"use": name, "package": distributions[0], "version": version(distributions[0])}
    return {"use": name, "package": top, "version": str(getattr(import_module(top), "__version__", "unknown"))}
