"""A user's own code in a configuration, by import path: what all kinds share; encoders, and what separates or scores.

Read without importing torch or anybody's code; `make` imports, where the user trusts it (`models.names`).
"""

import hashlib
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from functools import partial, update_wrapper
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, Tag, ValidationError, field_validator

from sepscene.models.card import explain_validation, read_card, validated
from sepscene.models.config import CheckpointError, Config, SepsceneError
from sepscene.models.names import ENCODERS, is_custom, name_of, package_of, resolve
from sepscene.models.settings import Cnn14Config, PatchTransformerConfig
from sepscene.models.spelling import unknown

_PART_NAME = re.compile(r"[a-z][a-z0-9_]*")


class CustomPart(Config):
    """Code of a user's own in the place of a part of the package: beside `use` the fields of its own settings.

    The fields are checked by that code when a run starts, not when the configuration is read.
    """

    model_config = ConfigDict(extra="allow")

    known: ClassVar[Collection[str]] = ()
    """Short names that the parts of the package have in its place."""
    what: ClassVar[str] = "class or function"

    use: str

    @field_validator("use", mode="before")
    @classmethod
    def _named(cls, use: Any) -> str:
        return name_of(use, cls.known, cls.what)

    @property
    def options(self) -> dict[str, Any]:
        """The fields beside those that Sepscene knows."""
        return dict(self.model_extra or {})

    @property
    def described(self) -> str:
        """In words, for cards and reports."""
        options = ", ".join(f"{name} {value}" for name, value in self.options.items())
        return f"{self.use} ({options})" if options else self.use


def tag_by_use(known: Collection[str], default: str | None = None) -> Callable[[Any], str]:
    """What tells the choices of a field apart: `<NAME>` for a known `use`, else `<custom>`.

    Args:
        known: the short names.
        default: the `use` of a value that says none.
    """

    def tag(value: Any) -> str:
        use = value.get("use", default) if isinstance(value, dict) else getattr(value, "use", default)
        return f"<{use}>" if isinstance(use, str) and use in known else "<custom>"

    return tag


def named_parts(
    given: Mapping[Any, Any], known: Collection[str], what: str, reserved: Collection[str], **implied: str
) -> dict[str, Any]:
    """Parts by names of the user's choice, as plain values, each with the `use` that its name implies.

    Args:
        given: name -> part, as in a configuration.
        known: short names of parts. Each is a name as well, with `_` for `-`, and implies itself.
        what: kind of thing, e.g. "loss term".
        reserved: names that no part can have.
        implied: further name -> `use`.

    Raises:
        ValueError: for a name that no part can have, or one that implies no `use` where none is given.
    """
    uses = {use.replace("-", "_"): use for use in known} | implied
    parts = {}
    for chosen, part in given.items():
        name = chosen.replace("-", "_") if chosen in known else chosen
        if not isinstance(name, str) or not _PART_NAME.fullmatch(name) or name in reserved:
            raise ValueError(f"the {what} cannot be called {name!r}: take another name of a-z, 0-9 and _")
        parts[name] = part.model_dump() if isinstance(part, Config) else part
        if isinstance(part, dict) and name in uses:
            parts[name] = {"use": uses[name], **part}
        elif isinstance(part, dict) and "use" not in part:
            raise ValueError(f"{unknown(name, known, what)}; or give it a `use`")
    return parts


class CustomEncoder(CustomPart):
    """An encoder that does not come with the package: its class by import path, and the fields of its `Config`."""

    known = ENCODERS
    what = "encoder"

    use: str = Field(
        description="package.module:Class, a `models.encoders.network.EncoderNetwork`; from Python the class itself"
    )


EncoderChoice = Annotated[
    Annotated[Cnn14Config, Tag("<cnn14>")]
    | Annotated[PatchTransformerConfig, Tag("<patch-transformer>")]
    | Annotated[CustomEncoder, Tag("<custom>")],
    Discriminator(tag_by_use(ENCODERS, "cnn14")),
]
"""A field of a configuration: `{use: …, …}`; without `use` it is CNN14. Tags are left out of messages."""


