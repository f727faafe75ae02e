"""Custom code in a configuration, by import path: the base of all kinds, encoders, and separators or channel scores.

Reading a configuration imports neither torch nor custom code. `instantiate` imports the code if the user trusts it
(`models.names`).
"""

import hashlib
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from functools import partial, update_wrapper
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, Tag, create_model, field_validator

from sepscene.models.card import read_card
from sepscene.models.config import CheckpointError, Config, Model, SepsceneError, validated
from sepscene.models.names import ENCODERS, is_custom, name_of, package_of, resolve
from sepscene.models.settings import Cnn14Config, PatchTransformerConfig
from sepscene.models.spelling import unknown

_PART_NAME = re.compile(r"[a-z][a-z0-9_]*")


class CustomPart(Config):
    """Custom code in place of a built-in part: `use` is its import path, all other fields are its own settings.

    The custom code validates these fields when a run starts, not when the configuration is read.
    """

    model_config = ConfigDict(extra="allow")

    known: ClassVar[Collection[str]] = ()
    """Short names of the built-in parts that it replaces."""
    what: ClassVar[str] = "class or function"
    """Kind of part, for error messages."""

    use: str

    @field_validator("use", mode="before")
    @classmethod
    def _named(cls, use: Any) -> str:
        return name_of(use, cls.known, cls.what)

    @property
    def options(self) -> dict[str, Any]:
        """The settings of the custom code."""
        return dict(self.model_extra or {})

    @property
    def description(self) -> str:
        """A description for cards and reports."""
        options = ", ".join(f"{name} {value}" for name, value in self.options.items())
        return f"{self.use} ({options})" if options else self.use


def tag_by_use(known: Collection[str], default: str | None = None) -> Callable[[Any], str]:
    """A discriminator of the choices of a field: `<NAME>` for a known `use`, else `<custom>`.

    Args:
        known: the short names.
        default: the `use` of a value that gives none.
    """

    def tag(value: Any) -> str:
        use = value.get("use", default) if isinstance(value, dict) else getattr(value, "use", default)
        return f"<{use}>" if isinstance(use, str) and use in known else "<custom>"

    return tag


def named_parts(
    given: Mapping[Any, Any], known: Collection[str], what: str, reserved: Collection[str], **implied: str
) -> dict[str, Any]:
    """Parts under names chosen by the user, as plain values. A missing `use` is derived from the name.

    Args:
        given: name -> part, as in a configuration.
        known: short names of parts. A part named like one of them, with `_` for `-`, uses it by default.
        what: kind of part, e.g. "loss term".
        reserved: names that are not allowed.
        implied: additional defaults, name -> `use`.

    Raises:
        ValueError: a name is not allowed or used twice, or a part has no `use` and its name implies none.
    """
    uses = {use.replace("-", "_"): use for use in known} | implied
    parts = {}
    for chosen, part in given.items():
        name = chosen.replace("-", "_") if chosen in known else chosen
        if not isinstance(name, str) or not _PART_NAME.fullmatch(name) or name in reserved:
            raise ValueError(f"the {what} cannot be called {name!r}: choose another name of a-z, 0-9 and _")
        if name in parts:
            raise ValueError(f"there are two parts with the name {name!r} (- and _ are the same): rename one")
        parts[name] = part.model_dump() if isinstance(part, Config) else part
        if isinstance(part, dict) and name in uses:
            parts[name] = {"use": uses[name], **part}
        elif isinstance(part, dict) and "use" not in part:
            raise ValueError(f"{unknown(name, known, what)}; or give it a `use`")
    return parts


class CustomEncoder(CustomPart):
    """A custom encoder: the import path of its class, and the fields of its `Config`."""

    known = ENCODERS
    what = "encoder"

    use: str = Field(
        description="package.module:Class of a `models.encoders.network.EncoderNetwork`; in Python, the class itself"
    )


EncoderChoice = Annotated[
    Annotated[Cnn14Config, Tag("<cnn14>")]
    | Annotated[PatchTransformerConfig, Tag("<patch-transformer>")]
    | Annotated[CustomEncoder, Tag("<custom>")],
    Discriminator(tag_by_use(ENCODERS, "cnn14")),
]
"""The type of a field that selects an encoder: `{use: …, …}`; without `use` it is CNN14."""


class CustomCode(CustomPart):
    """A custom class or function: its import path, and the fields with which it is built or called.

    A class with an attribute `Config`, a pydantic model, is built as `Class(Config(**fields))`, any other class as
    `Class(**fields)`. A function gets the fields as keyword arguments on each call.
    """

    use: str = Field(description="package.module:Name of a class or a function; in Python, the class or function")

    def __str__(self) -> str:
        return self.description


