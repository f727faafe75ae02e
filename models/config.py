"""The base classes of all configurations and of all errors that a user can act on."""

from collections.abc import Mapping
from typing import Any, Self, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from sepscene.models.spelling import unknown, unknown_field

Model = TypeVar("Model", bound=BaseModel)


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


def dotted(location: tuple[int | str, ...]) -> str:
    """The dotted name of the field at pydantic's `location`, without the tags of union members."""
    return ".".join(str(part) for part in location if not str(part).startswith("<"))


def validated(model: type[Model], fields: Any, message: str, error_type: type[SepsceneError] = SepsceneError) -> Model:
    """Build the model from the fields.

    Raises:
        SepsceneError: the fields are invalid. The error is an `error_type`; its text starts with `message`, and has one
            clause per fault: the dotted field and what is wrong with it.
    """
    try:
        return model.model_validate(fields)
    except ValidationError as error:
        clauses = []
        for fault in error.errors():
            unlisted = fault["type"] == "extra_forbidden"
            reason = unknown_field(model, fault["loc"]) if unlisted else fault["msg"].removeprefix("Value error, ")
            clauses.append(f"{dotted(fault['loc']) or 'config'}: {reason}")
        raise error_type(f"{message}: {'; '.join(clauses)}") from None


class Config(BaseModel):
    """Base class of configurations: frozen; unknown fields, NaN and infinite numbers are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False)

    def changed(self, changes: Mapping[str, Any]) -> Self:
        """Return a copy with some fields changed, validated as a whole. This is the only way to change a configuration.

        Args:
            changes: dotted field -> value, e.g. {"objective.temperature": 0.1}. A new value in a field `use` (which
                encoder, …) removes the other fields of its section first: they are settings of the previous choice.

        Raises:
            SepsceneError: a field is unknown, or a value is invalid.
        """
        return validated(type(self), self._tree_with(changes), f"bad configuration with {', '.join(changes)}")

    def _tree_with(self, changes: Mapping[str, Any]) -> dict[str, Any]:
        """The plain values of all fields, with the changes, not validated.

        Raises:
            SepsceneError: the parent of a field does not exist.
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
            node[leaf] = value.model_dump() if isinstance(value, Config) else value
        return tree