class CustomCode(CustomPart):
    """A class or a function of your own: its import path, beside it the fields that it is made with.

    A class with an attribute `Config`, a pydantic model, is made as `Class(Config(fields))`, any other class as
    `Class(**fields)`. A function gets the fields as keyword arguments whenever it is called.
    """

    use: str = Field(description="package.module:Name of a class or a function; from Python the thing itself")

    def __str__(self) -> str:
        return self.described


def as_custom(value: Any) -> Any:
    """`{use: …}` of what stands for it alone: an import path, a class or a function; anything else as it is."""
    return {"use": value} if callable(value) or (isinstance(value, str) and is_custom(value)) else value


def _tag(value: Any) -> str:
    return "<folder>" if isinstance(value, str) else "<custom>"


SeparatorChoice = Annotated[
    Annotated[str, Tag("<folder>")] | Annotated[CustomCode, Tag("<custom>")],
    Discriminator(_tag),
    BeforeValidator(as_custom),
]
"""A separator's folder, or code of your own: an import path, or `{use: package.module:Name, …}`."""


def settings_for(found: Any, choice: Any, said: str) -> Any:
    """What a class is built with: the choice itself, or for custom code its `Config` of the fields beside `use`.

    Raises:
        SepsceneError: custom code has no `Config`, or it refuses the fields; `said` names the part.
    """
    if not isinstance(choice, CustomPart):
        return choice
    config = _config_of(found)
    if config is None:
        raise SepsceneError(f"{said} needs a class attribute Config, a pydantic model of its settings")
    return validated(config, choice.options, said)


def _config_of(found: Any) -> type[BaseModel] | None:
    config = getattr(found, "Config", None)
    return config if isinstance(config, type) and issubclass(config, BaseModel) else None


def make(choice: CustomCode, what: str) -> Any:
    """What custom code stands for, the same wherever it is made: a callable; a torch module is in evaluation mode.

    `what` is the kind of thing, e.g. "separator".

    Raises:
        SepsceneError: its code is not trusted, cannot be imported here, or refuses the fields.
    """
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = _made(choice, what)
    return made.eval().requires_grad_(False) if isinstance(made, torch.nn.Module) else made


def _made(choice: CustomCode, what: str) -> Any:
    found = resolve(choice.use, {}, what)
    config = _config_of(found)
    try:
        if isinstance(found, type) and config:
            return found(config.model_validate(choice.options))
        if isinstance(found, type):
            return found(**choice.options)
    except ValidationError as error:
        raise SepsceneError(f"{what} {choice.use}: {explain_validation(error)}") from None
    except Exception as error:  # code of a user may raise anything
        raise SepsceneError(f"the {what} {choice} cannot be made ({type(error).__name__}: {error})") from error
    if not callable(found):
        raise SepsceneError(f"the {what} {choice.use} is neither a class nor a function")
    return update_wrapper(partial(found, **choice.options), found) if choice.options else found


@contextmanager
def tried(said: str, on: str) -> Iterator[None]:
    """Around the first calls of custom code: an error becomes a SepsceneError which says that `said` fails on `on`."""
    try:
        yield
    except SepsceneError:
        raise
    except Exception as error:  # code of a user may raise anything
        raise SepsceneError(f"{said} fails on {on}: {error}") from error


def identity(choice: CustomCode) -> dict[str, Any]:
    """What tells custom code from other code: import path, version of its package, SHA-256 of its file, and its fields.

    The file is the one of its module: what that imports from elsewhere counts by the version only.
    """
    module = import_module(choice.use.partition(":")[0])
    file = getattr(module, "__file__", None)
    content = Path(file).read_bytes() if file and Path(file).is_file() else b""
    facts = {**package_of(choice.use), "sha256": hashlib.sha256(content).hexdigest()}
    return {**facts, "options": choice.model_dump(mode="json", exclude={"use"})}


def separator_code(folder: str) -> str:
    """Import path of the custom separator in a folder; empty where it is another one, or cannot be read."""
    try:
        card = read_card(folder)
    except CheckpointError:
        return ""
    return str(card.config.get("use", "")) if card.architecture == "own-separator" else ""