def as_custom(value: Any) -> Any:
    """`{use: …}` for an import path, a class or a function; anything else unchanged."""
    return {"use": value} if callable(value) or (isinstance(value, str) and is_custom(value)) else value


SeparatorChoice = Annotated[
    Annotated[str, Tag("<folder>")] | Annotated[CustomCode, Tag("<custom>")],
    Discriminator(lambda value: "<folder>" if isinstance(value, str) else "<custom>"),
    BeforeValidator(as_custom),
]
"""A separator's folder, or custom code: an import path, or `{use: package.module:Name, …}`."""


def settings_for(found: Any, choice: Any, part: str) -> Any:
    """The settings with which a class is built: the choice itself, or for custom code a `Config` of its options.

    Raises:
        SepsceneError: custom code has no `Config`, or its fields are invalid. The message names the `part`.
    """
    if not isinstance(choice, CustomPart):
        return choice
    config = _config_of(found)
    if config is None:
        raise SepsceneError(f"{part} needs a class attribute Config, a pydantic model of its settings")
    return _settings(config, choice, part)


def _settings(config: type[Model], choice: CustomPart, part: str) -> Model:
    """A `Config` of the options of custom code.

    Unless the `Config` says what to do with other fields, an option that is not one of its fields is an error: pydantic
    would ignore it, so that a misspelt option would silently have no effect.

    Raises:
        SepsceneError: an option is unknown, or invalid. The message names the `part`.
    """
    computed = config.model_computed_fields  # which the card of a bundle contains, too
    options = {name: value for name, value in choice.options.items() if name not in computed}
    if "extra" not in config.model_config:
        validated(create_model("Strict", __base__=config, __cls_kwargs__={"extra": "forbid"}), options, part)
    return validated(config, options, part)


def _config_of(found: Any) -> type[BaseModel] | None:
    config = getattr(found, "Config", None)
    return config if isinstance(config, type) and issubclass(config, BaseModel) else None


def instantiate(choice: CustomCode, what: str) -> Any:
    """Build custom code as a callable, equal in every process. A torch module is set to evaluation mode.

    `what` is the kind of part, e.g. "separator".

    Raises:
        SepsceneError: the code is not trusted, cannot be imported on this machine, or its fields are invalid.
    """
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        called = _instantiate(choice, what)
    return called.eval().requires_grad_(False) if isinstance(called, torch.nn.Module) else called


def _instantiate(choice: CustomCode, what: str) -> Any:
    found = resolve(choice.use, {}, what)
    config = _config_of(found) if isinstance(found, type) else None
    settings = config and _settings(config, choice, f"{what} {choice.use}")
    try:
        if settings is not None:
            return found(settings)
        if isinstance(found, type):
            return found(**choice.options)
    except Exception as error:  # custom code can raise any exception
        raise SepsceneError(f"the {what} {choice} cannot be built ({type(error).__name__}: {error})") from error
    if not callable(found):
        raise SepsceneError(f"the {what} {choice.use} is neither a class nor a function")
    return update_wrapper(partial(found, **choice.options), found) if choice.options else found


@contextmanager
def reporting_errors(part: str, data: str) -> Iterator[None]:
    """Wrap the first calls of custom code: any error becomes a SepsceneError that names the part and its input."""
    try:
        yield
    except SepsceneError:
        raise
    except Exception as error:  # custom code can raise any exception
        raise SepsceneError(f"{part} fails on {data}: {error}") from error


def identity(choice: CustomCode) -> dict[str, Any]:
    """What identifies custom code: import path, version of its package, SHA-256 of its module's file, and its options.

    Code that the module imports from elsewhere is covered only by the version of the package.
    """
    module = import_module(choice.use.partition(":")[0])
    file = getattr(module, "__file__", None)
    content = Path(file).read_bytes() if file and Path(file).is_file() else b""
    facts = {**package_of(choice.use), "sha256": hashlib.sha256(content).hexdigest()}
    return {**facts, "options": choice.model_dump(mode="json", exclude={"use"})}


def separator_code(folder: str) -> str:
    """Import path of the custom separator in a folder; empty for any other separator or an unreadable folder."""
    try:
        card = read_card(folder)
    except CheckpointError:
        return ""
    return str(card.config.get("use", "")) if card.architecture == "own-separator" else ""
