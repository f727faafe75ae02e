"""The base classes of all configurations and of all errors that a user can act on."""

from collections.abc import Mapping
from typing import Any, Self

from pydantic import BaseModel, ConfigDict

from sepscene.models.spelling import unknown


class SepsceneError(Exception):
    """An error whose message a user can act on: it names the file or field, what is wrong and how to fix it.

    The command line prints only the message, without a traceback, and exits with code 2.

    Example:
        >>> try:
        ...     sepscene.load_encoder("runs/nothing/encoder")
        ... except sepscene.SepsceneError as error:
        ...     print(error)
    """


class CheckpointError(SepsceneError):
    """A checkpoint that is damaged, incompatible or not trusted; the message names the file and what to do."""


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or the name of its type if the message is empty."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


class Config(BaseModel):
    """Base class of configurations: frozen; unknown fields, NaN and infinite numbers are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False)

    def changed(self, changes: Mapping[str, Any]) -> Self:
        """Return a copy with some fields changed, validated as a whole. This is the only way to change a configuration.

        Args:
            changes: dotted field -> value, e.g. {"objective.temperature": 0.1}. A new value in a field `use` (which
                encoder, …) removes the other fields of its section first: they are settings of the previous choice.

        Raises:
            SepsceneError: the parent of a field does not exist.
            ValidationError: a field is unknown, or a value is invalid.
        """
        tree = self.model_dump()
        for path, value in sorted(changes.items(), key=lambda change: change[0].rpartition(".")[2] != "use"):
            *parents, leaf = path.split(".")
            node: Any = tree
            for key in parents:
                known = node
                node = known.get(key)
                if not isinstance(node, dict):
                    reason = f"{key} is not a section" if key in known else unknown(key, known, "section")
                    message = f"{path} is not a field of the configuration: {reason}"
                    raise SepsceneError(f"{message}; `sepscene show` prints all fields")
            if leaf == "use" and value != node.get(leaf):
                node.clear()
            node[leaf] = value
        return self.model_validate(tree)
