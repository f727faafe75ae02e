"""What the names in a configuration or a bundle mean. Nothing else in the package looks a class up by its name.

What can be exchanged (encoders, loss terms, augmentations) has a short name where it comes with the package, and an
import path `package.module:Name` where it is a user's own. `name_of` checks the spelling when a configuration is read,
and imports nothing. `resolve` imports, when a run starts; custom code only where the user trusts it (`models.trust`).
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
    "specaugment": "sepscene.augment.augmentations.specaugment:SpecAugmentation",
    "gain": "sepscene.augment.augmentations.level:Gain",
    "mix-back": "sepscene.augment.augmentations.level:MixBack",
    "crop-resize": "sepscene.augment.augmentations.crop_resize:CropResize",
}

_accepting = False
"""Whether the command was given --trust-code."""


def is_custom(name: str) -> bool:
    """Whether a name is an import path, of code that does not come with the package."""
    return re.fullmatch(CODE.pattern, name) is not None


def name_of(value: Any, known: Collection[str], what: str) -> str:
    """The name that a configuration keeps for a value of a field `use`.

    Args:
        value: a short name, an import path, or from Python the class or function itself, which is then trusted in this
            process and those that it starts: whoever holds it has imported it.
        known: the short names.
        what: kind of thing, e.g. "encoder".

    Raises:
        ValueError: it is none of these, or workers could not import it.
    """
    if callable(value):
        path = f"{value.__module__}:{value.__qualname__}"
        if value.__module__ == "__main__" or not is_custom(path):
            raise ValueError(f"{path} cannot be imported by other processes: put it in a module, outside of functions")
        CODE.grant(path)
        return path
    if not isinstance(value, str) or not (value in known or is_custom(value)):
        if not known:
            raise ValueError(f"{value!r} is no import path: write package.module:Name")
        raise ValueError(f"{unknown(str(value), known, what)}, or an import path package.module:Name")
    return value


def resolve(name: str, known: Mapping[str, str], what: str) -> Any:
    """The class or function of a short name, for which `known` has the import path, or of an import path.

    Raises:
        SepsceneError: the name is unknown, the user does not trust its code, or this machine cannot import it.
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
    except Exception as error:  # code of a user may raise anything while it is imported
        raise SepsceneError(
            f"the {what} {name} cannot be imported on {platform.node()} ({type(error).__name__}: {error}): install its "
            "package there, and check the spelling"
        ) from error
    return found


def accept_code() -> None:
    """From now on the user trusts, for good, the custom code that this process is asked to import (`--trust-code`)."""
    global _accepting
    _accepting = True


def require_trust(name: str, what: str) -> None:
    """Refuse custom code that the user doesn't trust.

    Raises:
        SepsceneError: says what trust means and how it is given.
    """
    if _accepting and name not in CODE.entries():
        CODE.remember(name)
    if name not in CODE.entries():
        raise SepsceneError(
            f"the {what} {name} is code that does not come with Sepscene: importing it runs it, with all that you may "
            f"do. If you trust its author, add --trust-code to the command, once (it is kept in {CODE.file}); Python: "
            f"pass the class itself, or sepscene.trust_code({name!r}); another machine: set {CODE.variable}"
        )


def trust_code(name: str) -> None:
    """Trust custom code, by its import path, in this process and in those that it starts.

    Example:
        >>> sepscene.trust_code("mylab.nets:MyViT")
        >>> encoder = sepscene.load_encoder("encoders/of-a-colleague")

    Raises:
        SepsceneError: when it is no import path.
    """
    if not is_custom(name):
        raise SepsceneError(f"{name!r} is no import path: it looks like package.module:Name")
    CODE.grant(name)


_distributions = cache(packages_distributions)


def package_of(name: str) -> dict[str, str]:
    """Where custom code comes from: its import path, its distribution and the version that is installed here.

    A package that was not installed has the version that its `__version__` says, or "unknown".
    """
    top = name.partition(":")[0].partition(".")[0]
    for find in (lambda: top, lambda: _distributions()[top][0]):  # the second reads all that is installed
        with suppress(PackageNotFoundError, KeyError):
            distribution = find()
            return {"use": name, "package": distribution, "version": version(distribution)}
    return {"use": name, "package": top, "version": str(getattr(import_module(top), "__version__", "unknown"))}
