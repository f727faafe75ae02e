"""Reads YAML from untrusted sources, writes configurations as YAML, and finds secrets in addresses."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import yaml

from sepscene.augment.locations import is_utf8
from sepscene.models.config import Config, SepsceneError
from sepscene.orchestration.terminal import printable

MAX_BYTES = 2**20  # an experiment has a few kilobytes; a larger file is not one
SECRET_KEYS = ("password", "token", "secret", "access_key", "sig", "signature", "credential")


def is_yaml(name: str) -> bool:
    """Whether an experiment or a sweep is given as a YAML file instead of by name."""
    return name.endswith((".yaml", ".yml"))


class _PlainLoader(yaml.SafeLoader):
    """Loads plain values only, and no aliases: a few hundred bytes of them can expand beyond the memory."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("it contains an alias (*name): replace the alias by its value")
        node: yaml.Node | None = super().compose_node(parent, index)
        return node


def read_yaml(path: Path, what: str) -> Any:
    """The plain values of a YAML file; `what` describes it in messages, e.g. "an experiment".

    Raises:
        SepsceneError: when the file is missing, larger than 1 MiB, not text, not YAML, or contains aliases.
    """
    try:
        if path.stat().st_size > MAX_BYTES:
            raise SepsceneError(
                f"{path} has {path.stat().st_size:,} bytes, too many for the YAML file of {what}: check the path"
            )
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise SepsceneError(f"{path} does not exist: give the path of the YAML file of {what}") from None
    except UnicodeDecodeError as error:
        raise SepsceneError(f"{path} cannot be read as YAML: {error}; correct the file") from None
    except OSError as error:
        raise SepsceneError(f"{path} cannot be read ({error.strerror}): check the path") from None
    return parse_yaml(text, str(path))


def parse_yaml(text: str, source: str) -> Any:
    """The plain values of a YAML text; `source` is a file or command-line argument, which messages name.

    Raises:
        SepsceneError: when the text is not YAML, or contains aliases.
    """
    if not is_utf8(text):
        raise SepsceneError(f"{printable(source)} contains a name that is not UTF-8: rename the file or folder")
    try:
        return yaml.load(text, _PlainLoader)
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise SepsceneError(f"{source} cannot be read as YAML: {error}; correct it") from None


def as_yaml(config: Config) -> str:
    """A configuration as YAML, with its fields in their order."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)


def secret_in(address: str, words: Iterable[str] = SECRET_KEYS) -> str | None:
    """A description of the secret in an address, without the secret itself; None if there is none."""
    if "://" not in address:
        return None
    try:
        parts = urlsplit(address)
    except ValueError:
        return None
    if parts.password or (parts.username and parts.scheme in ("http", "https")):
        return "a user name and password before the @"
    keys = [key for key, _ in parse_qsl(parts.query) if any(word in key.lower() for word in words)]
    return f"the query key {keys[0]!r}" if keys else None


def texts_of(tree: Any, field: str = "") -> Iterator[tuple[str, str]]:
    """All strings in a tree of plain values, including keys, each as (dotted field, string)."""
    if isinstance(tree, dict):
        for key, value in tree.items():
            below = f"{field}.{key}".strip(".")
            yield below, str(key)
            yield from texts_of(value, below)
    elif isinstance(tree, list | tuple):
        for value in tree:
            yield from texts_of(value, field)
    elif isinstance(tree, str):
        yield field, tree
